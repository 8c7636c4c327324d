"""What a factor means: 0.25 is 1/N for a batch of four examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import e, isclose, log, log2, pi, prod, sqrt

Sizes = Mapping[str, tuple[int, ...]]
"""Shapes of arguments and outputs by name."""

PLAIN = {
    "2": 2.0,
    "3": 3.0,
    "4": 4.0,
    "10": 10.0,
    "√2": sqrt(2),
    "π": pi,
    "√π": sqrt(pi),
    "√(2π)": sqrt(2 * pi),
    "e": e,
    "ln 2": log(2),
    "ln 10": log(10),
    "√(2/π)": sqrt(2 / pi),
    "2/√π": 2 / sqrt(pi),
}
"""Numbers that formulas have, with the names of their own; their inverses count as well."""


def readings(factor: float, sizes: Sizes, tolerance: float) -> list[str]:
    """Return what the size of a factor may mean, the likeliest first; empty for a plain number."""
    size = abs(factor)
    found: dict[str, None] = {}
    halves = [("2", 2.0), ("½", 0.5)]  # what squares have, whatever the lengths are
    for text, value in chain(halves, _of_sizes(sizes), _plain()):
        if isclose(size, value, rel_tol=max(tolerance, 1e-9)):
            found.setdefault(text)
    power = round(log2(size)) if size > 0 else 0
    if abs(power) >= 6 and isclose(size, 2.0**power, rel_tol=max(tolerance, 1e-9)):
        found.setdefault(f"a loss scale of 2^{power}")
    return list(found)[:3]


def _plain() -> Iterator[tuple[str, float]]:
    for text, value in PLAIN.items():
        yield text, value
        yield {"2": "½"}.get(text, f"1/{text}"), 1 / value


def _of_sizes(sizes: Sizes) -> Iterator[tuple[str, float]]:
    """Yield every length of an axis, their products, roots and inverses."""
    lengths = _lengths(sizes)
    for length, where in lengths.items():
        yield f"N with N = {length}, {where}", length
        yield f"1/N with N = {length}, {where}", 1 / length
    for length, where in lengths.items():
        n = f"N = {length}, {where}"
        yield f"N/(N-1) with {n}", length / (length - 1)
        yield f"(N-1)/N with {n}", (length - 1) / length
        yield f"√(N/(N-1)) with {n}", sqrt(length / (length - 1))
        yield f"√((N-1)/N) with {n}", sqrt((length - 1) / length)
        yield f"2N with {n}", 2 * length
        yield f"1/(2N) with {n}", 0.5 / length
    for length, where in lengths.items():
        yield f"√d with d = {length}, {where}", sqrt(length)
        yield f"1/√d with d = {length}, {where}", 1 / sqrt(length)
    for name, shape in sizes.items():
        count = prod(shape)
        if len(shape) > 1 and count > 1:
            text = f"N = {count}, the count of all numbers of {name}"
            yield f"N with {text}", count
            yield f"1/N with {text}", 1 / count
        for first in range(len(shape)):
            for last in range(first + 2, len(shape) + 1):
                count = prod(shape[first:last])
                if count > 1 and last - first < len(shape):
                    text = f"N = {count}, axes {first} to {last - 1} of {name} together"
                    yield f"N with {text}", count
                    yield f"1/N with {text}", 1 / count


def _lengths(sizes: Sizes) -> dict[int, str]:
    """Return every length with the first axis that has it, and with the inputs that share it."""
    found: dict[int, list[tuple[int, str]]] = {}
    for name, shape in sizes.items():
        for axis, length in enumerate(shape):
            known = found.setdefault(length, [])
            if not (known and name.rstrip("0123456789") == "y"):  # an output has its inputs' axes
                known.append((axis, name))
    told: dict[int, str] = {}
    for length, axes in found.items():
        first, name = axes[0]
        names = [other for axis, other in axes if axis == first]
        where = f"the length of axis {first} of {_listed(names)}"
        if first == 0 and len(sizes[name]) > 1 and name in ("x", "input", "y"):
            where = f"the batch size, axis 0 of {_listed(names)}"
        if length > 1:
            told[length] = where + (" (and of other axes)" if len(axes) > len(names) else "")
    return told


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
