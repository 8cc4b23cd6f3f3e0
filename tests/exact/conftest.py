"""Tables whose every draw is held to its law."""

from collections.abc import Callable
from functools import partial

import pytest
import redis
from exact.drawing import ExactTable


@pytest.fixture
def exact(clean_redis: redis.Redis) -> Callable[..., ExactTable]:
    """A factory of tables, one at a time."""
    return partial(ExactTable, clean_redis)
