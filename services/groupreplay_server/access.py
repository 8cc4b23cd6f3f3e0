"""Who may do what: one table for all front doors, and the checks that they make."""

from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import Enum

from groupreplay.errors import PermissionDeniedError, UnauthenticatedError
from groupreplay.tokens import Scope, Token
from groupreplay_server.audit import AuditLog
from groupreplay_server.rate_limiter import RateLimiter
from groupreplay_server.tokens import Tokens


class Reach(Enum):
    """Where a call finds the run that it is about."""

    RUN = "run"
    """It names one run; a token of another is refused."""
    RUN_OR_ALL = "run_or_all"
    """It may leave the run out, for all runs. A token of one run is then shown that run."""
    SERVICE = "service"
    """It is about the service as a whole: a token of one run is refused."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a call asks of its caller. Admin may call everything."""

    scopes: frozenset[Scope] = frozenset()
    reach: Reach = Reach.RUN
    audited: bool = False
    """Whether each call leaves a line in the audit log: those that change or hand out more than one's own groups."""


_PRODUCER = Rule(frozenset({Scope.PRODUCER}))
_CONSUMER = Rule(frozenset({Scope.CONSUMER}))
_BOTH = Rule(frozenset({Scope.PRODUCER, Scope.CONSUMER}))
_CONSUMER_AUDITED = Rule(frozenset({Scope.CONSUMER}), audited=True)
_ADMIN = Rule(audited=True)

RULES = {
    "Insert": _PRODUCER,
    "InsertStream": _PRODUCER,
    "PushRollouts": _PRODUCER,
    "PushRolloutsStream": _PRODUCER,
    "RequestAdmission": _PRODUCER,
    "Beat": _PRODUCER,
    "NextBatch": _CONSUMER,
    "ReadLease": _CONSUMER,
    "Sample": _CONSUMER,
    "Commit": _CONSUMER,
    "Release": _CONSUMER,
    "ExtendLease": _CONSUMER,
    "UpdatePriorities": _CONSUMER,
    "GetLineage": _CONSUMER,
    "ReplayStep": _CONSUMER,
    "GetGroups": _CONSUMER,
    "ListGroups": _CONSUMER,
    "AdvancePolicy": _CONSUMER,
    "CreateTable": _CONSUMER_AUDITED,
    "RewindPolicy": _CONSUMER_AUDITED,
    "Snapshot": _CONSUMER_AUDITED,
    "Diagnose": _BOTH,
    "GetTableHistory": _BOTH,
    "LocateGroups": _BOTH,
    "DescribeTable": _BOTH,
    "ListTables": Rule(_BOTH.scopes, Reach.RUN_OR_ALL),
    "ResolvePolicy": _BOTH,
    "GetPolicy": _BOTH,
    "WatchPolicy": _BOTH,
    "GetQuota": _BOTH,
    "UpdateTable": _ADMIN,
    "ResetTable": _ADMIN,
    "DeleteGroups": _ADMIN,
    "SetQuota": _ADMIN,
    "Restore": _ADMIN,
    "GetServerInfo": Rule(reach=Reach.SERVICE),
    "CreateToken": Rule(reach=Reach.SERVICE, audited=True),
    "ListTokens": Rule(reach=Reach.SERVICE, audited=True),
    "RevokeToken": Rule(reach=Reach.SERVICE, audited=True),
}
"""Every RPC, and what it asks. The REST routes ask what the RPC of the same use case asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls, for as long as the call lasts."""

    token: Token | None = None
    """None = the service asks for no tokens."""
    bearer: str = field(default="", repr=False)
    peer: str = ""
    door: str = "grpc"

    @property
    def name(self) -> str:
        """Name for limits and the audit log; empty = the service asks for no tokens."""
        return self.token.name if self.token else ""

    def at(self, peer: str) -> "Caller":
        """Return the caller with its address, which gRPC tells later than its token."""
        return replace(self, peer=peer)


_caller: ContextVar[Caller] = ContextVar("caller")


class Access:
    """The checks that every front door makes, in this order: enter, then check_run once the request is read."""

    def __init__(self, tokens: Tokens | None, limiter: RateLimiter, audit: AuditLog) -> None:
        """tokens=None asks nobody for a token."""
        self._tokens = tokens
        self._limiter = limiter
        self._audit = audit

    @property
    def asks_for_tokens(self) -> bool:
        """Whether callers must show one."""
        return self._tokens is not None

    async def enter(self, authorization: str | None, *, peer: str, door: str) -> Caller:
        """Find out who calls from the value of an `authorization` header, and count the call against its limit.

        Raises:
            UnauthenticatedError: it shows no good token, and must.
            RateLimitedError: it calls too often, or owes bytes.
        """
        if self._tokens is None:
            caller = Caller(peer=peer, door=door)
        else:
            bearer = _bearer(authorization)
            caller = Caller(token=await self._tokens.authenticate(bearer), bearer=bearer, peer=peer, door=door)
        self._limiter.admit(caller.name)
        _caller.set(caller)
        return caller

    async def confirm(self, caller: Caller) -> None:
        """Raise UnauthenticatedError where a caller who entered, maybe long ago, would not be let in now."""
        if self._tokens is not None:
            await self._tokens.authenticate(caller.bearer)

    @staticmethod
    def check_scope(caller: Caller, call: str) -> None:
        """Raise PermissionDeniedError unless the caller's scope allows a call."""
        token, rule = caller.token, RULES[call]
        if token is None or token.scope is Scope.ADMIN or token.scope in rule.scopes:
            return
        needed = " or ".join(sorted({*rule.scopes, Scope.ADMIN}))
        raise PermissionDeniedError(
            f"{call} needs a token of scope {needed}; token {token.name!r} is of scope {token.scope}"
        )

    @staticmethod
    def check_run(caller: Caller, call: str, run: str) -> str:
        """Return the run that a call is about, which a token of one run may leave out where all would be meant.

        Raises:
            PermissionDeniedError: the token is for another run, or the call for more than a run.
        """
        token, reach = caller.token, RULES[call].reach
        if token is None or not token.run:
            return run
        if reach is Reach.SERVICE:
            raise PermissionDeniedError(
                f"{call} is about the whole service; token {token.name!r} is for run {token.run!r} only"
            )
        if reach is Reach.RUN_OR_ALL and not run:
            return token.run
        if run != token.run:
            raise PermissionDeniedError(f"{call} on run {run[:128]!r}: token {token.name!r} is for run {token.run!r}")
        return run

    @property
    def counts_bytes(self) -> bool:
        """Whether charge() does anything."""
        return self._limiter.counts_bytes

    def charge(self, size: int) -> float:
        """Count bytes against the limit of the caller; return how many seconds to wait before more of a stream."""
        return self._limiter.charge(current_caller().name, size)

    def record(self, caller: Caller, call: str, outcome: str, target: dict[str, str]) -> None:
        """Write a line to the audit log, where the table says that the call leaves one."""
        if RULES[call].audited:
            self._audit.record(
                who=caller.name, peer=caller.peer, door=caller.door, call=call, outcome=outcome, target=target
            )


def current_caller() -> Caller:
    """Return who makes the call that runs now; nobody in particular outside of one."""
    return _caller.get(Caller())


def note_peer(peer: str) -> None:
    """Add the address to who makes the call that runs now."""
    _caller.set(current_caller().at(peer))


def _bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError(
            "the call shows no token; send `authorization: Bearer TOKEN`: pass token= to the client, or --token-file "
            "or GROUPREPLAY_TOKEN to the command"
        )
    return token.strip()
