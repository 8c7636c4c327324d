"""Watch every layer of a network in one forward and one backward pass, and judge each apart.

Each layer gets the forward value and the upstream gradient that are right at its place: what a
layer hands on, y to the next one and dx to the one before, is replaced by what the reference gives
there. So the mistake of one layer reaches no other. A layer made of layers is judged after those
inside it, all of them put right: then only its own part can be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from manualbp.checks.adapter import HandWritten
from manualbp.checks.agreement import Inputs, Results, by_hand, relative_error, through_autograd
from manualbp.checks.conversion import draws, from_torch, is_sequence
from manualbp.checks.doctor.subject import Arguments, LayerSubject, Subject, views_of
from manualbp.checks.doctor.subjects import ThroughAutograd
from manualbp.checks.doctor.truth import Differences, Function
from manualbp.checks.tolerances import TOLERANCES
from manualbp.errors import UsageError
from manualbp.layers import EVALUATION, AnyLayer, Layer, Mode
from manualbp.parameters import Parameters, Shapes, Views

AUTOGRAD, BY_HAND, DIFFERENCES = "autograd", "by hand", "differences"


class Examined(NamedTuple):
    """A layer by itself, with what went in at its place."""

    subject: Subject
    arguments: Arguments
    dy: Tensor
    truth: Callable[[Arguments, Sequence[Tensor]], Mapping[str, Tensor]]
    """The right gradients by argument for these arguments and upstream gradients, or others."""


@dataclass(frozen=True)
class Finding:
    """What is known of one layer at its place in the network."""

    path: str  # "1.inner.0"; "" is the whole network
    kind: str  # its class
    reference: str  # what it was held against; "" for nothing
    errors: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of y and each gradient: max |its own - right| / max |right|."""
    differing: tuple[str, ...] = ()
    failure: str = ""  # the error that its backward pass raised
    examined: Examined | None = None  # for the diagnosis of a wrong one

    @property
    def verdict(self) -> str:
        """Return "agree", "differ" or "not examined"."""
        if self.differing or self.failure:
            return "differ"
        return "agree" if self.reference else "not examined"


class Reference(NamedTuple):
    """What is right for a layer at its place, and where it is known from."""

    source: str
    right: Results
    agrees: Callable[[str, Tensor], bool]
    """Tells whether a tensor of this name is right, but for rounding."""


def exact(source: str, right: Results) -> Reference:
    """Return a reference that is right to the last digits of float64."""

    def agrees(name: str, ours: Tensor) -> bool:
        return relative_error(ours, right[name]) <= TOLERANCES[torch.float64].floor

    return Reference(source, right, agrees)


def by_differences(function: Function, arguments: Arguments, dy: Tensor) -> Reference | None:
    """Return what differences of the outputs give; None for more numbers than they can take.

    Where a kink lies, any slope between its two is right. The function is not to draw other random
    numbers each time.
    """
    differences = Differences(function)
    try:
        intervals = differences.intervals(arguments, [dy])
    except UsageError:
        return None
    (y,) = differences.outputs(arguments)
    right = {f"d{name}": interval.value for name, interval in intervals.items()}

    def agrees(name: str, ours: Tensor) -> bool:
        if name == "y":
            return True  # the forward pass is what is differentiated
        interval = intervals[name[1:]]
        return ours.shape == interval.value.shape and interval.holds(ours, [dy])

    return Reference(DIFFERENCES, {"y": y.clone()} | right, agrees)


def judged(
    path: str, kind: str, reference: Reference | None, ours: Results, failure: str = ""
) -> Finding:
    """Return what comes of holding the layer's own tensors against the reference."""
    if reference is None:
        return Finding(path, kind, "", failure=failure)
    errors = {name: relative_error(tensor, reference.right[name]) for name, tensor in ours.items()}
    differing = tuple(name for name, tensor in ours.items() if not reference.agrees(name, tensor))
    return Finding(path, kind, reference.source, errors, differing, failure)


