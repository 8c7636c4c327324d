"""What every layer promises, each promise as a check that runs over a case.

A check takes a case, a dtype, a device and a seed. It returns one line for each thing that is wrong,
and that line names the layer, the case, the tensor and how to run it again. No line is good.

A loss, or a whole model with its loss, is checked as a layer whose output is the one number E: see
`WithLoss`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from manualbp.checks.agreement import (
    Inputs,
    Results,
    autograd_results,
    by_hand,
    make_inputs,
    relative_error,
    rows,
)
from manualbp.checks.audit import Recorder
from manualbp.checks.differences import central_differences, one_sided_differences
from manualbp.checks.tolerances import CENTRAL_DIFFERENCES, TOLERANCES
from manualbp.layers import EVALUATION, AnyLayer, Layer, Mode, Sequential, Softmax
from manualbp.losses import AnyLoss, CrossEntropyLoss
from manualbp.parameters import Parameters, Shapes, Views
from reference.cases import Case, LossCase
from reference.twins import set_generator, twin, twin_loss

Check = Callable[[Case, torch.dtype, str, int], list[str]]

TINY = 1e-12
"""A gradient whose largest number is this small compares nothing but rounding."""

SATURATED = 30.0
"""From such an input on, σ and tanh are flat to the last digit, and a gradient of zero is right."""


# A loss, or a model with its loss, as a layer


@dataclass(frozen=True, eq=False)
class WithLoss(Layer[Any]):
    """E = loss(model(x), target)

    Shapes: x and target as model and loss take them; E has no axes. A model without layers,
    `Sequential()`, leaves the loss alone.
    """

    model: AnyLayer
    loss: AnyLoss
    target: Tensor

    def shapes(self) -> Shapes:
        return {"model": self.model.shapes()}

    def forward(self, params: Views, x: Tensor, *, mode: Mode = EVALUATION) -> tuple[Tensor, Any]:
        y, saved = self.model.forward(params["model"], x, mode=mode)
        error, saved_error = self.loss.forward(y, self.target)
        return error, (saved, saved_error)

    def backward(self, params: Views, saved: Any, dy: Tensor, grads: Views) -> Tensor:
        dy = self.loss.backward(saved[1], dy)
        return self.model.backward(params["model"], saved[0], dy, grads["model"])

    def backward_parameters(self, params: Views, saved: Any, dy: Tensor, grads: Views) -> None:
        dy = self.loss.backward(saved[1], dy)
        self.model.backward_parameters(params["model"], saved[0], dy, grads["model"])


class WithLossTwin(nn.Module):
    """The same through autograd."""

    def __init__(self, model: nn.Module, loss: nn.Module, target: Tensor) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        """Return E."""
        return self.loss(self.model(x), self.target)


def loss_case(case: LossCase, seed: int = 0) -> Case:
    """Return the case of a loss as the case of a layer."""
    target = case.target(torch.Generator().manual_seed(seed))
    layer = WithLoss(Sequential(), case.loss, target)
    return Case(case.name, layer, case.shape, scale=case.scale)


def owner(case: Case) -> str:
    """Return the name that a case goes by: the layer's class, or the loss's."""
    return type(case.layer.loss if isinstance(case.layer, WithLoss) else case.layer).__name__


# One case in one dtype on one device


@dataclass(frozen=True)
class Setup:
    """A case, its layer's tensors in one dtype on one device, with inputs for it."""

    case: Case
    inputs: Inputs

    @classmethod
    def of(cls, case: Case, dtype: torch.dtype, device: str, seed: int) -> Setup:
        """Draw inputs for a case."""
        case = replace(case, layer=_placed(case.layer, dtype, device))
        return cls(case, make_inputs(case, dtype, device, seed))

    def forward(self, inputs: Inputs | None = None) -> tuple[Tensor, Any]:
        """Return y and what was saved, by hand."""
        inputs = inputs or self.inputs
        mode = Mode(self.case.training, inputs.generator())
        return self.case.layer.forward(inputs.parameters.views, inputs.x, mode=mode)

    def backward(self, saved: Any, grads: Parameters, inputs: Inputs | None = None) -> Tensor:
        """Return dx and add to the gradients, by hand."""
        inputs = inputs or self.inputs
        views = inputs.parameters.views
        return self.case.layer.backward(views, saved, inputs.dy, grads.views)

    def by_hand(self, inputs: Inputs | None = None) -> Results:
        """Return y and every gradient."""
        return by_hand(self.case.layer, inputs or self.inputs, training=self.case.training)

    def through_autograd(self, inputs: Inputs) -> Results:
        """Return the same from the twin."""
        layer = _placed(self.case.layer, inputs.x.dtype, inputs.x.device)
        module = _twin(layer).to(inputs.x.device, inputs.x.dtype).train(self.case.training)
        module.load_state_dict(inputs.parameters.state_dict())
        set_generator(module, inputs.generator())
        return autograd_results(module, inputs)

    def differing(self, inputs: Inputs) -> tuple[list[str], Results]:
        """Return a line for each tensor that differs from autograd's, and the truth in float64."""
        ours = self.by_hand(inputs)
        autograd = self.through_autograd(inputs)
        exact = inputs.to(torch.float64)
        truth = autograd if inputs.x.dtype == torch.float64 else self.through_autograd(exact)
        lines: list[str] = []
        for row in rows(owner(self.case), self.case.name, ours, autograd, truth):
            if row.verdict == "differ":
                own_error = row.autograd_error_vs_truth
                limit = TOLERANCES[inputs.x.dtype]
                lines.append(
                    f"{row.tensor} differs from autograd's: error against float64 "
                    f"{row.error_vs_truth:.2e}, limit {max(limit.floor, limit.factor * own_error):.2e}"
                    f" (autograd's own {own_error:.2e}); {_worst(ours[row.tensor], truth[row.tensor])}"
                )
        return lines, truth

    def lines(self, found: list[str], what: str = "") -> list[str]:
        """Return what was found, each with the place and the command that shows it again."""
        dtype = str(self.inputs.x.dtype).removeprefix("torch.")
        device, seed = self.inputs.x.device.type, self.inputs.seed
        place = f"{owner(self.case)}, case {self.case.name!r}, {device}, {dtype}, seed {seed}"
        command = (
            f"manualbp compare --layer {owner(self.case)} --dtype {dtype} --device {device} "
            f"--seed {seed}"
        )
        return [f"{place}{what}: {line}; run again: {command}" for line in found]


