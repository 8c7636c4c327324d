"""Experiments: several runs side by side, and which of them is the best.

    manualbp train --lr 0.001 0.01 0.1        a run with each value
    manualbp train --batch-size 1 32 0        online, mini-batch, and full batch
    manualbp train --restarts 6               from six random starts
    manualbp train --cross-validate 4         the rate chosen by four folds, then one run with it
    manualbp train --inject sign:0.weight     without and with a mistake in a gradient
    manualbp train --find-lr                  a learning-rate range test, in range_test.py

The runs are runs like any other, each in a directory of its own below that of the experiment, where
`experiment.json` says what they came to. What is best is decided on the validation split; the test
split is for the best one alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from shlex import quote
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from manualbp.errors import CheckFailed, Interrupted, UsageError
from manualbp.training.config import DEFAULT_RATES, TrainConfig
from manualbp.training.display import print_summary
from manualbp.training.logs import ExperimentLogs
from manualbp.training.range_test import RangeTest, find_learning_rate
from manualbp.training.run import EngineBuilder, Run, Signals, open_experiment, prepare
from manualbp.training.run_directory import RunDirectory, json_number, read_json, write_json


def experiment(
    configs: Sequence[TrainConfig], build_engine: EngineBuilder
) -> Comparison | RangeTest:
    """Make the experiment that these settings, one for each run, ask for.

    Raises UsageError for bad input, before anything is written; CheckFailed when no run keeps
    finite, or lockstep finds a difference; Interrupted after a signal. What is done then is kept.
    """
    some = configs[0]
    _refuse_contradictions(configs)
    if some.find_lr:
        return find_learning_rate(some, build_engine)
    if some.cross_validate and len(configs) == 1 and some.lr is None:
        configs = [replace(some, lr=rate) for rate in DEFAULT_RATES[some.optimizer]]
    if some.restarts:
        first = some.seed if some.init_seed is None else some.init_seed
        seeds = range(first, first + some.restarts)
        configs = [replace(config, init_seed=seed) for config in configs for seed in seeds]
    if some.inject is not None:
        configs = [replace(c, inject=bug) for c in configs for bug in (None, some.inject)]
    comparison = Comparison.of(configs, build_engine)
    comparison.run()
    return comparison


def _refuse_contradictions(configs: Sequence[TrainConfig]) -> None:
    """Raise UsageError for options that do not go together."""
    some = configs[0]
    asked = ["several values"] if len(configs) > 1 else []
    for name in ("cross_validate", "restarts", "find_lr"):
        if getattr(some, name):
            asked.append(f"--{name.replace('_', '-')}")
    if some.resume is not None:
        raise UsageError(f"--resume goes on with one run: leave out {' and '.join(asked)}")
    if some.find_lr and len(asked) > 1:
        raise UsageError(f"--find-lr is one short training: leave out {' and '.join(asked[:-1])}")
    if some.find_lr and some.lr is not None:
        raise UsageError("--find-lr looks for a learning rate: leave out --lr")
    if some.cross_validate and some.restarts:
        raise UsageError(
            "--cross-validate and --restarts exclude each other: make one, then the other"
        )
    if some.inject is not None and (some.find_lr or some.cross_validate):
        raise UsageError(f"--inject trains twice: leave out {asked[-1]}")
    if some.cross_validate and some.fold:
        raise UsageError("--cross-validate and --fold exclude each other: it takes every fold")


@dataclass
class Alternative:
    """One of the things to compare: what sets it apart, and its runs, one or one for each fold."""

    options: dict[str, Any]
    configs: list[TrainConfig]
    results: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    validations: list[Mapping[str, float]] = field(default_factory=list[Mapping[str, float]])

    def add(self, result: dict[str, Any], validation: Mapping[str, float]) -> None:
        """Take in the result of the next run, and its loss and score on the validation split."""
        self.results.append(result)
        self.validations.append(validation)

    @property
    def name(self) -> str:
        """Return the options as the name of a directory."""
        return "_".join(self.words)

    @property
    def words(self) -> list[str]:
        """Return what sets it apart, as ["lr=0.1", "batch-size=32"]; "clean" or "injected"."""
        return [
            ("clean" if value is None else "injected")
            if name == "inject"
            else f"{_option(name)}={_text(value)}"
            for name, value in self.options.items()
        ]

    @property
    def finite(self) -> bool:
        """Return whether all runs are done, and none stopped as it was not finite any more."""
        reasons = [result["stopped_reason"] for result in self.results]
        return len(reasons) == len(self.configs) and "non-finite" not in reasons

    def values(self, what: str) -> list[float]:
        """Return the loss or score on the validation split, of each run."""
        return [validation[what] for validation in self.validations]

    def mean(self, what: str) -> float:
        """Return the mean of the loss or score on the validation split over the runs."""
        return sum(self.values(what)) / len(self.values(what))

    def deviation(self, what: str) -> float:
        """Return the standard deviation between the runs: √(Σ_k (v[k] - mean)² / (K-1))"""
        values, mean = self.values(what), self.mean(what)
        return sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))

    @property
    def seconds(self) -> float:
        """Return how long all runs took."""
        return sum(result["seconds"] for result in self.results)

    @property
    def updates(self) -> int:
        """Return the number of updates of all runs."""
        return round(sum(r["steps_per_second"] * r["seconds"] for r in self.results))


@dataclass
class Comparison:
    """Alternatives, and the directory where their runs lie."""

    kind: str
    alternatives: list[Alternative]
    build_engine: EngineBuilder
    signals: Signals = field(default_factory=Signals)
    final: dict[str, Any] | None = None
    score: str = ""
    complete: bool = False
    directory: RunDirectory = field(init=False)

    @classmethod
    def of(cls, configs: Sequence[TrainConfig], build_engine: EngineBuilder) -> Comparison:
        """Return the comparison of these settings. Raises UsageError where two are the same."""
        some = configs[0]
        settings = [config.saved() for config in configs]
        compared = [name for name in settings[0] if len({str(s[name]) for s in settings}) > 1]
        compared = compared or ["lr"]  # the folds of a single rate
        kind = "cross-validate" if some.cross_validate else "-".join(map(_option, compared))
        kind = "restarts" if some.restarts and compared == ["init_seed"] else kind
        found: dict[str, Alternative] = {}
        for config in configs:
            options = {name: getattr(config, name) for name in compared}
            runs = [config]
            if folds := config.cross_validate:
                runs = [replace(config, fold=f"{k}/{folds}") for k in range(1, folds + 1)]
            alternative = Alternative(options, runs)
            if alternative.name in found:
                raise UsageError("two of the runs have the same settings: give each value once")
            found[alternative.name] = alternative
        return cls(kind, list(found.values()), build_engine)

    @property
    def config(self) -> TrainConfig:
        """Return the settings of the first run; most are those of all."""
        return self.alternatives[0].configs[0]

    @property
    def folds(self) -> int:
        """Return the number of folds of a cross-validation; 0 where there is none."""
        return self.config.cross_validate or 0

    @property
    def monitor(self) -> str:
        """Return what decides: "loss", or the score if that is monitored on validation."""
        name = self.config.monitor
        return name.removeprefix("val_") if name.startswith("val_") else "loss"

    @property
    def best(self) -> Alternative | None:
        """Return the alternative that is best on the validation split, of those that are finite."""
        sign = 1 if self.monitor == "loss" else -1
        finite = [alternative for alternative in self.alternatives if alternative.finite]
        return min(finite, key=lambda a: sign * a.mean(self.monitor), default=None)

    def run(self) -> None:
        """Make all runs in turn, and after those of a cross-validation the final one."""
        runs = [(a, config) for a in self.alternatives for config in a.configs]
        for alternative in self.alternatives:
            prepare(alternative.configs[0], self.build_engine)  # refuses bad input
        with open_experiment(self.config, self.kind) as self.directory, self.signals.noted():
            self.save()
            for number, (alternative, config) in enumerate(runs):
                name, fold = alternative.name, config.fold_of_folds
                if self.folds and fold:
                    name += f"/fold={fold[0]}"
                done = f"{number} of {len(runs)} runs are done and kept in {self.path}"
                run, result = self._carry_out(config, name, done)
                alternative.add(result, run.validation)
                self.score = run.trainer.objective.score_name
                self.save()
            if self.best is None:
                raise CheckFailed(f"no run in {self.path} stayed finite; a smaller --lr may help")
            if self.folds:
                done = f"the {len(runs)} runs of the folds are done and kept in {self.path}"
                config = replace(self.best.configs[0], fold=None)
                _, self.final = self._carry_out(config, "final", done)
                if self.final["stopped_reason"] == "non-finite":
                    raise CheckFailed(f"the run in {self.path / 'final'} did not stay finite")
            self.complete = True
            self.save()
            self._log()

    def _carry_out(self, config: TrainConfig, name: str, done: str) -> tuple[Run, dict[str, Any]]:
        """Return a run that has ended, with its result."""
        if self.signals.number:
            raise Interrupted(self.signals.number, f"interrupted; {done}")
        if sys.stderr.isatty() and not config.quiet:
            print(name, file=sys.stderr)
        path = self.path / name
        run = prepare(replace(config, run_dir=path), self.build_engine)
        threads = torch.get_num_threads()
        try:
            return run, run.start()
        except Interrupted as error:
            command = f"manualbp train --resume {quote(str(path))}"
            message = f"interrupted; {done}; go on with this one: {command}"
            raise Interrupted(error.signal_number, message) from None
        except CheckFailed:
            if not run.directory.result.exists():
                raise  # of lockstep; a run that did not stay finite has a result
            return run, read_json(run.directory.result)
        finally:
            torch.set_num_threads(threads)  # so that the next run has the choice again

    @property
    def path(self) -> Path:
        """Return the directory of the experiment."""
        return self.directory.path

    # What it came to ------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Return what --json prints: an object for each alternative that has been tried."""
        best = self.best if self.complete else None
        rows: list[dict[str, Any]] = []
        for a in self.alternatives:
            if not a.results:
                continue
            row: dict[str, Any] = {**a.options, "best": a is best}
            if self.folds:
                for what in ("loss", self.score):
                    row[f"mean_val_{what}"] = json_number(a.mean(what))
                    row[f"val_{what}"] = [json_number(value) for value in a.values(what)]
                row["folds"] = a.results
                row["final"] = self.final if a is best else None
            else:
                row |= {f"best_val_{self.score}": json_number(a.mean(self.score)), **a.results[0]}
            rows.append(row)
        return rows

    def save(self) -> None:
        """Write experiment.json."""
        about = {
            "experiment": self.kind,
            "compared": list(self.alternatives[0].options),
            "decided_by": f"val_{self.monitor}",
            "complete": self.complete,
            "alternatives": self.rows(),
        }
        write_json(self.directory.experiment, about)

    def as_json(self) -> list[dict[str, Any]]:
        """Return what --json prints."""
        return self.rows()

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the names of the columns, and a row of text for each alternative."""
        options = [_option(name) for name in self.alternatives[0].options]
        if self.folds:
            results = ["val loss", "±", f"val {self.score}", "±", "updates", "seconds"]
        else:
            results = ["val loss", f"val {self.score}", "epoch", "epochs", "updates", "seconds"]
        rows: list[list[str]] = []
        for a in self.alternatives:
            row = [
                "clean" if name == "inject" and value is None else _text(value)
                for name, value in a.options.items()
            ]
            for what in ("loss", self.score):
                row.append(f"{a.mean(what):.4f}" if a.finite else "diverged")
                if self.folds:
                    row.append(f"{a.deviation(what):.4f}" if a.finite else "")
            if not self.folds:
                row += [str(a.results[0]["best_epoch"] or "-"), str(a.results[0]["epochs"])]
            rows.append([*row, f"{a.updates:,}", f"{a.seconds:.1f}"])
        return [*options, *results], rows

    def print(self, console: Console) -> None:
        """Print the table, the best alternative marked, and what the test says of that one."""
        best, (columns, rows) = self.best, self.table()
        assert best, "printed when the experiment is complete"
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column, cell in zip(columns, rows[0], strict=True):
            table.add_column(column, justify="left" if cell.isalpha() else "right")
        for alternative, row in zip(self.alternatives, rows, strict=True):
            marked = alternative is best and "inject" not in best.options
            table.add_row(*row, style="bold green" if marked else None)
        console.print(table)
        console.print()
        if "inject" in best.options:  # not to choose between, but to look at
            command = f"tensorboard --logdir {quote(str(self.path))}"
            console.print(Text.assemble("Look at it with:  ", (command, "bold")), soft_wrap=True)
            return
        how = f"mean val {self.monitor} of the folds" if self.final else f"val {self.monitor}"
        name = " ".join(best.words)
        console.print(Text.assemble("Best           ", (name, "bold"), f"  by {how}"))
        result = self.final or best.results[0]
        print_summary(console, {**result, "run_dir": str(self.path)})

    def _log(self) -> None:
        """Write the table for TensorBoard, and a picture where it is a number that varies."""
        with ExperimentLogs(self.path / "comparison") as logs:
            logs.table("comparison", *self.table())
            figure = self.draw()
            if figure:
                path = self.path / "comparison.png"
                logs.picture(f"result/val_{self.monitor}", figure, path)

    def draw(self) -> Figure | None:
        """Return the validation loss, or score, of all runs over the one number that varies."""
        names = list(self.alternatives[0].options)
        values = [a.options[names[0]] for a in self.alternatives]
        if len(names) > 1 or not all(isinstance(value, int | float) for value in values):
            return None
        finite = sorted(
            (a for a in self.alternatives if a.finite), key=lambda a: a.options[names[0]]
        )
        figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
        axes = cast(Any, figure.add_subplot())  # matplotlib leaves its keyword arguments untyped
        means = [(a.options[names[0]], a.mean(self.monitor)) for a in finite]
        axes.plot(*zip(*means, strict=True), "o-", color="tab:blue", label="mean")
        if self.folds:
            folds = [(a.options[names[0]], v) for a in finite for v in a.values(self.monitor)]
            axes.plot(*zip(*folds, strict=True), ".", color="0.6", label="folds", zorder=0)
            axes.legend(frameon=False)
        if _of_several_sizes(values):
            axes.set_xscale("log")
        if _of_several_sizes([value for a in finite for value in a.values(self.monitor)]):
            axes.set_yscale("log")
        axes.set(xlabel=_option(names[0]), ylabel=f"validation {self.monitor}")
        axes.grid(alpha=0.3)
        return figure


def _option(name: str) -> str:
    return name.replace("_", "-")


def _text(value: object) -> str:
    """Return a setting as one writes it: 10 and not 10.0."""
    return str(value).removesuffix(".0")


def _of_several_sizes(values: Sequence[float]) -> bool:
    """Return whether a logarithmic scale shows these better."""
    return min(values) > 0 and max(values) >= 10 * min(values)