def _failure(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


# Layers of ours -----------------------------------------------------------------------------------


def watch_layer(
    network: AnyLayer,
    parameters: Parameters,
    x: Tensor,
    upstream: Callable[[Tensor], Tensor],
    seed: int,
) -> list[Finding]:
    """Return a finding for each layer of a network of ours, in the order of the backward pass.

    `upstream` gives dy for the outputs y. All is in training mode; masks come from `seed`.
    """
    findings: list[Finding] = []
    watched = _watched(network, "", findings)
    generator = torch.Generator(x.device).manual_seed(seed)
    mode = Mode(training=True, generator=generator)
    y, saved = watched.forward(parameters.views, x, mode=mode)
    watched.backward(parameters.views, saved, upstream(y), parameters.zeros_like().views)
    return findings


def layer_reference(layer: AnyLayer, inputs: Inputs) -> Reference | None:
    """Return what is right for a layer of ours; None where nothing can tell.

    A layer of manualbp has its twin; for another one there are differences of its forward pass.
    """
    if _has_twin(layer):
        with torch.enable_grad():
            return exact(AUTOGRAD, through_autograd(layer, inputs, training=True))

    def outputs(arguments: Arguments) -> list[Tensor]:
        mode = Mode(training=True, generator=inputs.generator())
        params = views_of(layer.shapes(), arguments)
        return [layer.forward(params, arguments["x"], mode=mode)[0]]

    return by_differences(outputs, {"x": inputs.x, **inputs.parameters.named()}, inputs.dy)


@dataclass(frozen=True)
class _InputsAtPlace(Inputs):
    """Inputs amid a network, where the generator of the masks has come to some state."""

    masks: Tensor

    def generator(self) -> torch.Generator:
        generator = torch.Generator(self.x.device)
        generator.set_state(self.masks)
        return generator


class _SavedWatched(NamedTuple):
    saved: Any  # what the layer itself has saved
    y: Tensor  # its own
    inputs: Inputs  # copies of x and the parameters; dy is not known yet


@dataclass(frozen=True)
class _Watched(Layer[_SavedWatched]):
    """A layer at its place in the network."""

    layer: AnyLayer
    inner: AnyLayer  # the same, made of watched layers
    path: str
    findings: list[Finding]

    def shapes(self) -> Shapes:
        return self.layer.shapes()

    def forward(
        self, params: Views, x: Tensor, *, mode: Mode = EVALUATION
    ) -> tuple[Tensor, _SavedWatched]:
        assert mode.generator is not None
        masks = mode.generator.get_state()
        own = Parameters.zeros(self.shapes(), dtype=x.dtype, device=x.device)
        own.load_state_dict(dict(params.named()))
        y, saved = self.inner.forward(params, x.clone(), mode=mode)
        inputs = _InputsAtPlace(own, x.clone(), torch.zeros_like(y), 0, masks)
        reference = layer_reference(self.layer, inputs) if _has_twin(self.layer) else None
        return reference.right["y"] if reference else y, _SavedWatched(saved, y, inputs)

    def backward(self, params: Views, saved: _SavedWatched, dy: Tensor, grads: Views) -> Tensor:
        inputs = replace(saved.inputs, dy=dy.clone())
        reference = layer_reference(self.layer, inputs)
        own, alone = inputs.parameters.zeros_like(), inputs.parameters.zeros_like()
        ours, failure = {"y": saved.y}, ""
        try:
            ours["dx"] = self.inner.backward(params, saved.saved, dy.clone(), own.views)
            if self.inner is self.layer:
                self.layer.backward_parameters(params, saved.saved, dy.clone(), alone.views)
        except Exception as error:  # whatever a layer with a mistake in it raises
            failure = _failure(error)
        else:
            ours |= {f"d{name}": grad for name, grad in own.named().items()}
        finding = judged(self.path, type(self.layer).__name__, reference, ours, failure)
        if reference and not failure and self.inner is self.layer:
            finding = _with_backward_parameters(finding, reference, alone)
        if reference:
            arguments = {"x": inputs.x, **inputs.parameters.named()}
            subject = LayerSubject(self.layer)
            truth = Differences(lambda arguments: subject.run(arguments).outputs)
            by_twin = reference.source == AUTOGRAD
            examined = Examined(subject, arguments, inputs.dy, self._truth if by_twin else truth)
            finding = replace(finding, examined=examined)
        self.findings.append(finding)
        right = reference.right if reference else ours
        for name, grad in grads.named():
            grad.add_(right[f"d{name}"])
        return right["dx"]

    def _truth(self, arguments: Arguments, dys: Sequence[Tensor]) -> Results:
        weights = _parameters(self.shapes(), arguments)
        inputs = Inputs(weights, arguments["x"].clone(), dys[0], LayerSubject(self.layer).seed)
        reference = layer_reference(self.layer, inputs)
        assert reference is not None
        right = reference.right.items()
        return {name.removeprefix("d"): tensor for name, tensor in right if name != "y"}


def _parameters(shapes: Shapes, values: Arguments) -> Parameters:
    """Return copies of these values, in the dtype of the first."""
    like = next(iter(values.values()))
    found = Parameters.zeros(shapes, dtype=like.dtype, device=like.device)
    found.load_state_dict({name: values[name] for name in found.named()})
    return found


def _with_backward_parameters(finding: Finding, reference: Reference, alone: Parameters) -> Finding:
    """Add what `backward_parameters` gives, which is called for the first layer of all."""
    wrong = [
        f"d{name}"
        for name, grad in alone.named().items()
        if f"d{name}" not in finding.differing and not reference.agrees(f"d{name}", grad)
    ]
    errors = {
        f"{name} without dx": relative_error(alone.named()[name[1:]], reference.right[name])
        for name in wrong
    }
    return replace(
        finding,
        errors={**finding.errors, **errors},
        differing=(*finding.differing, *errors),
    )


def _watched(layer: AnyLayer, path: str, findings: list[Finding]) -> AnyLayer:
    """Return the layer made of watched layers, and watched itself."""
    parts: dict[str, Any] = {}
    for name, value in _made_of(layer).items():
        if isinstance(value, tuple):
            parts[name] = tuple(
                _watched(part, f"{path}{l}.", findings) for l, part in enumerate(value)
            )
        else:
            parts[name] = _watched(value, f"{path}{name}.", findings)
    inner = layer
    if parts:
        inner = copy(layer)
        for name, value in parts.items():
            object.__setattr__(inner, name, value)  # a copy of its own, that nobody else knows
    return _Watched(layer, inner, path.removesuffix("."), findings)


def _made_of(layer: AnyLayer) -> dict[str, AnyLayer | tuple[AnyLayer, ...]]:
    """Return the fields of a layer that hold layers."""
    found: dict[str, AnyLayer | tuple[AnyLayer, ...]] = {}
    for item in fields(layer):
        value = getattr(layer, item.name)
        some = cast("tuple[object, ...]", value)[:1] if isinstance(value, tuple) else (value,)
        if some and isinstance(some[0], Layer):
            found[item.name] = value
    return found


def _has_twin(layer: AnyLayer) -> bool:
    """Return whether the layer and all inside it are manualbp's own."""
    for value in _made_of(layer).values():
        if not all(map(_has_twin, value if isinstance(value, tuple) else (value,))):
            return False
    return type(layer).__module__.startswith("manualbp.layers.")


# Models of torch.nn -------------------------------------------------------------------------------


def watch_module(
    network: nn.Module, x: Tensor, upstream: Callable[[Tensor], Tensor], seed: int
) -> list[Finding]:
    """Return a finding for each module of a torch model, in the order of the backward pass.

    What autograd gives for a module, by formulas of torch's or by a torch.autograd.Function of the
    user's, is held against the hand-written equal where there is one, else against differences.
    Before each module's forward pass torch's generators are set to `seed`.
    Raises TypeError if the model returns something else than a tensor.
    """
    copied = deepcopy(network).to(x.device, x.dtype).train().requires_grad_()
    watch = _Watch(seed)
    modules = dict(cast("Iterable[tuple[str, nn.Module]]", copied.named_modules()))
    for path, module in modules.items():
        if hasattr(module, "inplace"):
            cast(Any, module).inplace = False  # x is needed as it was
        if not is_sequence(module) and not _inside_of_whole(copied, path):
            cast(Any, module).forward = _Call(watch, path, module)
    with cast(Any, torch.random).fork_rng(), torch.enable_grad():
        y = copied(x.clone().requires_grad_())
        if not isinstance(y, Tensor):
            raise TypeError(f"the model returns a {type(y).__name__}, expected a tensor")
        torch.autograd.backward([y], [upstream(y.detach())])
    return watch.findings


def _inside_of_whole(network: nn.Module, path: str) -> bool:
    """Return whether a module is a part of one that is judged as a whole."""
    *owners, _ = accumulate(path.split("."), "{}.{}".format)
    return any(map(_is_whole, map(network.get_submodule, ["", *owners] if path else [])))


def _is_whole(module: nn.Module) -> bool:
    """Return whether a module is torch's, such as nn.MultiheadAttention, or a layer of ours."""
    if is_sequence(module):
        return False
    return isinstance(module, HandWritten) or type(module).__module__.startswith("torch.nn.")


@dataclass
class _Watch:
    """What all calls of a network's modules share."""

    seed: int
    findings: list[Finding] = field(default_factory=list[Finding])
    quiet: bool = False  # while forward passes are made that have no backward pass


class _Call:
    """Stands in the place of a module's forward."""

    def __init__(self, watch: _Watch, path: str, module: nn.Module) -> None:
        self.watch = watch
        self.path = path
        self.module = module
        self.forward = module.forward
        named = cast(Any, module).named_parameters(recurse=_is_whole(module))
        self.weights: dict[str, nn.Parameter] = dict(named)

    def __call__(self, *inputs: Any, **others: Any) -> Any:
        if self.watch.quiet:
            return self.forward(*inputs, **others)
        if not any(isinstance(v, Tensor) and v.requires_grad for v in inputs):
            return self.forward(*inputs, **others)
        plain = all(isinstance(v, Tensor) and v.is_floating_point() for v in inputs) and not others
        if not plain or not isinstance(cast(object, self.run_quietly(inputs)), Tensor):
            self.watch.findings.append(Finding(self.path, self.kind, ""))
            return self.forward(*inputs, **others)
        return cast(Any, _Judge).apply(self, *inputs)

    @property
    def kind(self) -> str:
        """Return the class of the module, or of the layer of ours that it holds."""
        module = self.module
        return type(module.layer if isinstance(module, HandWritten) else module).__name__

    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        """Make the module's own forward pass, with the same random numbers every time."""
        cast(Any, torch).manual_seed(self.watch.seed)
        return self.forward(*inputs)

    def run_quietly(self, inputs: Sequence[Tensor]) -> Tensor:
        """Make it without looking at the modules inside."""
        before, self.watch.quiet = self.watch.quiet, True
        try:
            with torch.no_grad():
                return self.run(inputs)
        finally:
            self.watch.quiet = before

    def values(self) -> Arguments:
        """Return the parameters as plain tensors."""
        return {name: weight.detach() for name, weight in self.weights.items()}

    def result(self, arguments: Arguments) -> Any:
        """Return what the module makes of these inputs and parameters, by its own passes."""
        weights = {name: arguments[name] for name in self.weights}
        inputs = tuple(tensor for name, tensor in arguments.items() if name not in weights)
        before, self.watch.quiet = self.watch.quiet, True
        try:
            return torch.func.functional_call(self.module, weights, inputs)
        finally:
            self.watch.quiet = before

    def own_gradients(self, inputs: Sequence[Tensor], y: Tensor, dy: Tensor) -> Results:
        """Return what the module's backward pass gives."""
        leaves = [*inputs, *self.weights.values()]
        gradients = torch.autograd.grad(y, leaves, dy, allow_unused=True, materialize_grads=True)
        return dict(zip(map("d{}".format, self.names(inputs)), gradients, strict=True))

    def names(self, inputs: Sequence[Tensor]) -> list[str]:
        """Return x, x2, ... and the names of the parameters."""
        several = ["x", *(f"x{n}" for n in range(2, len(inputs) + 1))]
        return [*several[: len(inputs)], *self.weights]

    def judge(
        self, inputs: Sequence[Tensor], y: Tensor, dy: Tensor, reference: Reference | None
    ) -> tuple[Results, list[Finding]]:
        """Return the module's own results, and what comes of them.

        In a module that holds layers of ours, each of these is judged.
        """
        ours: Results = {"y": y.detach()}
        failure = ""
        try:
            ours |= self.own_gradients(inputs, y, dy.clone())
        except Exception as error:  # whatever a Function with a mistake in it raises
            failure = _failure(error)
        if not isinstance(self.module, HandWritten):
            finding = judged(self.path, self.kind, reference, ours, failure)
            if reference:
                subject = ThroughAutograd(self.kind, self.result, seed=self.watch.seed)
                truth = Differences(lambda arguments: subject.run(arguments).outputs)
                tensors = [v.detach().clone() for v in (*inputs, *self.weights.values())]
                arguments = dict(zip(self.names(inputs), tensors, strict=True))
                finding = replace(finding, examined=Examined(subject, arguments, dy, truth))
            return ours, [finding]
        x, seed = inputs[0].detach(), self.watch.seed
        weights = _parameters(self.module.layer.shapes(), {"x": x, **self.values()})
        found = watch_layer(self.module.layer, weights, x, lambda _: dy, seed)
        return ours, [replace(f, path=f"{self.path}.{f.path}".strip(".")) for f in found]

    def reference(self, inputs: Sequence[Tensor], dy: Tensor) -> Reference | None:
        """Return what is right for these inputs and this upstream gradient."""
        if isinstance(self.module, HandWritten):
            weights = _parameters(self.module.layer.shapes(), {"x": dy, **self.values()})
            of_layer = Inputs(weights, inputs[0], dy, self.watch.seed)
            return layer_reference(self.module.layer, of_layer)
        if len(inputs) == 1 and _is_whole(self.module):
            with suppress(UsageError):  # it has no hand-written equal
                layer, own = from_torch(self.module)
                if not draws(layer):  # torch draws other masks in float64
                    of_layer = Inputs(own, inputs[0], dy, self.watch.seed)
                    return exact(BY_HAND, by_hand(layer, of_layer, training=True))
        subject = ThroughAutograd(self.kind, self.result, seed=self.watch.seed)
        arguments = dict(zip(self.names(inputs), (*inputs, *self.values().values()), strict=True))
        return by_differences(subject.values, arguments, dy)


class _Judge(torch.autograd.Function):
    """Makes a module's passes, judges them, and hands on what is right."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *inputs: Tensor) -> Tensor:
        """Make the module's forward pass, in a graph of its own."""
        ctx.call = call
        ctx.inputs = [v.detach().clone().requires_grad_() for v in inputs]
        with torch.enable_grad():
            ctx.y = call.run(ctx.inputs)
        return ctx.y.detach().clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Make its backward pass and judge it."""
        call: _Call = ctx.call
        inputs: list[Tensor] = ctx.inputs
        dy = grad_outputs[0].clone()
        reference = call.reference([v.detach() for v in inputs], dy)
        ours, findings = call.judge(inputs, ctx.y, dy, reference)
        call.watch.findings += findings
        right = reference.right if reference else ours
        return None, *(right.get(f"d{name}") for name in call.names(inputs)[: len(inputs)])
