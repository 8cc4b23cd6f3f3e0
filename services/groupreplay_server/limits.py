"""What a request may ask for."""

from groupreplay.errors import InvalidRequestError
from groupreplay.groups import check_name
from groupreplay_server.store.keys import TableKeys

MAX_BATCH_SIZE = 65536
MAX_GROUP_IDS = 10_000
MAX_WAIT_S = 86_400.0


def check_names(run: str, table: str) -> TableKeys:
    """Return the keys of a table; raise InvalidRequestError where a name cannot be one."""
    check_name(run, "run")
    check_name(table, "table")
    return TableKeys(run, table)


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise InvalidRequestError unless value lies in [low, high]."""
    if not low <= value <= high:  # also false for NaN
        raise InvalidRequestError(f"{name} {value} is not in {low:.16g} to {high:.16g}")
