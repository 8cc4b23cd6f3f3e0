"""What an ack says of durability."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
import redis
from invariants import check_invariants
from processes import RedisProcess
from samples import effective, make_group
from service_user import settings
from table_user import MakeTable

from groupreplay import (
    AsyncClient,
    Durability,
    GroupState,
    InsertOutcome,
)
from groupreplay.convert import group_to_wire
from groupreplay.v1 import replay_service_pb2 as pb
from groupreplay.v1.group_pb2 import RolloutGroup
from groupreplay_server.app import running_server


@pytest.fixture
def synced_redis(tmp_path: Path) -> Iterator[redis.Redis]:
    """A Redis that syncs its append-only file with every write."""
    with RedisProcess(tmp_path) as process, redis.Redis.from_url(process.url) as connection:
        yield connection
        check_invariants(connection)


@pytest.fixture
async def make_synced_table(synced_redis: redis.Redis, tmp_path: Path) -> AsyncIterator[MakeTable]:
    """A factory of tables on it."""
    async with (
        running_server(replace(settings(f"unix://{tmp_path / 'redis.sock'}"), durability_wait_s=0.2)) as server,
        AsyncClient(server.grpc_address, timeout_s=3.0) as client,
    ):
        yield MakeTable(client, synced_redis, "run")


@pytest.mark.parametrize("durability", [Durability.MEMORY, Durability.AOF])
async def test_an_ack_states_what_the_group_has_reached(make_synced_table: MakeTable, durability: Durability) -> None:
    """As the table is configured, for new groups and for duplicates."""
    table = await make_synced_table(durability=durability)
    for outcome in (InsertOutcome.INSERTED, InsertOutcome.DUPLICATE):
        [result] = await table.insert_many(effective("a"))
        assert (result.outcome, result.durability) == (outcome, durability)
    assert await table.train(1, step=1) == ["a"]


async def test_an_ack_of_replicas_without_replicas_fails_and_says_so(make_synced_table: MakeTable) -> None:
    """The group is there, and a retry waits again; nothing is acknowledged that is not as durable as was asked."""
    table = await make_synced_table(durability=Durability.REPLICAS)
    header, payload = group_to_wire(make_group("a"))
    request = pb.InsertRequest(groups=[RolloutGroup(header=header, payload=payload)], **table.names)
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError, match="replica") as failure:
            await table.client._stub.Insert(request, timeout=5.0)
        assert dict(failure.value.trailing_metadata() or ())["groupreplay-reason"] == "DURABILITY_NOT_REACHED"
    assert await table.locate("a") == [GroupState.FRESH]


async def test_a_table_becomes_durable_while_it_runs(make_synced_table: MakeTable) -> None:
    """update_table changes what the next acks state."""
    table = await make_synced_table()
    config = replace((await table.describe()).config, durability=Durability.AOF)
    await table.client.update_table(config=config, **table.names)
    [result] = await table.insert_many(effective("a"))
    assert result.durability is Durability.AOF


@pytest.mark.parametrize("durability", [Durability.MEMORY, Durability.AOF])
async def test_an_ack_states_what_a_piece_and_its_group_have_reached(
    make_synced_table: MakeTable, durability: Durability
) -> None:
    """Pieces of partial groups are as durable as groups, new ones and duplicates."""
    table = await make_synced_table(durability=durability)
    options = {"group_size": 2, **table.names}
    for piece_id in ("0", "0", "1", "1"):
        group = make_group("a", rewards=(float(piece_id),))
        result = await table.client.push_rollout(group, piece_id=piece_id, **options)
        assert result.durability is durability
    assert await table.train(1, step=1) == ["a"]


async def test_pieces_without_the_durability_that_was_asked_for_are_kept(make_synced_table: MakeTable) -> None:
    """The call fails and says so; nothing is lost, and no payload is left over by the retries."""
    table = await make_synced_table(durability=Durability.REPLICAS)
    header, payload = group_to_wire(make_group("a", rewards=(1.0,)))
    piece = pb.RolloutPiece(piece_id="0", group_size=2, rollouts=RolloutGroup(header=header, payload=payload))
    request = pb.PushRolloutsRequest(pieces=[piece], **table.names)
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError, match="replica") as failure:
            await table.client._stub.PushRollouts(request, timeout=5.0)
        assert dict(failure.value.trailing_metadata() or ())["groupreplay-reason"] == "DURABILITY_NOT_REACHED"
    assert len(list(table.redis.scan_iter("gr1:payload:*"))) == 1
