"""Inputs, targets and weights of a network of one's own, from a file.

JSON: an object. Every key may be left out.

    {"inputs": [[0.05, 0.1]],         a row for each example, or the numbers of a single one
     "targets": [[0.01, 0.99]],       likewise; see below
     "weights": [[[0.15, 0.2],        a matrix for each layer, with a row for each receiving unit,
                  [0.25, 0.3]],       as torch has it
                 [[0.4, 0.45],
                  [0.5, 0.55]]],
     "biases": [[0.35, 0.35],         a number for each unit of each layer
                [0.6, 0.6]],
     "learning_rate": 0.5,            0.1 without
     "output_activation": "sigmoid"}  "linear" without; only for mse and half-squared-error

CSV: a row for each example, first its inputs, then its targets; a first row without any number is a
header. The weights are drawn.

Targets: as many numbers as there are outputs, for bce between 0 and 1, for cross-entropy none below
0 and of sum 1; for cross-entropy a class number from 0 may stand instead of the row.

What is not given is drawn from the seed, but for the biases where weights are given: they are 0.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from manualbp.errors import UsageError, did_you_mean
from manualbp.explain.networks import float64
from manualbp.explain.plain import PlainLoss
from manualbp.models import ACTIVATIONS, ActivationName

LARGEST = 1e50
"""Of a number that is given: products of a few of them are finite."""


@dataclass(frozen=True)
class Values:
    """What a walk begins with; None is drawn from the seed."""

    inputs: Tensor | None = None  # (N, n_0)
    targets: Tensor | None = None  # (N, n_L)
    weights: tuple[Tensor, ...] | None = None  # (n_l, n_{l-1}) for each layer
    biases: tuple[Tensor, ...] | None = None  # (n_l,)
    learning_rate: float = 0.1
    output_activation: ActivationName | None = None


def read_values(path: Path, widths: Sequence[int], loss: PlainLoss) -> Values:
    """Return what a .json or .csv file gives; UsageError if it does not fit."""
    if path.suffix not in (".json", ".csv"):
        raise UsageError(f"{path}: expected a .json or a .csv file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    try:
        if path.suffix == ".json":
            return _from_json(text, widths, loss)
        return _from_csv(text, widths, loss)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _from_json(text: str, widths: Sequence[int], loss: PlainLoss) -> Values:
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"line {error.lineno} is no JSON: {error.msg}") from None
    keys = list(Values.__dataclass_fields__)
    if not isinstance(raw, dict):
        raise UsageError(f"expected an object with the keys {', '.join(keys)}")
    given = cast("dict[str, Any]", raw)
    for key in given:
        if key not in keys:
            raise UsageError(f"there is no key {key!r}; {did_you_mean(key, keys)}")
    inputs = targets = weights = biases = None
    if "inputs" in given:
        rows = _list(given["inputs"], "inputs")
        alone = all(map(_is_scalar, rows))  # the numbers of a single example
        inputs = _numbers([rows] if alone else rows, "inputs", (None, widths[0]))
        if "targets" in given:
            rows = [given["targets"]] if alone else given["targets"]
            targets = _targets(rows, len(inputs), widths[-1], loss)
    elif "targets" in given:
        raise UsageError("there are targets without inputs; give both or neither")
    shapes = [(o, i) for i, o in pairwise(widths)]
    if "weights" in given:
        weights = _layers(given["weights"], "weights", shapes)
        biases = tuple(torch.zeros(o, dtype=torch.float64) for o, _ in shapes)
    if "biases" in given:
        biases = _layers(given["biases"], "biases", [(o,) for o, _ in shapes])
    rate = float(_numbers(given.get("learning_rate", Values.learning_rate), "learning_rate", ()))
    if rate <= 0:
        raise UsageError(f"learning_rate is {rate:g}, expected a number above 0")
    output = given.get("output_activation", "linear")
    names = ["linear", *ACTIVATIONS]
    if output not in names:
        raise UsageError(f"output_activation {output!r}: {did_you_mean(str(output), names)}")
    if output != "linear" and loss in ("cross-entropy", "bce"):
        raise UsageError(f"output_activation {output!r}: --loss {loss} wants linear outputs")
    output = None if output == "linear" else cast("ActivationName", output)
    return Values(inputs, targets, weights, biases, rate, output)


def _from_csv(text: str, widths: Sequence[int], loss: PlainLoss) -> Values:
    rows = [(n, row) for n, row in enumerate(csv.reader(text.splitlines()), 1) if row]
    if rows and not any(_is_number(cell) for cell in rows[0][1]):
        rows = rows[1:]
    if not rows:
        raise UsageError("there is no row of numbers")
    inputs, outputs = widths[0], widths[-1]
    lengths = {inputs + outputs} | ({inputs + 1} if loss == "cross-entropy" else set[int]())
    for number, row in rows:
        if len(row) not in lengths:
            expected = " or ".join(str(length) for length in sorted(lengths))
            raise UsageError(
                f"line {number} has {len(row)} cells, expected {expected}: "
                f"{inputs} inputs, then the targets"
            )
        for column, cell in enumerate(row, 1):
            if not _is_number(cell):
                raise UsageError(f"line {number}, column {column} is {cell!r}, expected a number")
    x = [[float(cell) for cell in row[:inputs]] for _, row in rows]
    t = [[float(cell) for cell in row[inputs:]] for _, row in rows]
    whole = [row[0] if len(row) == 1 else row for row in t]
    return Values(float64(x), _targets(whole, len(x), outputs, loss))


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _layers(raw: Any, name: str, shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
    parts = _list(raw, name)
    if len(parts) != len(shapes):
        raise UsageError(f"{name}: there are {len(parts)} entries for {len(shapes)} layers")
    layers = enumerate(zip(parts, shapes, strict=True), 1)
    return tuple(_numbers(part, f"{name} of layer {l}", shape) for l, (part, shape) in layers)


def _numbers(raw: Any, name: str, shape: tuple[int | None, ...]) -> Tensor:
    """Return nested lists of numbers as a tensor of this shape; None is any length but 0."""
    try:
        found = float64(raw)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise UsageError(f"{name}: expected numbers, in lists of equal length") from None
    expected = tuple(
        have if want is None else want for have, want in zip(found.shape, shape, strict=False)
    )
    if found.shape != expected or len(found.shape) != len(shape) or not found.numel():
        wanted = " x ".join("N" if want is None else str(want) for want in shape) or "1 number"
        have = " x ".join(str(size) for size in found.shape) or "1 number"
        raise UsageError(f"{name}: the shape is {have}, expected {wanted}")
    if not found.isfinite().all():
        raise UsageError(f"{name}: expected finite numbers")
    if found.abs().max() > LARGEST:
        raise UsageError(
            f"{name}: expected numbers of at most {LARGEST:g}, their products overflow"
        )
    return found


def _targets(raw: Any, examples: int, outputs: int, loss: PlainLoss) -> Tensor:
    rows = _list(raw, "targets")
    if len(rows) != examples:
        raise UsageError(f"targets: there are {len(rows)} for {examples} rows of inputs")
    if loss == "cross-entropy":
        rows = [_one_hot(row, outputs) if _is_scalar(row) else row for row in rows]
    elif outputs == 1:
        rows = [[row] if _is_scalar(row) else row for row in rows]
    t = _numbers(rows, "targets", (examples, outputs))
    if loss in ("cross-entropy", "bce") and not ((t >= 0) & (t <= 1)).all():
        raise UsageError(f"targets: --loss {loss} takes probabilities, from 0 to 1")
    if loss == "cross-entropy" and (t.sum(1) - 1).abs().max() > 1e-9:
        raise UsageError("targets: the probabilities of a row should sum to 1")
    return t


def _is_scalar(raw: Any) -> bool:
    return not isinstance(raw, list)


def _list(raw: Any, name: str) -> list[Any]:
    if not isinstance(raw, list):
        raise UsageError(f"{name}: expected a list, found {json.dumps(raw)[:40]}")
    return cast("list[Any]", raw)


def _one_hot(label: Any, outputs: int) -> list[float]:
    if label not in range(outputs):
        raise UsageError(f"targets: {label!r} is no class, expected 0 to {outputs - 1}")
    return [float(k == label) for k in range(outputs)]
