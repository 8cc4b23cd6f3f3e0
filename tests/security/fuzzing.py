"""How long the fuzzers try."""

import pytest
from hypothesis import HealthCheck, settings


def fuzz(request: pytest.FixtureRequest, examples: int) -> settings:
    """Return settings for so many examples, the same each time; or for as many as --fuzz-examples says, chosen anew."""
    asked = int(request.config.getoption("--fuzz-examples"))
    return settings(
        max_examples=asked or examples,
        derandomize=not asked,
        suppress_health_check=list(HealthCheck),
    )
