"""Which update was the first to make a number that is not finite, and which tensor."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_runs import Reports, a_run, a_trainer
from torch import Tensor

from manualbp.layers import Linear, ReLU
from manualbp.losses import CrossEntropyLoss
from manualbp.optimizers import SGD
from manualbp.training.diagnosis import first_not_finite
from manualbp.training.loop import NotFinite

NAN = float("nan")
LAST = 9  # rows of the last batch of an epoch, and of no other: the fourth of 4

Patch = Callable[[pytest.MonkeyPatch], None]


def an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ReLU.forward

    def forward(self: ReLU, params: Any, x: Tensor, **rest: Any) -> tuple[Tensor, Any]:
        y, saved = right(self, params, x, **rest)
        return (y * NAN if len(x) == LAST else y), saved

    monkeypatch.setattr(ReLU, "forward", forward)


def the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    right = CrossEntropyLoss.forward

    def forward(self: CrossEntropyLoss, y: Tensor, target: Tensor) -> tuple[Tensor, Any]:
        error, saved = right(self, y, target)
        return (error * NAN if len(y) in (LAST, 105) else error), saved

    monkeypatch.setattr(CrossEntropyLoss, "forward", forward)


def a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Linear.backward_parameters

    def backward_parameters(self: Linear, params: Any, saved: Any, dy: Tensor, grads: Any) -> None:
        right(self, params, saved, dy, grads)
        if len(dy) == LAST and self.out_features == 3:
            grads.bias.mul_(NAN)

    monkeypatch.setattr(Linear, "backward_parameters", backward_parameters)


def a_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    right = SGD.coefficients
    monkeypatch.setattr(
        SGD,
        "coefficients",
        lambda self, step, lr: (NAN if step == 4 else lr, *right(self, step, lr)[1:]),
    )


@pytest.mark.parametrize(
    ("plant", "tensor"),
    [
        (an_output, "the output of layer 1 (ReLU)"),
        (the_loss, "the loss"),
        (a_gradient, "the gradient of 2.bias"),
        (a_parameter, "the parameter 0.weight"),
    ],
)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_first_tensor_of_the_first_such_update_is_named(
    plant: Patch, tensor: str, momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    run = a_run(data="iris", hidden=(6,), momentum=momentum, max_epochs=3)
    with pytest.raises(NotFinite):
        run.trainer.fit(Reports())
    assert run.trainer.progress.steps == 0  # back at the start
    assert first_not_finite(run.trainer, run.step.model, run.params) == tensor
    assert run.trainer.progress.steps == 4


def test_an_input_that_is_not_finite_is_named() -> None:
    run = a_run(data="iris", hidden=(6,), batch_size=0)
    run.trainer.train.x[3, 2] = NAN
    assert first_not_finite(run.trainer, run.step.model, run.params) == "the input"
    assert run.trainer.progress.steps == 1


@pytest.mark.parametrize("engine", ["manual", "autograd"])
@pytest.mark.parametrize(
    ("model", "tensor"),
    [("mlp", "the output of layer 2 (Linear)"), ("maxout", "the output of layer 1 (Linear)")],
)
def test_a_learning_rate_that_is_far_too_large(engine: str, model: str, tensor: str) -> None:
    run = a_run(data="iris", hidden=(6,), model=model, engine=engine, lr=1e30)
    with pytest.raises(NotFinite):
        run.trainer.fit(Reports())
    assert first_not_finite(run.trainer, run.step.model, run.params) == tensor
    assert run.trainer.progress.steps == 2


def test_it_begins_where_the_trainer_stands_within_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a_gradient(monkeypatch)
    run = a_run(data="iris", hidden=(6,))

    class Killed(Exception):
        pass

    class Killer(Reports):
        def after_update(self, trainer: Any) -> None:
            if trainer.progress.position == 2:
                raise Killed

    with pytest.raises(Killed):
        run.trainer.fit(Killer())
    with pytest.raises(NotFinite):
        run.trainer.fit(Reports())
    assert run.trainer.progress.position == 2
    assert first_not_finite(run.trainer, run.step.model, run.params) == "the gradient of 2.bias"
    assert run.trainer.progress.steps == 4


def test_nothing_is_named_where_all_is_finite() -> None:
    run = a_run(data="iris", hidden=(6,))
    assert first_not_finite(run.trainer, run.step.model, run.params) is None
    assert run.trainer.progress.steps == 4
    again = a_trainer(data="iris", hidden=(6,))
    again.run_epoch(Reports())
    assert torch.equal(again.engine.weights()["0.weight"], run.trainer.engine.weights()["0.weight"])
