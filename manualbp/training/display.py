"""What a person at a terminal sees of a run: progress on stderr, and what it came to at the end."""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from manualbp.training.early_stopping import EarlyStopping
from manualbp.training.loop import EpochReport

SECONDS_BETWEEN_UPDATES = 0.2
"""Epochs of a small network take milliseconds; drawing each would cost more than training."""


class Display:
    """A progress bar with the curves' last values; nothing where stderr is no terminal."""

    def __init__(self, max_epochs: int, score_name: str, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self._max_epochs = max_epochs
        self._score_name = score_name
        self._progress = Progress(
            TextColumn("epoch {task.completed:>4}/{task.total}"),
            BarColumn(bar_width=12),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._drawn_at = 0.0

    def start(self, epoch: int, why_it_waits: str) -> None:
        """Show the bar, at the epochs that are done already, and what the first one waits for."""
        self._progress.start()
        self._task = self._progress.add_task(why_it_waits, total=self._max_epochs, completed=epoch)

    def epoch(self, report: EpochReport, stopper: EarlyStopping) -> None:
        """Show the numbers of an epoch, if the last ones have stood for a while."""
        if self._task is None or self._progress.disable:
            return
        if monotonic() - self._drawn_at < SECONDS_BETWEEN_UPDATES:
            return
        self._drawn_at = monotonic()
        score = self._score_name
        text = (
            f"loss {report.train['loss']:.4f} val {report.val['loss']:.4f}  "
            f"{score} {report.val[score]:.4f}  best {stopper.best_epoch or '-'}"
        )
        self._progress.update(self._task, completed=report.epoch, description=text, refresh=True)

    def close(self) -> None:
        """Remove the bar."""
        self._progress.stop()


def print_summary(console: Console, result: Mapping[str, Any]) -> None:
    """Say what a run reached, why it stopped, where it lies, and how to look at it."""
    part, title = ("test", "Test") if "test_loss" in result else ("best_val", "Val")
    score = "accuracy" if f"{part}_accuracy" in result else "r2"
    value, loss = result[f"{part}_{score}"], result[f"{part}_loss"]
    reached = Text("not a number" if value is None else f"{value:.4f}", style="bold")
    if loss is not None:
        best = result["best_epoch"]
        epoch = "the last epoch" if best is None else f"epoch {best}"
        reached = Text.assemble(reached, f"  (loss {loss:.4f}, weights of {epoch})")
    epochs = result["epochs"]
    updates = result["steps_per_second"] * result["seconds"]
    stopped = (
        f"{result['stopped_reason']} after {epochs} epoch{'' if epochs == 1 else 's'}, "
        f"{updates:,.0f} updates, {result['seconds']:.1f} s"
    )
    engine = f"{result['engine']}, {result['device']}, {result['dtype']}"
    command = f"tensorboard --logdir {quote(result['run_dir'])}"
    lines = [
        Text.assemble(f"{title + (' R²' if score == 'r2' else ' accuracy'):<15}", reached),
        Text(f"{'Stopped':<15}{stopped}"),
        Text(f"{'Engine':<15}{engine}, {result['steps_per_second']:,.0f} updates/s"),
        Text(f"{'Run':<15}{result['run_dir']}"),
        Text.assemble("Look at it with:  ", (command, "bold")),
    ]
    for line in lines:
        console.print(line, soft_wrap=True)  # a path must stay in one piece
