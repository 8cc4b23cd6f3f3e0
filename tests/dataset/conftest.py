"""A service, and a table that datasets take batches from."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from processes import ServerProcess, wait_until
from samples import make_group

from groupreplay import Client, Policy, Table, TableConfig
from groupreplay.torch import GroupDataset


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One table of a running service."""

    client: Client
    address: str
    run: str = field(default_factory=lambda: f"run-{uuid.uuid4().hex[:8]}")
    table: str = "train"

    @property
    def names(self) -> dict[str, Any]:
        """Arguments that every call on the table has."""
        return {"run": self.run, "table": self.table}

    def insert(self, count: int, **other: Any) -> list[str]:
        """Insert effective groups; return their ids, which sort in order of arrival."""
        first = self.describe().counters.get("inserted", 0)
        ids = [f"g{first + index:03d}" for index in range(count)]
        for index, group_id in enumerate(ids):
            self.client.insert(make_group(group_id, **{"tokens": 2 + index % 3} | other), **self.names)
        return ids

    def dataset(self, **options: Any) -> GroupDataset:
        """Return a dataset of batches of two groups."""
        return GroupDataset(
            self.address, **self.names, **{"batch_size": 2, "pad_token_id": 0, "timeout_s": 10.0} | options
        )

    def describe(self) -> Table:
        """Return the state of the table."""
        return self.client.describe_table(**self.names)

    def until(self, **expected: int) -> None:
        """Wait until the table has these sizes."""

        def reached() -> bool:
            table = self.describe()
            return all(getattr(table, name) == value for name, value in expected.items())

        wait_until(reached, f"{expected}")

    def advance(self, version: int) -> None:
        """Publish a policy version."""
        self.client.advance_policy(Policy(run=self.run, version=version, weights_uri=f"w{version}"))


@pytest.fixture(scope="session")
def service(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A service on the session's Redis; each test has a run of its own in it."""
    process = ServerProcess(tmp_path_factory.mktemp("service"), redis_url)
    process.start()
    yield process
    assert process.terminate() == 0


@pytest.fixture
def bench(service: ServerProcess, clean_redis: redis.Redis) -> Iterator[Bench]:
    """A table that takes repeated use."""
    with Client(service.grpc_address, timeout_s=10.0) as client:
        found = Bench(client=client, address=service.grpc_address)
        client.create_table(**found.names, config=TableConfig())
        yield found
