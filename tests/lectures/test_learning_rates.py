"""Learning rates: too small, just right, too large; chosen by cross-validation: R33 and R34."""

import pytest

from manualbp.explain.networks import float64
from manualbp.explain.topics.learning_rates import (
    NETWORK_RATES,
    PARABOLA_CURVATURE,
    PARABOLA_RATES,
    best_rate,
    network_after,
    parabola_path,
    validation_errors,
)
from manualbp.explain.topics.update_rules import CURVATURE, bowl_gradient
from manualbp.lectures import setting
from manualbp.optimizers import SGD, descend


@pytest.mark.figures("Z.eta.quad")
def test_the_five_regimes_on_a_parabola(lecture):
    expected = lecture["Z.eta.quad"].value
    assert setting("QUAD1")["curvature"] == PARABOLA_CURVATURE
    for eta, size in zip(PARABOLA_RATES, expected, strict=True):
        path = parabola_path(eta)
        assert abs(float(path[20])) == pytest.approx(size, rel=1e-12, abs=0)
        factor = 1 - PARABOLA_CURVATURE * eta
        for n in range(21):
            assert float(path[n]) == pytest.approx(factor**n, rel=1e-13, abs=1e-300)


@pytest.mark.parametrize("curvature", [0.25, 4.0, 64.0])
def test_the_limit_is_two_over_the_curvature(curvature):
    """At the limit |w| stays 1 for ever: exactly, where 2/curvature is a power of 2."""

    def size(eta, updates=1000):
        path = descend(SGD(eta), lambda w: curvature * w, float64([1.0]), updates)
        return abs(float(path[-1]))

    limit = 2 / curvature
    assert size(limit) == 1
    assert size(0.99 * limit) < 1e-8
    assert size(1.01 * limit) > 1e8
    assert size(limit / 2, 1) == 0


def test_on_a_bowl_the_steepest_direction_decides():
    def after(eta):
        return descend(SGD(eta), bowl_gradient, float64([5.0, 1.0]), 1000)[-1].abs()

    limit = 2 / float(CURVATURE.max())
    assert float(after(0.99 * limit)[1]) < 1e-8
    assert float(after(1.01 * limit)[1]) > 1e8
    # There the flat direction has not even come half of the way to its own limit.
    assert float(after(1.01 * limit)[0]) < 1e-90


@pytest.mark.figures("Z.eta.222")
def test_six_rates_on_the_worked_example(lecture):
    for eta, (rate, *expected) in zip(NETWORK_RATES, lecture["Z.eta.222"].value, strict=True):
        assert eta == rate
        # Every number apart: o1 ends at 5e-21 with the largest rate.
        assert network_after(eta) == pytest.approx(expected, rel=1e-11, abs=0), eta


@pytest.mark.figures("Z.given.eta_usual")
def test_the_usual_limit_of_the_rate_is_no_limit(lecture):
    """The lecture's own examples use 0.5 and 1, and here a hundred times as much does best."""
    usual = lecture["Z.given.eta_usual"]
    assert usual.printed == f"< {usual.value}"
    assert setting("S222")["eta"] >= usual.value
    errors = {eta: network_after(eta)[0] for eta in NETWORK_RATES}
    assert min(errors, key=errors.__getitem__) == 100 * usual.value


@pytest.mark.figures("Z.cv")
def test_cross_validation_chooses_the_rate(lecture):
    expected = lecture["Z.cv"].value
    assert [eta for eta, _ in expected] == setting("CV")["etas"]
    scores = [validation_errors(eta) for eta, _ in expected]
    for score, (_, error) in zip(scores, expected, strict=True):
        assert len(score.folds) == 4
        assert score.mean == pytest.approx(error, rel=1e-11, abs=0), score.eta
    assert best_rate(scores) == 0.1


def test_a_fold_has_no_part_in_its_own_training(monkeypatch):
    """Move the target of point 4, which is in fold 0, by δ = -1, 0, 1.

    Where the weights stay, (y - d - δ)² / 3 bends by 2/3; where they learn from it, less or more.
    """
    example, found = setting("CV"), []
    original = example["d"]
    for shift in (-1, 0, 1):
        moved = [d + shift * (i == 4) for i, d in enumerate(original)]
        monkeypatch.setitem(example, "d", moved)
        found.append(validation_errors(0.1).folds)
    bends = [below - 2 * at + above for below, at, above in zip(*found, strict=True)]
    assert bends[0] == pytest.approx(2 / 3, rel=1e-12)
    assert all(0 < bend < 0.6 for bend in bends[1:])
