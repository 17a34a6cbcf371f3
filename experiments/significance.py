"""Whether methods differ, by scores of the same seeds: the paired t test, its interval, Holm's correction."""

import math
import statistics
from typing import NamedTuple

FEWEST = 5  # pairs: with fewer, nothing is claimed
LEVEL = 0.05


def within(t, freedom):
    """P(|T| < t) of Student's T, `freedom` degrees of freedom (Abramowitz & Stegun, 26.7.3 and 26.7.4)."""
    angle, odd = math.atan(t / math.sqrt(freedom)), freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def quantile(p, freedom):
    """The t with P(|T| < t) = p, by bisection."""
    low, high = 0.0, 1.0
    while within(high, freedom) < p:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < p else (low, middle)
    return high


class Difference(NamedTuple):
    """Of paired scores: the mean, its 95 % interval, the p of no difference, the number of pairs."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def difference(scores, others):
    """The Difference of two {seed: score}, over the seeds that both have; None with fewer than FEWEST."""
    pairs = [scores[seed] - others[seed] for seed in scores if seed in others]
    n = len(pairs)
    if n < FEWEST:
        return None
    mean, error = statistics.fmean(pairs), statistics.stdev(pairs) / math.sqrt(n)
    half = quantile(1 - LEVEL, n - 1) * error
    p = 1 - within(abs(mean) / error, n - 1) if error else float(mean == 0)
    return Difference(mean, mean - half, mean + half, p, n)


def holm(found):
    """{key: Difference} with every p corrected for their number (Holm, 1979)."""
    corrected, least = {}, 0.0
    for rank, (key, one) in enumerate(sorted(found.items(), key=lambda item: item[1].p)):
        least = max(least, min(1.0, (len(found) - rank) * one.p))
        corrected[key] = one._replace(p=least)
    return corrected
