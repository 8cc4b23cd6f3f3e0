"""What belongs to a run rather than to a table: its policy clock and its quota."""

from collections.abc import Callable

from groupreplay.errors import FuturePolicyVersionError, UnknownRunError
from groupreplay.groups import now_ms
from groupreplay.types import Policy, Quota
from groupreplay_server.store.backend import Backend
from groupreplay_server.store.connection import text, translated_errors
from groupreplay_server.store.fields import pairs, policy_from_fields
from groupreplay_server.store.keys import RunKeys
from groupreplay_server.store.scripts import Value, call_script


class PolicyStore:
    """Policy clocks and quotas."""

    def __init__(self, redis: Backend, clock: Callable[[], int] = now_ms) -> None:
        """Use this Redis, which the caller opens and closes. clock returns Unix milliseconds."""
        self._redis = redis
        self._now_ms = clock

    async def advance(self, policy: Policy) -> Policy:
        """Move a run's policy clock forward; return where it stands."""
        return await self._move("advance_policy", policy, {})

    async def rewind(self, policy: Policy, *, step: int, rewind_id: str) -> Policy:
        """Move a run's policy clock back; return where it stands."""
        return await self._move("rewind_policy", policy, {"step": step, "rewind_id": rewind_id})

    async def _move(self, script: str, policy: Policy, more: dict[str, Value]) -> Policy:
        keys = RunKeys(policy.run)
        values: dict[str, Value] = {
            "now_ms": self._now_ms(),
            "run": policy.run,
            "version": policy.version,
            "weights_uri": policy.weights_uri,
            "weights_sha256": policy.weights_sha256,
            "label": policy.label or str(policy.version),
        }
        with translated_errors():
            reply = await call_script(self._redis, script, [keys.policy, keys.labels], values | more)
        return policy_from_fields(policy.run, pairs(reply))

    async def get(self, run: str) -> Policy:
        """Return where a run's policy clock stands."""
        with translated_errors():
            found = await self._redis.hgetall(RunKeys(run).policy)
        if not found:
            raise UnknownRunError(f"there is no run {run}; creating its first table makes it")
        return policy_from_fields(run, {text(name): text(value) for name, value in found.items()})

    async def resolve(self, run: str, label: str) -> int:
        """Return the version that a label names."""
        with translated_errors():
            found = await self._redis.hget(RunKeys(run).labels, label)
        if found is None:
            clock = await self.get(run)
            raise FuturePolicyVersionError(
                f"run {run} has no policy labelled {label!r}; its clock stands at version {clock.version}, labelled "
                f"{clock.label!r}; pass the label that AdvancePolicy was called with"
            )
        return int(found)

    async def quota(self, run: str, change: tuple[int | None, int | None] | None = None) -> Quota:
        """Set (max_groups, max_bytes) of a run where a change is given; return its quota and what it holds."""
        keys = RunKeys(run)
        limits = ["" if limit is None else str(limit) for limit in change or (None, None)]
        values: dict[str, Value] = {
            "run": run,
            "change": int(change is not None),
            "max_groups": limits[0],
            "max_bytes": limits[1],
        }
        with translated_errors():
            reply = await call_script(
                self._redis, "set_quota", [keys.policy, keys.key("quota"), keys.key("usage")], values
            )
        most_groups, most_bytes, groups, held = reply
        return Quota(
            max_groups=int(most_groups) if most_groups else None,
            max_bytes=int(most_bytes) if most_bytes else None,
            groups=groups,
            bytes=held,
        )
