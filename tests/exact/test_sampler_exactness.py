"""The draws of the prioritized and the uniform sampler follow their exact law, whatever happens between them.

A group that is drawn is turned into its place in the law of that very draw (reference.place_in_law): if the law holds,
the places are uniform and independent, also where weights, versions, uses and groups change from draw to draw. Where
the law stays the same, the draws themselves are counted too. Together the tests draw more than 10^5 groups.
"""

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable

import pytest
import redis
from exact.drawing import KEYS, ExactTable
from exact.reference import (
    SIGNIFICANCE,
    PlainClock,
    chi_square_p,
    inclusion,
    independence_p,
    place_in_law,
    successive,
    uniformity_p,
)

Make = Callable[..., ExactTable]

SKEWED = {f"g{number}": float(number) for number in range(1, 9)}
LAGS = (1, 2, 3)
"""Three groups are drawn at once, at most: a dependence on the draw before shows at one of them."""
VECTORS: dict[str, dict[str, float]] = {
    "uniform": dict.fromkeys("abcdefgh", 1.0),
    "skewed": SKEWED,
    "extreme": {f"g{number}": 10.0 ** (number - 6) for number in range(7)},
    "with-nothing": {"never": 0.0, "a": 1.0, "b": 2.0},
}


def insert_all(table: ExactTable, weights: dict[str, float]) -> None:
    """Insert a group of each priority."""
    for group_id, weight in weights.items():
        table.insert(group_id, weight)


def hold_to_law(table: ExactTable, at_least: int) -> None:
    """Assert that places in the law are uniform, and independent of those before."""
    table.flush()
    places = table.places
    assert len(places) >= at_least
    found = [uniformity_p(places), *(independence_p(places, lag) for lag in LAGS)]
    assert min(found) > SIGNIFICANCE, found


def shares(weights: dict[str, float]) -> dict[str, float]:
    """Return weights as probabilities."""
    return {item: weight / math.fsum(weights.values()) for item, weight in weights.items()}


