"""What every layer promises, each promise as a check that runs over a case.

A check takes a case, a dtype, a device and a seed. It returns one line for each thing that is
wrong, which names the layer, the case and the tensor, and the command that shows it again. No line
is good.

A loss, or a whole model with its loss, is checked as a layer with one number E as output: see
`WithLoss`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from manualbp.checks.agreement import (
    Inputs,
    Results,
    autograd_results,
    by_hand,
    limits,
    make_inputs,
    relative_error,
    rows,
)
from manualbp.checks.audit import Recorder
from manualbp.checks.differences import central_differences, one_sided_differences
from manualbp.checks.tolerances import CENTRAL_DIFFERENCES, TOLERANCES
from manualbp.layers import EVALUATION, AnyLayer, Layer, Mode, Sequential, Softmax
from manualbp.losses import AnyLoss, CrossEntropyLoss
from manualbp.optimizers import Optimizer
from manualbp.parameters import Parameters, Shapes, Views
from reference.cases import Case, LossCase
from reference.twins import set_generator, twin, twin_loss

Check = Callable[[Case, torch.dtype, str, int], list[str]]

NARROWER = {torch.float64: torch.float32, torch.float32: torch.bfloat16}
"""What mixed precision computes in, while gradients of the first type are summed."""

TINY = 1e-12
"""A gradient whose largest number is no larger than this compares nothing but rounding."""

SATURATED = 30.0
"""From such an input on σ and tanh are flat to the last digit, and a gradient of zero is right."""


@dataclass(frozen=True, eq=False)
class WithLoss(Layer[Any]):
    """E = loss(model(x), target)

    Shapes: x and target as model and loss take them; E has no axes. With the model `Sequential()`,
    which has no layers, it is the loss alone.
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

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> WithLoss:
        """Return the same with its target and its loss's class weights changed."""
        loss = self.loss
        if isinstance(loss, CrossEntropyLoss) and loss.weight is not None:
            loss = replace(loss, weight=change(loss.weight))
        return replace(self, loss=loss, target=change(self.target))


