"""How many servers and Redis shards a run needs: a model of costs that were measured.

`python -m service.capacity --generators 1000 --workload 7B` answers; `--measure` measures the costs anew, here.
"""

import argparse
import math
from dataclasses import dataclass, replace
from typing import Final

from groupreplay_admin.load.shapes import SHAPES
from service.capacity_costs import CONSTANTS, Constants, measure

USABLE: Final = 0.6
"""Share of a core that is planned with: a server or Redis beyond it answers late."""
REDIS_MEMORY_BYTES: Final = 32e9
"""Of a shard, of which USABLE_MEMORY is planned with: rewriting the append-only file needs room."""
USABLE_MEMORY: Final = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a run asks of the service."""

    groups_per_s: float
    """Fresh groups that generators insert, all together."""
    payload_bytes: float
    """Of a group."""
    deliveries: float = 2.0
    """Of a group, on average: once fresh, else from replay."""
    kept_groups: int = 8192
    """In the tables at a time: fresh, leased, replay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a workload takes."""

    server_cores: float
    index_cores: float
    """Of Redis, for what is done for each group: planned for the one shard that holds the run's index, though on a
    cluster the commands for payloads go to the others."""
    payload_cores: float
    """Of Redis, for the bytes of payloads: of all shards together."""
    memory_bytes: float
    network_bytes_per_s: float
    servers: int
    shards: int

    @property
    def fits_one_index(self) -> bool:
        """Whether one shard can do the index of the run; otherwise divide it into several runs."""
        return self.index_cores <= USABLE


WORKLOADS: Final = {
    "7B": Workload(groups_per_s=6, payload_bytes=SHAPES["D"].mean_bytes),
    "70B": Workload(groups_per_s=2, payload_bytes=SHAPES["L"].mean_bytes),
    "agentic": Workload(groups_per_s=1, payload_bytes=SHAPES["A"].mean_bytes, kept_groups=2048),
}
"""Rates are assumptions, of a large run of the kind; pass yours."""
GENERATORS: Final = {"7B": 8, "70B": 8, "agentic": 16}
"""That make such a rate together: what one makes is the rate over this."""


def need(workload: Workload, constants: Constants) -> Need:
    """Return what a workload takes by these costs."""
    rate, size = workload.groups_per_s, workload.payload_bytes
    drawn = rate * workload.deliveries
    memory = constants.stored_bytes.of(workload.kept_groups, workload.kept_groups * size)
    by_memory = math.ceil(memory / (REDIS_MEMORY_BYTES * USABLE_MEMORY))
    costs = constants.single
    redis = costs.redis(rate, drawn, size)
    if max(by_memory, math.ceil((redis.per_group + redis.per_byte) / USABLE)) > 1:
        costs = constants.cluster
        redis = costs.redis(rate, drawn, size)
    server = costs.servers(rate, drawn, size)
    # A run's index does not divide: what is left of its shard, and the other shards, move the payloads.
    by_cpu = math.ceil((redis.per_group + redis.per_byte) / USABLE)
    return Need(
        server_cores=server,
        index_cores=redis.per_group,
        payload_cores=redis.per_byte,
        memory_bytes=memory,
        network_bytes_per_s=(rate + drawn) * size,
        servers=max(2, math.ceil(server / USABLE)),  # one may go
        shards=max(1, by_cpu, by_memory),
    )


def of_generators(name: str, generators: int) -> Workload:
    """Return a workload of so many generators of a kind; what the tables keep stays as it is."""
    kind = WORKLOADS[name]
    return replace(kind, groups_per_s=kind.groups_per_s / GENERATORS[name] * generators)


def told(name: str, workload: Workload, found: Need) -> str:
    """Return the answer in words."""
    index = "" if found.fits_one_index else "; more than one shard does for one run: divide it into several runs"
    return (
        f"{name}: {workload.groups_per_s:g} groups/s of {workload.payload_bytes / 1e6:.3g} MB, "
        f"{found.network_bytes_per_s / 1e6:.0f} MB/s in and out\n"
        f"  servers: {found.servers} ({found.server_cores:.2f} cores)\n"
        f"  Redis: {found.shards} shard(s) ({found.index_cores:.3f} cores for the index{index}; "
        f"{found.payload_cores:.2f} for payloads; {found.memory_bytes / 1e9:.1f} GB)"
    )


def main() -> None:
    """Answer, or measure."""
    parser = argparse.ArgumentParser(prog="python -m service.capacity", description=__doc__)
    parser.add_argument(
        "--measure", action="store_true", help=f"measure the costs here, write {CONSTANTS.name}, and check them"
    )
    parser.add_argument("--workload", choices=[*WORKLOADS], help="one of these; all by default")
    parser.add_argument("--generators", type=int, help="so many, each as fast as one of the workload")
    parser.add_argument("--groups-per-s", type=float, help="fresh groups a second, of all generators")
    parser.add_argument("--group-bytes", type=float, help="payload of a group")
    parser.add_argument("--deliveries", type=float, help="of a group, on average")
    parser.add_argument("--kept-groups", type=int, help="groups in the tables at a time")
    options = parser.parse_args()
    if options.measure:
        measured, check = measure()
        measured.write()
        print(check)
    costs = Constants.read()
    asked = {
        "groups_per_s": options.groups_per_s,
        "payload_bytes": options.group_bytes,
        "deliveries": options.deliveries,
        "kept_groups": options.kept_groups,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    for name in [options.workload] if options.workload else WORKLOADS:
        workload = WORKLOADS[name] if options.generators is None else of_generators(name, options.generators)
        workload = replace(workload, **given)
        print(told(name, workload, need(workload, costs)))


if __name__ == "__main__":
    main()
