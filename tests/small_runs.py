"""Small training runs for tests, and what became of them."""

import io
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manualbp.checks.engines import build_engine
from manualbp.cli import main
from manualbp.training.config import DTYPES, TrainConfig
from manualbp.training.data import load
from manualbp.training.loop import EpochReport, Trainer
from manualbp.training.run import Run

# TensorBoard comes without types.
accumulator: Any = import_module("tensorboard.backend.event_processing.event_accumulator")


def a_run(**settings: Any) -> Run:
    """Return a run on the CPU that has no directory yet."""
    config = TrainConfig(**settings)
    config.validate()
    device = torch.device("cpu")
    data = load(config.data, seed=config.seed, dtype=DTYPES[config.dtype], device=device)
    return Run.prepare(config, data, device, build_engine)


def a_trainer(**settings: Any) -> Trainer:
    return a_run(**settings).trainer


class Reports:
    """An observer that keeps the reports."""

    def __init__(self, *, details: bool = False) -> None:
        self.details = details
        self.epochs: list[EpochReport] = []

    def wants_details(self, epoch: int) -> bool:
        return self.details

    def after_update(self, trainer: Trainer) -> None:
        pass

    def after_epoch(self, trainer: Trainer, report: EpochReport) -> None:
        self.epochs.append(report)


def fitted(**settings: Any) -> tuple[Trainer, list[EpochReport]]:
    """Return a trainer that has run to its end, with its reports."""
    trainer, reports = a_trainer(**settings), Reports()
    trainer.fit(reports)
    return trainer, reports.epochs


class Outcome(NamedTuple):
    """What a command has left behind."""

    code: int
    out: str
    err: str


def call(*words: object) -> Outcome:
    """Run a command in this process."""
    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main([str(word) for word in words])
    finally:
        # What a run sets for the process.
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
    return Outcome(code, out.getvalue(), err.getvalue())


def a_minute_ago(run: Path) -> None:
    """Let the event files tell that they were opened a minute ago.

    A resumed run waits until the second is another than that of the interrupted one.
    """
    for file in run.glob("*/events.out.tfevents.*"):
        second = file.name.split(".")[3]
        file.rename(file.with_name(file.name.replace(second, str(int(second) - 60))))


def events(directory: Path) -> Any:
    """Return what TensorBoard reads from a directory of event files."""
    everything = accumulator.STORE_EVERYTHING_SIZE_GUIDANCE
    return accumulator.EventAccumulator(str(directory), everything).Reload()


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of every scalar in a directory of event files, by tag."""
    found = events(directory)
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def contents(directory: Path) -> Mapping[str, bytes | None]:
    """Return all that lies in a directory: the content of files, None for directories."""
    return {
        str(path.relative_to(directory)): None if path.is_dir() else path.read_bytes()
        for path in sorted(directory.rglob("*"))
    }


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Assert that two things hold equal values, tensors equal bit for bit."""
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, Mapping):
        assert list(a) == list(b), where
        for name in a:
            assert_same(a[name], b[name], f"{where}.{name}")
    else:
        assert type(a) is type(b), where
        assert a == b, where