# The checks


def agreement(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """y, dx and every parameter's gradient agree with autograd's, which do not vanish."""
    setup = Setup.of(case, dtype, device, seed)
    found, truth = setup.differing(setup.inputs)
    zero_is_right = case.constant or bool((setup.inputs.x.abs() >= SATURATED).any())
    if not zero_is_right:
        found += [
            f"autograd's {name} vanishes, so that nothing is compared: choose another case"
            for name, tensor in truth.items()
            if name != "y" and _vanishes(tensor)
        ]
    return setup.lines(found)


def layouts(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """Inputs and upstream gradients may be strided, transposed or expanded."""
    setup = Setup.of(case, dtype, device, seed)
    found: list[str] = []
    for name, (of_x, of_dy) in LAYOUTS.items():
        laid_out = Setup(
            replace(case, layer=_with_target(setup.case.layer, of_x)),
            replace(setup.inputs, x=of_x(setup.inputs.x), dy=of_dy(setup.inputs.dy)),
        )
        lines, _ = laid_out.differing(laid_out.inputs)
        found += laid_out.lines(lines, f", {name}")
    return found


def empty_batch(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """A batch of no example gives no output and adds nothing to the gradients."""
    setup = Setup.of(case, dtype, device, seed)
    if len(case.shape) < 2:  # no batch
        return []
    axis = 1 if case.layer == Softmax(dim=0) else 0  # its classes are on axis 0

    def none_of(tensor: Tensor) -> Tensor:
        return tensor.narrow(axis, 0, 0) if tensor.ndim else tensor

    empty = Setup(
        replace(case, layer=_with_target(setup.case.layer, none_of)),
        replace(setup.inputs, x=none_of(setup.inputs.x), dy=none_of(setup.inputs.dy)),
    )
    lines, _ = empty.differing(empty.inputs)
    return empty.lines(lines, ", empty batch")


def untouched_arguments(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """No pass changes x, the parameters, dy, what was saved, y, or the layer's own tensors."""
    setup = Setup.of(case, dtype, device, seed)
    arguments = _tensors("x", setup.inputs.x) | _tensors("layer", setup.case.layer)
    arguments |= _tensors("parameters", setup.inputs.parameters.flat)
    before = _snapshot(arguments)
    y, saved = setup.forward()
    found = _changed(before, arguments, "forward")

    arguments |= _tensors("saved", saved) | {"y": y, "dy": setup.inputs.dy}
    before = _snapshot(arguments)
    grads = setup.inputs.parameters.zeros_like()
    setup.backward(saved, grads)
    found += _changed(before, arguments, "backward")
    before = _snapshot(arguments)
    _backward_parameters(setup, saved, grads)
    return setup.lines(found + _changed(before, arguments, "backward_parameters"))


def reentrance(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """A second forward pass before the backward pass of the first changes nothing."""
    setup = Setup.of(case, dtype, device, seed)
    first = setup.inputs
    second = replace(first, x=0.5 - 2 * first.x, seed=seed + 1)
    alone = [setup.by_hand(first), setup.by_hand(second)]

    passes = [(inputs, *setup.forward(inputs)) for inputs in (first, second)]
    found: list[str] = []
    for (inputs, y, saved), expected in zip(passes, alone, strict=True):
        grads = inputs.parameters.zeros_like()
        results = _results(y, setup.backward(saved, grads, inputs), grads)
        found += [
            f"{name} depends on another forward pass between this one and its backward pass"
            for name, tensor in results.items()
            if relative_error(tensor, expected[name]) != 0
        ]
    return setup.lines(found)


def accumulation(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """Gradients are added: after two backward passes into G it holds G + 2 ∂E/∂w."""
    setup = Setup.of(case, dtype, device, seed)
    once = setup.by_hand()
    grads = setup.inputs.parameters.zeros_like()
    grads.flat.normal_(generator=setup.inputs.generator())
    start = grads.clone().named()
    _, saved = setup.forward()
    twice = [setup.backward(saved, grads) for _ in range(2)]
    expected = {f"d{name}": start[name] + 2 * once[f"d{name}"] for name in start}
    found = _far_apart(_results(once["y"], twice[1], grads), once | expected)
    return setup.lines([f"{line} after a second backward pass" for line in found])


def first_layer(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """`backward_parameters` adds the same gradients as `backward`."""
    setup = Setup.of(case, dtype, device, seed)
    expected = setup.by_hand()
    y, saved = setup.forward()
    grads = setup.inputs.parameters.zeros_like()
    _backward_parameters(setup, saved, grads)
    found = _far_apart(_results(y, expected["dx"], grads), expected)
    return setup.lines([f"{line} from backward_parameters" for line in found])


def elementary_operations(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """Every pass is made of the operations in `audit.ALLOWED_OPERATIONS`."""
    setup = Setup.of(case, dtype, device, seed)
    recorders = _recorded(setup)
    return setup.lines(
        [
            f"{name} runs the operation {operation}, which is not on the list in checks/audit.py"
            for name, recorder in recorders.items()
            for operation in recorder.forbidden()
        ]
    )


def differences(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """Float64: dx and every gradient match the differences of values.

    Away from kinks central differences; at kinks each slope lies between the derivatives on the
    two sides.
    """
    setup = Setup.of(case, dtype, device, seed)
    inputs = setup.inputs
    rtol, atol, eps = (CENTRAL_DIFFERENCES[name] for name in ("rtol", "atol", "eps"))
    ours = setup.by_hand()
    moved = {"dx": inputs.x} | {f"d{name}": w for name, w in inputs.parameters.named().items()}
    found: list[str] = []
    for name, v in moved.items():
        if case.kinks:
            low, high = one_sided_differences(lambda: setup.forward()[0], v, inputs.dy, eps)
        else:
            low = high = central_differences(lambda: setup.forward()[0], v, inputs.dy, eps)
        nearest = ours[name].clamp(low, high)
        if not _close(ours[name], nearest, atol=atol, rtol=rtol):
            kind = "the one-sided" if case.kinks else "central"
            found.append(f"{name} differs from {kind} differences; {_worst(ours[name], nearest)}")
    return setup.lines(found)


def state_dicts(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """Parameters go to the twin and back, under the same names and in the same shapes."""
    setup = Setup.of(case, dtype, device, seed)
    ours = setup.inputs.parameters
    module = _twin(setup.case.layer).to(device, dtype)
    theirs = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found: list[str] = []
    here = {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()}
    there = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    if list(here.items()) != list(there.items()):
        return setup.lines([f"the state dict is {here}, the twin's {there}"])
    module.load_state_dict(ours.state_dict())
    found += _far_apart(dict(module.state_dict()), ours.state_dict())
    back = ours.zeros_like()
    back.load_state_dict(theirs)
    found += _far_apart(back.state_dict(), theirs)
    return setup.lines([f"{line} after it went between the state dicts" for line in found])


def fake_cuda(case: Case, dtype: torch.dtype, device: str = "cuda", seed: int = 0) -> list[str]:
    """On a CUDA device that has no numbers, every pass stays on it and asks for no number.

    Needs no CUDA: under FakeTensorMode tensors have shapes only, so `.item()` and a branch on data
    fail here, and a result on the CPU is seen.
    """
    with FakeTensorMode():
        layer = _with_target(case.layer, lambda t: _blank(t, dtype, device))
        x = torch.empty(case.shape, dtype=dtype, device=device)
        parameters = Parameters.zeros(layer.shapes(), dtype=dtype, device=device)
        case = replace(case, layer=layer)
        setup = Setup(case, FakeInputs(parameters, x, x, seed))
        y, _ = setup.forward()
        setup = Setup(case, FakeInputs(parameters, x, torch.empty_like(y), seed))
        recorders = _recorded(setup)
    return setup.lines(
        [
            f"{name} runs the operation {operation} on another device than {device}"
            for name, recorder in recorders.items()
            for operation, devices in recorder.operations.items()
            if devices - {device}
        ]
    )


CHECKS: tuple[Check, ...] = (
    agreement,
    layouts,
    empty_batch,
    untouched_arguments,
    reentrance,
    accumulation,
    first_layer,
    elementary_operations,
)
"""For every dtype and device."""

FLOAT64_CHECKS: tuple[Check, ...] = (differences, state_dicts)
"""For float64 on every device."""


class FakeInputs(Inputs):
    """Inputs without numbers, for which there is no generator either."""

    def generator(self) -> None:  # type: ignore
        """Return None, the default generator."""
