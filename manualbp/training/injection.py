"""Named mistakes in one gradient: a network with one often learns none the less.

manualbp train --inject sign:0.weight     the gradient of layer 0's weight with the wrong sign
manualbp train --inject zero:1.x          layer 1 hands no gradient on to the layer before it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from manualbp.errors import UsageError
from manualbp.layers import EVALUATION, AnyLayer, Layer, Mode, Residual, Sequential
from manualbp.models import ACTIVATIONS
from manualbp.parameters import Shape, Shapes, Views


class Scene(NamedTuple):
    """What a mistake has at hand."""

    gradient: Tensor  # the right one
    dy: Tensor
    generator: torch.Generator | None


def _noise(scene: Scene) -> Tensor:
    right = scene.gradient
    noise = torch.empty_like(right).normal_(generator=scene.generator)
    return right + noise * (right * right).mean().sqrt()


def _off_by_one(scene: Scene) -> Tensor:
    wrong = scene.gradient.clone()
    wrong[-1].zero_()
    return wrong


BUGS: Mapping[str, Callable[[Scene], Tensor]] = {
    "sign": lambda scene: -scene.gradient,
    "factor": lambda scene: 2 * scene.gradient,
    "zero": lambda scene: torch.zeros_like(scene.gradient),
    "transposed": lambda scene: scene.gradient.T,
    "noise": _noise,
    "off-by-one": _off_by_one,
    "missing-activation-derivative": lambda scene: scene.dy,
}
"""sign: times -1. factor: times 2. transposed: of a square matrix. noise: as large as the gradient.
off-by-one: the last row (or number) is left out. missing-activation-derivative: an activation hands
on dy as it is."""


_ACTIVATIONS = {type(layer) for layer in ACTIVATIONS.values()}


class _SavedFaulty(NamedTuple):
    saved: Any  # what the layer itself has saved
    generator: torch.Generator | None


@dataclass(frozen=True)
class Faulty(Layer[_SavedFaulty]):
    """A layer whose backward pass has a mistake in one gradient."""

    layer: AnyLayer
    bug: str
    tensor: str  # "x", or the name of a parameter

    def shapes(self) -> Shapes:
        return self.layer.shapes()

    def initialize(self, params: Views, generator: torch.Generator | None = None) -> None:
        self.layer.initialize(params, generator)

    def forward(
        self, params: Views, x: Tensor, *, mode: Mode = EVALUATION
    ) -> tuple[Tensor, _SavedFaulty]:
        y, saved = self.layer.forward(params, x, mode=mode)
        return y, _SavedFaulty(saved, mode.generator)

    def backward(self, params: Views, saved: _SavedFaulty, dy: Tensor, grads: Views) -> Tensor:
        if self.tensor == "x":
            dx = self.layer.backward(params, saved.saved, dy, grads)
            return self._wrong(dx, saved, dy)
        own = self._zeros(grads)
        dx = self.layer.backward(params, saved.saved, dy, own)
        self._add(own, saved, dy, grads)
        return dx

    def backward_parameters(
        self, params: Views, saved: _SavedFaulty, dy: Tensor, grads: Views
    ) -> None:
        own = self._zeros(grads)
        self.layer.backward_parameters(params, saved.saved, dy, own)
        self._add(own, saved, dy, grads)

    def _zeros(self, grads: Views) -> Views:
        """Return gradients of this layer alone, before anything is added to them."""
        zeros = {name: torch.zeros_like(grad) for name, grad in grads.named()}
        return Views(zeros, {})

    def _add(self, own: Views, saved: _SavedFaulty, dy: Tensor, grads: Views) -> None:
        for (name, right), (_, grad) in zip(own.named(), grads.named(), strict=True):
            grad.add_(self._wrong(right, saved, dy) if name == self.tensor else right)

    def _wrong(self, right: Tensor, saved: _SavedFaulty, dy: Tensor) -> Tensor:
        return BUGS[self.bug](Scene(right, dy, saved.generator))


def inject(model: AnyLayer, text: str) -> AnyLayer:
    """Return the model with the mistake that `text` names, "BUG:TENSOR".

    TENSOR is a parameter, "0.weight", or "1.x", the gradient that layer 1 hands on. The model's
    parameters keep their names. Raises UsageError for a bug or a tensor that is not there, and for
    one that the bug does not suit.
    """
    option = f"--inject {text}"
    bug, _, where = text.partition(":")
    if bug not in BUGS:
        raise UsageError(f"{option}: there is no such bug. {_listed(bug, [*BUGS])}")
    places = _places(model)
    if where not in places:
        what = "there is no such tensor" if where else "expected BUG:TENSOR"
        raise UsageError(f"{option}: {what}. {_listed(where, [*places])}")
    path, _, tensor = where.rpartition(".")
    layer = places[where]
    shape = cast(Shape, layer.shapes().get(tensor, ()))
    if bug == "transposed" and not (len(shape) == 2 and shape[0] == shape[1]):
        raise UsageError(f"{option}: a gradient is transposed unnoticed only if it is square")
    activations = [place for place, part in places.items() if type(part) in _ACTIVATIONS]
    if bug == "missing-activation-derivative" and where not in activations:
        raise UsageError(f"{option}: that is no activation. {_listed(where, activations)}")
    return _exchanged(model, path.split("."), Faulty(layer, bug, tensor))


def mended(model: AnyLayer) -> AnyLayer:
    """Return the model without the mistake."""
    if isinstance(model, Faulty):
        return model.layer
    for name, part in _parts(model).items():
        right = mended(part)
        if right is not part:
            return _exchanged(model, [name], right)
    return model


def _places(model: AnyLayer) -> dict[str, AnyLayer]:
    """Return by name every gradient of the model, with the layer that gives it."""
    leaves = dict(_leaves(model, ""))
    found: dict[str, AnyLayer] = {}
    for number, (path, layer) in enumerate(leaves.items()):
        if number:  # nobody asks for the gradient of the network's input
            found[f"{path}.x"] = layer
        found |= {f"{path}.{name}": layer for name in layer.shapes()}
    return found


def _leaves(layer: AnyLayer, path: str) -> Iterator[tuple[str, AnyLayer]]:
    parts = _parts(layer)
    for name, part in parts.items():
        yield from _leaves(part, f"{path}{name}.")
    if not parts:
        yield path.removesuffix("."), layer


def _listed(word: str, names: Sequence[str]) -> str:
    """Return a near-miss, and what there is."""
    near = get_close_matches(word, names, 1)
    hint = f"Did you mean {near[0]}? " if near else ""
    return f"{hint}There are: {', '.join(names)}"


def _parts(layer: AnyLayer) -> dict[str, AnyLayer]:
    if isinstance(layer, Sequential):
        return {str(l): part for l, part in enumerate(layer.layers)}
    return {"inner": layer.inner} if isinstance(layer, Residual) else {}


def _exchanged(layer: AnyLayer, path: Sequence[str], new: AnyLayer) -> AnyLayer:
    """Return the layer with `new` at the place that `path` leads to."""
    name, *rest = path
    parts = _parts(layer)
    parts[name] = _exchanged(parts[name], rest, new) if rest else new
    return Sequential(*parts.values()) if isinstance(layer, Sequential) else Residual(parts[name])
