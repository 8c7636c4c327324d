"""Each kind of thing that the doctor examines, wrapped as a Subject.

Some of them can be told which gradients are asked for, which contracts make use of: `RunsNeeding`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd import Function

from manualbp.checks.contract import WithLoss
from manualbp.checks.doctor.subject import (
    Arguments,
    Gradients,
    LayerPass,
    LayerSubject,
    Pass,
    views_of,
)
from manualbp.layers import AnyLayer

Forward = Callable[[Arguments], Any]
"""Computes a tensor, or a tuple of tensors, from the arguments by name."""


@runtime_checkable
class RunsNeeding(Protocol):
    """A subject that can be told which gradients are asked for."""

    def run_needing(self, arguments: Arguments, names: Collection[str]) -> Pass:
        """Make a forward pass that needs the gradients of these arguments alone."""
        ...


def set_seed(seed: int) -> None:
    """Set torch's own generators, of the CPU and, once CUDA is in use, of its devices.

    `torch.manual_seed` would do the same in a hundred times the time.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def own_random_numbers(*cuda_devices: int) -> Generator[None]:
    """Leave torch's own generators at the end as they were."""
    with cast(Any, torch.random).fork_rng(devices=list(cuda_devices)):
        yield


def copies(arguments: Arguments) -> dict[str, Tensor]:
    """Return the arguments in fresh memory, for a pass that may write to them."""
    return {name: tensor.clone() for name, tensor in arguments.items()}


def floating(arguments: Arguments) -> list[str]:
    """Return the names of the arguments that can have a gradient."""
    return [name for name, tensor in arguments.items() if tensor.is_floating_point()]


