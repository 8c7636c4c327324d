"""Data sets: bundled with scikit-learn or read from a file, split, standardised, cut into batches.

    name            rows   features   to predict
    digits         1,797         64   10 classes, the digits 0 to 9 as 8x8 images
    breast_cancer    569         30    2 classes, malignant or benign
    iris             150          4    3 classes, species of iris
    wine             178         13    3 classes, cultivars
    diabetes         442         10    1 number, progress of the disease after a year
    xor                4          2    2 classes, whether exactly one of the features is 1

or the path of a .csv or .npz file.

CSV: UTF-8, cells separated by commas, one example a line; blank lines are skipped. The target is
the last column, or the one that is named; all other columns are features and hold numbers only.
The first row is a header when the named target stands in it, when the cells before its last are
text and none a number, or when its last cell is text above numbers only. In a correct file without
a header no row is like that.

NPZ: an array `x` of shape (N, I) with the features, and an array `t` (or `y`) with the targets, of
shape (N,), or (N, O) for regression.

Task: the targets are classes when one of them is text, or when all are whole numbers and have
shape (N,); else they are numbers to predict. An explicit `task` goes before this. Classes are
numbered in the order of their values: numbers by size, text by alphabet. Where a target column has
text, all its cells are class names, and "1" and "1.0" are two.
"""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manualbp.errors import UsageError

Task = Literal["classification", "regression"]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
AnyArray = NDArray[Any]

DATASETS: tuple[str, ...] = ("digits", "breast_cancer", "iris", "wine", "diabetes", "xor")

FEWEST_ROWS = 7
"""Of 7 rows of a class, 70 % for training are 4 or 5 after rounding, so that 2 are left at least:
one for validation and one for the test. Of 6 rows, rounding can leave a single one."""


@dataclass(frozen=True)
class Split:
    """Some examples: features x (N, I); targets t, class indices (N,) int64 or floats (N, O)."""

    x: Tensor
    t: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> Split:
        """Return the examples on a device; from pinned memory the host does not wait for them."""
        return Split(self.x.to(device, non_blocking=True), self.t.to(device, non_blocking=True))


@dataclass(frozen=True)
class Data:
    """A data set in three parts: to learn from, to decide when to stop, to report on at the end."""

    name: str
    task: Task
    classes: tuple[str, ...]
    """Class names in the order of their indices; empty for regression."""
    train: Split
    val: Split
    test: Split

    @property
    def features(self) -> int:
        """I, the number of features."""
        return self.train.x.shape[1]

    @property
    def outputs(self) -> int:
        """K classes, or O numbers to predict."""
        return len(self.classes) or self.train.t.shape[1]


def load(
    source: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    target: str | None = None,
    task: Task | Literal["auto"] = "auto",
    fold: tuple[int, int] | None = None,
) -> Data:
    """Return the data set of this name, or from this .csv or .npz file, split and standardised.

        x[n,i] ← (x[n,i] - mean[i]) / std[i],   mean and std over the training rows only

    and likewise the targets of a regression; std = 1 where a column is constant. 70 % of the rows
    are for training, 15 % for validation, 15 % for the test, and so of each class. The seed decides
    which. xor is neither split nor standardised: each part has all four points.

    With `fold` (k, K) the rows that are not for the test are cut into K equal parts, and so are
    those of each class; part k, counted from 1, is for validation, the others are for training. The
    rows for the test are the same as without.

    `target` names the target column of a CSV file. Computed in float64, then converted to `dtype`
    and moved to `device`.

    Raises UsageError for a source that is not there or cannot be used.
    """
    table = _read(source, target, task)
    if task == "auto":
        is_class = table.t.ndim == 1 and (_is_text(table.t) or _all_whole(table.t))
        task = "classification" if is_class else "regression"
    x = table.x
    t: AnyArray
    if task == "classification":
        classes, t = _classes(source, table)
    else:
        classes, t = (), _numbers_to_predict(source, table)

    if source == "xor":
        if fold:
            raise UsageError("xor cannot be cut into folds: its four points are in every part")
        parts = (np.arange(4),) * 3
    else:
        _require_enough_rows(source, t, classes)
        parts = _split(len(x), t if classes else None, seed)
        if fold:
            rows = np.sort(np.concatenate(parts[:2]))
            parts = (*_fold(source, rows, t[rows] if classes else None, fold, seed), parts[2])
        x = _standardised(x, parts[0])
        if not classes:
            t = _standardised(t, parts[0])

    def part(rows: Indices) -> Split:
        features = torch.as_tensor(x[rows], dtype=dtype, device=device)
        t_dtype = torch.int64 if classes else dtype
        return Split(features, torch.as_tensor(t[rows], dtype=t_dtype, device=device))

    train, val, test = (part(rows) for rows in parts)
    return Data(table.name, task, classes, train, val, test)


