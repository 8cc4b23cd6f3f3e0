"""Every Redis key of groupreplay.

The index keys of a run share the hash tag {run}, so that the scripts see its policy clock and a table at one moment,
on Redis Cluster too. Payload keys carry no tag: their bytes spread over all shards.
"""

from dataclasses import dataclass
from functools import lru_cache

PREFIX = "gr1"
"""Names the key layout; a new layout takes a new prefix."""
RUNS = f"{PREFIX}:runs"
"""set of run names"""
SWEEPER = f"{PREFIX}:sweeper"
"""string: the server that sweeps orphans, with an expiry"""
RESTORES = f"{PREFIX}:restores"
"""set of `run/table` that are being restored"""
TOKENS = f"{PREFIX}:tokens"
"""hash: name of a token -> JSON of what it allows and the SHA-256 of its secret"""
PAYLOADS = f"{PREFIX}:payload:"
"""what every payload key begins with"""
WAKE_CHANNEL = f"{PREFIX}:wake"
"""pub/sub channel, messages `run/table fresh N`, `run/table demand N`, `run policy N`, `run/table closing MS`"""

_RUN_KEYS = ("policy", "tables", "labels", "quota", "usage", "barrier")
_TABLE_KEYS = (
    "config", "state", "counters", "tasks", "fresh", "recency", "arrival", "priority", "divergence", "clock", "weights",
    "sums", "born", "headers", "facts", "marks", "uses", "pins", "returns", "leased", "leases", "records", "ended",
    "steps", "seen", "waiting", "admitted", "garbage",
    "lineage", "logged", "producers", "holds",
    "opened", "pieces", "closing", "closed", "closed_at",
    "history",
    "ratios", "ratios_at",
)  # fmt: skip
_ATROPOS = "atropos"


@dataclass(frozen=True, slots=True)
class RunKeys:
    """Keys of a run."""

    run: str

    def key(self, name: str) -> str:
        """Return the key of this name: policy, tables, labels, quota or usage."""
        return f"{PREFIX}:{{{self.run}}}:{name}"

    @property
    def policy(self) -> str:
        """hash: the policy clock"""
        return self.key("policy")

    @property
    def tables(self) -> str:
        """set of table names"""
        return self.key("tables")

    @property
    def labels(self) -> str:
        """hash: label of a policy -> its version"""
        return self.key("labels")

    @property
    def barrier(self) -> str:
        """string: written before a wait for durability, so that it waits for something"""
        return f"{PREFIX}:{{{self.run}}}:barrier"


@dataclass(frozen=True, slots=True)
class TableKeys:
    """Keys of a table; lua/prelude.lua says what each holds."""

    run: str
    table: str

    @property
    def topic(self) -> str:
        """Name of the table in messages."""
        return f"{self.run}/{self.table}"

    def key(self, name: str) -> str:
        """Return the index key of this name."""
        return f"{PREFIX}:{{{self.run}}}:{self.table}:{name}"

    def all(self) -> tuple[str, ...]:
        """Return the keys in the order in which the scripts declare them."""
        return _all_keys(self.run, self.table)

    @property
    def atropos(self) -> str:
        """hash: what the Atropos API remembers of its trainer and environments (atropos_store.py)"""
        return self.key(_ATROPOS)

    def payload(self, member: str) -> str:
        """Return the key of a payload, or of log ratios; member = group_id/payload_ref, as the garbage set has it."""
        return f"{PAYLOADS}{self.run}/{self.table}/{member}"


@lru_cache(1024)  # every call of every script needs them
def _all_keys(run_name: str, table: str) -> tuple[str, ...]:
    run, keys = RunKeys(run_name), TableKeys(run_name, table)
    return (run.policy, run.key("quota"), run.key("usage"), *(keys.key(name) for name in _TABLE_KEYS))


def barrier_beside(key: str) -> str:
    """Return the barrier of the run that an index key belongs to; both are in one slot."""
    return RunKeys(key[key.index("{") + 1 : key.index("}")]).barrier


def payload_parts(key: str) -> tuple[str, str, str, str]:
    """Return run, table, group_id and payload_ref of a payload key."""
    run, table, group_id, payload_ref = key.removeprefix(PAYLOADS).split("/")
    return run, table, group_id, payload_ref


def is_declared(key: str) -> bool:
    """Return whether key is one that this module can make."""
    if key in {RUNS, SWEEPER, RESTORES, TOKENS}:
        return True
    head, _, rest = key.partition(":")
    if head != PREFIX:
        return False
    if rest.startswith("payload:"):
        return rest.count("/") == 3
    parts = rest.split(":")
    tagged = parts[0].startswith("{") and parts[0].endswith("}")
    if len(parts) == 2:
        return tagged and parts[1] in _RUN_KEYS
    return tagged and len(parts) == 3 and parts[2] in {*_TABLE_KEYS, _ATROPOS}
