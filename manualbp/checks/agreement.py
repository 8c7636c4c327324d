"""Run a case by hand and through autograd, and say for each tensor how far the two lie apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from manualbp.checks.registry import case_owner
from manualbp.checks.tolerances import TOLERANCES, UNDERFLOW
from manualbp.layers import AnyLayer, Mode
from manualbp.losses import AnyLoss, CrossEntropyLoss
from manualbp.parameters import Parameters
from reference.cases import Case, LossCase
from reference.twins import set_generator, twin, twin_loss

Results = dict[str, Tensor]
"""Outputs and gradients by name: "y", "dx", "dweight", "d0.weight", ..."""


class Row(NamedTuple):
    """One tensor, by hand and through autograd."""

    layer: str
    case: str
    tensor: str
    shape: list[int]
    device: str
    dtype: str
    max_abs_error: float  # max |by hand - autograd|
    max_rel_error: float  # the same over max |autograd|
    error_vs_truth: float  # max |by hand - truth| / max |truth|, truth from autograd in float64
    autograd_error_vs_truth: float
    verdict: Literal["agree", "differ"]


@dataclass(frozen=True)
class Inputs:
    """Everything that goes into both sides, in one dtype on one device."""

    parameters: Parameters
    x: Tensor
    dy: Tensor
    seed: int  # of the masks that layers draw

    def to(self, dtype: torch.dtype) -> Inputs:
        """Return the same numbers in another dtype."""
        flat = self.parameters.flat.to(dtype)
        parameters = Parameters(self.parameters.shapes, flat)
        return Inputs(parameters, self.x.to(dtype), self.dy.to(dtype), self.seed)

    def generator(self) -> torch.Generator:
        """Return the generator of the masks, at its start."""
        return torch.Generator(self.x.device).manual_seed(self.seed)


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device | str, seed: int) -> Inputs:
    """Draw parameters, x and dy for a case: float64 on the CPU, then rounded and moved.

    The upstream gradient dy is random, never ones: for dy = 1 the true dx of softmax is zero and a
    test would compare nothing. The parameters stay away from a layer's own start, whose zeros hide
    mistakes.
    """
    generator = torch.Generator().manual_seed(seed)
    x = case.x(generator, dtype).to(device)
    parameters = Parameters.zeros(case.layer.shapes(), dtype=torch.float64)
    for tensor in parameters.named().values():
        fan_in = tensor.shape[-1] if tensor.ndim > 1 else 1
        tensor.normal_(generator=generator).div_(max(fan_in, 1) ** 0.5)
    parameters = Parameters(parameters.shapes, parameters.flat.to(device, dtype))
    mode = Mode(case.training, torch.Generator(x.device).manual_seed(seed))
    y, _ = case.layer.forward(parameters.views, x, mode=mode)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(device, dtype)
    return Inputs(parameters, x, dy, seed)


def by_hand(layer: AnyLayer, inputs: Inputs, *, training: bool) -> Results:
    """Return y and every gradient from the hand-written passes."""
    grads = inputs.parameters.zeros_like()
    mode = Mode(training, inputs.generator())
    y, saved = layer.forward(inputs.parameters.views, inputs.x, mode=mode)
    dx = layer.backward(inputs.parameters.views, saved, inputs.dy, grads.views)
    return {"y": y, "dx": dx} | {f"d{name}": grad for name, grad in grads.named().items()}


def through_autograd(layer: AnyLayer, inputs: Inputs, *, training: bool) -> Results:
    """Return the same from the twin."""
    module = twin(layer).to(inputs.x.device, inputs.x.dtype).train(training)
    module.load_state_dict(inputs.parameters.state_dict())
    set_generator(module, inputs.generator())
    return autograd_results(module, inputs)


def autograd_results(module: nn.Module, inputs: Inputs) -> Results:
    """Return y, dx and the parameters' gradients of a torch module with its parameters set."""
    named = dict(module.named_parameters())
    x = inputs.x.detach().requires_grad_()
    y = module(x)
    # Where an input has no path to y its gradient is zero.
    gradients = torch.autograd.grad(
        y, [x, *named.values()], inputs.dy, allow_unused=True, materialize_grads=True
    )
    results = zip(["dx", *(f"d{name}" for name in named)], gradients, strict=True)
    return {"y": y.detach()} | dict(results)