def in_order(split: Split, order: Tensor, *, pin_memory: bool = False) -> Split:
    """Return copies of the rows with these numbers, order (N,) int64; in pinned memory if asked."""

    def rows(tensor: Tensor) -> Tensor:
        gathered = tensor.index_select(0, order)
        return gathered.pin_memory() if pin_memory else gathered

    return Split(rows(split.x), rows(split.t))


def batches(split: Split, size: int) -> Iterator[Split]:
    """Yield the examples, `size` at a time, as views; the last batch may be smaller.

    Size 0 is the full batch, 1 is online learning.
    """
    size = size or len(split)
    for x, t in zip(torch.split(split.x, size), torch.split(split.t, size), strict=True):
        yield Split(x, t)


# Sources ------------------------------------------------------------------------------------------


class _Table(NamedTuple):
    """What a source holds, before it is split: x (N, I), and t (N,) or (N, O), numbers or text."""

    name: str
    x: Floats
    t: AnyArray
    class_names: tuple[str, ...] = ()
    """Where the source has them, in the order of the class numbers in t."""


def _read(source: str, target: str | None, task: str) -> _Table:
    if source in DATASETS:
        table = _bundled(source)
    else:
        content = _content(source)
        if source.lower().endswith(".csv"):
            return _csv(source, content, target, task)
        table = _npz(source, content)
    if target is not None:
        raise UsageError(f"target {target!r} names a column of a CSV file; {source} is not one")
    return table


def _content(source: str) -> bytes:
    if source.lower().endswith((".csv", ".npz")):
        try:
            return Path(source).read_bytes()
        except FileNotFoundError:
            pass  # treated as a name that is not known
        except OSError as error:
            raise UsageError(f"{source}: cannot be read: {error.strerror}") from error
    raise UsageError(
        f"there is no data set {source!r};{_did_you_mean(source, DATASETS)} "
        f"known are {', '.join(DATASETS)}, and paths of .csv and .npz files that exist"
    )


def _bundled(name: str) -> _Table:
    if name == "xor":
        x = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        return _Table(name, x, np.array([0, 1, 1, 0]))
    bunch = cast("Mapping[str, AnyArray]", _sklearn("datasets", f"load_{name}")())
    x, t = bunch["data"].astype(np.float64), bunch["target"]
    if name == "diabetes":  # whole numbers, but no classes
        return _Table(name, x, t[:, None])
    return _Table(name, x, t, tuple(str(label) for label in bunch["target_names"]))


# CSV ----------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    line: int
    """Where the row starts, as an editor counts lines."""
    cells: list[str]


def _csv(source: str, content: bytes, target: str | None, task: str) -> _Table:
    rows = _rows(source, content)
    if not rows:
        raise UsageError(f"{source}: the file is empty; expected rows of cells between commas")
    first, width = rows[0], len(rows[0].cells)
    for row in rows:
        if len(row.cells) != width:
            raise UsageError(
                f"{source}, line {row.line}: the row has {_count(len(row.cells), 'cell')}; "
                f"expected {width}, as in line {first.line}"
            )
    if width == 1:
        other = next((mark for mark in (";", "\t", "|") if mark in first.cells[0]), None)
        why = f"cells are separated by {other!r}" if other else "there is one column only"
        raise UsageError(
            f"{source}: no feature column, as {why}; "
            "expected features and a target, separated by commas"
        )
    if _has_header(rows, target):
        rows = rows[1:]
        labels = [_quoted(cell) for cell in first.cells]
        target_column = _target_column(source, first.cells, target)
    elif target is None:
        labels = [f"{number} (no header)" for number in range(1, width + 1)]
        target_column = width - 1
    else:
        raise UsageError(
            f"{source}: target {target!r}, but line {first.line} is no header with column names; "
            "add one, or name no target: then it is the last column"
        )
    if not rows:
        raise UsageError(f"{source}: only a header; expected rows below it")

    def fault(row: _Row, column: int, what: str) -> UsageError:
        return UsageError(f"{source}, line {row.line}, column {labels[column]}: {what}")

    def value(row: _Row, column: int, *, may_be_text: bool) -> float | None:
        """Return the number in this cell, or None for text."""
        cell = row.cells[column]
        number = _number(cell)
        if not cell:
            raise fault(row, column, "the value is missing")
        if number is None and not may_be_text:
            raise fault(row, column, f"{_quoted(cell)} is text; expected numbers in this column")
        if number is not None and not math.isfinite(number):
            raise fault(row, column, f"{_quoted(cell)} is not a finite number")
        return number

    features = [column for column in range(width) if column != target_column]
    x = [[value(row, column, may_be_text=False) for column in features] for row in rows]
    t = [value(row, target_column, may_be_text=task != "regression") for row in rows]
    targets = np.array([row.cells[target_column] for row in rows] if None in t else t)
    return _Table(Path(source).stem, np.array(x, np.float64), targets)


