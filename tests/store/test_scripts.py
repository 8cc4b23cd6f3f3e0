"""How scripts are loaded and called."""

import re
from importlib.resources import files

import pytest
from processes import redis_binaries
from redis.exceptions import ResponseError
from store_user import KEYS, StoreUser, incoming

from groupreplay.errors import ERRORS
from groupreplay.table_config import TableConfig
from groupreplay_server.store.keys import is_declared
from groupreplay_server.store.scripts import STAND_ALONE, call_script, load_script, script_names

LUA = files("groupreplay_server.store").joinpath("lua")


def source_of(name: str) -> str:
    """Return the text of a Lua file."""
    return LUA.joinpath(f"{name}.lua").read_text()


def test_the_prelude_names_the_keys_in_the_order_of_the_key_file() -> None:
    """What a script calls `fresh` is the key that keys.py passes in its place."""
    declared = re.findall(r"^local (\w+) = KEYS\[(\d+)\]", source_of("prelude"), re.MULTILINE)
    assert [int(position) for _, position in declared] == list(range(1, len(KEYS.all()) + 1))
    assert [name for name, _ in declared] == [key.rpartition(":")[2] for key in KEYS.all()]


def test_every_key_that_is_made_is_declared_and_tagged_by_its_run() -> None:
    """The scripts of a run find all their keys in one slot of a cluster."""
    assert all(is_declared(key) for key in KEYS.all())
    assert {re.findall(r"\{(.*)\}", key)[0] for key in KEYS.all()} == {"run"}
    assert is_declared(KEYS.payload("group/ref"))
    assert "{" not in KEYS.payload("group/ref")


@pytest.mark.parametrize(
    "key",
    ["gr1", "gr2:runs", "gr1:{run}:train:unheard-of", "gr1:{run}:what", "gr1:run:policy", "gr1:payload:a/b/c", "x"],
)
def test_other_keys_are_not_declared(key: str) -> None:
    """The check that every test ends with can fail."""
    assert not is_declared(key)


@pytest.mark.parametrize("name", script_names())
def test_the_parameters_of_a_script_are_numbered_without_gaps(name: str) -> None:
    """Each script's header is its signature: a misread line would shift every argument after it."""
    positions = [
        int(position) for position in re.findall(r"^local \w+ = .*ARGV\[(\d+)\]", source_of(name), re.MULTILINE)
    ]
    first = 1 if name in STAND_ALONE else 4
    assert positions == list(range(first, first + len(positions)))
    script = load_script(name)
    assert len(script.parameters) == len(positions) + first - 1
    highest = [int(position) for position in re.findall(r"ARGV\[(\d+)\]", source_of(name))]
    assert max(highest, default=0) <= len(script.parameters)


@pytest.mark.parametrize("name", script_names())
def test_a_script_says_what_it_returns_and_which_errors_it_raises(name: str) -> None:
    """Every reason a script can give is an ErrorReason, and its header lists it."""
    source = source_of(name)
    header = source.partition("\nlocal ")[0]
    assert re.search(r"^-- Returns ", header, re.MULTILINE)
    raised = set(re.findall(r"(?:fail\(|error_reply\(string\.format\(|return string\.format\()['\"]([A-Z_]+)", source))
    assert raised <= ERRORS.keys()
    listed = re.findall(r"Errors: (.*)|Reasons: (.*)", header)
    assert raised <= set(re.findall(r"[A-Z_]{4,}", str(listed))), f"{name}.lua does not list all its errors"
    assert "no_such_table()" not in source or "UNKNOWN_TABLE" in header
    assert set(re.findall(r"[A-Z_]{4,}", str(listed))) <= ERRORS.keys()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"lease_id": "a"},
        {"lease_id": "a", "step": 1, "unheard_of": 2},
        {"lease_id": "a", "stepp": 1},
    ],
)
async def test_calling_a_script_with_other_names_is_a_type_error(
    store: StoreUser, values: dict[str, str | int]
) -> None:
    """A missing or misspelt argument never reaches Redis."""
    with pytest.raises(
        TypeError, match=r"script commit_lease takes \('now_ms', 'topic', 'seed', 'lease_id', 'step'\), not"
    ):
        await store.call("commit_lease", 1, **values)


