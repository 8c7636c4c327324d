"""`manualbp bench`: a training step by hand beside autograd's, eager and compiled."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from manualbp.checks.bench.measure import Progress, Result, measure_workload
from manualbp.checks.bench.variants import BUILDERS, COMPILED
from manualbp.checks.bench.workloads import WORKLOADS, Workload, own_workload
from manualbp.errors import UsageError, did_you_mean
from manualbp.models import ModelName
from manualbp.training.config import (
    DTYPES,
    MOST_THREADS,
    DeviceName,
    DtypeName,
    OptimizerName,
    TrainConfig,
    resolve_device,
)
from manualbp.training.engine import flush_denormals


@dataclass(frozen=True)
class BenchConfig:
    """Measure a training step by hand beside autograd, eager and compiled.

    With no options: five networks, from 2-2-2 to 784-512-256-10.

    All variants are first proved to make the same step, or nothing is timed.
    """

    workload: tuple[str, ...] = ()
    """W1, W2a, W2b, W3-128 or W3-1024, several if you like; not given: all five, or only the
    network of the next options."""
    model: ModelName | None = None
    """Measure this network; or give one of the next options. What is not given is as in train."""
    data: str | None = None
    """... on this data set or file."""
    hidden: tuple[int, ...] | None = None
    """... with so many units in each hidden layer."""
    batch_size: int | None = None
    """... so many rows at a time."""
    optimizer: OptimizerName | None = None
    """... with this update rule."""
    threads: int = 0
    """Threads on the CPU; 0: as the workload says, 1 for W2a, else 2."""
    device: DeviceName = "auto"
    """auto: CUDA where there is one, else the CPU."""
    dtype: DtypeName = "float32"
    """Type of all numbers while timing; the proof is always in float64."""
    repeats: int = 50
    """Rounds; each times every variant for about a fiftieth of a second."""
    compile: bool = True
    """Measure torch.compile as well, which takes long to compile."""
    save: Path | None = None
    """Directory for a chart, bench.png, and an event file with it for TensorBoard."""
    json: bool = False
    """Print the results as a JSON list on standard output."""
    quiet: bool = False
    """No progress display and no tables."""
    debug: bool = False
    """Show the traceback of an error."""

    def validate(self) -> None:
        """Raise UsageError for the first option that is out of range."""
        if self.repeats < 1:
            raise UsageError(f"--repeats is {self.repeats}: it must be at least 1")
        if not 0 <= self.threads <= MOST_THREADS:
            raise UsageError(f"--threads is {self.threads}: it must be from 0 to {MOST_THREADS}")
        for name in self.workload:
            if name not in WORKLOADS:
                hint = did_you_mean(name, list(WORKLOADS))
                raise UsageError(f"--workload {name}: there is no such workload; {hint}")

    def workloads(self) -> list[Workload]:
        """Return what is to be measured. Raises UsageError for a network that cannot be built."""
        names = ("model", "data", "hidden", "batch_size", "optimizer")
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        own = [own_workload(TrainConfig(**given))] if given else []
        named = self.workload or (() if own else tuple(WORKLOADS))
        return [WORKLOADS[name] for name in named] + own


def bench(config: BenchConfig) -> list[Result]:
    """Measure all workloads.

    Raises UsageError for bad input, before anything is measured or written, and CheckFailed if a
    variant computes something else than autograd.
    """
    config.validate()
    device = resolve_device(config.device)
    workloads = config.workloads()
    if config.save is not None:
        try:
            config.save.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--save {config.save}: cannot be made: {error.strerror}") from error
        if (config.save / "bench.png").is_dir():
            raise UsageError(f"--save {config.save}: bench.png in it is a directory")
    flush_denormals()  # on all sides alike
    # torch.compile would warn, in the middle of the progress display, that it leaves out profiling.
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    # ... and on a GPU that TF32 is off, as it is for all variants.
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
    left_out = {name: "left out by --no-compile" for name in COMPILED if not config.compile}
    with _Display(workloads, config) as display:
        results = [
            measure_workload(
                workload,
                DTYPES[config.dtype],
                device,
                threads=config.threads or workload.threads,
                rounds=config.repeats,
                unavailable=left_out,
                progress=display.progress(workload),
            )
            for workload in workloads
        ]
    if config.save is not None:
        from manualbp.checks.bench.report import save_chart  # with matplotlib, slow to load

        save_chart(config.save, results)
    return results


class _Display:
    """A progress bar on stderr that says what is being done; nothing where that is no terminal."""

    def __init__(self, workloads: list[Workload], config: BenchConfig) -> None:
        console = Console(stderr=True)
        self._bar = ProgressBar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=config.quiet or not console.is_terminal,
        )
        # For each workload the proof and the warm-up of every variant, the rounds, and the memory.
        stages = 2 * len(BUILDERS) + 1 + config.repeats + 1
        self._task = self._bar.add_task("", total=stages * len(workloads))

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def progress(self, workload: Workload) -> Progress:
        """Return what is to be told about each stage of a workload."""
        return lambda stage: self._bar.update(
            self._task, advance=1, description=f"{workload.name} {stage}"
        )
