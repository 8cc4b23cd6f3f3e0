"""A cluster of Kubernetes. `make test-helm` installs the chart on that of kubectl's context, in a namespace."""

import pytest
from helm.release import missing


@pytest.fixture(autouse=True, scope="session")
def _cluster() -> None:
    if reason := missing():
        pytest.skip(reason)
