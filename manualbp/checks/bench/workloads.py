"""What `manualbp bench` measures: a training step with the batches that it is fed.

    name      network             batch  update              threads
    W1        2-2-2, sigmoid          1  SGD                       2
    W2a       64-128-64-10, ReLU     32  SGD, momentum 0.9         1
    W2b       64-128-64-10, ReLU     32  Adam                      2
    W3-128    784-512-256-10, ReLU  128  SGD, momentum 0.9         2
    W3-1024   784-512-256-10, ReLU 1024  SGD, momentum 0.9         2

W3-1024 is measured by hand in parts of 256 rows besides, whose gradients add up to the batch's.
W1 has half squared errors, the others cross-entropy. Their inputs are standard
normal numbers, never zeros, which would cost less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from manualbp.layers import AnyLayer, Linear, Sequential, Sigmoid
from manualbp.losses import CrossEntropyLoss, HalfSquaredError
from manualbp.models import build
from manualbp.optimizers import SGD, Adam, Optimizer
from manualbp.parameters import Parameters
from manualbp.training.config import TrainConfig
from manualbp.training.data import Split, batches, in_order, load
from manualbp.training.engine import ManualEngine
from manualbp.training.step import TrainingStep

MOST_BATCHES = 64
MOST_ROWS = 16_384
"""The batches are prepared beforehand, so many at most, and used in turn."""

THREADS = 2
"""On the CPU, where a workload does not say."""

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """A training step in one dtype on one device."""

    step: TrainingStep
    start: Parameters
    """Where every variant starts from; it is copied."""
    parts: int
    """Rows of a part, for by hand in parts; 0: none are made."""
    batches: Sequence[Batch]
    """(x, target), all of one size, in the memory from which batches are moved to the device."""

    @property
    def device(self) -> torch.device:
        """Return where the step runs."""
        return self.start.flat.device


@dataclass(frozen=True)
class Workload:
    """A training step, and examples for it that are drawn or read when they are needed."""

    name: str
    step: TrainingStep
    examples: Callable[[], Split]
    batch_size: int
    threads: int = THREADS
    parts: int = 0

    def problem(self, dtype: torch.dtype, device: torch.device) -> Problem:
        """Return the step in this dtype on this device, from the same start for each."""
        start = self.step.model.parameters(
            torch.Generator().manual_seed(0), dtype=torch.float64, device=device
        )
        split = self.examples()
        full = len(split) - len(split) % self.batch_size  # the smaller batch at the end is left out
        number = min(full // self.batch_size, MOST_BATCHES, max(MOST_ROWS // self.batch_size, 1))
        order = torch.arange(number * self.batch_size)
        parts = [
            (_ready(part.x, dtype, device), _ready(part.t, dtype, device))
            for part in batches(in_order(split, order), self.batch_size)
        ]
        start = Parameters(start.shapes, start.flat.to(dtype))
        return Problem(self.step, start, self.parts, parts)


def _ready(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a copy in a tensor of its own, in memory that the device reads directly."""
    copy = tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
    return copy.pin_memory() if device.type == "cuda" else copy


def _numbers() -> Split:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(MOST_BATCHES, 2, generator=generator)
    return Split(x, torch.rand(MOST_BATCHES, 2, generator=generator))


def _classifier(
    name: str,
    features: int,
    hidden: Sequence[int],
    batch_size: int,
    optimizer: Optimizer,
    *,
    threads: int = THREADS,
    classes: int = 10,
    parts: int = 0,
) -> Workload:
    def examples() -> Split:
        generator = torch.Generator().manual_seed(1)
        rows = min(MOST_BATCHES * batch_size, MOST_ROWS)
        x = torch.randn(rows, features, generator=generator)
        return Split(x, torch.randint(0, classes, (rows,), generator=generator))

    model: AnyLayer = build("mlp", features, classes, hidden=hidden)
    step = TrainingStep(model, CrossEntropyLoss(None, None), optimizer)
    return Workload(name, step, examples, batch_size, threads, parts)


def _synthetic_workloads() -> dict[str, Workload]:
    sigmoids = Sequential(Linear(2, 2), Sigmoid(), Linear(2, 2), Sigmoid())
    small, large = (128, 64), (512, 256)
    momentum = SGD(1e-3, momentum=0.9)
    workloads = [
        Workload("W1", TrainingStep(sigmoids, HalfSquaredError(), SGD(0.1)), _numbers, 1),
        _classifier("W2a", 64, small, 32, momentum, threads=1),
        _classifier("W2b", 64, small, 32, Adam(1e-3)),
        _classifier("W3-128", 784, large, 128, momentum),
        _classifier("W3-1024", 784, large, 1024, momentum, parts=256),
    ]
    return {workload.name: workload for workload in workloads}


WORKLOADS = _synthetic_workloads()
"""Those of the table above, by name."""


def own_workload(config: TrainConfig) -> Workload:
    """Return the workload of a training run with these settings, on its real training rows.

    The learning rate is 0.00001 whatever the settings say: so small, no network grows beyond all
    bounds, and the time of a step does not depend on it. Raises UsageError as `train` does.
    """
    config = replace(config, lr=1e-5)
    config.validate()
    device = torch.device("cpu")
    data = load(config.data, seed=config.seed, dtype=torch.float64, device=device)
    from manualbp.training.run import Run  # with matplotlib and TensorBoard, slow to load

    run = Run.prepare(
        config, data, device, lambda _, step, params, masks: ManualEngine(step, params, masks())
    )
    split = run.trainer.train
    size = min(config.batch_size or len(split), len(split))
    return Workload(f"{config.model}/{data.name}", run.step, lambda: split, size)
