"""The random numbers inside the scripts are those of the published generator."""

import math

import pytest
import redis
from exact.drawing import KEYS
from exact.reference import Xoshiro128StarStar, chi_square_tail

from groupreplay_server.store.scripts import load_script

SEEDS = ["00000001000000020000000300000004", "0123456789abcdef0123456789abcdef", "f" * 32, "80000000" * 4]


def from_lua(connection: redis.Redis, seed: str, call: str, count: int) -> list[float]:
    """Return what a function of the prelude returns, so many times in one script."""
    prelude = load_script("describe_table").source.partition("-- Read the whole state")[0]
    source = (
        prelude + f"local found = {{}} for i = 1, {count} do found[i] = string.format('%.17g', {call}) end return found"
    )
    return [float(text) for text in connection.eval(source, len(KEYS.all()), *KEYS.all(), 0, KEYS.topic, seed)]


def test_the_python_generator_is_the_published_one() -> None:
    """The first numbers from the state 1, 2, 3, 4, as other implementations of xoshiro128** test for."""
    generator = Xoshiro128StarStar(SEEDS[0])
    assert [generator.bits() for _ in range(10)] == [
        11520, 0, 5927040, 70819200, 2031721883, 1637235492, 1287239034, 3734860849, 3729100597, 4258142804,
    ]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_the_generator_in_lua_is_the_one_in_python(clean_redis: redis.Redis, seed: str) -> None:
    """Bit for bit, also where numbers are negative to Lua; so draws can be repeated from the seed of their lease."""
    generator = Xoshiro128StarStar(seed)
    assert [int(b) % 2**32 for b in from_lua(clean_redis, seed, "random_bits()", 500)] == [
        generator.bits() for _ in range(500)
    ]
    generator = Xoshiro128StarStar(seed)
    for number in from_lua(clean_redis, seed, "exponential()", 500):
        assert math.isclose(number, generator.exponential(), rel_tol=1e-14)


def test_the_tail_of_chi_square_is_that_of_the_tables() -> None:
    """Critical values as printed in statistics books."""
    for statistic, degrees, p in ((3.841, 1, 0.05), (9.210, 2, 0.01), (18.307, 10, 0.05), (67.505, 50, 0.05)):
        assert math.isclose(chi_square_tail(statistic, degrees), p, rel_tol=0.002)
