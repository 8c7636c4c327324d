"""Local minima, plateaus and several beginnings: R35."""

from functools import cache

import pytest
import torch
from torch.testing import assert_close

from manualbp.explain.networks import float64
from manualbp.explain.page import as_numbers
from manualbp.explain.topics.logistic_regression import logistic, two_classes
from manualbp.explain.topics.restarts import (
    STARTS,
    Ending,
    best,
    double_well,
    double_well_gradient,
    ending,
    well_path,
    xor_ending,
    xor_from,
)
from manualbp.optimizers import SGD


@cache
def after_10_000(start: int) -> Ending:
    return xor_ending(start, 10_000)


@pytest.mark.figures("Z.local_minimum")
def test_descent_ends_in_the_valley_in_which_it_begins(lecture):
    """The two minima are the same from anywhere in their valleys."""
    ends = [well_path(start)[-1] for start in (1.0, -1.0)]
    lecture.expect("Z.local_minimum", [[w, double_well(w)] for w in ends])
    between = torch.linspace(-0.5, 0.5, 1001, dtype=torch.float64)
    top = float(between[double_well(between).argmax()])
    for start in (-1.5, top - 0.01):
        assert float(well_path(start)[-1]) == pytest.approx(float(ends[1]), rel=1e-9)
    for start in (top + 0.01, 1.5):
        assert float(well_path(start)[-1]) == pytest.approx(float(ends[0]), rel=1e-9)
    for w in ends:
        assert abs(float(double_well_gradient(w))) < 1e-14
        around = double_well(w + float64([-0.01, 0.01]))
        assert (around > double_well(w)).all()


def test_the_slope_is_that_of_the_double_well():
    w = torch.linspace(-1.5, 1.5, 31, dtype=torch.float64)
    slope = (double_well(w + 1e-6) - double_well(w - 1e-6)) / 2e-6
    assert (slope - double_well_gradient(w)).abs().max() < 1e-8


@pytest.mark.figures("Z.restarts")
def test_six_beginnings_of_xor(lecture):
    for start, (error, *outputs) in enumerate(lecture["Z.restarts"].value):
        found = after_10_000(start)
        assert found.error == pytest.approx(error, rel=1e-6), start
        assert as_numbers(found.outputs) == pytest.approx(outputs, rel=1e-6), start


@pytest.mark.figures("Z.restarts.best")
def test_the_best_is_kept(lecture):
    index, error = lecture["Z.restarts.best"].value
    chosen = best([after_10_000(start) for start in range(STARTS)])
    assert chosen.start == index
    assert chosen.error == pytest.approx(error, rel=1e-6)


@pytest.mark.figures("Z.restarts.long")
def test_a_plateau_is_not_left_even_after_100_000_epochs(lecture):
    """E creeps towards 0.25 with a gradient that is not zero: no minimum, and no way down."""
    for start, expected in enumerate(lecture["Z.restarts.long"].value):
        training = xor_from(start)
        training.run(100_000)
        found = ending(start, training)
        assert [found.error, found.gradient_norm] == pytest.approx(expected, rel=1e-6), start
        assert 0.25 < found.error < after_10_000(start).error


def test_a_convex_error_ends_at_one_point_from_wherever_it_begins():
    """IISc: "depends on the initialization", which is so for networks, not for one layer."""
    x, t = two_classes()
    ends = []
    for w in ((0.0, 0.0), (2.0, -3.0)):
        net = logistic(*w)
        net.descent(x, t, SGD(0.2)).run(1500)
        ends.append(net.params.flat)
    assert_close(*ends, rtol=1e-9, atol=0)