def compare_layer(
    case: Case, dtype: torch.dtype, device: torch.device | str, seed: int
) -> list[Row]:
    """Compare one case of a layer; a row for y, dx and each parameter."""
    inputs = make_inputs(case, dtype, device, seed)
    ours = by_hand(case.layer, inputs, training=case.training)
    autograd = through_autograd(case.layer, inputs, training=case.training)
    truth = through_autograd(case.layer, inputs.to(torch.float64), training=case.training)
    return rows(case_owner(case), case.name, ours, autograd, truth)


def compare_loss(
    case: LossCase, dtype: torch.dtype, device: torch.device | str, seed: int
) -> list[Row]:
    """Compare one case of a loss; rows for E and dy. The upstream factor dE is random."""
    generator = torch.Generator().manual_seed(seed)
    y = case.y(generator, dtype).to(device)
    target = case.target(generator, dtype).to(device)
    dE = torch.rand((), generator=generator, dtype=torch.float64).to(device, dtype) + 0.5

    def results(y: Tensor, target: Tensor, dE: Tensor) -> tuple[Results, Results]:
        loss = _cast(case.loss, y)
        error, saved = loss.forward(y, target)
        ours = {"E": error, "dy": loss.backward(saved, dE)}
        leaf = y.detach().requires_grad_()
        error = twin_loss(loss)(leaf, target)
        (dy,) = torch.autograd.grad(error, leaf, dE)
        return ours, {"E": error.detach(), "dy": dy}

    ours, autograd = results(y, target, dE)
    exact = target.double() if target.is_floating_point() else target
    _, truth = results(y.double(), exact, dE.double())
    return rows(case_owner(case), case.name, ours, autograd, truth)


def _cast(loss: AnyLoss, y: Tensor) -> AnyLoss:
    if isinstance(loss, CrossEntropyLoss) and loss.weight is not None:
        return replace(loss, weight=loss.weight.to(y))
    return loss


def rows(layer: str, case: str, ours: Results, autograd: Results, truth: Results) -> list[Row]:
    """Return a row for each tensor. Raises AssertionError if the two sides name different ones."""
    assert ours.keys() == autograd.keys(), f"{sorted(ours)} and {sorted(autograd)}"
    own_errors = _errors(autograd, truth)
    allowed = limits(autograd, truth)
    found: list[Row] = []
    for name, a in ours.items():
        b = autograd[name]
        error, difference = relative_error(a, truth[name]), relative_error(a, b)
        same_kind = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
        row = Row(
            layer=layer,
            case=case,
            tensor=name,
            shape=list(a.shape),
            device=a.device.type,
            dtype=str(a.dtype).removeprefix("torch."),
            max_abs_error=_largest(a.double() - b.double()) if a.shape == b.shape else inf,
            max_rel_error=difference,
            error_vs_truth=error,
            autograd_error_vs_truth=own_errors[name],
            verdict="agree" if same_kind and min(error, difference) <= allowed[name] else "differ",
        )
        found.append(row)
    return found


def limits(autograd: Results, truth: Results) -> dict[str, float]:
    """Return for each tensor the largest error that `TOLERANCES` allows."""
    own_errors = _errors(autograd, truth)
    # What rounding costs here: autograd's largest error, but for tensors lost to underflow.
    rounding = max((error for error in own_errors.values() if error < UNDERFLOW), default=0.0)
    allowed: dict[str, float] = {}
    for name, own in own_errors.items():
        tolerance = TOLERANCES[autograd[name].dtype]
        cost = max(rounding, own if isfinite(own) else 0.0)
        allowed[name] = max(tolerance.floor, tolerance.factor * cost)
    return allowed


def _errors(found: Results, truth: Results) -> dict[str, float]:
    return {name: relative_error(tensor, truth[name]) for name, tensor in found.items()}


def relative_error(a: Tensor, b: Tensor) -> float:
    """Return max |a - b| / max |b|; 0 for equal tensors, infinite for shapes or NaN that differ."""
    if a.shape != b.shape:
        return inf
    a, b = a.double(), b.double()
    if torch.equal(a.isnan(), b.isnan()):
        a, b = a.nan_to_num(0.0), b.nan_to_num(0.0)
    difference = _largest(torch.where(a == b, 0.0, a - b))
    if difference == 0:
        return 0.0
    scale = _largest(b)
    error = difference / scale if scale else inf
    return error if error == error else inf


def _largest(a: Tensor) -> float:
    return a.abs().max().item() if a.numel() else 0.0