def pairs_in_turn(draws: Iterable[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
    """Count what followed what."""
    return Counter((before[0], after[0]) for before, after in itertools.pairwise(draws))


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("name", VECTORS)
def test_single_draws_are_proportional_to_weight_and_independent(exact: Make, name: str, alpha: float) -> None:
    """Counts, and counts of consecutive pairs, are those of weight = priority ** alpha."""
    table = exact(seed=1, sampler="prioritized", alpha=alpha)
    insert_all(table, VECTORS[name])
    for _ in range(3000):
        table.draw(1)
    hold_to_law(table, 3000)
    law = shares({item: weight**alpha for item, weight in VECTORS[name].items()})
    assert chi_square_p(Counter(draw.ids[0] for draw in table.draws), law) > SIGNIFICANCE
    pairs = {pair: law[pair[0]] * law[pair[1]] for pair in itertools.product(law, repeat=2)}
    assert chi_square_p(pairs_in_turn(draw.ids for draw in table.draws), pairs) > SIGNIFICANCE


def test_the_uniform_sampler_draws_all_alike_whatever_their_priority(exact: Make) -> None:
    """Priorities are kept, and not looked at."""
    table = exact(seed=2, sampler="uniform", alpha=2.0)
    insert_all(table, SKEWED)
    for number in range(3000):
        table.draw(1 + number % 3)
    hold_to_law(table, 5000)


@pytest.mark.parametrize("name", ["uniform", "skewed", "extreme"])
@pytest.mark.parametrize("count", [2, 3])
def test_draws_of_distinct_groups_follow_successive_sampling(exact: Make, name: str, count: int) -> None:
    """Ordered pairs and triples, and which groups are among them, have their exact probabilities."""
    weights = dict(itertools.islice(VECTORS[name].items(), 5))
    table = exact(seed=3, sampler="prioritized")
    insert_all(table, weights)
    for _ in range(3000):
        table.draw(count)
    hold_to_law(table, 3000 * count)
    assert chi_square_p(table.counts(), successive(weights, count)) > SIGNIFICANCE
    first = shares(weights)
    pairs = {pair: first[pair[0]] * first[pair[1]] for pair in itertools.product(first, repeat=2)}
    assert chi_square_p(pairs_in_turn(draw.ids for draw in table.draws), pairs) > SIGNIFICANCE
    # Dividing by count makes probabilities of inclusion ones of a group picked from the draw.
    among = {item: probability / count for item, probability in inclusion(weights, count).items()}
    picked = Counter(draw.ids[number % count] for number, draw in enumerate(table.draws))
    assert chi_square_p(picked, among) > SIGNIFICANCE


def test_wrong_laws_are_rejected_by_the_same_statistics(exact: Make) -> None:
    """The counts can fail: neither other weights, nor equal chances, nor repeats left out afterwards pass."""
    weights = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 8.0}
    table = exact(seed=3, sampler="prioritized")
    insert_all(table, weights)
    for _ in range(4000):
        table.draw(2)
    table.flush()
    one = shares(weights)
    independent = {pair: one[pair[0]] * one[pair[1]] for pair in itertools.permutations(weights, 2)}
    wrong_laws: list[dict[tuple[str, ...], float]] = [
        successive({item: weight**1.2 for item, weight in weights.items()}, 2),
        successive(dict.fromkeys(weights, 1.0), 2),
        {pair: probability / math.fsum(independent.values()) for pair, probability in independent.items()},
    ]
    assert chi_square_p(table.counts(), successive(weights, 2)) > SIGNIFICANCE
    assert max(chi_square_p(table.counts(), wrong) for wrong in wrong_laws) < SIGNIFICANCE / 1000


@pytest.mark.parametrize(("flaw", "is_law"), [("", True), ("own", False), ("passed", False)])
def test_flawed_clocks_are_rejected_by_the_same_statistics(flaw: str, is_law: bool) -> None:
    """The places can fail: a clock that arms from a group's own time, or leaves those passed over, is found out."""
    clock, chance, places = PlainClock(SKEWED, seed=16, flaw=flaw), random.Random(1), []
    for number in range(3000):
        law = {item: weight for item, weight in SKEWED.items() if item != f"g{5 + number % 4}"}
        for item in clock.draw(3, SKEWED.keys() - law.keys()):
            places.append(place_in_law(item, law, chance.random()))
            del law[item]
    found = min(independence_p(places, lag) for lag in LAGS)
    assert found > SIGNIFICANCE if is_law else found < SIGNIFICANCE / 1000


def test_recency_decay_counts_versions_while_the_clock_advances(exact: Make) -> None:
    """A group's weight falls by the factor with each version, relative to those that are newer."""
    table = exact(seed=4, sampler="prioritized", recency_decay=0.7, importance_beta=1.0)
    for version in range(12):
        table.advance(version)
        table.insert(f"a{version}", 1.0)
        table.insert(f"b{version}", 0.3 + version % 3)
        for _ in range(250):
            table.draw(2)
    hold_to_law(table, 5000)


def test_use_decay_lowers_the_weight_with_each_committed_use(exact: Make) -> None:
    """Uses that are given back do not count, those that are committed do."""
    table = exact(seed=5, lease_ms=3, sampler="prioritized", use_decay=0.9)
    insert_all(table, SKEWED)
    for number in range(4000):
        lease = table.draw(1 + number % 2)
        if number % 40 == 0:
            table.commit(lease)
    hold_to_law(table, 5000)


def test_priority_kl_and_ess_that_are_fed_back_change_the_weight(exact: Make) -> None:
    """All three, one after the other, while draws go on."""
    table = exact(seed=6, sampler="prioritized", alpha=0.8, kl_decay=2.0, ess_alpha=1.5)
    insert_all(table, SKEWED)
    for number in range(3000):
        target = f"g{1 + number % 8}"
        table.draw(2)
        match number % 10:
            case 0:
                table.update(target, priority=0.5 + number % 7)
            case 4:
                table.update(target, kl=(number % 11) / 5, ess=0.2 + (number % 9) / 11)
            case 7:
                table.update(target, ess=1.0)
    hold_to_law(table, 6000)


def test_groups_may_come_and_go_between_draws(exact: Make) -> None:
    """Removal, insertion and eviction leave the chances of the others as they should be."""
    table = exact(seed=7, sampler="prioritized")
    for number in range(3000):
        if number % 3 == 0:
            table.insert(f"g{number}", 1.0 + number * 7 % 5)
        if number % 3 == 1 and number > 30:
            table.delete(f"g{number - 1 - 24 + 6 * (number % 2)}")
            table.delete(f"g{number - 1 - 27}")
        table.draw(1 + number % 2)
    hold_to_law(table, 4000)


def test_groups_that_are_passed_over_change_nothing_for_the_others(exact: Make) -> None:
    """Used up, of a prompt that is drawn already, or too young: the rest is drawn in proportion to weight."""
    table = exact(seed=8, lease_ms=4, sampler="prioritized", max_times_sampled=1, min_staleness=1)
    table.advance(1)
    for number in range(14):
        table.insert(f"g{number}", 1.0 + number % 4, version=number // 3 % 2, prompt=f"prompt-{number % 5}")
    for _ in range(6000):
        table.draw(2)
    hold_to_law(table, 2500)


def test_repeated_prompts_are_passed_over_within_a_draw_only(exact: Make) -> None:
    """Two groups of a prompt share their chance in no way."""
    table = exact(seed=9, sampler="prioritized")
    for number in range(9):
        table.insert(f"g{number}", 1.0 + number, prompt=f"prompt-{number % 4}")
    for _ in range(3000):
        table.draw(3)
    hold_to_law(table, 9000)


def test_a_clock_that_has_run_for_long_goes_on_exactly(exact: Make, clean_redis: redis.Redis) -> None:
    """Before doubles lose precision the clock starts anew, and no draw shows it."""
    table = exact(seed=10, sampler="prioritized")
    insert_all(table, SKEWED)
    for _ in range(40):
        table.let_time_pass(2.0**33)
        for _ in range(50):
            table.draw(2)
        table.flush()
        passed = float(clean_redis.hget(KEYS.key("state"), "clock_now") or 0)
        assert passed * sum(SKEWED.values()) < 1000
    hold_to_law(table, 4000)


def test_weights_that_grow_after_a_long_time_are_drawn_exactly(exact: Make) -> None:
    """A clock that ran for a billion draws of small weights is too coarse for large ones: it starts anew first."""
    table = exact(seed=11, sampler="prioritized")
    small, large = ({f"{kind}{n}": weight * n for n in range(1, 6)} for kind, weight in (("s", 1e-6), ("l", 1e6)))
    for _ in range(60):
        insert_all(table, small)
        table.flush()
        table.let_time_pass(2.0**31)
        insert_all(table, {f"{group_id}": weight for group_id, weight in large.items()})
        for _ in range(40):
            table.draw(2)
        table.flush()
        for group_id in (*small, *large):
            table.delete(group_id)
        table.flush()
        table._redis.delete(KEYS.key("seen"))
    hold_to_law(table, 4000)


@pytest.mark.parametrize("decay", [0.5, 1e-6])
def test_any_number_of_versions_may_pass(exact: Make, decay: float) -> None:
    """Powers of the decay that no double can hold cancel out."""
    table = exact(seed=12, sampler="prioritized", recency_decay=decay)
    for version in range(0, 60_000, 3000):
        table.advance(version)
        for number in range(4):
            table.insert(f"g{version}-{number}", 1.0 + number)
            table.insert(f"h{version}-{number}", 1.0, version=max(0, version - number))
        for _ in range(50):
            table.draw(3)
        table.advance(version + 1500)
        for _ in range(50):
            table.draw(2)
        for number in range(4):
            table.delete(f"g{version}-{number}")
        for _ in range(20):
            table.draw(1)
        for number in range(4):
            table.delete(f"h{version}-{number}")
    hold_to_law(table, 5000)


def test_small_weights_keep_their_chances_after_large_ones_left(exact: Make) -> None:
    """The sum of weights has not lost them in rounding."""
    table = exact(seed=13, sampler="prioritized")
    insert_all(table, {f"small-{number}": 1e-9 * (1 + number) for number in range(5)})
    for number in range(500):
        table.insert(f"large-{number}", 1e9 / 3)
        table.update(f"small-{number % 5}", priority=1e-9 * (1 + number % 7))
        table.update(f"large-{number}", priority=1e12 / 7)
        table.delete(f"large-{number}")
        for _ in range(6):
            table.draw(1)
    hold_to_law(table, 3000)


def test_weights_beyond_all_doubles_are_cut(exact: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """1e300 squared counts as 1e100; probabilities and importance weights stay finite."""
    table = exact(seed=14, sampler="prioritized", alpha=2.0)
    for group_id, priority in (("huge", 1e300), ("vast", 1e200), ("tiny", 1e-200)):
        table.insert(group_id, priority)
    monkeypatch.setattr(table, "weight", {"huge": 1e100, "vast": 1e100, "tiny": 0.0}.__getitem__)
    for _ in range(2000):
        table.draw(1)
    hold_to_law(table, 2000)
