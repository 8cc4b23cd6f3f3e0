"""What the draws should be: random numbers, probabilities and statistics, in plain Python."""

import itertools
import math
import random
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

SIGNIFICANCE = 1e-4
"""The seeds are fixed, so a test that passes once passes always; a wrong law comes out far below this."""


class Xoshiro128StarStar:
    """Blackman and Vigna's generator, after their xoshiro128starstar.c."""

    def __init__(self, seed: str) -> None:
        """Start from 32 hexadecimal digits."""
        self._state = [int(seed[8 * i : 8 * i + 8], 16) for i in range(4)]

    def bits(self) -> int:
        """Return 32 random bits."""
        s = self._state
        result = _rotate(s[1] * 5 & 0xFFFFFFFF, 7) * 9 & 0xFFFFFFFF
        shifted = s[1] << 9 & 0xFFFFFFFF
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= shifted
        s[3] = _rotate(s[3], 11)
        return result

    def exponential(self) -> float:
        """Return a draw from the exponential distribution of mean 1."""
        high, low = self.bits() >> 5, self.bits() >> 6
        return -math.log(1 - (high * 2**26 + low) / 2**53)


def _rotate(value: int, count: int) -> int:
    return (value << count | value >> 32 - count) & 0xFFFFFFFF


class PlainClock:
    """The clock of the sampler; flawed on demand, to see that flaws are found.

    flaw: "own" arms a drawn item from its own time, "passed" leaves the times of barred items as they are.
    """

    def __init__(self, weights: Mapping[str, float], *, seed: int, flaw: str = "") -> None:
        self._weights, self._flaw, self._random = dict(weights), flaw, random.Random(seed)
        self._times = {item: self._next(item, 0.0) for item in weights}

    def _next(self, item: str, now: float) -> float:
        return now + self._random.expovariate(self._weights[item])

    def draw(self, count: int, barred: Collection[str] = ()) -> list[str]:
        """Return distinct items in the order in which they come next, without those that are barred."""
        order = sorted(self._times, key=self._times.__getitem__)
        drawn = [item for item in order if item not in barred][:count]
        now = self._times[drawn[-1]]
        for item in order[: order.index(drawn[-1]) + 1]:
            if item in drawn:
                self._times[item] = self._next(item, self._times[item] if self._flaw == "own" else now)
            elif self._flaw != "passed":
                self._times[item] = self._next(item, now)
        return drawn


def successive(weights: Mapping[str, float], count: int) -> dict[tuple[str, ...], float]:
    """Return the probability of every ordered draw of `count` distinct items: each next one in proportion to weight."""
    found = {}
    for order in itertools.permutations(weights, count):
        left, probability = math.fsum(weights.values()), 1.0
        for item in order:
            probability *= weights[item] / left
            left -= weights[item]
        found[order] = probability
    return found


def inclusion(weights: Mapping[str, float], count: int) -> dict[str, float]:
    """Return the probability of each item to be among the `count` that are drawn."""
    orders = successive(weights, count)
    return {item: math.fsum(p for order, p in orders.items() if item in order) for item in weights}


def chi_square_p(counts: Mapping[Key, int], probabilities: Mapping[Key, float]) -> float:
    """Return the p-value of counts under the probabilities of all cells; rare cells are counted together."""
    draws = sum(counts.values())
    unknown = counts.keys() - probabilities.keys()
    if unknown:
        return 0.0  # what cannot happen has happened
    rare = [cell for cell, probability in probabilities.items() if draws * probability < 5]
    cells = [(counts.get(c, 0), draws * p) for c, p in probabilities.items() if draws * p >= 5]
    rare_expected = draws * math.fsum(probabilities[cell] for cell in rare)
    rare_seen = sum(counts.get(cell, 0) for cell in rare)
    if rare_expected >= 5:
        cells.append((rare_seen, rare_expected))
    elif rare_seen > 30:
        return 0.0  # 5 were expected at most: below 1e-12
    statistic = math.fsum((seen - expected) ** 2 / expected for seen, expected in cells)
    return chi_square_tail(statistic, len(cells) - 1)


def chi_square_tail(statistic: float, degrees: int) -> float:
    """Return the probability that a chi-square of so many degrees of freedom is at least this large."""
    half = statistic / 2
    if degrees % 2:
        order, tail = 0.5, math.erfc(math.sqrt(half))
    else:
        order, tail = 1.0, math.exp(-half)
    while order < degrees / 2:  # Q(a + 1, x) = Q(a, x) + x^a e^-x / Gamma(a + 1)
        tail += math.exp(order * math.log(half) - half - math.lgamma(order + 1)) if half else 0.0
        order += 1
    return min(tail, 1.0)


def uniformity_p(values: Sequence[float], cells: int = 50) -> float:
    """Return the p-value of numbers that should be uniform in [0, 1)."""
    counts = dict.fromkeys(range(cells), 0)
    for value in values:
        counts[min(int(value * cells), cells - 1)] += 1
    return chi_square_p(counts, dict.fromkeys(range(cells), 1 / cells))


def independence_p(values: Sequence[float], lag: int = 1, cells: int = 6) -> float:
    """Return the p-value of numbers that should be uniform and independent of the one `lag` before."""
    counts = dict.fromkeys(itertools.product(range(cells), repeat=2), 0)
    for before, after in zip(values, values[lag:], strict=False):
        counts[int(before * cells), int(after * cells)] += 1
    return chi_square_p(counts, dict.fromkeys(counts, cells**-2))


def place_in_law(item: str, law: Mapping[str, float], share: float) -> float:
    """Return where a draw stands in its law, in [0, 1): uniform and independent from draw to draw if the law holds.

    The law gives the weight of each item that could be drawn; share, a random number in [0, 1), spreads the steps of
    a discrete distribution (Rosenblatt's transformation). So draws whose laws all differ can be tested together.
    """
    total = math.fsum(law.values())
    below = math.fsum(weight for other, weight in law.items() if other < item)
    return min((below + share * law[item]) / total, 1 - 2**-53)


def importance_weights(probabilities: Iterable[float], groups: int, beta: float) -> Iterator[float]:
    """Yield (N p)^-beta over the largest in the batch."""
    raw = [(groups * probability) ** -beta for probability in probabilities]
    for weight in raw:
        yield weight / max(raw)
