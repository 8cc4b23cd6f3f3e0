"""A call, compared with what its caller may do: the same for both front doors."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from google.protobuf.message import Message

from groupreplay.group_messages import InsertMessage
from groupreplay_server.access import RULES, Access, Reach, current_caller

_NAMED = ("run", "table", "name")
"""What of a request the audit log says."""
Request = Message | InsertMessage


class CheckedCall:
    """One call of an RPC."""

    def __init__(self, access: Access, rpc: str) -> None:
        self._access = access
        self._rpc = rpc
        self.target: dict[str, str] = {}
        """What the call is about, for the audit log; filled in as it becomes known."""

    def check_path(self, names: Mapping[str, str]) -> None:
        """Check scope and run before a body is read; names are those in the path.

        Raises:
            PermissionDeniedError: the token does not allow the call.
        """
        self._note(names)
        caller = current_caller()
        self._access.check_scope(caller, self._rpc)
        if RULES[self._rpc].reach is not Reach.RUN_OR_ALL:
            self._access.check_run(caller, self._rpc, names.get("run", ""))

    def check(self, request: Request) -> None:
        """Check the only or first message of a call.

        Raises:
            PermissionDeniedError: it is about a run that the token is not for.
        """
        subject = subject_of(self._rpc, request)
        self._note({name: getattr(subject, name, "") for name in _NAMED})
        run = self._access.check_run(current_caller(), self._rpc, getattr(subject, "run", ""))
        if RULES[self._rpc].reach is Reach.RUN_OR_ALL:
            subject.run = run

    async def stream(self, requests: AsyncIterator[Request]) -> AsyncIterator[Request]:
        """Pass the messages of a stream on: the first is checked, and a caller that owes bytes is made to wait."""
        first = True
        async for request in requests:
            await self.confirm()
            if first:
                self.check(request)
            first = False
            wait_s = self.charge(request)
            yield request
            if wait_s:
                await asyncio.sleep(wait_s)

    async def confirm(self) -> None:
        """Raise UnauthenticatedError where the token was revoked, or has expired, since the call began."""
        await self._access.confirm(current_caller())

    async def before_answer(self, message: Message | bytes) -> None:
        """Make sure that the caller may still have an answer, count it, and wait where the caller owes bytes.

        Raises:
            UnauthenticatedError: the token was revoked, or has expired, since the call began.
        """
        await self.confirm()
        if wait_s := self.charge(message):
            await asyncio.sleep(wait_s)

    def charge(self, message: Request | bytes) -> float:
        """Count the bytes of a message; return how many seconds to wait before more of a stream."""
        if not self._access.counts_bytes:
            return 0.0
        return self._access.charge(_size_bytes(message))

    def _note(self, names: Mapping[str, str]) -> None:
        self.target |= {name: names[name][:128] for name in _NAMED if names.get(name)}


def _size_bytes(message: Request | bytes) -> int:
    if isinstance(message, bytes):
        return len(message)
    return message.size_bytes if isinstance(message, InsertMessage) else message.ByteSize()


def subject_of(rpc: str, request: Any) -> Any:
    """Return the request, or the message in it, that names what the call is about."""
    if rpc in {"AdvancePolicy", "RewindPolicy"}:
        return request.policy
    if rpc == "Restore":
        return request.header.table
    return request.token if rpc == "CreateToken" else request
