"""The learning-rate range test: what is a good rate, found in one short training.

The rate grows by the same factor from update to update. As long as it is much too small the loss
stays where it is; then it falls; and when the rate is too large it diverges. The rate at which an
update lowered the loss by the largest share is the one to try.

A share, and so the steepest point on a logarithmic scale: in plain differences the first fall wins,
from outputs that are far too large at the start to outputs that know nothing. A tiny rate is enough
for that, but not for what comes then.

Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3, with the
growth by a factor that has become usual since.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import ceil, isfinite
from pathlib import Path
from shlex import quote
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from manualbp.errors import CheckFailed, Interrupted
from manualbp.schedules import Schedule
from manualbp.training.config import TrainConfig
from manualbp.training.data import Split
from manualbp.training.logs import ExperimentLogs
from manualbp.training.loop import EpochReport, NotFinite, Trainer
from manualbp.training.run import (
    EngineBuilder,
    Signals,
    configure_processor,
    open_experiment,
    prepare,
)
from manualbp.training.run_directory import json_number, write_json

LOWEST, HIGHEST = 1e-6, 10.0
FEWEST, MOST = 200, 1000
"""Updates of a test; between the two, as many as an epoch has."""
ROWS = 1000
"""Rows at most on which the loss is measured."""
SMOOTHING = 0.8
"""β, the share of the smoothed loss that comes from before."""
DIVERGED = 4.0
"""The test is over when the smoothed loss is so many times its lowest value."""
WARM_UP = 3
"""Updates after which the smoothed loss is one."""


@dataclass(frozen=True)
class Growing(Schedule):
    """η(e) = η r^(e/T): times r over T epochs"""

    ratio: float
    epochs: float

    def factor(self, epoch: float) -> float:
        return self.ratio ** (epoch / self.epochs)


@dataclass
class Curve:
    """The rate η[i] of each update i, the loss L[i] after it, and the smoothed loss S[i]:

        s[i] = β s[i-1] + (1 - β) L[i],   s[0] = 0,   S[i] = s[i] / (1 - β^i)

    where the division makes up for the start at 0, as in Adam.
    """

    rates: list[float] = field(default_factory=list[float])
    losses: list[float] = field(default_factory=list[float])
    smoothed: list[float] = field(default_factory=list[float])
    _s: float = 0.0

    def add(self, rate: float, loss: float) -> None:
        """Take in what the next update came to."""
        self._s = SMOOTHING * self._s + (1 - SMOOTHING) * loss
        self.rates.append(rate)
        self.losses.append(loss)
        self.smoothed.append(self._s / (1 - SMOOTHING ** len(self.losses)))

    @property
    def diverged(self) -> bool:
        """Return whether the smoothed loss is far above its lowest value, or no number."""
        return not self.smoothed[-1] <= DIVERGED * min(self.smoothed)

    @property
    def lowest(self) -> int:
        """Return the update after which the smoothed loss was lowest, counted from 0."""
        return min(range(len(self.smoothed)), key=lambda i: self.smoothed[i])

    @property
    def steepest(self) -> int | None:
        """Return the update, before the lowest, at which d log S / d log η was most negative."""
        if self.lowest <= WARM_UP:
            return None
        # The rates grow by one factor, so the differences of log S are its slope.
        slope = np.gradient(np.log(self.smoothed[: self.lowest + 1]))
        return WARM_UP + int(slope[WARM_UP:].argmin())


class _Over(Exception):
    """The test has come to its end."""


@dataclass
class _Observer:
    """Measures the loss after each update, always on the same rows, and ends the test.

    The loss of the update's own batch would say more about the batch than about the rate.
    """

    rows: Split
    updates_an_epoch: int
    updates: int
    signals: Signals
    curve: Curve = field(default_factory=Curve)

    def wants_details(self, epoch: int) -> bool:
        return False

    def after_update(self, trainer: Trainer) -> None:
        epochs = (trainer.progress.steps - 1) / self.updates_an_epoch
        y = trainer.engine.predict(self.rows.x)
        loss = trainer.objective.metrics(y, self.rows.t)["loss"]
        self.curve.add(trainer.learning_rate * trainer.schedule.factor(epochs), loss)
        if self.curve.diverged or len(self.curve.rates) == self.updates or self.signals.number:
            raise _Over

    def after_epoch(self, trainer: Trainer, report: EpochReport) -> None:
        self.after_update(trainer)


@dataclass(frozen=True)
class RangeTest:
    """What a test has found."""

    curve: Curve
    directory: Path

    @property
    def suggestion(self) -> float | None:
        """Return the rate at which an update lowered the loss by the largest share."""
        update = self.curve.steepest
        return None if update is None else _rounded(self.curve.rates[update])

    @property
    def picture(self) -> Path:
        """Return the path of the picture."""
        return self.directory / "range_test.png"

    def as_json(self) -> dict[str, Any]:
        """Return what --json prints."""
        curve = self.curve
        return {
            "run_dir": str(self.directory),
            "suggestion": self.suggestion,
            "lowest_loss_at": _rounded(curve.rates[curve.lowest]),
            "diverged_at": _rounded(curve.rates[-1]) if curve.diverged else None,
            "updates": len(curve.rates),
            "picture": str(self.picture),
            "rates": curve.rates,
            "losses": [json_number(loss) for loss in curve.losses],
        }

    def print(self, console: Console) -> None:
        """Say what rate to try and what the rates around it do."""
        curve = self.curve
        lowest = curve.rates[curve.lowest]
        end = f"at {curve.rates[-1]:.2g}" if curve.diverged else f"not up to {HIGHEST:g}"
        command = f"tensorboard --logdir {quote(str(self.directory))}"
        lines = [
            Text.assemble(
                "Learning rate  ",
                (f"{self.suggestion:g}", "bold"),
                "  where the loss falls by the largest share",
            ),
            Text(f"Lowest loss    at {lowest:.2g}; a tenth of that is the other usual choice"),
            Text(f"Diverges       {end}, after {len(curve.rates)} updates"),
            Text(f"Picture        {self.picture}"),
            Text.assemble("Look at it with:  ", (command, "bold")),
        ]
        for line in lines:
            console.print(line, soft_wrap=True)


def find_learning_rate(config: TrainConfig, build_engine: EngineBuilder) -> RangeTest:
    """Make a range test with these settings, and write its curve.

    Raises UsageError for bad input, before anything is written, CheckFailed where the loss falls at
    no rate, and Interrupted after a signal; the curve so far is written then too.
    """
    run = prepare(replace(config, patience=None), build_engine)
    trainer, signals = run.trainer, Signals()
    batches = ceil(len(trainer.train) / (trainer.batch_size or len(trainer.train)))
    updates = min(max(batches, FEWEST), MOST)
    epochs = (updates - 1) / batches
    trainer.learning_rate = LOWEST
    trainer.schedule = Growing(HIGHEST / LOWEST, epochs)
    trainer.max_epochs = ceil(epochs) + 1
    rows = Split(trainer.train.x[:ROWS], trainer.train.t[:ROWS]).to(trainer.device)
    observer = _Observer(rows, batches, updates, signals)
    configure_processor(config, trainer)
    with open_experiment(config, "find-lr") as directory, signals.noted():
        about = {"experiment": "range test", "settings": config.saved()}
        write_json(directory.experiment, about)
        with suppress(_Over, NotFinite):
            trainer.fit(observer)
        if not observer.curve.rates:
            raise CheckFailed("the loss is not finite before the first update")
        test = RangeTest(observer.curve, directory.path)
        write_json(directory.experiment, {**about, **test.as_json()})
        _log(test)
    if signals.number:
        message = f"interrupted; the curve so far is in {test.directory}"
        raise Interrupted(signals.number, message)
    if test.suggestion is None:
        raise CheckFailed(
            f"the loss falls at no rate from {LOWEST:g} on; the curve is in {test.picture}"
        )
    return test


def _log(test: RangeTest) -> None:
    """Write the curve as a picture, and all of it for TensorBoard."""
    with ExperimentLogs(test.directory / "range_test") as logs:
        logs.picture("range_test/curve", draw(test.curve), test.picture)
        curve = test.curve
        for i, (rate, loss, smoothed) in enumerate(
            zip(curve.rates, curve.losses, curve.smoothed, strict=True), 1
        ):
            values = {"loss": loss, "loss_smoothed": smoothed, "learning_rate": rate}
            logs.scalars(i, {f"range_test/{name}": value for name, value in values.items()})


def draw(curve: Curve) -> Figure:
    """Return the loss over the rate, both on a logarithmic scale, the steepest point marked."""
    figure = Figure(figsize=(7, 4.2), dpi=100, layout="constrained")
    axes = cast(Any, figure.add_subplot())  # matplotlib leaves its keyword arguments untyped
    axes.plot(curve.rates, curve.losses, ".", color="0.75", label="after each update")
    axes.plot(curve.rates, curve.smoothed, color="tab:blue", label="smoothed")
    if curve.steepest is not None:
        rate, loss = curve.rates[curve.steepest], curve.smoothed[curve.steepest]
        axes.plot([rate], [loss], "o", color="tab:red", label=f"steepest, at {rate:.2g}")
    axes.set_xscale("log")
    # What comes after divergence says nothing, and would leave no room for the rest.
    above_zero = [value for value in curve.smoothed if isfinite(value) and value > 0]
    if above_zero:
        bottom, top = min(above_zero), max(above_zero[0], 2 * min(above_zero))
        axes.set_yscale("log")
        axes.set_ylim(bottom / 2, 2 * top)
    axes.set(xlabel="learning rate", ylabel="training loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _rounded(rate: float) -> float:
    """Return the rate to the two digits that mean something."""
    return float(f"{rate:.2g}")
