"""experiments/significance.py against known values."""

import itertools
import random
import statistics

import pytest

from experiments.significance import Difference, difference, holm, quantile, within

# Student's t, two-sided 95 % and 99 % points (any table of them)
POINTS = [(1, 12.7062, 63.6567), (2, 4.3027, 9.9248), (4, 2.7764, 4.6041), (9, 2.2622, 3.2498),
          (19, 2.0930, 2.8609), (30, 2.0423, 2.7500)]  # fmt: skip


@pytest.mark.parametrize(("freedom", "t95", "t99"), POINTS)
def test_students_t(freedom, t95, t99):
    """Would catch: a term too few in the sum for odd or for even degrees of freedom."""
    assert quantile(0.95, freedom) == pytest.approx(t95, abs=1e-4)
    assert quantile(0.99, freedom) == pytest.approx(t99, abs=1e-4)
    assert within(t95, freedom) == pytest.approx(0.95, abs=1e-5)


def test_difference_is_the_paired_t_test():
    """Would catch: pairs that are not of the same seed; the unpaired test; an interval of another width.

    Student's own data (1908): sleep gained with two drugs, mean difference 1.58, t = 4.0621, p = .002833.
    """
    first = dict(enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]))
    other = dict(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))
    found = difference(first, dict(reversed(other.items())) | {99: 1000.0})
    assert (
        found.n == 10 and found.mean == pytest.approx(1.58) and found.p == pytest.approx(0.002833, abs=1e-6)
    )
    assert (found.low, found.high) == (pytest.approx(0.7001, abs=1e-4), pytest.approx(2.4599, abs=1e-4))
    assert difference(first, dict(itertools.islice(other.items(), 4))) is None
    same = difference(first, first)
    assert same.p == 1 and same.low == same.high == 0
    assert difference({i: i + 1.0 for i in range(5)}, {i: float(i) for i in range(5)}).p == 0


def test_holm():
    """Would catch: Bonferroni's correction, or a smaller p after a larger one."""
    found = holm(
        {name: Difference(0, 0, 0, p, 9) for name, p in zip("abcd", (0.01, 0.04, 0.03, 0.005), strict=True)}
    )
    assert {name: one.p for name, one in found.items()} == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )


def test_one_in_twenty_of_equals_is_called():
    """Would catch: intervals that are too narrow for n pairs, such as those of the normal distribution."""
    draw = random.Random(0)
    called = []
    for _ in range(2000):
        pairs = [{i: draw.gauss(0.7, 0.03) for i in range(5)} for _ in range(2)]
        called.append(difference(*pairs).p < 0.05)
    assert 0.035 < statistics.fmean(called) < 0.065
