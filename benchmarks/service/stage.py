"""All that scenarios need: started when one asks for it, stopped at the end."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from groupreplay import TableConfig
from groupreplay_admin.load.crew import Crew, Job
from groupreplay_admin.load.jobs import Where
from groupreplay_admin.load.tally import Tally
from service.access import Access
from service.deployment import Deployment
from service.limits import BareGrpc
from service.peer import Peer
from service.private_redis import Keeping, PrivateRedis

FEW_CLIENTS = 4
MOST_CLIENTS = 16
_Started = TypeVar("_Started")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long a benchmark takes."""

    seconds: float
    """Of a trial."""
    rounds: int
    """Of each scenario; ratios are within a round."""
    large_batch: int = 512
    """D groups in the batch that must not fill the server's memory."""
    large_table: int = 1_000_000
    """Groups in the largest table."""
    atropos_groups: int = 64


class Stage:
    """Deployments, client processes and peers of one benchmark, in a folder that it may fill."""

    def __init__(self, folder: Path, effort: Effort) -> None:
        self.folder = folder
        self.effort = effort
        self._stack = ExitStack()
        self._started: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def deployment(
        self, keeping: Keeping = "memory", *, name: str = "", cached: bool = True, access: Access = "open"
    ) -> Deployment:
        """Return a service; each that differs in its name or in the rest has a Redis of its own."""
        parts = (name or keeping, *(() if cached else ("uncached",)), *(() if access == "open" else (access,)))
        name = "-".join(parts)
        return self._start(f"service-{name}", Deployment(self.folder / name, keeping, cached=cached, access=access))

    def run(self, *jobs: Job) -> list[Tally]:
        """Let client processes do these jobs, all at once."""
        return self.crew(len(jobs)).run(jobs)

    def crew(self, clients: int) -> Crew:
        """Return at least so many client processes."""
        size = FEW_CLIENTS if clients <= FEW_CLIENTS else MOST_CLIENTS
        return self._start(f"clients-{size}", Crew(size))

    @property
    def bare_grpc(self) -> BareGrpc:
        """A gRPC server that stores nothing."""
        return self._start("bare-grpc", BareGrpc())

    @property
    def bare_redis(self) -> PrivateRedis:
        """A Redis without a service, with the options of one that has a service."""
        return self._start("bare-redis", PrivateRedis(self.folder / "bare"))

    def peer(self, name: str) -> Peer:
        """Return a peer's process."""
        return self._start(f"peer-{name}", Peer(name, folder=self.folder))

    def empty_table(
        self, config: TableConfig, keeping: Keeping = "memory", *, cached: bool = True, access: Access = "open"
    ) -> tuple[Deployment, Where]:
        """Return a service with one empty table, and where that is for producers, as jobs take it."""
        service = self.deployment(keeping, cached=cached, access=access)
        return service, service.empty(f"{config.fill}-{config.durability}", config)

    def _start(self, name: str, made: _Started) -> _Started:
        if name not in self._started:
            self._started[name] = self._stack.enter_context(made)  # type: ignore[arg-type]
        found: _Started = self._started[name]
        return found
