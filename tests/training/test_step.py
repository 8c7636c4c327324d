"""One update: what it computes, what it is made of, and that it never waits for a device."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_runs import a_run
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manualbp.checks.audit import Recorder
from manualbp.layers import AnyLayer, Linear, Mode, ReLU, Sequential
from manualbp.losses import (
    AnyLoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HalfSquaredError,
    MSELoss,
    Penalty,
)
from manualbp.models import build
from manualbp.optimizers import SGD
from manualbp.parameters import Parameters
from manualbp.training.config import TrainConfig
from manualbp.training.engine import ManualEngine
from manualbp.training.step import TrainingStep

MODEL = Sequential(Linear(5, 4), ReLU(), Linear(4, 3))
PLAIN = TrainingStep(MODEL, CrossEntropyLoss(), SGD(0.1))


def one_update(step: TrainingStep, *, device: str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Make one update of random parameters on 7 random examples; return all that takes part."""
    generator = torch.Generator().manual_seed(seed)
    params = step.model.parameters(generator, dtype=torch.float64, device=device)
    grads, state = params.zeros_like(), step.optimizer.init(params.flat)
    coefficients = [params.flat.new_full((), c) for c in step.optimizer.coefficients(1, 0.1)]
    x = torch.randn(7, 5, generator=generator, dtype=torch.float64).to(device)
    target = torch.arange(7, device=device) % 3
    before = params.clone()
    masks = Mode(training=True, generator=torch.Generator(device).manual_seed(seed))
    y = step(params, grads, state, x, target, coefficients, masks)
    return {"x": x, "target": target, "before": before, "after": params, "grads": grads, "y": y}


def gradient(step: TrainingStep, device: str = "cpu") -> Tensor:
    return one_update(step, device=device)["grads"].flat


def test_it_returns_the_outputs_before_the_update(device: str) -> None:
    made = one_update(PLAIN, device=device)
    before, _ = MODEL.forward(made["before"].views, made["x"])
    after, _ = MODEL.forward(made["after"].views, made["x"])
    assert torch.equal(made["y"], before)
    assert not torch.allclose(made["y"], after)


def test_the_gradients_of_an_earlier_update_are_forgotten(device: str) -> None:
    params = MODEL.parameters(dtype=torch.float64, device=device)
    x, target = torch.ones(2, 5, dtype=torch.float64, device=device), torch.zeros(2).long()
    found: list[Tensor] = []
    for junk in (0.0, 1.0):
        grads = params.zeros_like()
        grads.flat.fill_(junk)
        zero = [params.flat.new_zeros(())] * 2  # the learning rate, and 1 - dampening
        PLAIN(params, grads, {}, x, target.to(device), zero, Mode(training=True))
        found.append(grads.flat)
    assert torch.equal(*found)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("rows", [1, 2, 3, 6, 7, 8])
