"""The load that benchmarks put on a service: the same groups everywhere, and every one counted."""

import numpy as np
import pytest
from processes import ServerProcess

from groupreplay import Client, Fill, TableConfig
from groupreplay_admin.load.crew import ClientFailedError, Crew
from groupreplay_admin.load.jobs import Draw, InsertAtRate, InsertEach, InsertStream, TableName, Where
from groupreplay_admin.load.producing import groups_of
from groupreplay_admin.load.shapes import SHAPES, make_arrays
from groupreplay_admin.load.tally import Tally, together

TABLE: TableName = {"run": "bench", "table": "tiny"}


@pytest.fixture
def where(server_process: ServerProcess, sync_client: Client) -> Where:
    """An empty table whose groups can all be drawn."""
    sync_client.create_table(**TABLE, config=TableConfig(fill=Fill.KEEP, fresh_capacity=10_000))
    return Where(server=server_process.grpc_address, **TABLE)


def test_shapes_are_as_large_as_they_say_and_always_the_same() -> None:
    """Sizes are those of the table in the documentation, and numbers do not depend on the run."""
    sizes = {name: SHAPES[name].mean_bytes for name in "SMDLA"}
    assert sizes == {"S": 32_768, "M": 81_920, "D": 614_400, "L": 4_194_304, "A": 16_777_216}
    first, again, other = (make_arrays(SHAPES["M"], index) for index in (3, 3, 4))
    np.testing.assert_array_equal(first.token_ids, again.token_ids)
    assert first.token_ids[:4].tolist() == [44_546, 136_312, 45_816, 62_603]
    assert not np.array_equal(first.lengths, other.lengths)
    assert set(first.rewards) == {0.0, 1.0}
    mean = np.mean([make_arrays(SHAPES["M"], index).size_bytes for index in range(64)])
    assert mean == pytest.approx(SHAPES["M"].mean_bytes, rel=0.05)


def test_half_of_the_groups_can_be_ineffective() -> None:
    """They come evenly among the others, and no two groups share an id or a prompt."""
    supply = groups_of(SHAPES["tiny"], prefix="p", ineffective=0.5)
    groups = [next(supply) for _ in range(40)]
    assert [group.rewards.std() == 0 for group in groups] == [False, True] * 20
    assert len({group.group_id for group in groups} | {group.prompt_id for group in groups}) == 40


def test_processes_insert_and_draw_what_they_say(where: Where, sync_client: Client) -> None:
    """What producers count is in the table, and what a trainer counts has left it."""
    with Crew(2) as crew:
        streams = [InsertStream(where=where, seconds=60, shape="tiny", number=n, max_groups=150) for n in range(2)]
        streamed = together(crew.run(streams))
        [each] = crew.run([InsertEach(where=where, seconds=60, shape="tiny", max_groups=20)])
        [timed] = crew.run([InsertAtRate(where=where, seconds=0.5, shape="tiny", per_s=40.0)])
        assert (streamed.groups, each.groups, timed.groups) == (300, 20, 20)
        assert len(each.latencies_s) == len(timed.latencies_s) == 20
        assert sync_client.describe_table(**TABLE).fresh == 340
        [drawn] = crew.run([Draw(where=where, seconds=60, call="next_batch", batch_size=32, feedback=True)])
    assert drawn.groups == 320
    assert drawn.payload_bytes == pytest.approx(320 / 340 * _bytes(streamed, each, timed), rel=0.1)
    state = sync_client.describe_table(**TABLE)
    assert (state.fresh, state.leased, state.counters["leases_committed"]) == (20, 0, 10)


def test_a_batch_is_asked_for_ahead_and_none_is_left_behind(where: Where, sync_client: Client) -> None:
    """Whatever is ahead, each batch is committed once, and no lease is open when the job ends."""
    with Crew(1) as crew:
        crew.run([InsertStream(where=where, seconds=60, shape="tiny", max_groups=90)])
        for ahead, most in ((1, 2), (2, 2**40)):
            [drawn] = crew.run(
                [Draw(where=where, seconds=60, call="next_batch", batch_size=10, ahead=ahead, max_batches=most)]
            )
            assert len(drawn.latencies_s) == drawn.groups / 10 == min(most, 7)
    state = sync_client.describe_table(**TABLE)
    assert (state.fresh, state.leased, state.counters["leases_committed"]) == (0, 0, 9)


def _bytes(*tallies: Tally) -> int:
    return sum(tally.payload_bytes for tally in tallies)


def test_a_client_that_fails_says_why(where: Where) -> None:
    """An error in a client process reaches whoever runs the crew, which can go on with other jobs."""
    elsewhere = Where(server=where.server, run="bench", table="nowhere")
    with Crew(1) as crew:
        with pytest.raises(ClientFailedError, match="there is no table bench/nowhere"):
            crew.run([InsertEach(where=elsewhere, seconds=1, shape="tiny")])
        [tally] = crew.run([InsertEach(where=where, seconds=60, shape="tiny", max_groups=1)])
    assert tally.groups == 1


def test_the_slowest_client_says_how_long_it_took() -> None:
    """Rates of several clients are of all their groups over the time until the last was done."""
    tally = together(
        [
            Tally(groups=10, payload_bytes=1000, seconds=1.0, latencies_s=[0.1]),
            Tally(groups=30, payload_bytes=3000, seconds=2.0, latencies_s=[0.3]),
        ]
    )
    assert (tally.groups_per_s, tally.mb_per_s) == (20.0, 0.002)
    assert tally.latency_ms(50) == pytest.approx(200.0)
    assert Tally(groups=0, payload_bytes=0, seconds=0.0).latency_ms(50) is None
