"""Example inputs: from a function beside the target, from shapes, or small ones found by trial."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import Parameter, Signature
from itertools import chain, islice, product
from typing import Any

import torch
from torch import Tensor

from manualbp.errors import UsageError

Shape = tuple[int, ...]

MOST_TENSORS = 4

PATTERNS: Mapping[int, tuple[tuple[Shape, ...], ...]] = {
    1: (((4, 3),), ((3,),), ((2, 4, 3),), ((2, 3, 5, 4),), ((3, 3),), ((),)),
    2: (
        ((4, 3), (2, 3)),
        ((4, 3), (3, 2)),
        ((4, 3), (4, 3)),
        ((4, 3), (3,)),
        ((3,), (3,)),
        ((2, 4, 3), (2, 3, 5)),
        ((2, 3, 5, 5), (4, 3, 3, 3)),
        ((2, 3, 7), (4, 3, 3)),
        ((2, 4, 3), (2, 4, 3)),
        ((2, 3, 5, 4), (2, 3, 5, 4)),
    ),
    3: (
        ((4, 3), (2, 3), (2,)),
        ((4, 3), (3, 2), (2,)),
        ((4, 3), (3,), (3,)),
        ((2, 4, 3), (2, 5, 3), (2, 5, 3)),
        ((4, 3), (5, 3), (5, 3)),
        ((4, 3), (4, 3), (4, 3)),
        ((2, 4, 3), (2, 4, 3), (2, 4, 3)),
        ((2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 4)),
        ((2, 3, 5, 5), (4, 3, 3, 3), (4,)),
        ((2, 3, 7), (4, 3, 3), (4,)),
        ((2, 3, 5, 4), (3,), (3,)),
    ),
    4: (
        ((4, 3), (2, 3), (2,), (2,)),
        ((4, 3), (4, 2), (2, 3), (2, 2)),
        ((4, 3), (2, 3), (5, 2), (5,)),
        ((4, 3), (4, 3), (3,), (3,)),
        ((4, 3), (4, 3), (4, 3), (4, 3)),
        ((2, 4, 3), (2, 4, 3), (2, 4, 3), (2, 4, 4)),
    ),
}
"""What functions of so many tensors usually take. Sizes differ where they can, so that a mix-up of
axes shows; a function that takes several of them is examined on the first."""

POOL: tuple[Shape, ...] = ((4, 3), (3,), (2, 3), (3, 2), (2,), (4,), (3, 3), (2, 4, 3), ())
"""All combinations of these come after the patterns."""

VECTORS = {"b", "bias", "beta", "gamma", "scale", "shift"}
"""Names that are those of vectors nearly everywhere."""

MATRICES = {"q", "k", "v", "query", "key", "value"}
"""Names that are those of matrices."""

MOST_REFUSED = 8
"""Of so many inputs the backward pass may refuse the number of axes; then the first are taken."""

KINDS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "from N(0, 1)": lambda x: x,
    "positive": lambda x: x.abs() + 0.5,
    "between 0 and 1": lambda x: 0.1 + 0.8 * x.sigmoid(),
}


def draw(shape: Shape, generator: torch.Generator) -> Tensor:
    """Return numbers from N(0, 1) in float64 on the CPU, which bfloat16 holds too.

    So all dtypes are examined on the same numbers, with one truth.
    """
    return torch.randn(shape, generator=generator, dtype=torch.float64).bfloat16().double()


def parse_shapes(words: Sequence[str]) -> list[Shape]:
    """Return (4, 3) for "4x3", () for "scalar". Raises UsageError for anything else."""
    shapes: list[Shape] = []
    for word in words:
        if word == "scalar":
            shapes.append(())
        elif re.fullmatch(r"\d{1,9}([x×]\d{1,9})*", word):
            shapes.append(tuple(int(n) for n in re.split("[x×]", word)))
        else:
            raise UsageError(f"--shape {word}: expected lengths such as 4x3, or scalar")
        if 0 in shapes[-1]:
            raise UsageError(f"--shape {word}: no length may be 0; empty batches are tried anyway")
    return shapes


def tensors_wanted(signature: Signature | None) -> list[str] | None:
    """Return the names of the arguments without default; None where it cannot be told."""
    if signature is None:
        return None
    names: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is Parameter.VAR_POSITIONAL:
            return None
        if parameter.default is Parameter.empty and parameter.kind in (
            Parameter.POSITIONAL_ONLY,
            Parameter.POSITIONAL_OR_KEYWORD,
        ):
            names.append(parameter.name)
    return names


def candidates(names: Sequence[str]) -> Iterator[tuple[Shape, ...]]:
    """Yield shapes for so many tensors, the likely ones first."""
    patterns = PATTERNS.get(len(names), ())
    suits = [p for p in patterns if _suits(p, names)]
    every: Iterable[tuple[Shape, ...]] = [*suits, *(p for p in patterns if p not in suits)]
    yield from every
    if len(names) <= MOST_TENSORS:
        yield from product(POOL, repeat=len(names))


def _suits(shapes: tuple[Shape, ...], names: Sequence[str]) -> bool:
    named = [(len(shape), name.lower()) for shape, name in zip(shapes, names, strict=True)]
    return all(axes == 1 for axes, name in named if name in VECTORS) and all(
        axes > 1 for axes, name in named if name in MATRICES
    )


def find_inputs(
    forward: Callable[[Sequence[Tensor]], Any],
    names: Sequence[str] | None,
    seed: int,
    suits: Callable[[Sequence[Tensor]], bool] = lambda tensors: True,
) -> tuple[list[Tensor], str] | None:
    """Return tensors that a forward pass takes, and in words what they are; None if none do.

    `names` are those of its arguments; if they are not known, one to four tensors are tried.
    `suits` tells whether the backward pass is meant for so many axes, too: a forward pass often
    takes a vector in the place of a matrix by accident.
    """
    tries = [names] if names is not None else [[f"x{i}" for i in range(n)] for n in (1, 2, 3, 4)]
    found = (pair for chosen in tries for pair in _accepted(forward, chosen, seed))
    first = list(islice(found, 1))
    for tensors, kind in chain(first, islice(found, MOST_REFUSED - 1)):
        if suits(tensors):
            return tensors, f"found by trial, {kind}"
    return (first[0][0], f"found by trial, {first[0][1]}") if first else None


def _accepted(
    forward: Callable[[Sequence[Tensor]], Any], names: Sequence[str], seed: int
) -> Iterator[tuple[list[Tensor], str]]:
    """Yield tensors that a forward pass takes, the likely ones first, with what they are."""
    for shapes in candidates(names):
        for kind, change in KINDS.items():
            generator = torch.Generator().manual_seed(seed)
            drawn = [change(draw(shape, generator)) for shape in shapes]
            tensors = [tensor.bfloat16().double() for tensor in drawn]
            accepted = _accepts(forward, tensors)
            if accepted:
                yield tensors, kind
            if accepted is None or accepted:
                break  # it fails, whatever the numbers are; or these do


def _accepts(forward: Callable[[Sequence[Tensor]], Any], tensors: Sequence[Tensor]) -> bool | None:
    """Tell whether the outputs are finite numbers; None if the pass fails."""
    for dtype in (torch.float64, torch.float32):
        try:
            outputs = forward([tensor.to(dtype, copy=True) for tensor in tensors])
        except Exception:  # the target's own, whatever it is: these shapes do not suit it
            continue
        parts = [y for y in outputs if isinstance(y, Tensor) and y.is_floating_point()]
        if not parts:
            return None
        return all(bool(y.isfinite().all()) for y in parts)
    return None