@dataclass(frozen=True, eq=False)
class ThroughAutograd:
    """A function whose backward pass torch's autograd calls: a Function, a module, a callable.

    `differentiable` names the arguments whose gradients are examined; None is all floating ones.
    Before every run torch's generators are set to `seed`, so that a layer that draws random numbers
    draws the same ones again.
    """

    name: str
    function: Forward
    differentiable: Collection[str] | None = None
    seed: int = 0
    returned: list[object] = field(default_factory=list[object])
    """What the Function's own backward returned last, where `function` writes it down."""
    in_place: list[bool] = field(default_factory=list[bool])
    """Not empty once it is known to work in place, as ctx.mark_dirty says: it is given clones."""
    places: list[int] = field(default_factory=list[int])
    """Which of the floating outputs have a gradient, once that is known; empty for all. The others
    are marked as not differentiable, or detached."""

    def run(self, arguments: Arguments) -> AutogradPass:
        names = floating(arguments)
        if self.differentiable is not None:
            names = [name for name in names if name in self.differentiable]
        leaves, parts = self._outputs(arguments, names)
        found = [place for place, y in enumerate(parts) if y.requires_grad]
        self.places[:] = found if len(found) < len(parts) else []
        return self._waiting(leaves, parts)

    def values(self, arguments: Arguments) -> list[Tensor]:
        """Return the outputs alone."""
        set_seed(self.seed)
        return self.judged(floating_of(self.function(arguments)))

    def judged(self, outputs: list[Tensor]) -> list[Tensor]:
        """Return those of the floating outputs that have a gradient."""
        if not self.places or self.places[-1] >= len(outputs):
            return outputs
        return [outputs[place] for place in self.places]

    def run_needing(self, arguments: Arguments, names: Collection[str]) -> AutogradPass:
        return self._waiting(*self._outputs(arguments, names))

    def _outputs(
        self, arguments: Arguments, names: Collection[str]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the leaves of a graph, and its floating outputs."""
        leaves = {
            name: tensor.detach().requires_grad_(name in names)
            for name, tensor in arguments.items()
        }
        with torch.enable_grad():
            return leaves, floating_of(self._called(leaves))

    def _waiting(self, leaves: dict[str, Tensor], outputs: list[Tensor]) -> AutogradPass:
        return AutogradPass(
            self.judged(outputs),
            {name: leaf for name, leaf in leaves.items() if leaf.requires_grad},
            list(leaves),
            self.returned,
        )

    def _called(self, leaves: Arguments) -> object:
        set_seed(self.seed)
        if self.in_place:
            return self.function({name: leaf.clone() for name, leaf in leaves.items()})
        try:
            return self.function(leaves)
        except RuntimeError as error:
            if "a leaf Variable that requires grad" not in str(error):
                raise
        self.in_place.append(True)
        return self._called(leaves)


class AutogradPass:
    """A graph of autograd that waits for its backward pass."""

    def __init__(
        self,
        outputs: Sequence[Tensor],
        leaves: Mapping[str, Tensor],
        places: Sequence[str],
        returned: list[object],
    ) -> None:
        self._graph = outputs
        self._leaves = leaves
        self._places = places
        self._returned = returned
        self.remarks: list[str] = []
        """What torch put right without a word."""

    @property
    def outputs(self) -> Sequence[Tensor]:
        return [y.detach() for y in self._graph]

    @property
    def differentiable(self) -> list[str]:
        """Return the names of the arguments that have a gradient."""
        return list(self._leaves)

    def backward(self, dys: Sequence[Tensor]) -> Gradients:
        """Return what autograd hands on, or what the Function returned if autograd refuses it."""
        return self._backward(list(zip(self._graph, dys, strict=True)))

    def backward_from(self, output: int, dy: Tensor) -> Gradients:
        """Return the same where this output is used alone, so that the others have no dy at all."""
        return self._backward([(self._graph[output], dy)])

    def _backward(self, used: Sequence[tuple[Tensor, Tensor]]) -> Gradients:
        pairs = [(y, dy) for y, dy in used if y.requires_grad]
        if not pairs:
            return dict.fromkeys(self._leaves)
        self._returned.clear()
        try:
            gradients = torch.autograd.grad(
                [y for y, _ in pairs],
                list(self._leaves.values()),
                [dy for _, dy in pairs],
                retain_graph=True,
                allow_unused=True,
            )
        except RuntimeError:
            own = self._own()
            if any(_misshapen(own.get(name), leaf) for name, leaf in self._leaves.items()):
                return own
            raise
        for name, gradient in self._own().items():
            leaf = self._leaves[name]
            if gradient is not None and gradient.shape != leaf.shape:
                self.remarks.append(
                    f"d{name} is returned as {shape_of(gradient)} where {name} is "
                    f"{shape_of(leaf)}: torch sums it to that shape, other callers will not"
                )
        return dict(zip(self._leaves, gradients, strict=True))

    def _own(self) -> dict[str, Tensor | None]:
        """Return by name what the Function's backward returned; empty where that is not known."""
        if len(self._returned) < len(self._places):
            return {}
        return {
            name: value if isinstance(value, Tensor) else None
            for name, value in zip(self._places, self._returned, strict=False)
            if name in self._leaves
        }


def _misshapen(gradient: Tensor | None, leaf: Tensor) -> bool:
    return gradient is not None and gradient.shape != leaf.shape


def recorded(function: type[Function], returned: list[object]) -> type[Function]:
    """Return the same Function, which writes down in `returned` what its backward returns.

    autograd sums and converts gradients before anybody sees them, and drops them if it cannot.
    """
    own_backward = cast(Callable[..., Any], function.backward)

    def backward(ctx: Any, *dys: Any) -> Any:
        gradients = own_backward(ctx, *dys)
        returned[:] = _listed(gradients)
        return gradients

    if own_backward is Function.backward:  # it has a vjp, or nothing at all
        return function
    return cast(
        type[Function], type(function.__name__, (function,), {"backward": staticmethod(backward)})
    )


class OfModule:
    """A torch.nn.Module as a function of its inputs and its parameters by name.

    The module that was given is left alone: each dtype and device has a copy, for its buffers. A
    copy starts every pass with the buffers and the mode that the module had.
    """

    def __init__(self, module: nn.Module, call: Callable[[nn.Module, Arguments], Any]) -> None:
        self._module = module
        self._call = call
        self._moulds: dict[tuple[torch.device, torch.dtype], Mould] = {}

    @property
    def parameters(self) -> list[str]:
        """Return the parameters' names."""
        return [name for name, _ in self._module.named_parameters()]

    def __call__(self, arguments: Arguments) -> Any:
        """Return what the module returns."""
        like = next(tensor for tensor in arguments.values() if tensor.is_floating_point())
        kind = like.device, like.dtype
        if kind not in self._moulds:
            self._moulds[kind] = Mould(deepcopy(self._module).to(*kind))
        return self._call(self._moulds[kind].copy(arguments), arguments)


ATOMS = (type(None), bool, int, float, str, torch.dtype, torch.device)
"""Types of values that nobody can write to."""


class Mould:
    """A module to make deep copies of, one for every pass, each with tensors for its parameters.

    `deepcopy` alone takes several times as long as a small pass: a module has a dozen dictionaries,
    nearly all empty, so what they hold is copied here.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parameters = dict(module.named_parameters())
        self._parts = [(part, *_split(part)) for part in module.modules()]
        self._as_usual = all(_copied_as_usual(type(part)) for part in module.modules())

    def copy(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Return a copy, with these tensors in the place of the parameters of these names."""
        made: dict[int, Any] = {
            id(parameter): tensors[name]
            for name, parameter in self._parameters.items()
            if name in tensors
        }
        if not self._as_usual:
            return deepcopy(self._module, made)
        for part, _, _ in self._parts:  # all of them first, since they may hold each other
            made[id(part)] = type(part).__new__(type(part))
        for part, atoms, others in self._parts:
            held = made[id(part)].__dict__
            held.update(atoms)
            for name, value in others.items():
                held[name] = _again(value, made)
        return made[id(self._module)]


def _split(part: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a module holds: what nobody can write to, and the rest."""
    held = vars(part)
    atoms = {name: value for name, value in held.items() if type(value) in ATOMS}
    return atoms, {name: value for name, value in held.items() if name not in atoms}


def _again(value: Any, made: dict[int, Any]) -> Any:
    """Return a deep copy, by a short way for what modules are full of; `made` is as in deepcopy."""
    place = id(value)
    if place in made:
        return made[place]
    if type(value) in (OrderedDict, set) and not value:
        made[place] = value.copy()
        return made[place]
    if type(value) is not dict:
        return value if type(value) in ATOMS else deepcopy(value, made)
    copy: dict[Any, Any] = {}
    made[place] = copy
    for key, item in cast(dict[Any, Any], value).items():
        copy[_again(key, made)] = _again(item, made)
    return copy


def _copied_as_usual(kind: type[nn.Module]) -> bool:
    """Tell whether modules of this class do not say themselves how they are copied."""
    own = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
    return all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in own)


@dataclass(frozen=True, eq=False)
class OfLayer:
    """A hand-written layer with a name of its own, in whatever dtype x is."""

    name: str
    layer: AnyLayer
    training: bool = True
    seed: int = 0

    def run(self, arguments: Arguments) -> LayerPass:
        layer = moved(self.layer, arguments["x"])
        return LayerSubject(layer, self.training, self.seed).run(arguments)

    def run_needing(self, arguments: Arguments, names: Collection[str]) -> Pass:
        """Without x among the names the backward pass is `backward_parameters`."""
        run = self.run(arguments)
        return run if "x" in names else ParametersPass(run)


@dataclass(frozen=True, eq=False)
class ParametersPass:
    """A layer's forward pass that waits for `backward_parameters`."""

    run: LayerPass

    @property
    def outputs(self) -> Sequence[Tensor]:
        return self.run.outputs

    def backward(self, dys: Sequence[Tensor]) -> Gradients:
        run, shapes = self.run, self.run.layer.shapes()
        params = views_of(shapes, run.arguments)
        grads = {name: torch.zeros_like(tensor) for name, tensor in params.named()}
        run.layer.backward_parameters(params, run.saved, dys[0], views_of(shapes, grads))
        return grads


def moved(layer: AnyLayer, like: Tensor) -> AnyLayer:
    """Return the layer with the tensors that it holds where `like` is, in its dtype."""
    if not isinstance(layer, WithLoss):
        return layer
    return layer.with_tensors(
        lambda tensor: tensor.to(like.device, like.dtype if tensor.is_floating_point() else None)
    )


@dataclass(frozen=True, eq=False)
class OfPair:
    """Two plain functions: (y, saved) = forward(*inputs), gradients = backward(dy, saved).

    Several outputs are a tuple y, and dy is a tuple then. If forward returns y alone, the pair is
    an object that keeps what it needs, and its backward takes dy alone. The gradients are in the
    order of the inputs.
    """

    name: str
    forward: Forward
    backward: Callable[..., Any]
    seed: int = 0

    def run(self, arguments: Arguments) -> PairPass:
        set_seed(self.seed)
        return PairPass(self, arguments)


class PairPass:
    """A forward pass of a pair, with what it saved."""

    def __init__(self, pair: OfPair, arguments: Arguments) -> None:
        self._backward = pair.backward
        self._arguments = list(arguments)
        self._names = floating(arguments)
        with torch.no_grad():
            result = pair.forward(arguments)
        self._saved: tuple[object, ...] = ()
        self._several = False
        if isinstance(result, tuple):
            y, *saved = cast(tuple[Any, ...], result)
            self._saved, result = tuple(saved), y
            self._several = isinstance(y, (tuple, list))
        self._outputs = tensors_of(result)

    @property
    def outputs(self) -> Sequence[Tensor]:
        return self._outputs

    @property
    def keeps(self) -> bool:
        """Tell whether the pair itself keeps what its backward pass needs."""
        return not self._saved

    def backward(self, dys: Sequence[Tensor]) -> Gradients:
        """Raises ValueError if there is not one gradient for each input."""
        with torch.no_grad():
            result = self._backward(tuple(dys) if self._several else dys[0], *self._saved)
        given = list(
            cast(Sequence[object], result if isinstance(result, (tuple, list)) else [result])
        )
        wanted = self._arguments if len(given) == len(self._arguments) else self._names
        if len(given) != len(wanted):
            raise ValueError(
                f"backward returns {len(given)} gradients for {len(self._arguments)} inputs: "
                "give one for each, None where there is none"
            )
        return {
            name: value if isinstance(value, Tensor) else None
            for name, value in zip(wanted, given, strict=True)
            if name in self._names
        }


def _listed(result: object) -> list[object]:
    return list(cast(Sequence[object], result)) if isinstance(result, (tuple, list)) else [result]


def tensors_of(result: object) -> list[Tensor]:
    """Return the tensors of a result. Raises TypeError where there is none."""
    found = [item for item in _listed(result) if isinstance(item, Tensor)]
    if not found:
        raise TypeError(f"the forward pass returns {type(result).__name__}, expected a tensor")
    return found


def floating_of(result: object) -> list[Tensor]:
    """Return the floating tensors of a result. Raises TypeError where there is no tensor."""
    return [y for y in tensors_of(result) if y.is_floating_point()]


def shape_of(tensor: Tensor) -> str:
    """Return "4×3", or "scalar"."""
    return "×".join(map(str, tensor.shape)) or "scalar"
