"""Epochs in the listed order: the same updates as an engine's, one after the other."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from manualbp.layers import Linear, Sequential, Sigmoid
from manualbp.losses import MSELoss
from manualbp.optimizers import SGD, Adam, Optimizer
from manualbp.parameters import Parameters
from manualbp.training.descent import Descent
from manualbp.training.engine import ManualEngine
from manualbp.training.step import TrainingStep

MODEL = Sequential(Linear(3, 4), Sigmoid(), Linear(4, 2))


def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    return numbers[:, :3], numbers[:, 3:]


def start() -> Parameters:
    return MODEL.parameters(torch.Generator().manual_seed(1), dtype=torch.float64)


def a_descent(rule: Optimizer, batch_size: int = 0) -> Descent:
    return Descent(TrainingStep(MODEL, MSELoss(), rule), start(), *examples(), batch_size)


@pytest.mark.parametrize("rule", [SGD(0.1), SGD(0.1, 0.9, dampening=0.5), Adam(0.01)], ids=str)
@pytest.mark.parametrize("batch_size", [0, 1, 3])
@pytest.mark.parametrize("long", [20, 24])
def test_23_epochs_are_the_updates_of_an_engine_one_by_one(
    rule: Optimizer, batch_size: int, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam's coefficients change at each update; 23 is two recorded pieces and three more."""
    monkeypatch.setattr("manualbp.training.descent.LONG", long)
    descent = a_descent(rule, batch_size)
    descent.run(23)
    step = TrainingStep(MODEL, MSELoss(), rule)
    engine = ManualEngine(step, start(), torch.Generator(), recorded=False)
    x, t = examples()
    rows = batch_size or 7
    for _ in range(23):
        parts = list(zip(x.split(rows), t.split(rows), strict=True))
        engine.plan([rule.lr] * len(parts))
        for part in parts:
            engine.step(*part)
    assert descent.updates == engine.steps
    for name, w in engine.weights().items():
        assert_close(descent.params.named()[name], w, rtol=1e-12, atol=1e-15)


def test_errors_are_those_of_all_examples_before_and_after_each_epoch() -> None:
    descent, other = a_descent(SGD(0.1), 2), a_descent(SGD(0.1), 2)
    errors = descent.errors(3)
    for error in errors:
        expected, _ = MSELoss().forward(other.outputs(), other.target)
        assert error == pytest.approx(float(expected), rel=1e-14)
        other.run(1)
    assert errors[-1] < errors[0]
    assert descent.error() == errors[-1]
    assert descent.error_on(descent.x[:2], descent.target[:2]) != errors[-1]


def test_until_stops_at_the_first_epoch_that_is_good_enough() -> None:
    errors = a_descent(SGD(0.1)).errors(5)
    assert a_descent(SGD(0.1)).until(errors[4], most=5) == 4
    assert a_descent(SGD(0.1)).until(errors[4], most=3) is None
    assert a_descent(SGD(0.1)).until(errors[0], most=0) == 0


def test_gradients_are_those_of_the_error() -> None:
    descent = a_descent(SGD(0.1))
    g = descent.gradients().named()["0.weight"]
    w = descent.params.named()["0.weight"]
    w[1, 2] += 1e-6
    above = descent.error()
    w[1, 2] -= 2e-6
    assert float(g[1, 2]) == pytest.approx((above - descent.error()) / 2e-6, rel=1e-6)