@pytest.mark.parametrize("record", [(), ("a", "b")])
async def test_calling_a_script_with_records_of_another_length_is_a_type_error(
    store: StoreUser, record: tuple[str, ...]
) -> None:
    """Records are as long as the script's header says."""
    with pytest.raises(TypeError, match=rf"script locate_groups repeats \('group_id',\), not {len(record)} values"):
        await store.call("locate_groups", 1, record)


async def test_a_script_without_records_takes_none(store: StoreUser) -> None:
    """A record for a script that has no use for it is an error, not ignored."""
    with pytest.raises(TypeError, match=r"describe_table repeats \(\), not 1 values"):
        await store.call("describe_table", 1, ("a",))


async def test_scripts_are_sent_again_after_redis_forgot_them(store: StoreUser) -> None:
    """SCRIPT FLUSH, or a restart of Redis, costs one round trip; payloads queued before the script are written once."""
    await store.insert_ids("a")
    store.redis.script_flush()
    await store.insert_ids("b")
    store.redis.script_flush()
    assert await store.take(2) == ["a", "b"]
    store.redis.script_flush()
    assert await store.commit("lease", 1) is False
    assert len(list(store.redis.scan_iter("gr1:payload:*"))) == 2


@pytest.mark.parametrize("redis_url", redis_binaries()[:1], indirect=True)  # a cluster counts per node
async def test_a_script_runs_by_its_hash(store: StoreUser) -> None:
    """After the first call only the hash travels."""
    await store.describe()
    store.redis.config_resetstat()
    for _ in range(5):
        await store.describe()
    stats = store.redis.info("commandstats")
    assert isinstance(stats, dict)
    assert stats["cmdstat_evalsha"]["calls"] == 5
    assert "cmdstat_eval" not in stats


@pytest.mark.parametrize("name", script_names())
async def test_a_script_touches_no_key_that_it_was_not_given(store: StoreUser, name: str) -> None:
    """Keys come in as KEYS, as Redis Cluster wants; nothing is scanned, no time or randomness is read inside."""
    source = re.sub(r"--.*", "", load_script(name).source)
    commands = re.findall(r"redis\.call\('(\w+)', ([^,)]+)", source)
    keys = set(re.findall(r"local (\w+) = KEYS", source))
    assert {target for command, target in commands if command != "PUBLISH"} <= keys
    assert not {command for command, _ in commands} & {"SCAN", "KEYS", "TIME", "RANDOMKEY", "EVAL", "SMEMBERS"}
    assert "math.random" not in source
    assert len(re.findall(r"redis\.p?call\(", source)) == len(commands)


async def test_a_script_that_fails_in_itself_comes_out_as_an_error_of_redis(store: StoreUser) -> None:
    """The loader adds nothing to what Redis says."""
    with pytest.raises(ResponseError):
        await call_script(
            store.connection, "describe_table", ["one-key-only"], {"now_ms": 1, "topic": "x", "seed": "0" * 32}
        )


async def test_arguments_keep_their_exact_value(store: StoreUser) -> None:
    """Floats travel with all their digits: a threshold and a deviation that differ in the last bit differ in Redis."""
    await store.store.create_table("run", "exact", TableConfig(min_reward_std=0.1 + 0.2))
    groups = [incoming("equal", reward_std=0.1 + 0.2), incoming("above", reward_std=0.30000000000000010)]
    await store.store.insert_groups("run", "exact", groups)
    assert (await store.store.describe_table("run", "exact")).config.min_reward_std == 0.30000000000000004
    assert (await store.store.describe_table("run", "exact")).fresh_effective == 1
