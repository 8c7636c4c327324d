"""The training loop: epochs of updates, validation after each, early stopping.

It knows an engine, not how the engine computes; it tells an observer, not what becomes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from manualbp.schedules import Schedule
from manualbp.training.data import Split
from manualbp.training.early_stopping import EarlyStopping, StopReason
from manualbp.training.engine import Engine
from manualbp.training.feed import Feed
from manualbp.training.last_update import LastUpdate, Weights
from manualbp.training.objective import Objective


@dataclass
class Progress:
    """Where a run stands: what a checkpoint holds beside the engine and early stopping."""

    epoch: int = 0  # complete epochs
    position: int = 0  # updates done in the epoch under way
    steps: int = 0  # updates done in all
    seconds: float = 0.0  # spent in epochs


@dataclass(frozen=True)
class EpochReport:
    """What one epoch came to, and its last update, if asked for."""

    epoch: int
    train: Mapping[str, float]
    val: Mapping[str, float]
    learning_rate: float
    last_update: LastUpdate | None


class Observer(Protocol):
    """Who follows a run: logs, progress display, checkpoints."""

    def wants_details(self, epoch: int) -> bool:
        """Return whether the last update of this epoch is wanted."""
        ...

    def after_update(self, trainer: Trainer) -> None:
        """Hear that an update is done that is not the last of its epoch."""
        ...

    def after_epoch(self, trainer: Trainer, report: EpochReport) -> None:
        """Hear that an epoch is done."""
        ...


class NotFinite(Exception):
    """A loss of an epoch, named, is NaN or infinite; the trainer is back where that epoch began."""


@dataclass
class Trainer:
    """Everything that a run is made of, and `fit`, which runs it."""

    engine: Engine
    objective: Objective
    schedule: Schedule
    learning_rate: float
    train: Split  # on the host
    val: Split  # where the engine computes
    batch_size: int  # rows of one update; 0 is all of them
    max_epochs: int
    stopper: EarlyStopping
    seed: int
    progress: Progress = field(default_factory=Progress)
    best: Weights = field(default_factory=dict[str, Tensor])
    _feed: Feed = field(init=False)
    _outputs: Tensor = field(init=False)  # (N, K), of the epoch under way
    _places: Sequence[Tensor] = field(init=False)  # in it, one for each update

    def __post_init__(self) -> None:
        self._feed = Feed(self.train, self.batch_size, self.device)
        self._outputs = self.val.x.new_empty(len(self.train), self.objective.outputs)
        self._places = torch.split(self._outputs, self.batch_size or len(self.train))

    @property
    def device(self) -> torch.device:
        """Return where the engine computes."""
        return self.val.x.device

    def fit(self, observer: Observer) -> StopReason:
        """Train until early stopping or `max_epochs`; return why it ended.

        Raises NotFinite when a loss of an epoch is not a number any more.
        """
        while self.stopper.reason is None and self.progress.epoch < self.max_epochs:
            report = self.run_epoch(observer)
            observer.after_epoch(self, report)
        return self.stopper.reason or "max epochs"

    def run_epoch(self, observer: Observer) -> EpochReport:
        """Make the updates of one epoch, or what is left of it, validate, and decide."""
        progress, start = self.progress, self._state()
        began = perf_counter() - progress.seconds
        epoch = progress.epoch + 1
        details = observer.wants_details(epoch)
        rows, rates = self.plan_epoch()
        before: Weights = {}
        with self.engine.context():
            for batch in rows.batches(progress.position):
                last = progress.position == len(rates) - 1
                if last and details:
                    before = self.engine.copy_weights()
                    self.engine.watch()
                self.record(self.engine.step(batch.x, batch.t))
                if not last:
                    progress.seconds = perf_counter() - began
                    observer.after_update(self)
            train, val = self.objective.metrics_of(
                (self._outputs, rows.targets()),
                (self.engine.predict(self.val.x), self.val.t),
            )
        for part, metrics in (("training", train), ("validation", val)):
            if not isfinite(metrics["loss"]):
                self.restore(start)
                raise NotFinite(f"the {part} loss of epoch {epoch}")
        progress.epoch, progress.position = epoch, 0
        progress.seconds = perf_counter() - began
        values = {f"train_{k}": v for k, v in train.items()}
        values |= {f"val_{k}": v for k, v in val.items()}
        if self.stopper.update(epoch, values[self.stopper.monitor]).improved:
            self.best = self.engine.copy_weights()
        last_update = None
        if details:
            last_update = LastUpdate(before, self.engine.copy_weights(), self.engine.gradients())
        return EpochReport(epoch, train, val, rates[-1], last_update)

    def plan_epoch(self) -> tuple[Feed, list[float]]:
        """Return the rows of the epoch under way and each update's learning rate; tell the engine.

        The order of the examples follows from seed and epoch alone, so a run that goes on in the
        middle of an epoch finds the same batches.
        """
        epoch, rows = self.progress.epoch, self._feed
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * (epoch + 1))
        rows.begin(torch.randperm(len(self.train), generator=generator))
        updates = len(rows)
        fractions = [epoch + position / updates for position in range(updates)]
        rates = [self.learning_rate * self.schedule.factor(fraction) for fraction in fractions]
        self.engine.plan(rates[self.progress.position :])
        return rows, rates

    def record(self, y: Tensor) -> None:
        """Keep a copy of an update's outputs: their loss is the epoch's training loss."""
        self._places[self.progress.position].copy_(y)
        self.progress.position += 1
        self.progress.steps += 1

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of all that the next updates depend on, as a checkpoint holds it."""
        return _plain(self._state())

    def _state(self) -> dict[str, Any]:
        progress = self.progress
        return {
            "weights": self.engine.copy_weights(),
            "memory": self.engine.memory(),
            "best": self.best,  # never changed in place
            "early_stopping": self.stopper.state_dict(),
            "epoch": progress.epoch,
            "position": progress.position,
            "steps": progress.steps,
            "seconds": progress.seconds,
            "outputs": self._outputs[: progress.position * self.batch_size].clone(),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go back to a snapshot.

        Raises UsageError, ValueError, KeyError or RuntimeError for one of another run.
        """
        self.engine.load_weights(snapshot["weights"])
        self.engine.load_memory(snapshot["memory"])
        self.best = {name: best.to(self.device) for name, best in snapshot["best"].items()}
        self.stopper.load_state_dict(snapshot["early_stopping"])
        names = ("epoch", "position", "steps", "seconds")
        self.progress = Progress(**{name: snapshot[name] for name in names})
        y: Tensor = snapshot["outputs"]
        self._outputs[: len(y)].copy_(y)


def _plain(tree: Any) -> Any:
    """Return the same with dicts for all mappings."""
    if isinstance(tree, Mapping):
        branches = cast("Mapping[Any, Any]", tree)
        return {name: _plain(branch) for name, branch in branches.items()}
    return tree
