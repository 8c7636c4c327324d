"""What a network is trained for: which loss, on which form of the targets, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor

from manualbp.errors import UsageError
from manualbp.losses import (
    AnyLoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HalfSquaredError,
    MSELoss,
    Reduction,
)
from manualbp.training.data import Data, Split

LossName = Literal["auto", "cross-entropy", "bce", "mse", "half-squared-error"]


@dataclass(frozen=True)
class Objective:
    """A loss together with the task it serves."""

    loss: AnyLoss
    task: Literal["classification", "regression"]
    outputs: int

    @property
    def score_name(self) -> str:
        """Return what is reported beside the loss: "accuracy" or "r2"."""
        return "accuracy" if self.task == "classification" else "r2"

    def targets(self, split: Split) -> Split:
        """Return the split with its targets in the form that the loss takes."""
        if self.task == "regression" or isinstance(self.loss, CrossEntropyLoss):
            return split
        if isinstance(self.loss, BCEWithLogitsLoss):
            return replace(split, t=split.t.unsqueeze(1).to(split.x.dtype))
        one_hot = torch.zeros(len(split), self.outputs, dtype=split.x.dtype, device=split.x.device)
        return replace(split, t=one_hot.scatter_(1, split.t.unsqueeze(1), 1.0))

    def metrics(self, y: Tensor, target: Tensor) -> dict[str, float]:
        """Return the mean loss and the score of outputs y (N, K)."""
        return self.metrics_of((y, target))[0]

    def metrics_of(self, *pairs: tuple[Tensor, Tensor]) -> list[dict[str, float]]:
        """Return these for each pair of outputs and targets, read back in one transfer."""
        numbers: list[Tensor] = []
        for y, target in pairs:
            mean, _ = self._mean_loss.forward(y, target)
            numbers += [mean, self._score(y, target)]
        found: list[float] = cast(Any, torch.stack(numbers)).tolist()
        both = zip(found[::2], found[1::2], strict=True)
        return [{"loss": mean, self.score_name: score} for mean, score in both]

    @cached_property
    def _mean_loss(self) -> AnyLoss:
        return self.loss.reduced_by("mean")

    def classes(self, y: Tensor) -> Tensor:
        """Return the class that each row of outputs, or of targets as numbers, stands for."""
        if isinstance(self.loss, BCEWithLogitsLoss):
            return (y.squeeze(1) > 0).long()
        return y.argmax(1)

    def _score(self, y: Tensor, target: Tensor) -> Tensor:
        if self.task == "classification":
            return (self.classes(y) == self.labels(target)).mean(dtype=torch.float64)
        # R² = 1 - Σ (t - y)² / Σ (t - mean t)², its mean over the outputs
        t, y = target.double(), y.double()
        spread = ((t - t.mean(0)) ** 2).sum(0)
        return (1 - ((t - y) ** 2).sum(0) / spread).mean()

    def labels(self, target: Tensor) -> Tensor:
        """Return the class indices that targets in the loss's form stand for."""
        if isinstance(self.loss, CrossEntropyLoss):
            return target
        return self.classes(target)


def objective(
    data: Data, name: LossName, reduction: Reduction, label_smoothing: float
) -> Objective:
    """Return the objective for a data set; UsageError where loss and task do not fit."""
    if data.task == "regression":
        name = "mse" if name == "auto" else name
        if name in ("cross-entropy", "bce"):
            raise UsageError(
                f"--loss {name} needs classes, but the targets of {data.name} are numbers: "
                "use --loss mse or half-squared-error"
            )
    else:
        name = "cross-entropy" if name == "auto" else name
    if label_smoothing and name != "cross-entropy":
        raise UsageError(f"--label-smoothing belongs to --loss cross-entropy, not to {name}")
    if name in ("mse", "half-squared-error"):
        squared = HalfSquaredError if name == "half-squared-error" else MSELoss
        return Objective(squared(reduction), data.task, data.outputs)
    if name == "bce":
        if data.outputs != 2:
            raise UsageError(
                f"--loss bce separates 2 classes, but {data.name} has {data.outputs}: "
                "use --loss cross-entropy"
            )
        return Objective(BCEWithLogitsLoss(reduction), "classification", 1)
    loss = CrossEntropyLoss(None, None, reduction, label_smoothing)
    return Objective(loss, "classification", data.outputs)
