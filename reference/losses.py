"""Twins of the losses, with their CASES."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import manualbp.losses as by_hand
from reference.cases import LossCase


class HalfSquaredError(nn.Module):
    """½ Σ (y - t)², or its mean."""

    def __init__(self, reduction: by_hand.Reduction = "sum") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, y: Tensor, target: Tensor) -> Tensor:
        """Return half of torch's mse_loss."""
        return 0.5 * nn.functional.mse_loss(y, target, reduction=self.reduction)


class CrossEntropyOfProbabilities(nn.Module):
    """-Σ t log y, or its mean over the examples."""

    def __init__(self, reduction: by_hand.Reduction = "sum") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, y: Tensor, target: Tensor) -> Tensor:
        """Return torch's nll_loss for targets that are probabilities, which it does not take."""
        # a y that no target asks for is kept out of the logarithm, where it may be 0
        sums = -(target * torch.where(target == 0, 1.0, y).log()).sum(1 if y.ndim > 1 else 0)
        return sums.sum() if self.reduction == "sum" else sums.mean()


MSELoss = nn.MSELoss
BCEWithLogitsLoss = nn.BCEWithLogitsLoss


def CrossEntropyLoss(
    weight: Tensor | None, ignore_index: int | None, reduction: str, label_smoothing: float
) -> nn.Module:
    """Return torch.nn.CrossEntropyLoss, for which an index that never occurs ignores nothing."""
    index = -100 if ignore_index is None else ignore_index
    return nn.CrossEntropyLoss(
        weight, ignore_index=index, reduction=reduction, label_smoothing=label_smoothing
    )


_SQUARED: list[tuple[str, by_hand.Reduction, tuple[int, ...]]] = [
    ("mean", "mean", (4, 3)),
    ("sum", "sum", (4, 3)),
    ("batch of one", "mean", (1, 1)),
    ("one axis", "mean", (5,)),
]
_OUTPUTS = (0.7, 0.2, 0.1, 0.1, 0.6, 0.3, 0.05, 0.9)  # of a softmax, or nearly
_of_probabilities = by_hand.CrossEntropyOfProbabilities
_weight = torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0], dtype=torch.float64)
_everything = by_hand.CrossEntropyLoss(_weight, label_smoothing=0.1)

CASES = [
    *(
        LossCase(name, loss(reduction), shape)
        for loss in (by_hand.HalfSquaredError, by_hand.MSELoss)
        for name, reduction, shape in _SQUARED
    ),
    LossCase("mean", by_hand.BCEWithLogitsLoss(), (4, 3), "binary"),
    LossCase("sum", by_hand.BCEWithLogitsLoss("sum"), (4, 3), "binary"),
    LossCase("probabilities", by_hand.BCEWithLogitsLoss(), (4, 3), "probabilities"),
    LossCase("large logits", by_hand.BCEWithLogitsLoss(), (8, 1), "binary", scale=1000),
    LossCase("sum", _of_probabilities("sum"), (4, 3), "probabilities", values=_OUTPUTS),
    LossCase("mean", _of_probabilities("mean"), (4, 3), "probabilities", values=_OUTPUTS),
    LossCase("zeros and ones", _of_probabilities("mean"), (4, 3), "binary", values=_OUTPUTS),
    LossCase("no batch axis", _of_probabilities("mean"), (3,), "probabilities", values=_OUTPUTS),
    LossCase("images", _of_probabilities("mean"), (2, 3, 4), "probabilities", values=_OUTPUTS),
    LossCase("mean", by_hand.CrossEntropyLoss(), (4, 5), "classes"),
    LossCase("sum", by_hand.CrossEntropyLoss(reduction="sum"), (4, 5), "classes"),
    LossCase("batch of one", by_hand.CrossEntropyLoss(), (1, 5), "classes"),
    LossCase("no batch axis", by_hand.CrossEntropyLoss(), (5,), "classes"),
    LossCase("images", by_hand.CrossEntropyLoss(), (2, 5, 3, 4), "classes"),
    LossCase("large logits", by_hand.CrossEntropyLoss(), (4, 5), "classes", scale=1000),
    LossCase("none to ignore", by_hand.CrossEntropyLoss(None, None), (4, 5), "classes"),
    LossCase("some ignored", by_hand.CrossEntropyLoss(), (7, 5), "some ignored"),
    LossCase("smoothed", by_hand.CrossEntropyLoss(label_smoothing=0.2), (7, 5), "some ignored"),
    LossCase("weighted", by_hand.CrossEntropyLoss(_weight), (7, 5), "some ignored"),
    LossCase("weighted, smoothed", _everything, (7, 5), "some ignored"),
    LossCase("weighted, smoothed images", _everything, (2, 5, 3), "some ignored"),
    LossCase("probabilities", by_hand.CrossEntropyLoss(), (4, 5), "probabilities"),
    LossCase("probabilities, no batch axis", by_hand.CrossEntropyLoss(), (5,), "probabilities"),
    LossCase("probabilities, weighted, smoothed", _everything, (4, 5), "probabilities"),
    LossCase("probabilities of images", _everything, (2, 5, 3), "probabilities"),
]
