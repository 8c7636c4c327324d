"""All parameters of a network in one flat tensor, and the layers' named views into it.

One flat tensor makes an update one to three operations however deep the network is, and a
checkpoint or an all-reduce one call. The layers never see it: to them `params.weight` is a tensor
with torch.nn's name and shape, which happens to be a view.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape | Mapping[str, Any]]
"""What a layer needs: parameter names with their shapes, and sub-layers with theirs."""

ALIGNMENT = 16
"""Each parameter starts at a multiple of 16 numbers (64 bytes in float32): a cache line, and what
vector loads and tensor cores ask for. The gaps hold zeros, whose gradient and update are zero.

A matrix (O, I) lies there column by column, as (I, O): a forward pass multiplies by W.T, and small
products run up to twice as fast over rows that lie in one piece. To everyone else it is (O, I)."""

NARROW = 16
"""A matrix of fewer outputs lies row by row: the product that adds up its gradient would take two
to three times as long over columns so short."""


class Views:
    """The tensors of one layer by attribute, the views of its sub-layers by item.

    `params.weight` is a tensor; `params["0"]` are the views of the sub-layer named "0".
    """

    def __init__(self, tensors: Mapping[str, Tensor], parts: Mapping[str, Views]) -> None:
        self._parts = dict(parts)
        self._names = tuple(tensors)
        for name, tensor in tensors.items():
            setattr(self, name, tensor)

    def __getattr__(self, name: str) -> Tensor:
        # Reached only for a name that is not there: the tensors are plain attributes.
        raise AttributeError(f"no parameter {name!r} here; there are: {', '.join(self._names)}")

    def __getitem__(self, name: str) -> Views:
        return self._parts[name]

    def named(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield ("0.weight", tensor), ... in the order of the flat tensor."""
        for name in self._names:
            yield prefix + name, getattr(self, name)
        for name, part in self._parts.items():
            yield from part.named(f"{prefix}{name}.")


class Parameters:
    """One flat tensor (P,) and the views into it; the same class holds the gradients.

    Mixed precision, `rounded_to` a narrower type: `flat` and `named` hold the master weights, which
    updates change; `views`, which the layers see, look into a second flat tensor, `working`, with
    the masters rounded to that type. `round_off` writes it anew after the masters have changed.
    """

    def __init__(
        self, shapes: Shapes, flat: Tensor, *, rounded_to: torch.dtype | None = None
    ) -> None:
        # torch.compile cannot trace the question, and is not given what was refused here before.
        if not torch.compiler.is_compiling() and flat.storage_offset():
            raise ValueError("the flat tensor of parameters must begin where its memory does")
        self.shapes = shapes
        self.flat = flat
        self.working = flat if rounded_to is None else flat.to(rounded_to)
        self.views = _views(shapes, self.working, start=0)[0]
        masters = self.views if self.working is flat else _views(shapes, flat, start=0)[0]
        self._named = dict(masters.named())

    @classmethod
    def zeros(
        cls,
        shapes: Shapes,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Parameters:
        """Return parameters of these shapes, all zero."""
        return cls(shapes, torch.zeros(_size(shapes, 0), dtype=dtype, device=device))

    def zeros_like(self) -> Parameters:
        """Return a second set of the same shapes, all zero: where gradients are added up."""
        return Parameters(self.shapes, torch.zeros_like(self.flat))

    def clone(self) -> Parameters:
        """Return a copy that shares no memory with this one."""
        return Parameters(self.shapes, self.flat.clone(), rounded_to=self.working.dtype)

    def with_new_views(self) -> Parameters:
        """Return parameters in the same flat tensor, whose views are made anew."""
        return Parameters(self.shapes, self.flat, rounded_to=self.working.dtype)

    def round_off(self) -> None:
        """Let the layers see the parameters as they are now; nothing to do without `rounded_to`."""
        if self.working is not self.flat:
            self.working.copy_(self.flat)

    def named(self) -> Mapping[str, Tensor]:
        """Return the views under torch.nn's names, "0.weight", "0.bias", "2.weight", ..."""
        return self._named

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of all parameters under torch.nn's names, for `Module.load_state_dict`."""
        contiguous = torch.contiguous_format
        return {name: w.clone(memory_format=contiguous) for name, w in self.named().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy the values in, from `Module.state_dict()` as well.

        Raises ValueError that names the first missing, superfluous or misshapen parameter; then
        nothing has been copied.
        """
        own = self.named()
        for name in [name for name in own if name not in state]:
            raise ValueError(f"parameter {name!r} is missing; expected: {', '.join(own)}")
        for name in [name for name in state if name not in own]:
            raise ValueError(f"there is no parameter {name!r} here; expected: {', '.join(own)}")
        for name, tensor in own.items():
            if state[name].shape != tensor.shape:
                there, here = tuple(state[name].shape), tuple(tensor.shape)
                raise ValueError(f"parameter {name!r} has shape {there}, expected {here}")
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self.round_off()


def _size(shapes: Shapes, start: int) -> int:
    """Return the number at which the flat tensor may end when `shapes` begins at `start`."""
    for shape in shapes.values():
        if isinstance(shape, Mapping):
            start = _size(shape, start)
        else:
            start += -(-prod(shape) // ALIGNMENT) * ALIGNMENT
    return start


def _views(shapes: Shapes, flat: Tensor, start: int) -> tuple[Views, int]:
    """Cut the flat tensor into views, from `start`; return them and where the next one begins."""
    tensors: dict[str, Tensor] = {}
    parts: dict[str, Views] = {}
    for name, shape in shapes.items():
        if isinstance(shape, Mapping):
            parts[name], start = _views(shape, flat, start)
        else:
            # In one operation, through whose inverse torch.compile sees what a step changes.
            tensors[name] = flat.as_strided(shape, _strides(shape), start)
            start += -(-prod(shape) // ALIGNMENT) * ALIGNMENT
    return Views(tensors, parts), start


def _strides(shape: Shape) -> Shape:
    """Return the step in memory along each axis, the last two in the order that suits a matrix."""
    rows_first = tuple(prod(shape[i:]) for i in range(1, len(shape) + 1))
    if len(shape) < 2 or shape[-2] < NARROW:
        return rows_first
    return (*rows_first[:-2], 1, shape[-2])
