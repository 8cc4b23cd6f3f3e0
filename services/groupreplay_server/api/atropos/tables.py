"""The table behind a path of this API, with what its routes share."""

from dataclasses import dataclass

from fastapi import Request

from groupreplay.errors import TableExistsError, UnknownRunError, UnknownTableError
from groupreplay.table_config import TableConfig
from groupreplay_server.api.atropos.arrivals import Arrivals
from groupreplay_server.api.atropos.turns import Turns
from groupreplay_server.limits import check_names
from groupreplay_server.service import ReplayService
from groupreplay_server.store.atropos_store import AtroposState

NEW_TABLE = TableConfig(allow_repeated_prompts=True)
"""What a table is made with where nobody made it: POPO's refill, and a batch takes groups as they come."""


@dataclass(frozen=True, slots=True)
class ServedTable:
    """A table under this API."""

    service: ReplayService
    arrivals: Arrivals
    turns: Turns
    run: str
    table: str

    @property
    def names(self) -> tuple[str, str]:
        """(run, table)"""
        return self.run, self.table

    async def state(self) -> AtroposState:
        """Return what is remembered of trainer and environments."""
        return await self.service.atropos.read(*self.names)

    async def ensure(self) -> None:
        """Make the table unless it is there: a client of this API has no way to."""
        try:
            await self.service.table_config(*self.names)
        except (UnknownRunError, UnknownTableError):
            try:
                await self.service.create_table(*self.names, NEW_TABLE)
            except TableExistsError:
                return  # made by somebody else in between

    async def fresh(self) -> int:
        """Return how many groups wait; none where there is no table."""
        try:
            return (await self.service.describe_table(*self.names)).fresh
        except (UnknownRunError, UnknownTableError):
            return 0


class ServedTables:
    """The tables of a service under this API."""

    def __init__(self, service: ReplayService, at_root: str = "") -> None:
        """Serve any table by its path, and `at_root` (RUN/TABLE) where the path names none."""
        self._service = service
        self._arrivals = Arrivals(service)
        self._turns = Turns(service, self._arrivals)
        self._at_root = at_root

    def of(self, request: Request) -> ServedTable:
        """Return the table of a request.

        Raises:
            InvalidRequestError: the path names none that could be.
        """
        run, _, table = self._at_root.partition("/")
        run, table = request.path_params.get("run", run), request.path_params.get("table", table)
        check_names(run, table)
        return ServedTable(self._service, self._arrivals, self._turns, run, table)
