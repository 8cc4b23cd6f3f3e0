"""The capacity model: what follows from its costs, and that it foretells a load that it was not fitted to."""

from dataclasses import replace
from pathlib import Path

import pytest

from service.capacity import WORKLOADS, Workload, need, of_generators
from service.capacity_costs import Constants, Costs, Line, measure

FACTOR = 1.3
"""That the model may be off by, either way."""
COSTS = Costs(
    insert_server_s=Line(per_group=1e-3, per_byte=1e-9),
    insert_redis_s=Line(per_group=1e-4, per_byte=1e-9),
    draw_server_s=Line(per_group=1e-3, per_byte=1e-9),
    draw_redis_s=Line(per_group=2e-4, per_byte=0.0),
)
CONSTANTS = Constants(
    single=COSTS,
    cluster=replace(COSTS, insert_server_s=Line(per_group=4e-3, per_byte=1e-9)),
    stored_bytes=Line(per_group=1000.0, per_byte=1.0),
    processors=2,
)


def test_a_workload_takes_what_its_groups_and_bytes_cost() -> None:
    """By hand: 100 groups a second of 1 MB, each given twice."""
    workload = Workload(groups_per_s=100, payload_bytes=1e6, deliveries=2, kept_groups=10_000)
    found = need(workload, CONSTANTS)
    assert found.server_cores == pytest.approx(0.1 + 0.1 + 0.2 + 0.2)
    assert found.index_cores == pytest.approx(0.01 + 0.04)
    assert found.payload_cores == pytest.approx(0.1)
    assert found.memory_bytes == pytest.approx(10_000 * 1_001_000)
    assert (found.servers, found.shards) == (2, 1)
    assert found.fits_one_index
    larger = need(replace(workload, kept_groups=50_000), CONSTANTS)  # 50 GB, on shards of 32 GB of which 70 % are used
    assert (larger.servers, larger.shards) == (2, 3)
    assert larger.server_cores == pytest.approx(found.server_cores + 0.3)  # by the costs of a cluster


def test_an_index_that_is_too_much_for_one_shard_is_said() -> None:
    """More shards do not help there: a run's index is in one."""
    found = need(Workload(groups_per_s=5000, payload_bytes=100, deliveries=1), CONSTANTS)
    assert not found.fits_one_index


def test_a_thousand_generators_are_a_larger_rate() -> None:
    """And every workload can be served by what was measured."""
    thousand = of_generators("7B", 1000)
    assert thousand.groups_per_s == pytest.approx(750)
    assert all(need(workload, Constants.read()).fits_one_index for workload in WORKLOADS.values())


def test_costs_are_read_as_they_were_written(tmp_path: Path) -> None:
    """And those that were committed can be read."""
    Constants.read().write(tmp_path / "costs.json")
    assert Constants.read(tmp_path / "costs.json") == Constants.read()


@pytest.mark.minutes
@pytest.mark.timeout(900)
def test_the_model_foretells_four_servers_on_a_cluster() -> None:
    """CPU seconds of 64 producers and a trainer, by what groups of other sizes took in turns with them."""
    _, found = measure()
    print(found)
    assert 1 / FACTOR < found.server_ratio < FACTOR
    assert 1 / FACTOR < found.redis_ratio < FACTOR
