"""Momentum, Nesterov's two forms, AdaGrad and RMSProp: R29 to R32."""

import pytest
import torch
from torch.testing import assert_close

from manualbp.explain.examples import worked_example_descent
from manualbp.explain.networks import float64
from manualbp.explain.topics.update_rules import (
    LABELS,
    RULES,
    SEEN,
    START,
    bowl,
    bowl_gradient,
    bowl_path,
    worked_example_errors,
)
from manualbp.lectures import setting
from manualbp.optimizers import SGD, descend, steps


@pytest.mark.figures(*(f"Z.opt.{name}" for name in RULES))
def test_each_rule_runs_through_the_points(lecture):
    """Every number apart, the small ones too: after 100 steps they are 1e-18 and less."""
    for name in RULES:
        expected = float64(lecture[f"Z.opt.{name}"].value)
        # 100 roundings of 1e-16, where w goes through zero and back.
        assert_close(bowl_path(name)[SEEN], expected, rtol=1e-12, atol=0, msg=name)


def test_the_rules_have_the_lecture_s_settings():
    for name, rule in RULES.items():
        hyper = setting(f"QUAD/{name}")["hyper"]
        assert hyper.startswith((f"eta {rule.lr}", f"lr {rule.lr}")), name
    assert START.tolist() == setting("QUAD")["w0"]
    assert setting("QUAD")["steps"] == SEEN


@pytest.mark.figures("Z.opt.compare")
def test_the_race(lecture):
    expected = float64(lecture["Z.opt.compare"].value)
    found = torch.stack([bowl(bowl_path(name)[[10, 100]]) for name in LABELS])
    assert_close(found, expected, rtol=1e-12, atol=0)
    assert LABELS[list(LABELS)[int(found[:, 1].argmin())]] == "Nesterov"


def test_there_is_no_best_rule():
    """The same rules, another bowl: as steep along as across, and plain descent is first."""
    paths = {name: descend(RULES[name], lambda w: 20 * w, START, 10) for name in LABELS}
    last = {name: float(path[-1].norm()) for name, path in paths.items()}
    assert min(last, key=last.__getitem__) == "gd"


def test_the_two_forms_of_nesterov_are_one_path_seen_from_two_points():
    """w - γ v of the one, which is w + μ v in manualbp's sign, is w of the other."""
    ahead = steps(RULES["nesterov_lookahead_form"], bowl_gradient, START)
    torchs = bowl_path("nesterov_torch_form")
    for n in range(1, 101):
        w, _, memory = next(ahead)
        assert_close(w + 0.9 * memory["velocity"], torchs[n], rtol=1e-12, atol=1e-14)


def test_where_eps_stands_shows():
    for rule in ("adagrad", "rmsprop"):
        outside, inside = bowl_path(rule), bowl_path(f"{rule}_eps_inside")
        assert 1e-10 < (outside - inside).abs().max() < 1e-5


@pytest.mark.figures("Z.momentum.222", "Z.nomomentum.222")
def test_momentum_on_the_worked_example(lecture):
    seen = [1, 2, 3, 10, 100, 1000]
    for name, momentum in (("Z.nomomentum.222", 0.0), ("Z.momentum.222", 0.9)):
        errors = worked_example_errors(momentum, 1000)
        for n, expected in zip(seen, lecture[name].value, strict=True):
            assert errors[n] == pytest.approx(expected, rel=1e-12), (name, n)


@pytest.mark.figures("Z.momentum.updates_to_1e-3")
def test_momentum_needs_fewer_updates(lecture):
    found = [worked_example_descent(SGD(0.5, a)).until(1e-3, 2000) for a in (0.0, 0.9)]
    lecture.expect("Z.momentum.updates_to_1e-3", found, 0)


def test_momentum_adds_a_share_of_the_last_change():
    """Krzywicki: Δw(n) = η δ x + α Δw(n-1), with Δw(0) = 0."""
    path = bowl_path("momentum", 20)
    change = torch.diff(path, dim=0)
    assert_close(change[0], -0.05 * bowl_gradient(path[0]))
    for n in range(1, 20):
        expected = -0.05 * bowl_gradient(path[n]) + 0.9 * change[n - 1]
        assert_close(change[n], expected, rtol=1e-12, atol=1e-14)