def test_parts_of_a_batch_add_up_to_the_whole(rows: int, reduction: str, device: str) -> None:
    whole = replace(PLAIN, loss=CrossEntropyLoss(reduction=reduction))
    parts = replace(whole, micro_batch=rows)
    ours, expected = one_update(parts, device=device), one_update(whole, device=device)
    for name in ("grads", "after"):
        torch.testing.assert_close(ours[name].flat, expected[name].flat, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(ours["y"], expected["y"], rtol=1e-12, atol=1e-15)


def test_penalty_then_clipping_by_value_then_by_norm(device: str) -> None:
    g = gradient(replace(PLAIN, penalty=Penalty(10.0)), device)
    assert not torch.allclose(g, gradient(PLAIN, device))
    clipped = g.clamp(-0.5, 0.5)
    assert (clipped != g).any()
    step = replace(PLAIN, penalty=Penalty(10.0), clip_value=0.5, clip_norm=0.2)
    torch.testing.assert_close(
        gradient(step, device), clipped * 0.2 / clipped.norm(), rtol=1e-5, atol=0
    )


RULES = ["sgd", "nesterov", "look-ahead", "adagrad", "rmsprop", "adam", "adamw"]
STEPS = {
    **{rule: {"optimizer": rule} for rule in RULES},
    "sgd without momentum": {"momentum": 0.0},
    "penalty l1": {"l1": 0.1},
    "penalty l2": {"l2": 0.1},
    "clipped": {"clip_norm": 1.0, "clip_value": 0.1},
    "dropout": {"dropout": 0.5},
    "accumulated": {"batch_size": 3, "accumulate": 3},
    "smoothed": {"label_smoothing": 0.1},
    "logistic": {"model": "logistic"},
    "maxout": {"model": "maxout"},
    "residual": {"model": "residual"},
    "mse": {"loss": "mse"},
    "half squared error": {"loss": "half-squared-error"},
    "bce": {"loss": "bce", "data": "xor"},
}
CUT_AND_JOIN = {"split", "cat"}
"""What a step does beside the passes: cut the batch into parts, and join the parts' outputs."""

EACH_STEP = pytest.mark.parametrize("settings", STEPS.values(), ids=STEPS.keys())


def recorded(step: TrainingStep, target: Tensor, features: int, device: str) -> Recorder:
    """Return what one update ran; the batch has 7 rows."""
    params = Parameters.zeros(step.model.shapes(), dtype=torch.float32, device=device)
    state = step.optimizer.init(params.flat)
    shared = step.optimizer.accumulator(state)
    separate = shared is None or step.needs_gradients
    grads = params.zeros_like() if separate else Parameters(params.shapes, shared)
    coefficients = [params.flat.new_full((), c) for c in step.optimizer.coefficients(1, 0.1)]
    x = torch.ones(7, features, device=device)
    recorder = Recorder()
    with recorder:
        y = step(params, grads, state, x, target, coefficients, Mode(training=True))
    assert y.device.type == device
    assert recorder.operations
    return recorder


def recorded_run(settings: dict[str, Any], device: str) -> Recorder:
    """Return what an update of the run with these settings is made of."""
    run = a_run(**{"data": "iris", "hidden": (4, 4), **settings})
    target = run.trainer.train.t
    shape, dtype, features = (7, *target.shape[1:]), target.dtype, run.data.features
    if device == "cpu":
        return recorded(run.step, torch.zeros(shape, dtype=dtype), features, device)
    with FakeTensorMode():
        # Here a number asked for raises an error, as does a sum of tensors on two devices.
        return recorded(run.step, torch.zeros(shape, dtype=dtype, device=device), features, device)


def places(recorder: Recorder) -> set[str]:
    """Return the devices on which the results lay."""
    return set[str]().union(*recorder.operations.values())


@EACH_STEP
def test_an_update_stays_on_the_gpu_and_never_waits_for_it(settings: dict[str, Any]) -> None:
    assert places(recorded_run(settings, "cuda")) == {"cuda"}


class Made(TorchDispatchMode):
    """Keeps a weak reference to every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.tensors += [weakref.ref(t) for t in tree_leaves(out) if isinstance(t, Tensor)]
        return out


MODELS: dict[str, AnyLayer] = {
    name: build(name, 4, 3, hidden=(4, 4), dropout=0.5)
    for name in ("mlp", "logistic", "maxout", "residual")
}
LOSSES = [CrossEntropyLoss(None, None), BCEWithLogitsLoss(), MSELoss(), HalfSquaredError()]
RULE = {rule: TrainConfig(optimizer=rule).build_optimizer() for rule in RULES}


def kept_by_a_step(
    rule: str, model: str, loss: AnyLoss, patch: pytest.MonkeyPatch, *, mixed: bool = False
) -> int:
    """Return how many tensors that a step of the engine made on a GPU outlive it, beside results.

    FakeTensorMode raises an error where a number is asked for.
    """
    # Tensor.copy_ asks for a device that is there; the operation itself does not.
    patch.setattr(Tensor, "copy_", lambda self, other: torch.ops.aten.copy_(self, other))
    net = MODELS[model]
    with FakeTensorMode():
        flat = Parameters.zeros(net.shapes(), device="cuda").flat
        params = Parameters(net.shapes(), flat, rounded_to=torch.bfloat16 if mixed else None)
        step = TrainingStep(net, loss, RULE[rule], Penalty(0.1), clip_norm=1.0)
        engine = ManualEngine(step, params, torch.Generator(), recorded=False)
        engine.mode = Mode(training=True)  # there is no generator on a device that is not there
        x = torch.ones(7, 4, device="cuda")
        if isinstance(loss, CrossEntropyLoss):
            target = torch.zeros(7, dtype=torch.long, device="cuda")
        else:
            target = torch.ones(7, 3, device="cuda")
        engine.plan([0.1])
        with Recorder() as recorder, Made() as made:
            y = engine.step(x, target)
    assert places(recorder) == {"cuda"}
    assert len(made.tensors) > 30
    results = [y, x, target, params.flat, params.working, engine.grads.flat, engine._coefficients]
    own = {t.untyped_storage()._cdata for t in [*results, *engine.state.values()]}
    alive = [tensor for made_one in made.tensors if (tensor := made_one()) is not None]
    return sum(tensor.untyped_storage()._cdata not in own for tensor in alive)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rule", RULES)
def test_the_step_of_the_engine_leaves_nothing_on_the_gpu_but_its_results(
    rule: str, model: str, loss: AnyLoss, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kept_by_a_step(rule, model, loss, monkeypatch) == 0


@pytest.mark.parametrize("model", MODELS)
def test_nor_does_a_step_of_mixed_precision(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept_by_a_step("look-ahead", model, LOSSES[0], monkeypatch, mixed=True) == 0


def test_a_tensor_that_a_layer_keeps_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    right = ReLU.forward

    def forward(self: ReLU, params: Any, x: Tensor, *, mode: Mode) -> Any:
        y, saved = right(self, params, x, mode=mode)
        kept.append(saved)
        return y, saved

    monkeypatch.setattr(ReLU, "forward", forward)
    assert kept_by_a_step("sgd", "mlp", LOSSES[0], monkeypatch) == 2


@EACH_STEP
def test_an_update_is_made_of_elementary_operations(settings: dict[str, Any]) -> None:
    assert set(recorded_run(settings, "cpu").forbidden()) <= CUT_AND_JOIN


def test_a_number_read_back_within_an_update_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = MSELoss.backward

    def backward(self: MSELoss, saved: Any, dE: float = 1.0) -> Tensor:
        return right(self, saved, dE * saved.error.abs().max().item())

    monkeypatch.setattr(MSELoss, "backward", backward)
    with pytest.raises(DataDependentOutputException):
        recorded_run({"loss": "mse"}, "cuda")


def test_a_branch_on_data_within_an_update_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Linear.backward_parameters

    def backward_parameters(self: Linear, params: Any, saved: Any, dy: Tensor, grads: Any) -> None:
        if dy.abs().max() > 0:
            right(self, params, saved, dy, grads)

    monkeypatch.setattr(Linear, "backward_parameters", backward_parameters)
    with pytest.raises(DataDependentOutputException):
        recorded_run({}, "cuda")


def test_a_tensor_of_the_cpu_within_an_update_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = SGD.update

    def update(
        self: SGD, params: Tensor, grads: Tensor, state: Any, coefficients: list[Tensor]
    ) -> None:
        right(self, params, grads, state, [torch.tensor(0.1), *coefficients[1:]])

    monkeypatch.setattr(SGD, "update", update)
    assert places(recorded_run({}, "cuda")) == {"cuda", "cpu"}


def test_a_loss_of_torch_within_an_update_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: MSELoss, y: Tensor, target: Tensor) -> tuple[Tensor, Any]:
        return torch.nn.functional.mse_loss(y, target), (y - target,)

    monkeypatch.setattr(MSELoss, "forward", forward)
    monkeypatch.setattr(MSELoss, "backward", lambda self, saved, dE=1.0: saved[0] * dE)
    assert set(recorded_run({"loss": "mse"}, "cpu").forbidden()) - CUT_AND_JOIN == {"mse_loss"}
