"""By hand and through autograd: the same run, from the same start, on the same batches."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_runs import Reports, a_run, a_trainer, assert_same, fitted
from torch import Tensor, nn
from torch.testing import assert_close

from manualbp.checks.engines import LIMITS, AutogradEngine
from manualbp.errors import CheckFailed
from manualbp.layers import Linear, ReLU
from manualbp.losses import MSELoss
from manualbp.optimizers import SGD
from manualbp.training.engine import ManualEngine

SMALL = {"hidden": (16,), "batch_size": 128}
RUNS: dict[str, dict[str, Any]] = {
    "the default": {},
    "nesterov": {"optimizer": "nesterov", **SMALL},
    "look-ahead": {"optimizer": "look-ahead", **SMALL},
    "sgd without momentum or decay": {"momentum": 0.0, "weight_decay": 0.0, **SMALL},
    "adagrad": {"optimizer": "adagrad", **SMALL},
    "rmsprop": {"optimizer": "rmsprop", "momentum": 0.5, **SMALL},
    "adam": {"optimizer": "adam", **SMALL},
    "adamw": {"optimizer": "adamw", **SMALL},
    "dropout": {"dropout": 0.3, **SMALL},
    "l1": {"l1": 1e-3, **SMALL},
    "l2": {"l2": 1e-3, **SMALL},
    "clipped by norm": {"clip_norm": 0.5, **SMALL},
    "clipped by value": {"clip_value": 0.01, **SMALL},
    "all of them at once": {
        "optimizer": "adam",
        "dropout": 0.2,
        "l2": 1e-3,
        "clip_norm": 0.5,
        "clip_value": 0.1,
        "schedule": "cosine",
        "accumulate": 3,
        **SMALL,
    },
    "accumulated": {"accumulate": 3, "hidden": (16,), "batch_size": 50},
    "accumulated, summed": {
        "accumulate": 3,
        "hidden": (16,),
        "batch_size": 50,
        "reduction": "sum",
        "lr": 1e-4,
    },
    "full batch": {"batch_size": 0, "hidden": (16,)},
    "step schedule": {"schedule": "step", **SMALL},
    "exponential schedule": {"schedule": "exponential", **SMALL},
    "smoothed labels": {"label_smoothing": 0.1, **SMALL},
    "mse": {"loss": "mse", **SMALL},
    "half squared error": {"loss": "half-squared-error", "reduction": "sum", "lr": 1e-4, **SMALL},
    "logistic": {"model": "logistic"},
    "maxout": {"model": "maxout", **SMALL},
    "residual": {"model": "residual", **SMALL},
    "bce": {"data": "breast_cancer", "loss": "bce", **SMALL},
    "regression": {"data": "diabetes", **SMALL},
    "online": {"data": "xor", "batch_size": 1, "hidden": (8,)},
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS.keys())
def test_ten_epochs_by_hand_and_by_autograd_have_equal_losses(settings: dict[str, Any]) -> None:
    common = {"dtype": "float64", "max_epochs": 10, "patience": None, **settings}
    _, ours = fitted(engine="manual", **common)
    _, theirs = fitted(engine="autograd", **common)
    assert len(ours) == len(theirs) == 10
    for a, b in zip(ours, theirs, strict=True):
        assert a.train["loss"] == pytest.approx(b.train["loss"], rel=1e-9, abs=0)
        assert a.val["loss"] == pytest.approx(b.val["loss"], rel=1e-9, abs=0)
    assert ours[-1].train["loss"] < ours[0].train["loss"]


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "look-ahead", "rmsprop", "adamw"])
def test_frozen_parameters_stay_and_the_others_learn_as_in_torch(optimizer: str) -> None:
    """Weight decay, which the update rules take on all parameters, leaves them alone too."""
    run = a_run(data="iris", dtype="float64", hidden=(8,), optimizer=optimizer, l2=0.1)
    step = replace(run.step, frozen=("0.bias", "2.weight"), clip_norm=0.1)
    ours = ManualEngine(step, run.params, torch.Generator())
    ours.load_weights({name: w + 1 for name, w in ours.weights().items()})
    theirs = AutogradEngine(step, run.params.state_dict(), torch.Generator())
    start = run.params.state_dict()
    split = run.trainer.train
    for engine in (ours, theirs):
        engine.plan([0.01] * 5)
        for _ in range(5):
            engine.step(split.x, split.t)
    for name, w in theirs.weights().items():
        assert_close(ours.weights()[name], w, rtol=1e-12, atol=0)
        assert torch.equal(w, start[name]) == (name in step.frozen)
    assert not ours.gradients()["0.bias"].any()
    assert ours.gradients()["0.weight"].any()


@pytest.mark.parametrize("engine", ["manual", "autograd"])
def test_a_run_is_that_of_the_loop_everyone_writes_in_torch(engine: str) -> None:
    trainer = a_trainer(data="iris", dtype="float64", hidden=(8,), engine=engine, max_epochs=3)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    module.load_state_dict(trainer.engine.weights())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=0.003)
    batches: list[tuple[Tensor, Tensor]] = []
    step = trainer.engine.step

    def record(x: Tensor, target: Tensor) -> Tensor:
        with torch.inference_mode(False):  # copies that autograd takes
            batches.append((x.clone(), target.clone()))
        return step(x, target)

    trainer.engine.step = record
    trainer.fit(Reports())
    assert [len(x) for x, _ in batches] == 3 * [32, 32, 32, 9]
    for x, target in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), target).backward()
        optimizer.step()
    for name, weight in module.state_dict().items():
        torch.testing.assert_close(trainer.engine.weights()[name], weight, rtol=1e-12, atol=1e-14)


TINY: dict[str, Any] = {"data": "iris", "hidden": (6,), "max_epochs": 3}


@pytest.mark.parametrize("optimizer", ["sgd", "look-ahead", "rmsprop", "adamw"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_lockstep_passes_where_nothing_is_wrong(dtype: str, optimizer: str) -> None:
    trainer, reports = fitted(
        engine="lockstep", dtype=dtype, optimizer=optimizer, dropout=0.2, **TINY
    )
    assert len(reports) == 3
    differences = trainer.engine.take_differences()
    assert differences.keys() == {"gradients", "parameters"}
    limit = LIMITS[trainer.train.x.dtype]
    assert all(0 < difference < limit for difference in differences.values())
    assert trainer.engine.take_differences() == {"gradients": 0.0, "parameters": 0.0}


Patch = Callable[[pytest.MonkeyPatch], None]


def wrong_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReLU, "backward", lambda self, params, saved, dy, grads: dy)


def wrong_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Linear.backward_parameters

    def backward_parameters(self: Linear, params: Any, saved: Any, dy: Tensor, grads: Any) -> None:
        right(self, params, saved, dy, grads)
        if self.out_features == 3:
            grads.bias.mul_(1 + 1e-8)

    monkeypatch.setattr(Linear, "backward_parameters", backward_parameters)


def wrong_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SGD, "coefficients", lambda self, step, lr: (-lr * (1 + 1e-7), 1.0))


def wrong_for_the_last_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    right = MSELoss.backward

    def backward(self: MSELoss, saved: Any, dE: Tensor | float = 1.0) -> Tensor:
        return right(self, saved, 1.01 * dE if len(saved.error) == 9 else dE)

    monkeypatch.setattr(MSELoss, "backward", backward)


def not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReLU, "backward", lambda self, params, saved, dy, grads: dy * math.nan)


@pytest.mark.parametrize(
    ("plant", "step", "tensor"),
    [
        (wrong_slope, 1, "gradients of 0.weight"),
        (wrong_bias, 1, "gradients of 2.bias"),
        (wrong_update, 1, "parameters of 0.weight"),
        (wrong_for_the_last_batch, 4, "gradients of 0.weight"),
        (not_a_number, 1, "gradients of 0.weight"),
    ],
)
def test_lockstep_names_step_and_tensor_of_a_planted_bug(
    plant: Patch, step: int, tensor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    trainer = a_trainer(engine="lockstep", dtype="float64", loss="mse", **TINY)
    with pytest.raises(CheckFailed, match=f"^lockstep: at step {step} the {tensor} differ by "):
        trainer.fit(Reports())
    assert trainer.progress.steps == step - 1


def test_a_bug_within_the_limit_of_lockstep_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_bias(monkeypatch)
    trainer, _ = fitted(engine="lockstep", dtype="float64", lockstep_limit=1e-6, **TINY)
    assert 1e-9 < trainer.engine.take_differences()["gradients"] < 1e-6


@pytest.mark.parametrize("optimizer", ["sgd", "look-ahead", "adagrad", "rmsprop", "adam"])
@pytest.mark.parametrize("engine", ["manual", "autograd", "lockstep"])
def test_an_engine_goes_on_from_its_memory_as_often_as_asked(engine: str, optimizer: str) -> None:
    trainer = a_trainer(
        engine=engine, optimizer=optimizer, dropout=0.2, data="iris", hidden=(6,), max_epochs=9
    )
    trainer.run_epoch(Reports())
    start = trainer.snapshot()

    def two_epochs_from_start() -> dict[str, Any]:
        trainer.restore(start)
        trainer.run_epoch(Reports())
        trainer.run_epoch(Reports())
        return {**trainer.snapshot(), "seconds": None}

    first = two_epochs_from_start()
    assert_same(first, two_epochs_from_start())
    moved = trainer.engine.weights()["0.weight"]
    assert not torch.equal(moved, start["weights"]["0.weight"])


@pytest.mark.parametrize("engine", ["manual", "autograd", "lockstep"])
def test_an_engine_refuses_the_weights_of_another_model(engine: str) -> None:
    trainer = a_trainer(engine=engine, **TINY)
    other = a_trainer(data="iris", hidden=(7,)).engine.weights()
    for weights in (other, {**trainer.engine.weights(), "more": torch.zeros(1)}):
        with pytest.raises(ValueError, match=r"weight|more"):
            trainer.engine.load_weights(weights)
