"""A Docker engine with the images of this tree. `make test-compose` builds them and runs these tests."""

import pytest
from compose.docker import missing


@pytest.fixture(autouse=True, scope="session")
def _engine() -> None:
    if reason := missing():
        pytest.skip(reason)
