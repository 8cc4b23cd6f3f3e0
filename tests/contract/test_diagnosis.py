"""Why a batch is not ready, in words."""

import pytest
from samples import effective, ineffective
from table_user import MakeTable, TableUser
from unchanged import unchanged

from groupreplay import BatchNotReadyError, Diagnosis, InvalidRequestError, ProducerHealth, Severity, UnknownTableError

MINUTE_MS = 60_000


async def look(table: TableUser, batch_size: int) -> Diagnosis:
    return await table.client.diagnose(batch_size=batch_size, **table.names)


def texts(diagnosis: Diagnosis, code: str) -> list[str]:
    """Return what a diagnosis says under a code."""
    return [finding.text for finding in diagnosis.findings if finding.code == code]


async def test_an_empty_table_says_that_nobody_produces(make_table: MakeTable) -> None:
    """What is missing, that nothing ever came, and what to start."""
    table = await make_table()
    diagnosis = await look(table, 4)
    assert not diagnosis.ready
    assert [finding.severity for finding in diagnosis.findings] == [Severity.PROBLEM, Severity.PROBLEM]
    assert "needs 4 more fresh groups for a batch of 4" in texts(diagnosis, "missing_groups")[0]
    assert "nothing came yet" in texts(diagnosis, "missing_groups")[0]
    assert "start a generator" in texts(diagnosis, "no_producers")[0]


async def test_a_ready_batch_is_said_to_be_ready_and_stays(make_table: MakeTable) -> None:
    """Looking takes nothing and changes nothing."""
    table = await make_table()
    await table.insert(*effective("a", producer_id="p"), *ineffective("x", producer_id="p"))
    async with unchanged(table):
        diagnosis = await look(table, 2)
    assert diagnosis.ready
    assert "2 fresh groups may be taken, 1 of them effective" in texts(diagnosis, "ready")[0]
    assert "1 groups short" in texts(diagnosis, "short_replay")[0]
    assert (diagnosis.table.fresh, diagnosis.producers[0].inserted, diagnosis.producers[0].effective) == (2, 2, 1)


async def test_a_producer_that_fell_silent_is_called_dead_by_name(make_table: MakeTable) -> None:
    """After three beats; it is alive again once it is heard."""
    table = await make_table()
    await table.client.beat(producer_id="gpu-7", interval_s=10.0, status="warming up", **table.names)
    assert (await look(table, 1)).producers[0].health is ProducerHealth.ALIVE
    table.age_producers(by_ms=31_000)
    diagnosis = await look(table, 1)
    assert diagnosis.producers[0].health is ProducerHealth.DEAD
    assert "Producer gpu-7 was last heard of 31 s ago (it beats every 10 s)" in texts(diagnosis, "dead_producer")[0]
    await table.insert(*effective("a", producer_id="gpu-7"))
    assert (await look(table, 1)).producers[0].health is ProducerHealth.ALIVE


async def test_a_producer_without_beats_is_dead_after_two_minutes(make_table: MakeTable) -> None:
    """Inserts and admissions are signs of life, too."""
    table = await make_table()
    await table.admit("quiet", 1)
    assert (await look(table, 1)).producers[0].health is ProducerHealth.ALIVE
    table.age_producers(by_ms=2 * MINUTE_MS + 1000)
    diagnosis = await look(table, 1)
    assert "it never sent a beat" in texts(diagnosis, "dead_producer")[0]


async def test_demand_without_a_trainer_is_named(make_table: MakeTable) -> None:
    """ahead_groups 0 and no NextBatch: the producers are right to wait, and the trainer is what is missing."""
    table = await make_table(ahead_groups=0)
    await table.admit("p", 4)
    assert "start the trainer" in texts(await look(table, 2), "no_demand")[0]


async def test_stale_and_refused_groups_are_counted_by_task(make_table: MakeTable) -> None:
    """So that a bias toward fast tasks can be seen."""
    table = await make_table(max_staleness=0)
    await table.insert(*effective("a", "b", task="slow"), *effective("c", task="fast"))
    await table.advance(1)
    with pytest.raises(BatchNotReadyError):
        await table.take(3)
    text = texts(await look(table, 3), "stale_groups")[0]
    assert "3 groups were dropped or refused as older than max_staleness 0 (100%)" in text
    assert "slow 2, fast 1" in text


async def test_leases_and_their_holders_are_listed(make_table: MakeTable) -> None:
    """Who has the groups, and until when."""
    table = await make_table()
    await table.insert(*effective("a", "b"))
    await table.take(2, lease_id="step-9", holder="trainer-3", lease_s=100.0)
    diagnosis = await look(table, 1)
    assert "step-9 of trainer-3 with 2 fresh, until in 100 s" in texts(diagnosis, "leased_groups")[0]
    lease = diagnosis.leases[0]
    assert (lease.lease_id, lease.holder, lease.groups, lease.fresh) == ("step-9", "trainer-3", 2, 2)


async def test_groups_that_wait_for_their_prompt_are_named(make_table: MakeTable) -> None:
    """One prompt per batch: three groups of one prompt are one batch's worth of one."""
    table = await make_table()
    await table.insert(*effective("a", "b", "c", prompt_id="same"))
    diagnosis = await look(table, 2)
    assert not diagnosis.ready
    assert "2 fresh groups wait because their prompt is in the batch already" in texts(diagnosis, "repeated_prompts")[0]


async def test_a_low_effective_share_is_a_warning(make_table: MakeTable) -> None:
    """Prompts that teach nothing."""
    table = await make_table()
    await table.insert(*ineffective(*(f"x{number}" for number in range(9))), *effective("a"))
    diagnosis = await look(table, 4)
    assert "1 of 10 groups had reward variance (10%)" in texts(diagnosis, "effective_share")[0]


async def test_bad_requests_for_a_diagnosis_are_refused(make_table: MakeTable) -> None:
    """Each with its own error."""
    table = await make_table()
    async with unchanged(table):
        with pytest.raises(InvalidRequestError, match="batch_size 0 is not in 1 to 65536"):
            await look(table, 0)
        with pytest.raises(UnknownTableError):
            await table.client.diagnose(run=table.run, table="other", batch_size=1)
        with pytest.raises(InvalidRequestError, match=r"interval_s 0\.5 is not in 1 to"):
            await table.client.beat(producer_id="p", interval_s=0.5, **table.names)
        with pytest.raises(InvalidRequestError, match="producer_id '' is not"):
            await table.client.beat(producer_id="", **table.names)