def _rows(source: str, content: bytes) -> list[_Row]:
    """Return all rows that are not blank."""
    try:
        text = content.decode("utf-8-sig")  # without the byte order mark, where there is one
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{source}, line {line}: not UTF-8; save the file as UTF-8") from error
    rows: list[_Row] = []
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    line = 1
    try:
        for record in reader:
            cells = [cell.strip() for cell in record]
            if cells not in ([], [""]):
                rows.append(_Row(line, cells))
            line = reader.line_num + 1  # not line + 1: a quoted cell may hold line ends
    except csv.Error as error:
        raise UsageError(
            f"{source}, line {line}: not a row of a CSV file ({error}); is a quotation mark open?"
        ) from error
    return rows


def _has_header(rows: Sequence[_Row], target: str | None) -> bool:
    """Tell by the rule in this module's docstring whether the first row is a header."""
    *before, last = rows[0].cells
    if target is not None and target in rows[0].cells:
        return True
    if any(before) and all(_number(cell) is None for cell in before):
        return True
    below = [_number(row.cells[-1]) for row in rows[1:]]
    return last != "" and _number(last) is None and below != [] and None not in below


def _target_column(source: str, names: Sequence[str], target: str | None) -> int:
    if target is None:
        return len(names) - 1
    if target not in names:
        raise UsageError(
            f"{source}: there is no column {target!r};{_did_you_mean(target, names)} "
            f"the header has {_listed(names)}"
        )
    if names.count(target) > 1:
        raise UsageError(f"{source}: the header has column {target!r} more than once; rename one")
    return names.index(target)


def _number(cell: str) -> float | None:
    """Return the number that the cell spells, NaN and Inf among them, or None."""
    if "_" in cell:  # Python reads 1_000 as a number; in a file it is text
        return None
    try:
        return float(cell)
    except ValueError:
        return None


# NPZ ----------------------------------------------------------------------------------------------


def _npz(source: str, content: bytes) -> _Table:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except Exception as error:  # see _array
        raise UsageError(
            f"{source}: not an .npz file, or cut short; numpy.savez writes one"
        ) from error
    members = archive.namelist()
    names = [name.removesuffix(".npy") for name in members if name.endswith(".npy")]
    target = "t" if "t" in names else "y"
    for name, wanted in ("x", "'x'"), (target, "'t' or 'y'"):
        if name not in names:
            raise UsageError(f"{source}: no array {wanted}; in the file: {_listed(names)}")
    x, t = _array(source, archive, "x"), _array(source, archive, target)
    if x.ndim != 2 or 0 in x.shape:
        raise UsageError(
            f"{source}: array 'x' has shape {x.shape}; expected (N, I), N examples with I features"
        )
    if t.ndim not in (1, 2) or 0 in t.shape[1:]:
        raise UsageError(f"{source}: array {target!r} has shape {t.shape}; expected (N,) or (N, O)")
    if len(x) != len(t):
        raise UsageError(
            f"{source}: array 'x' has {_count(len(x), 'row')}, {target!r} has {len(t)}; "
            "expected as many"
        )
    _require_finite(source, "x", x)
    if not (_is_text(t) and t.ndim == 1):
        _require_finite(source, target, t)
    return _Table(Path(source).stem, x.astype(np.float64), t)


def _array(source: str, archive: zipfile.ZipFile, name: str) -> AnyArray:
    """Return one array; Python objects, whose pickles could execute anything, are refused."""
    try:
        with archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:
        # Any: damaged bytes make zipfile and NumPy raise all kinds, up to SyntaxError and
        # MemoryError, and none of our own code is in the block.
        reason = shorten(str(error), 80, placeholder="...")  # on one line
        raise UsageError(
            f"{source}: array {name!r} cannot be read ({reason}); "
            "expected numbers or text, as numpy.savez writes them"
        ) from error


def _require_finite(source: str, name: str, array: AnyArray) -> None:
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{source}: array {name!r} has type {array.dtype}; expected numbers")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        index = tuple(bad[0].tolist())
        where = ", ".join(str(i) for i in index)
        raise UsageError(f"{source}: {name}[{where}] is {array[index]}; expected finite numbers")


# Targets, splits, standardisation -----------------------------------------------------------------


def _is_text(t: AnyArray) -> bool:
    return t.dtype.kind == "U"


def _all_whole(t: AnyArray) -> bool:
    return bool((t == np.floor(t)).all())


