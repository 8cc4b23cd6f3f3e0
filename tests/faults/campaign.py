"""A load on two services and one Redis, whose processes are killed at random moments, and its account at the end."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from faults.audit import Audit, Trained, Verdict, check_redis, logged_steps, trained_steps
from faults.deployments import Deployment, Kind, deployed
from faults.journal import Record, group_ids, read_journal
from faults.victims import CommandProcess, Graveyard, Server, Victim, WorkerProcess, cleared
from faults.worker import Job, committed_steps
from lossy_proxy import Exchange, LossyProxy, is_grpc_answer, lossy_proxy
from processes import ServerProcess

from groupreplay import Client, Durability, Sampler, TableConfig
from groupreplay_server.store.keys import TableKeys
from groupreplay_trainer.sections import OptimizerSettings, ReplaySettings
from groupreplay_trainer.settings import TrainerSettings

RUN, TABLE = "faults", "train"
LEARNER = TrainerSettings(
    run="learner", batch_size=4, optimizer=OptimizerSettings(minibatches=2), threads=1, steps=10**6
)
TRAINERS = 2
BATCH_SIZE = 16
LOST_SHARE = 0.03
"""Of the answers that pass a lossy proxy."""
CALM_S = 3.0
"""How long the load runs undisturbed before the first kill and after the last."""
REST_S = 20.0
"""About what it takes from the last kill to the end."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is done, reproducibly but for what the scheduler of the machine does."""

    seed: int
    kills: int
    deployment: Kind = "standalone"
    pace_s: float = 4.0
    """Mean time between two kills."""
    learner: bool = True
    """Whether `groupreplay train` trains a model beside the load, and is killed too."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kill."""

    after_s: float
    victim: int
    down_s: float


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a campaign found."""

    plan: Plan
    kills: dict[str, int]
    verdict: Verdict
    seconds: float
    answers_lost: int
    learner_steps: int
    inserted: int
    duplicates: int
    producers: dict[str, list[Record]] = field(repr=False)
    trainers: dict[str, list[Record]] = field(repr=False)

    def acknowledged(self) -> int:
        """Return how many groups were acknowledged."""
        return sum(len(group_ids(records, "acknowledged")) for records in self.producers.values())

    def committed(self) -> int:
        """Return how many steps were committed."""
        return self.learner_steps + sum(len(committed_steps(records)) for records in self.trainers.values())

    def trainings(self, kind: str) -> list[Record]:
        """Return the records of one kind that trainers wrote."""
        return [record for records in self.trainers.values() for record in records if record["kind"] == kind]

    def calls(self) -> list[Record]:
        """Return every timed call."""
        everybody = [*self.producers.values(), *self.trainers.values()]
        return [record for records in everybody for record in records if record["kind"] == "call"]


def draw_faults(plan: Plan, victims: int) -> list[Fault]:
    """Return the kills of a plan: random moments, and every victim about as often as the others."""
    rng = random.Random(plan.seed)
    order: list[int] = []
    while len(order) < plan.kills:
        order += rng.sample(range(victims), victims)
    return [
        Fault(rng.uniform(0.2, 1.8) * plan.pace_s, victim, rng.choice([0.0, rng.uniform(0, 1), rng.uniform(1, 3)]))
        for victim in order[: plan.kills]
    ]


class Campaign:
    """The processes of a plan, in one folder."""

    def __init__(self, plan: Plan, folder: Path, say: Say) -> None:
        self._plan = plan
        self._folder = folder
        self._say = say
        self._graveyard = Graveyard()
        self._producers: list[WorkerProcess] = []
        self._trainers: list[WorkerProcess] = []
        self._learner: CommandProcess | None = None
        self._answers_lost = 0

    async def run(self) -> Outcome:
        """Start everything, kill it piece by piece, let it come to rest, and check what is there."""
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            where = stack.enter_context(deployed(self._plan.deployment, self._folder / "redis", self._rng("redis")))
            servers = [await self._start_server(f"server {name}", where, stack) for name in "ab"]
            addresses = [server.grpc_address for server in servers]
            proxies = [await stack.enter_async_context(self._lossy(address)) for address in addresses]
            await asyncio.to_thread(self._make_tables, addresses[0], where)
            for proxy in proxies:
                proxy.lose_answers(10**9)  # of those that are unlucky
            self._make_workers([*addresses, *(proxy.address for proxy in proxies)], where.durability)
            victims = [Server(f"server {name}", server) for name, server in zip("ab", servers, strict=True)]
            stack.enter_context(cleared(self._workers()))
            for worker in self._workers():
                await asyncio.to_thread(worker.start)
            await self._kill_all([*victims, where.victim, *self._workers()])
            await self._come_to_rest()
            await asyncio.to_thread(_forget, servers)
            self._answers_lost = sum(proxy.lost for proxy in proxies)
            return await asyncio.to_thread(self._account, addresses[0], where, started)

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self._plan.seed} {purpose}")

    async def _start_server(self, name: str, where: Deployment, stack: AsyncExitStack) -> ServerProcess:
        folder = self._folder / name.replace(" ", "-")
        folder.mkdir()
        server = ServerProcess(folder, where.url, *where.server_options, log=folder / "log")
        await asyncio.to_thread(server.start)
        stack.callback(server.kill)
        return server

    def _lossy(self, address: str) -> AbstractAsyncContextManager[LossyProxy]:
        """Run a proxy that breaks the connection in place of some answers."""
        rng = self._rng(address)

        def is_unlucky(exchange: Exchange, chunk: bytes) -> bool:
            return is_grpc_answer(exchange, chunk) and rng.random() < LOST_SHARE

        return lossy_proxy(address, is_unlucky)

    def _make_tables(self, address: str, where: Deployment) -> None:
        config = TableConfig(
            sampler=Sampler.PRIORITIZED,
            recency_decay=0.9,
            replay_capacity=512,
            ahead_groups=3 * BATCH_SIZE,
            durability=where.durability,
            lineage_steps=10**6,
            lineage_payload_steps=5,
        )
        with Client(address) as client:
            client.create_table(run=RUN, table=TABLE, config=config)
            if self._plan.learner:
                learner = replace(LEARNER, replay=ReplaySettings(durability=where.durability.value))
                client.create_table(run=learner.run, table=learner.table, config=learner.table_config())

    def _make_workers(self, addresses: list[str], durability: Durability) -> None:
        """Spread workers over both services, half of them behind a proxy that loses answers."""
        direct_a, direct_b, lossy_a, lossy_b = addresses
        self._producers = [
            WorkerProcess(self._job("producer", f"producer-{number}", address))
            for number, address in enumerate((direct_a, lossy_b, lossy_a))
        ]
        self._trainers = [
            WorkerProcess(self._job("trainer", f"trainer-{number}", address, number=number))
            for number, address in enumerate((lossy_a, direct_b))
        ]
        if self._plan.learner:
            job = self._job("producer", "feeder", lossy_b, run=LEARNER.run, table=LEARNER.table, long_groups=False)
            self._producers.append(WorkerProcess(job))
            self._learner = CommandProcess(
                "groupreplay train", self._learner_command(direct_a, durability), self._folder / "learner.log"
            )

    def _job(self, role: str, name: str, address: str, **more: object) -> Job:
        values: dict[str, object] = {
            "role": role,
            "name": name,
            "address": address,
            "journal": self._folder / f"{name}.jsonl",
            "run": RUN,
            "table": TABLE,
            "seed": self._plan.seed,
            "trainers": TRAINERS,
            "batch_size": BATCH_SIZE,
        }
        return Job(**values | more)  # type: ignore[arg-type]

    def _learner_command(self, address: str, durability: Durability) -> list[str]:
        flags = {
            "--server": address,
            "--run": LEARNER.run,
            "--run-dir": str(self._folder / "learner"),
            "--batch-size": str(LEARNER.batch_size),
            "--optimizer.minibatches": str(LEARNER.optimizer.minibatches),
            "--threads": str(LEARNER.threads),
            "--steps": str(LEARNER.steps),
            "--replay.durability": durability.value,
        }
        return ["groupreplay_cli", "train", *(part for flag in flags.items() for part in flag)]

    def _workers(self) -> list[CommandProcess]:
        return [*self._producers, *self._trainers, *([self._learner] if self._learner else [])]

    async def _kill_all(self, victims: list[Victim]) -> None:
        """Kill by the plan, a kind of victim as often as any other but for masters, and say how far it is."""
        kinds = list(dict.fromkeys(victim.kind for victim in victims))
        if self._plan.deployment != "standalone":
            kinds += ["redis master"] * 2
        faults = draw_faults(self._plan, len(kinds))
        rng = self._rng("which of a kind")
        left_s = planned_s = sum(fault.after_s for fault in faults)
        await asyncio.sleep(CALM_S)
        started = time.monotonic()
        for number, fault in enumerate(faults, start=1):
            await asyncio.sleep(fault.after_s)
            kind = kinds[fault.victim]
            victim = rng.choice([victim for victim in victims if victim.kind == kind])
            await self._graveyard.kill(victim, fault.down_s)
            left_s -= fault.after_s
            inserts, steps = await asyncio.to_thread(self._progress)
            slower = (time.monotonic() - started) / (planned_s - left_s)  # than planned
            self._say(
                f"{number:3} of {self._plan.kills} killed {kind:17}  {inserts:7} acknowledged {steps:6} steps committed"
                f"  about {left_s * slower + REST_S:3.0f} s left"
            )
        await self._graveyard.all_returned()
        await asyncio.sleep(CALM_S)

    def _progress(self) -> tuple[int, int]:
        records = [
            record for worker in (*self._producers, *self._trainers) for record in read_journal(worker.job.journal)
        ]
        return len(group_ids(records, "acknowledged")), sum(record["kind"] == "committed" for record in records)

    async def _come_to_rest(self) -> None:
        """Let producers finish, then trainers take what there is."""
        self._say("waiting until everybody has finished ...")
        for workers in (self._producers, self._trainers, [self._learner] if self._learner else []):
            await asyncio.gather(*(asyncio.to_thread(worker.finish) for worker in workers))

    def _account(self, address: str, where: Deployment, started: float) -> Outcome:
        self._say("checking every group and every step ...")
        producers = {worker.job.name: read_journal(worker.job.journal) for worker in self._producers}
        trainers = {worker.job.name: read_journal(worker.job.journal) for worker in self._trainers}
        load = {name: records for name, records in producers.items() if name != "feeder"}
        with Client(address, timeout_s=60.0) as client:
            verdict = Verdict()
            audit = Audit(client, verdict, run=RUN, table=TABLE)
            audit.check_groups(load)
            audit.check_steps(trained_steps(trainers, verdict))
            audit.check_clock(len(committed_steps(trainers["trainer-0"])))
            tables = [TableKeys(RUN, TABLE)]
            learnt: Mapping[int, Trained] = {}
            counters = client.describe_table(run=RUN, table=TABLE).counters
            if self._learner:
                learnt = self._check_learner(client, verdict, producers["feeder"])
                tables.append(TableKeys(LEARNER.run, LEARNER.table))
        with where.connect() as connection:
            check_redis(connection, tables, verdict)
        return Outcome(
            plan=self._plan,
            kills=self._graveyard.kills,
            verdict=verdict,
            seconds=time.monotonic() - started,
            answers_lost=self._answers_lost,
            learner_steps=len(learnt),
            inserted=counters.get("inserted", 0),
            duplicates=counters.get("duplicate", 0),
            producers=producers,
            trainers=trainers,
        )

    def _check_learner(self, client: Client, verdict: Verdict, feeder: list[Record]) -> Mapping[int, Trained]:
        steps = logged_steps(read_journal(self._folder / "learner/groups.jsonl"))
        audit = Audit(client, verdict, run=LEARNER.run, table=LEARNER.table)
        audit.check_groups({"feeder": feeder})
        audit.check_steps(steps, newest=LEARNER.table_config().lineage_steps)
        audit.check_clock(len(steps))
        return steps


def _forget(servers: list[ServerProcess]) -> None:
    """Start services again: what is checked is what Redis has, not what a service still has in memory."""
    for server in servers:
        server.kill()
        server.start()
