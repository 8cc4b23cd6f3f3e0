"""Drives a table in a real Redis and its model with the same operations, and compares what they answer and hold."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from invariants import check_invariants, check_table, read_table
from model.configs import Arrival, arrivals, configs, limits, rarely
from model.parts import Delivered, Group, NotReady, Quotas, Taken
from model.stored_groups import RANDOM
from model.table_model import TableModel
from pytest import approx  # noqa: PT013 - it is a value here
from store_user import KEYS, incoming

from groupreplay import Fill, GroupFeedback, GroupReplayError, GroupSource, InvalidRequestError, Policy, Sampler
from groupreplay_server.store.connection import open_redis
from groupreplay_server.store.records import BatchNotReady, LeasedBatch
from groupreplay_server.store.redis_store import RedisStore

NAMES = ("run", "train")
LEASES = st.sampled_from(["l0", "l1", "l2", "l3"])
STEPS = st.integers(0, 6)
PICKS = st.lists(st.integers(0, 200), min_size=1, max_size=4)
"""Of the ids that were used so far, counted from the last."""
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.sampled_from([0.0, 0.25, 3.0]),
        "kl": st.sampled_from([0.0, 0.3, 0.8]),
        "ess": st.sampled_from([0.5, 1.0]),
    },
)
FATES = st.sampled_from(["commit", "commit", "commit", "release", "expire", "late"])
Answer = TypeVar("Answer")


class TableMachine(RuleBasedStateMachine):
    """One table; a clock that only moves when a rule says so."""

    redis_url = ""
    fill = Fill.REPLAY
    sampler = Sampler.RECENCY

    def __init__(self) -> None:
        super().__init__()
        self.redis = redis.Redis.from_url(self.redis_url)
        self.redis.flushall()
        self.now_ms = 1_000_000
        self.random = random.Random(0)
        self.ids: list[str] = []
        self.steps = 1000
        self.runner = asyncio.Runner()
        self.opened = open_redis(self.redis_url)
        connection = self.runner.run(self.opened.__aenter__())
        self.store = RedisStore(connection, lambda: self.now_ms, lambda: f"{self.random.getrandbits(128):032x}")

    def teardown(self) -> None:
        """Hold what is left to the invariants, also after all payloads of groups that left are removed."""
        self.runner.run(self.store.collect_garbage(*NAMES))
        check_invariants(self.redis)
        self.runner.run(self.opened.__aexit__(None, None, None))
        self.runner.close()
        self.redis.close()

    @initialize(data=st.data())
    def make_table(self, data: st.DataObject) -> None:
        """Begin with a table of any configuration with this fill rule and sampler."""
        config = data.draw(configs(self.fill, self.sampler))
        self.runner.run(self.store.create_table(*NAMES, config))
        self.model = TableModel(config, self.now_ms)

    def both(self, real: Awaitable[Answer], model: Callable[[Answer | None], Any]) -> tuple[Any, Any]:
        """Do the same to both; return their answers, or the classes of the errors that they raised."""

        async def call() -> Answer:
            return await real

        answer: Answer | None = None
        found: Any
        try:
            answer = found = self.runner.run(call())
        except GroupReplayError as error:
            found = type(error)
        self.model.now_ms = self.now_ms
        try:
            expected = model(answer)
        except GroupReplayError as error:
            expected = type(error)
        return found, expected

    def agree(self, real: Awaitable[Answer], model: Callable[[Answer | None], Any]) -> Any:
        """Do the same to both, assert that they answer the same, and compare what they hold."""
        found, expected = self.both(real, model)
        assert found == expected, f"the store answered {found}, the model {expected}"
        self.compare()
        return found

    def compare(self) -> None:
        """Assert that table and model hold the same, and that the index is whole."""
        model = self.model
        table = self.runner.run(self.store.describe_table(*NAMES))
        model.now_ms = self.now_ms
        model.look()
        places = dict(zip(self.ids, self.runner.run(self.store.locate_groups(*NAMES, self.ids)), strict=True))
        expected = {group_id: model.locate(group_id) for group_id in self.ids}
        different = {i: (str(place), expected[i]) for i, place in places.items() if place != expected[i]}
        assert not different, f"(store, model): {different}"
        assert table.counters == {name: count for name, count in model.counters.items() if count}
        assert table.task_counters == dict(model.tasks)
        assert (table.payload_bytes, table.policy_version) == (model.held_bytes(), model.version)
        assert (table.missing, table.leases) == (model.missing(), len(model.live()))
        assert table.config == model.config
        check_table(read_table(self.redis, KEYS))

    # Producers

    @rule(arrivals=st.lists(arrivals(), min_size=1, max_size=6))
    def insert(self, arrivals: list[Arrival]) -> None:
        """Insert groups in one call."""
        groups = [self._group(arrival) for arrival in arrivals]
        real = [
            incoming(
                group.group_id,
                prompt_id=group.prompt_id,
                producer_id=group.producer_id,
                policy_version_min=group.version_min,
                policy_version_max=group.version_max,
                reward_std=0.5 if group.effective else 0.0,
                task=group.task,
                priority=group.priority,
                payload=None if arrival.size is None else b"x" * arrival.size,
            )
            for group, arrival in zip(groups, arrivals, strict=True)
        ]
        found, expected = self.both(self.store.insert_groups(*NAMES, real), lambda _: self.model.insert(groups))
        reasons = [r.error.reason if r.error else r.outcome.value.upper() for r in found]
        assert reasons == expected, f"the store answered {reasons}, the model {expected}"
        self.compare()

    def _group(self, arrival: Arrival) -> Group:
        if arrival.again is None or not self.ids:
            self.ids.append(f"g{len(self.ids)}")
        group_id = self.ids[-1] if arrival.again is None else self._picked([arrival.again])[0]
        high = max(0, self.model.version - arrival.behind)
        return Group(
            group_id=group_id,
            prompt_id=f"prompt-{arrival.prompt}",
            task=arrival.task,
            producer_id=arrival.producer,
            version_min=max(0, high - arrival.span),
            version_max=high,
            effective=arrival.effective,
            bytes=arrival.size or 0,
            priority=arrival.priority,
        )

    def _picked(self, picks: list[int]) -> list[str]:
        """Return ids that were used, the last ones first, and one that was not."""
        known = ["nobody", *self.ids]
        return [known[-1 - pick % len(known)] for pick in picks]

    def _feedback(self, picks: list[int], values: dict[str, float]) -> list[GroupFeedback]:
        """Return feedback; every other group has log ratios, which must be gone when the group is (invariants.py)."""
        tokens = [None, np.zeros(3)]
        return [
            GroupFeedback(group_id=group_id, log_ratios=tokens[pick % 2], **values)
            for pick, group_id in zip(picks, self._picked(picks), strict=True)
        ]

    @rule(producer=st.sampled_from(["p0", "p1"]), most=st.integers(1, 6), seconds=st.sampled_from([2, 20]))
    def request_admission(self, producer: str, most: int, seconds: int) -> None:
        """Ask how many groups the table wants."""
        self.agree(
            self.store.request_admission(*NAMES, producer_id=producer, max_groups=most, admission_ms=1000 * seconds),
            lambda _: self.model.admit(producer, most, self.now_ms + 1000 * seconds),
        )

    # Trainers

    @rule(lease=LEASES, size=st.integers(1, 4), seconds=st.sampled_from([3, 30]))
    def next_batch(self, lease: str, size: int, seconds: int) -> None:
        """Take a batch, or begin to wait for one."""
        call = self.store.take_batch(
            *NAMES, lease_id=lease, batch_size=size, lease_ms=1000 * seconds, holder="", wait_ms=5000, call_id=lease
        )
        deadline_ms, wait_until_ms = self.now_ms + 1000 * seconds, self.now_ms + 5000
        self._agree_on_groups(
            call,
            lambda drawn, left: self.model.take(
                lease, size, deadline_ms=deadline_ms, wait_until_ms=wait_until_ms, drawn=drawn, left=left
            ),
        )

    @rule(lease=LEASES, size=st.integers(1, 4), seconds=st.sampled_from([3, 30]))
    def sample(self, lease: str, size: int, seconds: int) -> None:
        """Draw a sample."""
        call = self.store.draw_sample(*NAMES, lease_id=lease, batch_size=size, lease_ms=1000 * seconds, holder="")
        deadline_ms = self.now_ms + 1000 * seconds
        self._agree_on_groups(
            call, lambda drawn, left: self.model.sample(lease, size, deadline_ms=deadline_ms, drawn=drawn, left=left)
        )

    def _agree_on_groups(
        self,
        call: Awaitable[LeasedBatch | BatchNotReady],
        model: Callable[[Sequence[str], Sequence[str]], Taken | NotReady],
    ) -> None:
        """As agree; where the sampler is random the model is told what was drawn."""

        def told(answer: LeasedBatch | BatchNotReady | None) -> Taken | NotReady:
            groups = answer.groups if isinstance(answer, LeasedBatch) else ()
            drawn = [group.group_id for group in groups if group.source is GroupSource.REPLAY]
            return model(drawn, self._left() if self.model.config.sampler in RANDOM else [])

        found, expected = self.both(call, told)
        if isinstance(found, LeasedBatch):
            found = Taken(found.fresh, found.fresh_effective, tuple(_delivered(found)))
            assert isinstance(expected, Taken), f"the store handed out {found}, the model answers {expected}"
            expected = replace(expected, groups=tuple(_nearly(delivered) for delivered in expected.groups))
        elif isinstance(found, BatchNotReady):
            found = NotReady(found.wanted, found.available, found.next_deadline_ms)
        assert found == expected, f"the store answered {found}, the model {expected}"
        self.compare()

    def _left(self) -> list[str]:
        """Groups that the model has in replay and Redis has no more, while the draw met them."""
        self.model.look()
        replay = read_table(self.redis, KEYS).ids("recency")
        return [group.group_id for group in self.model.at("replay") if group.group_id not in replay]

    @rule(lease=LEASES, step=STEPS, picks=PICKS, values=VALUES)
    def commit(self, lease: str, step: int, picks: list[int], values: dict[str, float]) -> None:
        """Commit a lease, with feedback on any groups."""
        feedback = self._feedback(picks, values)
        self.agree(
            self.store.commit_lease(*NAMES, lease_id=lease, step=step, feedback=feedback),
            lambda _: self.model.commit(lease, step, feedback),
        )

    @precondition(lambda self: self.model.live())
    @rule(which=st.integers(0, 3), step=st.integers(10, 999), picks=PICKS, values=VALUES)
    def commit_a_live_lease(self, which: int, step: int, picks: list[int], values: dict[str, float]) -> None:
        """Commit what is out, with a step that is mostly new."""
        live = sorted(self.model.live())
        self.commit(live[which % len(live)], step, picks, values)

    @rule(fates=st.lists(FATES, min_size=1, max_size=4), size=st.integers(1, 3), picks=PICKS, values=VALUES)
    def train(self, fates: list[str], size: int, picks: list[int], values: dict[str, float]) -> None:
        """Insert groups, take a batch of them and end its lease, some times: what happens all day."""
        plain = Arrival(None, 0, 0, 0, effective=True, size=10, priority=1.0, task="", producer="")
        for fate in fates:
            self.steps += 1
            self.insert([replace(plain, prompt=number, effective=number < 2) for number in range(size)])
            lease = f"lease-of-step-{self.steps}"
            if self.model.config.fill is Fill.SAMPLE:
                self.sample(lease, size, 3)
            else:
                self.next_batch(lease, size, 3)
            if fate in {"expire", "late"}:
                self.now_ms += 3000
                self.compare()
            if fate in {"commit", "late"}:
                self.commit(lease, self.steps, picks, values)
            elif fate == "release":
                self.release(lease)

    @rule(lease=LEASES)
    def release(self, lease: str) -> None:
        """Give a lease back."""
        self.agree(self.store.release_lease(*NAMES, lease_id=lease), lambda _: self.model.release(lease))

    @rule(lease=LEASES, seconds=st.sampled_from([1, 60]))
    def extend_lease(self, lease: str, seconds: int) -> None:
        """Move a deadline."""
        self.agree(
            self.store.extend_lease(*NAMES, lease_id=lease, lease_ms=1000 * seconds),
            lambda _: self.model.extend(lease, self.now_ms + 1000 * seconds),
        )

    @rule(picks=PICKS, values=VALUES)
    def update_priorities(self, picks: list[int], values: dict[str, float]) -> None:
        """Feed back on any groups."""
        feedback = self._feedback(picks, values)
        self.agree(self.store.update_priorities(*NAMES, feedback), lambda _: self.model.update_priorities(feedback))

    # Time and the policy: the table is not looked at, so that what they bring is found by the next operation

    @rule(ms=st.sampled_from([1, 900, 3000, 6000, 13_000]))
    def let_time_pass(self, ms: int) -> None:
        """Move the clock."""
        self.now_ms += ms

    @rule(versions=st.sampled_from([1, 1, 1, 2, 3]))
    def advance_policy(self, versions: int) -> None:
        """Publish new weights."""
        version = self.model.version + versions
        weights = f"w{version}-{self.random.random()}"
        self.runner.run(self.store.policies.advance(Policy(run="run", version=version, weights_uri=weights)))
        self.model.version = version

    @rule(versions=st.sampled_from([0, 1, 1, 2]), step=STEPS)
    def rewind_policy(self, versions: int, step: int) -> None:
        """Go back to an older checkpoint."""
        version = max(0, self.model.version - versions)
        policy = Policy(run="run", version=version, weights_uri="back")
        rewind_id = f"rewind-{self.random.random()}"
        self.runner.run(self.store.policies.rewind(policy, step=step, rewind_id=rewind_id))
        self.model.rewind(version, step)

    # Whoever runs the table

    @rule(picks=PICKS)
    def delete_groups(self, picks: list[int]) -> None:
        """Remove groups."""
        group_ids = self._picked(picks)
        self.agree(self.store.delete_groups(*NAMES, group_ids), lambda _: self.model.delete(group_ids))

    @rule(sure=st.integers(0, 4))
    def reset_table(self, sure: int) -> None:
        """Remove all groups, now and then."""
        if sure == 4:
            self.agree(self.store.reset_table(*NAMES), lambda _: self.model.reset())

    @rule(data=st.data())
    def update_table(self, data: st.DataObject) -> None:
        """Change a limit or two."""
        changed = data.draw(limits(self.model.config.fill))
        names = data.draw(st.lists(st.sampled_from(sorted(changed)), min_size=1, max_size=2))
        try:
            config = replace(self.model.config, **{name: changed[name] for name in names})
        except InvalidRequestError:
            return  # two limits that contradict each other
        self.agree(self.store.update_table(*NAMES, config), lambda _: self.model.update(config))

    @rule(name=st.sampled_from(["replay_capacity", "capacity_bytes", "max_times_sampled", "max_staleness"]))
    def tighten_a_limit(self, name: str) -> None:
        """Set a limit to about half of what there is."""
        tight: dict[str, Any] = {
            "replay_capacity": max(1, len(self.model.at("replay")) // 2),
            "capacity_bytes": max(20, self.model.held_bytes() // 2),
            "max_times_sampled": 1,
            "max_staleness": max(1, self.model.config.min_staleness),
        }
        config = replace(self.model.config, **{name: tight[name]})
        self.agree(self.store.update_table(*NAMES, config), lambda _: self.model.update(config))

    @rule(groups=rarely(st.integers(3, 12)), size=rarely(st.integers(50, 300)))
    def set_quota(self, groups: int | None, size: int | None) -> None:
        """Limit the run."""
        found = self.runner.run(self.store.policies.quota("run", (groups, size)))
        self.model.quota = Quotas(groups, size)
        held = (len(self.model.groups), self.model.held_bytes())
        assert (found.max_groups, found.max_bytes, found.groups, found.bytes) == (groups, size, *held)


def _delivered(batch: LeasedBatch) -> list[Delivered]:
    return [
        Delivered(
            group.group_id,
            group.source.value,
            group.staleness,
            group.times_sampled,
            group.redeliveries,
            group.probability,
            group.importance_weight,
        )
        for group in batch.groups
    ]


def _nearly(delivered: Delivered) -> Delivered:
    """Return what is expected, with probabilities that need not agree in the last digits."""
    nearly: dict[str, Any] = {
        name: approx(getattr(delivered, name), rel=1e-9) for name in ("probability", "importance_weight")
    }
    return replace(delivered, **nearly)
