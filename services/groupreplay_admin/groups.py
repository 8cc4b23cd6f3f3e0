"""`groupreplay groups`: the groups of a table, and one of them with its responses and rewards."""

import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from groupreplay import Client, GroupState, InvalidRequestError, ListedGroup
from groupreplay.groups import check_name
from groupreplay_admin.connection import ServiceSettings, open_client
from groupreplay_admin.group_view import print_group, print_groups
from groupreplay_admin.keeping import ARGUMENT
from groupreplay_admin.output import to_json
from groupreplay_admin.whole_group import find_group

PAGE = 1000


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class GroupsSettings(ServiceSettings):
    """Which groups, and how to show them.

    Raises:
        InvalidRequestError: a name has characters that the service refuses, or limit is below 1.
    """

    run: str = "default"
    """Training run."""
    table: str = "rollouts"
    """Table of the run."""
    state: Literal["fresh", "leased", "replay"] | None = None
    """list: only groups there. Default: all."""
    task: str | None = None
    """list: only groups of this task. Default: all."""
    prompt_id: str = ""
    """list: only groups of this prompt. Default: all."""
    effective: bool | None = None
    """list: only groups with (--no-effective: without) reward variance. Default: all."""
    policy_version_from: int | None = None
    """list: only groups whose oldest policy version is this or newer."""
    policy_version_to: int | None = None
    """list: only groups whose oldest policy version is this or older."""
    limit: int = 50
    """list: most groups to show."""
    cursor: str = ""
    """list: where to go on; what the listing before ended with."""
    full: bool = False
    """show: whole texts, however long, in place of their beginnings."""
    json: bool = False
    """Print one JSON object, for programs."""

    def __post_init__(self) -> None:
        for name in ("run", "table"):
            check_name(getattr(self, name), name)
        if self.limit < 1:
            raise InvalidRequestError(f"limit {self.limit} must be at least 1")


_DEFAULTS = GroupsSettings()


def groups(
    what: Annotated[Literal["list", "show"], ARGUMENT] = "list",
    group_id: Annotated[str, ARGUMENT] = "",
    /,
    *,
    settings: GroupsSettings = _DEFAULTS,
) -> int:
    """List the groups of a table, newest first, or show one with each response and its reward. Nothing is taken.

    Fresh groups come first, latest arrival first; then leased ones, in no order; then replay, newest policy first.

    Parameters
    ----------
    what
        list = a line for each group; show = all of one group.
    group_id
        The group to show.
    """
    if (what == "show") != bool(group_id):
        raise InvalidRequestError("`groups show GROUP_ID` shows one group, `groups list` takes no name")
    with open_client(settings) as client:
        if what == "list":
            found, cursor = _list(client, settings)
            if settings.json:
                print(to_json({"groups": found, "next_cursor": cursor}))
            else:
                print_groups(found, cursor)
            return 0
        group = find_group(client, group_id, run=settings.run, table=settings.table)
    if group is None:
        where = f"table {settings.run}/{settings.table}"
        print(f"groupreplay groups: {where} holds no group {group_id}; `groups list` has its groups", file=sys.stderr)
        return 1
    print(to_json(group)) if settings.json else print_group(group, full=settings.full)
    return 0


def _list(client: Client, settings: GroupsSettings) -> tuple[list[ListedGroup], str]:
    """Return groups, and where to go on; empty = there are no more."""
    filters: dict[str, Any] = {
        name: getattr(settings, name)
        for name in ("run", "table", "task", "prompt_id", "effective", "policy_version_from", "policy_version_to")
    }
    states = [GroupState(settings.state)] if settings.state else []
    found: list[ListedGroup] = []
    cursor = settings.cursor
    while len(found) < settings.limit:
        limit = min(PAGE, settings.limit - len(found))
        page = client.list_groups(states=states, limit=limit, cursor=cursor, **filters)
        found += page.groups
        cursor = page.next_cursor
        if not cursor:
            break
    return found, cursor