def _classes(source: str, table: _Table) -> tuple[tuple[str, ...], Indices]:
    """Return the class names in order, and the class index of each row."""
    t, is_text = table.t, _is_text(table.t)
    if t.ndim != 1:
        raise UsageError(
            f"{source}: targets of shape {t.shape} are no classes; expected shape ({len(t)},), "
            "or task regression"
        )
    if not is_text and not _all_whole(t):
        fraction = t[t != np.floor(t)][0]
        raise UsageError(
            f"{source}: target {fraction} is no class; expected whole numbers or text, "
            "or task regression"
        )
    values, indices = np.unique(t, return_inverse=True)
    names = tuple(str(value if is_text else int(value)) for value in values)
    if len(names) == 1:
        raise UsageError(
            f"{source}: all targets are of one class, {_quoted(names[0])}; expected two or more"
        )
    return table.class_names or names, indices.astype(np.int64)


def _numbers_to_predict(source: str, table: _Table) -> Floats:
    """Return the targets as (N, O)."""
    if _is_text(table.t):
        text = _quoted(str(table.t[0]))
        raise UsageError(f"{source}: target {text} is text; task regression expects numbers")
    return table.t.astype(np.float64).reshape(len(table.t), -1)


def _require_enough_rows(source: str, t: AnyArray, classes: Sequence[str]) -> None:
    if not classes:
        if len(t) < FEWEST_ROWS:
            raise UsageError(
                f"{source}: {_count(len(t), 'row')}; expected {FEWEST_ROWS} or more, to split them"
            )
        return
    counts = np.bincount(t)
    rarest = int(counts.argmin())
    fewest = int(counts[rarest])
    if fewest < FEWEST_ROWS:
        raise UsageError(
            f"{source}: class {_quoted(classes[rarest])} has {_count(fewest, 'row')} "
            f"({_count(len(t), 'row')}, {len(classes)} classes); expected {FEWEST_ROWS} or more of "
            "each class, so that every split has it; to predict numbers, set task regression"
        )


def _split(rows: int, t: AnyArray | None, seed: int) -> tuple[Indices, Indices, Indices]:
    """Return the row numbers for training, validation and test; t None: do not stratify."""
    train, rest = _divide(np.arange(rows), t, 0.3, seed)
    val, test = _divide(rest, None if t is None else t[rest], 0.5, seed)
    return train, val, test


def _fold(
    source: str, rows: Indices, classes: AnyArray | None, fold: tuple[int, int], seed: int
) -> tuple[Indices, Indices]:
    """Return those of the rows that are for training in this fold, and those for validation."""
    part, parts = fold
    most = len(rows) if classes is None else int(np.bincount(classes).min())
    if parts > most:
        of_a_class = "" if classes is None else " of the rarest class"
        raise UsageError(
            f"{source}: {parts} folds of {_count(most, 'row')}{of_a_class} (those for the test do "
            f"not count); expected {most} folds at most"
        )
    name = "KFold" if classes is None else "StratifiedKFold"
    cut = _sklearn("model_selection", name)(parts, shuffle=True, random_state=seed % 2**32)
    folds = cast("list[tuple[Indices, Indices]]", list(cut.split(rows, classes)))
    others, this = folds[part - 1]
    return rows[others], rows[this]


def _divide(
    rows: Indices, classes: AnyArray | None, share: float, seed: int
) -> tuple[Indices, Indices]:
    first, second = _sklearn("model_selection", "train_test_split")(
        rows,
        test_size=share,
        stratify=classes,
        random_state=seed % 2**32,  # the range that NumPy's generator takes
    )
    return cast("Indices", first), cast("Indices", second)


def _sklearn(module: str, name: str) -> Any:
    """Return a function of scikit-learn, which has no types and takes a second to load."""
    return getattr(import_module(f"sklearn.{module}"), name)


def _standardised(values: AnyArray, train: Indices) -> Floats:
    # Up to a power of two, which rounds nothing: squares of numbers such as 1e200 would overflow.
    _, exponents = np.frexp(np.abs(values).max(axis=0))
    values = np.ldexp(values, -exponents)
    known = values[train]
    # Not std == 0: rounding can leave the std of a constant column a little above zero.
    constant = known.min(axis=0) == known.max(axis=0)
    std = np.where(constant, 1.0, known.std(axis=0))
    return (values - known.mean(axis=0)) / std


# Messages -----------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    """Return the text in quotes, on one line and of bounded length."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _listed(names: Sequence[str]) -> str:
    some = [_quoted(name) for name in names[:10]] + ["..."] * (len(names) > 10)
    return ", ".join(some) or "none"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    by_lower = {name.lower(): name for name in known}
    match = get_close_matches(word.lower(), by_lower, n=1)
    return f" did you mean {by_lower[match[0]]!r}?" if match else ""
