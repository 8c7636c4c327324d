"""The curves of a run, as TensorBoard shows them.

The step of everything is the epoch, counted from 1. TensorBoard's first page groups the charts by
the part of the tag before "/", sorts the groups and opens the first two only. These are accuracy
and loss, or loss and r2: the names of all other groups come after them in the alphabet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from manualbp.errors import UsageError
from manualbp.training.last_update import LastUpdate

# TensorBoard comes without types: these names are all of it that is used here.
_protocol = import_module("tensorboard.compat.proto.summary_pb2")
HistogramProto: Any = _protocol.HistogramProto
Summary: Any = _protocol.Summary
hparams_pb: Any = import_module("tensorboard.plugins.hparams.summary_v2").hparams_pb
Writer: TypeAlias = Any
"""A SummaryWriter."""

SECONDS_BETWEEN_WRITES = 1.0
MOST_WAITING = 10_000
"""Events that the threads of TensorBoard have not written yet; with as many, training waits."""
MOST_KEPT = 2**26
"""Bytes of parameters and gradients that may wait to be drawn."""
MAX_BINS = 64
MAX_CLASSES_WITH_COUNTS = 20
"""With more classes, the cells of a confusion matrix are too small for a number."""


class RunLogs:
    """Event files in RUN/train and RUN/val; TensorBoard draws equal tags of both in one chart.

    `resume_after=e` hides what an interrupted run has logged of epochs > e, so that the curves
    equal those of a run never interrupted; `resume_after=0` hides all, the configuration too.
    `trial` is the run's name in the table of the HPARAMS page, which takes the mean over runs of
    the same name; without one it is that of the directory.
    Raises UsageError if the clock is behind the files of the interrupted run.
    """

    def __init__(
        self, run: Path, *, resume_after: int | None = None, trial: str | None = None
    ) -> None:
        if resume_after is not None:
            _wait_until_names_sort_last(run)
        self._trial = trial or run.resolve().name
        self._last_epoch = resume_after or 0
        # purge_step also in a first file, where there is nothing to hide: one of TensorBoard's two
        # readers, that of --load_fast=false, takes the first purge_step it meets for a run's start.
        hidden_from = self._last_epoch + 1 if self._last_epoch else 0
        self._waiting: list[tuple[Writer, Callable[[], list[Any]], int, float]] = []
        self._kept = 0  # bytes that wait with them
        self._written_at = time.monotonic()
        self._train: Writer = _writer(run / "train", hidden_from)
        self._val: Writer = _writer(run / "val", hidden_from)

    def __enter__(self) -> RunLogs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def epoch(
        self,
        epoch: int,
        *,
        train: Mapping[str, float],
        val: Mapping[str, float],
        learning_rate: float,
    ) -> None:
        """Log loss and accuracy (or r2) under these names, and the learning rate of the epoch."""
        self._scalars(self._train, epoch, {**train, "updates/learning_rate": learning_rate})
        self._scalars(self._val, epoch, val)
        self._last_epoch = epoch
        if time.monotonic() - self._written_at > SECONDS_BETWEEN_WRITES:
            self._write()

    def last_update(self, epoch: int, update: LastUpdate, *, histograms: bool) -> None:
        """Log |gradient| and |update| / |weight| of each parameter, by its name.

        With `histograms`, also how the numbers of each parameter and of its gradient are spread;
        not of a tensor that is empty or holds a number that is not finite in float32.
        """
        self._later(self._train, epoch, lambda: _tagged(_lengths(update)))
        if histograms:
            self._later(self._train, epoch, lambda: _histograms(update))
        self._kept += update.nbytes
        if self._kept > MOST_KEPT:
            self._write()

    def difference(self, epoch: int, *, gradients: float, parameters: float) -> None:
        """Log the largest relative difference between what is computed by hand and by autograd."""
        tags = {"vs_autograd/gradients": gradients, "vs_autograd/parameters": parameters}
        self._scalars(self._train, epoch, tags)

    def confusion_matrix(self, epoch: int, matrix: Tensor, classes: tuple[str, ...]) -> None:
        """Draw matrix[k, j], (K, K): how many examples of class k were taken for class j."""
        self._write()
        picture = _draw_confusion_matrix(matrix, classes)
        self._val.add_image("result/confusion_matrix", picture, epoch, dataformats="HWC")

    def configuration(self, configuration: Mapping[str, object]) -> None:
        """Log a table of the settings, before the first epoch; the step is 0."""
        rows = [f"| {name} | {_as_code(value)} |" for name, value in configuration.items()]
        table = "\n".join(["| setting | value |", "|:--|:--|", *rows])
        self._train.add_text("configuration", table, 0)

    def hparams(
        self, hparams: Mapping[str, bool | str | float | int], metrics: Mapping[str, float]
    ) -> None:
        """Log the run's row in the table of the HPARAMS page, and its metrics as "result/NAME".

        Once, after the last epoch E. The step is E + 1: a run that is resumed after E has then
        hidden it and can log it anew.
        """
        self._write()
        step = self._last_epoch + 1
        row = hparams_pb(dict(hparams), trial_id=self._trial)
        self._val.file_writer.add_summary(row, step)
        _scalars(self._val, step, {f"result/{name}": value for name, value in metrics.items()})

    def _scalars(self, writer: Writer, step: int, values: Mapping[str, float]) -> None:
        self._later(writer, step, lambda: _tagged(values))

    def _later(self, writer: Writer, step: int, values: Callable[[], list[Any]]) -> None:
        self._waiting.append((writer, values, step, time.time()))

    def _write(self) -> None:
        """Compute all that waits, then hand it over, in order.

        Together, because this code is slow the first time after an epoch of other code, and because
        the writers' threads take turns with whatever else runs, from the first event to the last.
        """
        ready = [(writer, Summary(value=values()), *at) for writer, values, *at in self._waiting]
        for writer, summary, step, at in ready:
            writer.file_writer.add_summary(summary, step, at)
        self._waiting = []
        self._kept = 0
        self._written_at = time.monotonic()

    def flush(self) -> None:
        """Return when the files hold all that was logged, even if the process is killed next."""
        self._write()
        self._train.flush()
        self._val.flush()

    def close(self) -> None:
        """Flush and close the files. A second call does nothing."""
        self._write()
        self._train.close()
        self._val.close()


class ExperimentLogs:
    """Event files of what several runs come to together, or of what is no run; beside the runs."""

    def __init__(self, directory: Path) -> None:
        self._writer: Writer = SummaryWriter(str(directory))

    def __enter__(self) -> ExperimentLogs:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers under these tags."""
        _scalars(self._writer, step, values)

    def picture(self, tag: str, figure: Figure, path: Path) -> None:
        """Log a figure, and write it to a PNG file too."""
        cast(Any, figure).savefig(path)  # matplotlib leaves its keyword arguments untyped
        self._writer.add_image(tag, _pixels(figure), 0, dataformats="HWC")

    def table(self, tag: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Log a table as text."""
        lines = [columns, [":--"] * len(columns), *([_as_code(cell) for cell in r] for r in rows)]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        self._writer.add_text(tag, text, 0)


def _writer(directory: Path, hidden_from: int) -> Writer:
    return SummaryWriter(str(directory), max_queue=MOST_WAITING, purge_step=hidden_from)


def _wait_until_names_sort_last(run: Path) -> None:
    """Wait until the name of a new event file sorts after those of the interrupted run.

    TensorBoard reads the files of a directory in the order of their names, which tell the second
    they were opened in ("events.out.tfevents.1767225600. ..."). A resumed run's file can only hide
    what was read before it.
    """
    files = run.glob("*/events.out.tfevents.*")
    newest = max((int(file.name.split(".")[3]) for file in files), default=0)
    behind = newest - time.time()
    if behind > 10:
        raise UsageError(
            f"the clock is {behind:.0f} s behind the event files in {run}: set it, then resume"
        )
    while time.time() < newest + 1:
        time.sleep(0.01)


def _scalars(writer: Writer, step: int, values: Mapping[str, float]) -> None:
    # One event for all of them costs less than half as much as an add_scalar for each.
    writer.file_writer.add_summary(Summary(value=_tagged(values)), step)


def _tagged(values: Mapping[str, float]) -> list[Any]:
    return [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]


def _lengths(update: LastUpdate) -> dict[str, float]:
    norms = {f"updates/gradient_norm/{name}": n for name, n in update.gradient_norms.items()}
    ratios = {f"updates/update_to_weight/{name}": r for name, r in update.update_ratios.items()}
    return norms | ratios


def _histograms(update: LastUpdate) -> list[Any]:
    tensors = {f"weights/{name}": weight for name, weight in update.after.items()}
    tensors |= {f"weights_gradient/{name}": gradient for name, gradient in update.gradients.items()}
    histograms = [_histogram(tag, tensor) for tag, tensor in tensors.items()]
    return [histogram for histogram in histograms if histogram]


def _histogram(tag: str, tensor: Tensor) -> Any | None:
    """Return the histogram; None if there is no number, or one is not finite in float32."""
    values = tensor.detach().float().cpu().numpy().reshape(-1)
    if values.size == 0 or not np.isfinite(values).all():
        return None
    # The Rice rule, 2 ∛n bins. Not bins="auto": for one number far from the rest it asks for
    # billions of bins (in NumPy 1.26), and it raises for equal numbers above 1e16.
    bins = min(MAX_BINS, round(2 * values.size ** (1 / 3)))
    edges = np.linspace(values.min(), values.max(), bins + 1, dtype=np.float64)
    counts, _ = np.histogram(values, edges)
    doubles = values.astype(np.float64)
    histogram = HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=values.size,
        sum=doubles.sum(),
        sum_squares=doubles @ doubles,
        # TensorBoard takes the right ends of bins; an empty one on the left gives the first its
        # left end.
        bucket_limit=edges,
        bucket=[0, *counts],
    )
    return Summary.Value(tag=tag, histo=histogram)


def _draw_confusion_matrix(matrix: Tensor, classes: tuple[str, ...]) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3). The darker a cell, the larger its share of the row."""
    counts = matrix.cpu().numpy()
    right, total = int(counts.trace()), int(counts.sum())
    share = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    shade = np.sqrt(share)  # so that a rare confusion, 1 in 40 say, still shows

    cell = 0.08 * (1 + max(2, len(str(counts.max()))))  # inches, wide enough for the counts
    side = min(max(3.0, 1.0 + cell * len(classes)), 11.0)
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    axes = cast(Any, figure.add_subplot())  # matplotlib leaves its keyword arguments untyped
    axes.imshow(shade, cmap="Blues", vmin=0, vmax=1)
    axes.set_title(f"{right} of {total} right", fontsize=10)
    axes.set(xlabel="predicted", ylabel="true")

    with_counts = len(classes) <= MAX_CLASSES_WITH_COUNTS
    size = 9 if with_counts else 7
    names = [name if len(name) <= 16 else name[:15] + "…" for name in classes]
    rotation = 90 if max(map(len, names)) > 2 else 0
    every = 1 + len(names) // 60  # there is room for 60 names
    ticks, names = range(0, len(names), every), names[::every]
    # parse_math=False: the name of a class may hold dollar signs.
    axes.set_xticks(ticks, names, fontsize=size, rotation=rotation, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    if with_counts:
        for i, j in np.argwhere(counts):
            ink = "white" if shade[i, j] > 0.6 else "black"
            axes.text(j, i, counts[i, j], color=ink, fontsize=size, ha="center", va="center")
    return _pixels(figure)


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return the picture (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[:, :, :3]


def _as_code(value: object) -> str:
    """Return the value as Markdown code, in which "|", "*" and "_" are nothing but themselves."""
    text = str(value).replace("\n", " ").replace("`", "'")
    return f"`{text}`" if text else ""