class WithLossTwin(nn.Module):
    """The same through autograd; only the model has a state, in torch's sense."""

    def __init__(self, model: nn.Module, error: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        """Return E."""
        return self.error(self.model(x))


def loss_case(case: LossCase, seed: int = 0) -> Case:
    """Return the case of a loss as the case of a layer; its targets are drawn here."""
    generator = torch.Generator().manual_seed(seed)
    case.y(generator)  # so that targets and outputs are not the same numbers
    target = case.target(generator)
    layer = WithLoss(Sequential(), case.loss, target)
    return Case(case.name, layer, case.shape, scale=case.scale, values=case.values)


@dataclass(frozen=True)
class Trial:
    """A case with inputs, both in one dtype on one device."""

    case: Case
    inputs: Inputs

    @classmethod
    def of(cls, case: Case, dtype: torch.dtype, device: str, seed: int) -> Trial:
        """Draw inputs for the case."""
        case = replace(case, layer=_moved(case.layer, dtype, device))
        return cls(case, make_inputs(case, dtype, device, seed))

    def forward(self) -> tuple[Tensor, Any]:
        """Return y and what was saved."""
        mode = Mode(self.case.training, self.inputs.generator())
        return self.case.layer.forward(self.inputs.parameters.views, self.inputs.x, mode=mode)

    def backward(self, saved: Any, grads: Parameters) -> Tensor:
        """Add to the gradients and return dx."""
        params = self.inputs.parameters.views
        return self.case.layer.backward(params, saved, self.inputs.dy, grads.views)

    def backward_parameters(self, saved: Any, grads: Parameters) -> None:
        """Add to the gradients."""
        params = self.inputs.parameters.views
        self.case.layer.backward_parameters(params, saved, self.inputs.dy, grads.views)

    def by_hand(self) -> Results:
        """Return y and every gradient from the hand-written passes."""
        return by_hand(self.case.layer, self.inputs, training=self.case.training)

    def through_autograd(self, dtype: torch.dtype) -> Results:
        """Return the same from the twin, in any dtype."""
        inputs = self.inputs.to(dtype)
        module = _twin(_moved(self.case.layer, dtype, inputs.x.device))
        module.to(inputs.x.device, dtype).train(self.case.training)
        module.load_state_dict(inputs.parameters.state_dict())
        set_generator(module, inputs.generator())
        return autograd_results(module, inputs)

    def with_layout(self, of_x: Layout, of_dy: Layout) -> Trial:
        """Return the trial with x, a target and dy replaced; axis None where there is no batch."""
        layer, inputs = self.case.layer, self.inputs
        axis = 1 if layer == Softmax(dim=0) else 0  # that one has its classes on axis 0
        batch = axis if inputs.x.ndim > 1 else None
        if isinstance(layer, WithLoss):
            layer = replace(layer, target=of_x(layer.target, batch))
        dy = of_dy(inputs.dy, batch if inputs.dy.ndim else None)
        inputs = replace(inputs, x=of_x(inputs.x, batch), dy=dy)
        return Trial(replace(self.case, layer=layer), inputs)

    def differences(self) -> tuple[list[str], Results]:
        """Return a line for each tensor that differs from autograd's, and the float64 truth."""
        dtype = self.inputs.x.dtype
        ours, autograd = self.by_hand(), self.through_autograd(dtype)
        truth = autograd if dtype == torch.float64 else self.through_autograd(torch.float64)
        allowed = limits(autograd, truth)
        lines: list[str] = []
        for row in rows(self.owner, self.case.name, ours, autograd, truth):
            if row.verdict == "differ":
                lines.append(
                    f"{row.tensor} has error {row.error_vs_truth:.2e} against autograd in float64, "
                    f"limit {allowed[row.tensor]:.2e}, "
                    f"autograd's own {row.autograd_error_vs_truth:.2e}; "
                    f"{_worst(ours[row.tensor], truth[row.tensor])}"
                )
            kind, expected = _kind(ours[row.tensor]), _kind(autograd[row.tensor])
            if kind != expected:
                lines.append(f"{row.tensor} is {kind}, autograd's is {expected}")
        return lines, truth

    @property
    def owner(self) -> str:
        """What is checked: a class, as `manualbp check --layer` takes it, or a model's layers."""
        layer = self.case.layer
        if not isinstance(layer, WithLoss):
            return type(layer).__name__
        loss = type(layer.loss).__name__
        return loss if layer.model == Sequential() else f"{layer.model} with {loss}"

    def report(self, lines: list[str], what: str = "") -> list[str]:
        """Return the lines, each with the place, and with the command that says what is wrong."""
        x, seed = self.inputs.x, self.inputs.seed
        dtype = str(x.dtype).removeprefix("torch.")
        place = f"{self.owner}, case {self.case.name!r}{what}, {x.device.type} {dtype}, seed {seed}"
        again = ""
        if self.owner.isidentifier():  # check knows layers and losses, but not every model
            again = f"; what is wrong: manualbp check --layer {self.owner} --dtype {dtype}"
            again += f" --device {x.device.type} --seed {seed}"
        return [f"{place}: {line}{again}" for line in lines]


def agreement(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """y, dx and every parameter's gradient agree with autograd's, and those do not vanish."""
    trial = Trial.of(case, dtype, device, seed)
    lines, truth = trial.differences()
    if not case.constant and not (trial.inputs.x.abs() >= SATURATED).any():
        lines += [
            f"autograd's {name} vanishes, so nothing is compared; the case should be another"
            for name, tensor in truth.items()
            if name != "y" and tensor.abs().max() <= TINY
        ]
    return trial.report(lines)


def layouts(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """Inputs and upstream gradients may be strided, transposed or expanded."""
    trial = Trial.of(case, dtype, device, seed)
    found: list[str] = []
    for name, (of_x, of_dy) in LAYOUTS.items():
        lines, _ = trial.with_layout(of_x, of_dy).differences()
        found += trial.report(lines, f", {name}")
    return found


def empty_batch(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """A batch without examples gives an output without examples and adds nothing."""
    trial = Trial.of(case, dtype, device, seed)
    lines, _ = trial.with_layout(_no_example, _no_example).differences()
    return trial.report(lines, ", empty batch")


def untouched_arguments(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """No pass changes x, dy, the parameters, y, what was saved or what the layer holds."""
    trial = Trial.of(case, dtype, device, seed)
    grads = trial.inputs.parameters.zeros_like()
    arguments: dict[str, Any] = {
        "x": trial.inputs.x,
        "the parameters": trial.inputs.parameters.flat,
        "the layer": trial.case.layer,
    }
    watch = Watch(arguments)
    y, saved = trial.forward()
    lines = watch.changes("forward")
    arguments |= {"dy": trial.inputs.dy, "y": y, "saved": saved}
    watch = Watch(arguments)
    trial.backward(saved, grads)
    lines += watch.changes("backward")
    watch = Watch(arguments)
    trial.backward_parameters(saved, grads)
    return trial.report(lines + watch.changes("backward_parameters"))


def reentrance(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """A second forward pass before the backward pass of the first changes nothing."""
    first = Trial.of(case, dtype, device, seed)
    other = replace(first.inputs, x=0.5 - 2 * first.inputs.x, seed=seed + 1)
    trials = [first, replace(first, inputs=other)]
    alone = [trial.by_hand() for trial in trials]
    passes = [trial.forward() for trial in trials]
    lines: list[str] = []
    for trial, (y, saved), expected in zip(trials, passes, alone, strict=True):
        grads = trial.inputs.parameters.zeros_like()
        results = _results(y, trial.backward(saved, grads), grads)
        lines += [
            f"{name} is another when two forward passes come before the backward passes"
            for name, tensor in results.items()
            if relative_error(tensor, expected[name]) > 0
        ]
    return first.report(lines)


def accumulation(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """Gradients are added up: two backward passes turn G into G + 2 ∂E/∂w."""
    trial = Trial.of(case, dtype, device, seed)
    once = trial.by_hand()
    grads = trial.inputs.parameters.zeros_like()
    grads.flat.normal_(generator=trial.inputs.generator())
    expected = once | {f"d{n}": g + 2 * once[f"d{n}"] for n, g in grads.clone().named().items()}
    y, saved = trial.forward()
    trial.backward(saved, grads)
    results = _results(y, trial.backward(saved, grads), grads)
    return trial.report(_far_apart(results, expected, "after two backward passes"))


def wider_gradients(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """Gradients of this dtype are exact sums of what passes in the next narrower dtype add.

    They begin with numbers so large that a sum in the narrower dtype would lose the gradient.
    """
    if dtype not in NARROWER:
        return []
    trial = Trial.of(case, NARROWER[dtype], device, seed)
    once = trial.by_hand()
    wide = Parameters.zeros(case.layer.shapes(), dtype=dtype, device=device)
    eps = torch.finfo(NARROWER[dtype]).eps
    for name, total in wide.named().items():
        total.fill_(_largest(once[f"d{name}"]) / eps)
    start = wide.flat.clone()
    y, saved = trial.forward()
    dx = trial.backward(saved, wide)
    wide.flat.sub_(start)
    results = {name: t.to(once[name].dtype) for name, t in _results(y, dx, wide).items()}
    lines = _far_apart(results, once, f"where the gradients are {dtype}")
    if dx.dtype != once["dx"].dtype:
        lines.append(f"dx is {dx.dtype} where the gradients are, expected {once['dx'].dtype}")
    return trial.report(lines)


def first_layer(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """`backward_parameters` adds the same gradients as `backward`."""
    trial = Trial.of(case, dtype, device, seed)
    expected = trial.by_hand()
    grads = trial.inputs.parameters.zeros_like()
    y, saved = trial.forward()
    trial.backward_parameters(saved, grads)
    results = _results(y, expected["dx"], grads)
    return trial.report(_far_apart(results, expected, "from backward_parameters"))


def elementary_operations(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """Every pass is made of the operations that `audit.ALLOWED_OPERATIONS` lists."""
    trial = Trial.of(case, dtype, device, seed)
    mode = Mode(case.training, trial.inputs.generator())
    recorders = record(trial.case.layer, trial.inputs.parameters, trial.inputs.x, mode)
    lines = [
        f"{name} uses {operation}, which is not on the list in manualbp/checks/audit.py"
        for name, recorder in recorders.items()
        for operation in recorder.forbidden()
    ]
    return trial.report(lines)


def numerical_derivatives(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """Float64: dx and every parameter's gradient match differences of values.

    Central differences, or, where the case has kinks, the bounds from one-sided differences.
    """
    trial = Trial.of(case, dtype, device, seed)
    inputs, ours = trial.inputs, trial.by_hand()
    rtol, atol, eps = (CENTRAL_DIFFERENCES[name] for name in ("rtol", "atol", "eps"))
    moved = {"dx": inputs.x} | {f"d{n}": w for n, w in inputs.parameters.named().items()}
    lines: list[str] = []
    for name, v in moved.items():
        if case.kinks:
            low, high = one_sided_differences(lambda: trial.forward()[0], v, inputs.dy, eps)
        else:
            low = high = central_differences(lambda: trial.forward()[0], v, inputs.dy, eps)
        nearest = ours[name].clamp(low, high)
        if _largest(ours[name] - nearest) > atol + rtol * _largest(nearest):
            kind = "one-sided" if case.kinks else "central"
            lines.append(
                f"{name} is not what {kind} differences say; {_worst(ours[name], nearest)}"
            )
    return trial.report(lines)


def state_dicts(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """Parameters go to the twin and back under the same names, in the same order and shapes."""
    trial = Trial.of(case, dtype, device, seed)
    ours, module = trial.inputs.parameters, _twin(trial.case.layer).to(device, dtype)
    here = {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()}
    there = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if list(here.items()) != list(there.items()):
        return trial.report([f"the state dict holds {here}, the twin's {there}"])
    back = ours.zeros_like()
    back.load_state_dict(module.state_dict())
    lines = _far_apart(back.state_dict(), dict(module.state_dict()), "from the twin")
    module.load_state_dict(ours.state_dict())
    return trial.report(lines + _far_apart(dict(module.state_dict()), ours.state_dict(), "there"))


def fake_cuda(case: Case, dtype: torch.dtype) -> list[str]:
    """On a CUDA device of shapes without numbers every pass stays there, and asks for no number.

    No CUDA is needed: FakeTensorMode stops at `.item()` and at a branch on data. It raises an error
    where tensors on two devices meet.
    """
    with FakeTensorMode():
        layer = case.layer
        if isinstance(layer, WithLoss):
            layer = layer.with_tensors(
                lambda t: torch.empty(t.shape, dtype=_dtype_for(t, dtype), device="cuda")
            )
        x = torch.empty(case.shape, dtype=dtype, device="cuda")
        parameters = Parameters.zeros(layer.shapes(), dtype=dtype, device="cuda")
        place = f"{type(layer).__name__}, case {case.name!r}, {dtype}"
        try:
            recorders = record(layer, parameters, x, Mode(case.training))
        except DataDependentOutputException as error:
            return [f"{place}: a pass reads a number back from the device, by {error}"]
    return [
        f"{place}: {name} leaves the result of {operation} on {device}, expected cuda"
        for name, recorder in recorders.items()
        for operation, devices in recorder.operations.items()
        for device in devices - {"cuda"}
    ]


CHECKS: tuple[Check, ...] = (
    agreement,
    layouts,
    empty_batch,
    untouched_arguments,
    reentrance,
    accumulation,
    wider_gradients,
    first_layer,
    elementary_operations,
)
"""For every dtype."""

FLOAT64_CHECKS: tuple[Check, ...] = (numerical_derivatives, state_dicts)
"""For float64, besides."""


def check_case(case: Case, dtype: torch.dtype, device: str, seed: int) -> list[str]:
    """Run every check over a case; return one line for each thing that is wrong."""
    checks = CHECKS + FLOAT64_CHECKS if dtype == torch.float64 else CHECKS
    return [line for check in checks for line in check(case, dtype, device, seed)]


def record(layer: AnyLayer, params: Parameters, x: Tensor, mode: Mode) -> dict[str, Recorder]:
    """Return what each of the three passes of a layer ran."""
    forward, backward, backward_parameters = Recorder(), Recorder(), Recorder()
    grads = params.zeros_like()
    with forward:
        y, saved = layer.forward(params.views, x, mode=mode)
    dy = torch.ones_like(y)
    with backward:
        layer.backward(params.views, saved, dy, grads.views)
    with backward_parameters:
        layer.backward_parameters(params.views, saved, dy, grads.views)
    return {
        "forward": forward,
        "backward": backward,
        "backward_parameters": backward_parameters,
    }


def record_update(rule: Optimizer, w: Tensor) -> dict[str, Recorder]:
    """Return what the two halves of a training step of an update rule ran, for parameters w."""
    begin, update = Recorder(), Recorder()
    g, state = torch.ones_like(w), rule.init(w)
    coefficients = [w.new_full((), number) for number in rule.coefficients(2, rule.lr)]
    with begin:
        rule.begin(w, g, state)
    with update:
        rule.update(w, g, state, coefficients)
    return {"begin": begin, "update": update}


class Watch:
    """Tells which tensors were written to since it was made, be it with the same numbers."""

    def __init__(self, things: Mapping[str, Any]) -> None:
        self._before = [
            (name, tensor, tensor.clone(), _version(tensor))
            for name, thing in things.items()
            for tensor in _tensors_in(thing)
        ]

    def changes(self, by: str) -> list[str]:
        """Return a line for each tensor that changed."""
        return [
            f"{by} changes {name} in place"
            for name, tensor, before, version in self._before
            if _version(tensor) != version or relative_error(tensor, before) > 0
        ]


def _version(tensor: Tensor) -> int:
    """Return how often torch has seen the tensor's memory written to."""
    return tensor._version  # pyright: ignore[reportPrivateUsage]  there is no public name


def _tensors_in(thing: Any) -> list[Tensor]:
    """Return the tensors in tuples, lists and dataclasses, however deep."""
    if isinstance(thing, Tensor):
        return [thing]
    parts: list[Any] = []
    if isinstance(thing, (tuple, list)):
        parts = list(cast(tuple[Any, ...], thing))
    elif is_dataclass(thing):
        parts = [getattr(thing, field.name) for field in fields(thing)]
    return [tensor for part in parts for tensor in _tensors_in(part)]


Layout = Callable[[Tensor, int | None], Tensor]
"""Gives a tensor another place in memory; the axis is that of the batch, if there is one."""


def _plain(tensor: Tensor, batch: int | None) -> Tensor:
    return tensor


def _strided(tensor: Tensor, batch: int | None) -> Tensor:
    """Return the same numbers with others between them."""
    return torch.stack([tensor, 1 - tensor], -1).select(-1, 0)


def _transposed(tensor: Tensor, batch: int | None) -> Tensor:
    """Return the same numbers, those along the first axis next to each other."""
    axes = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(axes).contiguous().permute(axes)


def _expanded(tensor: Tensor, batch: int | None) -> Tensor:
    """Return the first example in the place of all, with stride 0."""
    return tensor if batch is None else tensor.narrow(batch, 0, 1).expand_as(tensor)


def _no_example(tensor: Tensor, batch: int | None) -> Tensor:
    return tensor if batch is None else tensor.narrow(batch, 0, 0)


LAYOUTS: Mapping[str, tuple[Layout, Layout]] = {
    "x and dy strided": (_strided, _strided),
    "x and dy transposed": (_transposed, _transposed),
    "x expanded": (_expanded, _plain),
    "dy expanded": (_plain, _expanded),
}


def _twin(layer: AnyLayer) -> nn.Module:
    if not isinstance(layer, WithLoss):
        return twin(layer)
    loss, target = twin_loss(layer.loss), layer.target
    return WithLossTwin(twin(layer.model), lambda y: loss(y, target))


def _moved(layer: AnyLayer, dtype: torch.dtype, device: torch.device | str) -> AnyLayer:
    """Return the layer with the tensors it holds in this dtype on this device."""
    if not isinstance(layer, WithLoss):
        return layer
    return layer.with_tensors(lambda tensor: tensor.to(device, _dtype_for(tensor, dtype)))


def _dtype_for(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype


def _results(y: Tensor, dx: Tensor, grads: Parameters) -> Results:
    return {"y": y, "dx": dx} | {f"d{name}": gradient for name, gradient in grads.named().items()}


def _far_apart(ours: Results, expected: Results, when: str) -> list[str]:
    """Return a line for each tensor that is off by more than rounding."""
    return [
        f"{name} is wrong {when}; {_worst(tensor, expected[name])}"
        for name, tensor in ours.items()
        if relative_error(tensor, expected[name]) > TOLERANCES[tensor.dtype].floor
    ]


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device.type}"


def _worst(ours: Tensor, expected: Tensor) -> str:
    """Say where two tensors differ most and what they hold there."""
    if ours.shape != expected.shape:
        return f"shape {tuple(ours.shape)}, expected {tuple(expected.shape)}"
    a, b = ours.double(), expected.double()
    # NaN, where only one of the two is, is the largest difference of all.
    difference = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, a - b).abs()
    place = torch.unravel_index(difference.nan_to_num(torch.inf).argmax(), difference.shape)
    index = tuple(int(i) for i in place)
    return f"worst at {list(index)}: {a[index].item():.9g}, expected {b[index].item():.9g}"


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0
