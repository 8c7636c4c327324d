"""Losses: one number E from the outputs of a network and the targets, and where backward begins.

Notation as in the layers: y are the outputs (called x where they are logits), t the targets, n the
example and k the output or class. `backward` returns ∂E/∂y times `dE`, the derivative by E of
whatever E goes into; 1 for a training step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from math import nan
from typing import Any, Generic, Literal, NamedTuple, Self, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from manualbp.parameters import Parameters

Reduction = Literal["mean", "sum"]
SavedT = TypeVar("SavedT")


class Loss(ABC, Generic[SavedT]):
    """The protocol: like a layer, but the targets come in as well and one number goes out."""

    reduction: Reduction

    @abstractmethod
    def forward(self, y: Tensor, target: Tensor) -> tuple[Tensor, SavedT]:
        """Return E (a tensor without axes) and what `backward` needs. Changes no argument."""

    @abstractmethod
    def backward(self, saved: SavedT, dE: Tensor | float = 1.0) -> Tensor:
        """Return dE · ∂E/∂y, in the shape of y. Changes no argument."""

    def reduced_by(self, reduction: Reduction) -> Self:
        """Return the same loss with another reduction."""
        return replace(cast(Any, self), reduction=reduction)


AnyLoss = Loss[Any]


class SavedError(NamedTuple):
    """The error signal, in the shape of y."""

    error: Tensor


@dataclass(frozen=True)
class HalfSquaredError(Loss[SavedError]):
    """E = ½ Σ_n Σ_k e[n,k]²,  e = y - t;  "mean" divides by the number of terms

    ∂E/∂y[n,k] = e[n,k].
    Shapes: y and t alike, any.  Raises ValueError if they differ.
    Source: Porr, eqs. 3 and 4; Cazenave, E_total = Σ ½ (target - output)².
    """

    reduction: Reduction = "sum"

    def forward(
        self, y: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, ""], SavedError]:
        error = y - same_shape(y, target)
        return 0.5 * (error * error).sum() * self._scale(error), SavedError(error)

    def backward(self, saved: SavedError, dE: Tensor | float = 1.0) -> Tensor:
        # E = ½ Σ e²
        return scaled(saved.error, dE * self._scale(saved.error))

    def _scale(self, error: Tensor) -> float:
        return 1.0 if self.reduction == "sum" else one_over(error.numel())


@dataclass(frozen=True)
class MSELoss(Loss[SavedError]):
    """E = 1/M Σ_n Σ_k e[n,k]²,  e = y - t;  M terms ("mean"), or M = 1 ("sum")

    ∂E/∂y[n,k] = 2/M e[n,k].
    Shapes: y and t alike, any.  Raises ValueError if they differ.
    Source: IISc, "mean square error", which is printed without 1/M: reduction="sum".
    """

    reduction: Reduction = "mean"

    def forward(
        self, y: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, ""], SavedError]:
        error = y - same_shape(y, target)
        return (error * error).sum() * self._scale(error), SavedError(error)

    def backward(self, saved: SavedError, dE: Tensor | float = 1.0) -> Tensor:
        # E = 1/M Σ e²
        return scaled(saved.error, dE * 2 * self._scale(saved.error))

    def _scale(self, error: Tensor) -> float:
        return 1.0 if self.reduction == "sum" else one_over(error.numel())


class SavedLogits(NamedTuple):
    """Logits and targets, in one shape."""

    x: Tensor
    target: Tensor


@dataclass(frozen=True)
class BCEWithLogitsLoss(Loss[SavedLogits]):
    """E = -1/M Σ_n [t[n] log p[n] + (1 - t[n]) log(1 - p[n])],  p = σ(x);  M as in MSELoss

    With log p = -log(1 + e^-x) and log(1 - p) = log p - x this is
    E = 1/M Σ_n [max(x, 0) - x t + log(1 + e^-|x|)], in which no exponential can overflow.
    ∂E/∂x[n] = 1/M (p[n] - t[n]).
    Shapes: x and t alike, any.  Raises ValueError if they differ.
    Source: IISc, two-class logistic regression, ∇E = Σ_n (y_n - t_n) φ_n.
    """

    reduction: Reduction = "mean"

    def forward(
        self, y: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, ""], SavedLogits]:
        x, t = y, same_shape(y, target)
        terms = x.clamp_min(0) - x * t + (-x.abs()).exp().log1p()
        return terms.sum() * self._scale(x), SavedLogits(x, t)

    def backward(self, saved: SavedLogits, dE: Tensor | float = 1.0) -> Tensor:
        x, t = saved
        return scaled(x.sigmoid() - t, dE * self._scale(x))

    def _scale(self, x: Tensor) -> float:
        return 1.0 if self.reduction == "sum" else one_over(x.numel())


class SavedProbabilities(NamedTuple):
    """Outputs and targets, in one shape."""

    y: Tensor
    target: Tensor


@dataclass(frozen=True)
class CrossEntropyOfProbabilities(Loss[SavedProbabilities]):
    """E = -1/M Σ_n Σ_k t[n,k] log y[n,k];  "mean" divides by the number of examples M

    ∂E/∂y[n,k] = -1/M t[n,k] / y[n,k]; where t[n,k] = 0 both are 0, even at y[n,k] = 0.
    The outputs must be probabilities already. Behind a Softmax this is the cross-entropy in two
    steps; `CrossEntropyLoss` is the same in one, from the logits, and does not divide by a y that
    may be too small for a number. Train with that one.
    Shapes: y and t (N, K), (K,) or (N, K, ...), the classes as in `CrossEntropyLoss`.
    Raises ValueError if they differ.
    Source: IISc, "cross entropy", J = -Σ_i y_iᵀ log v_i, with v for y and y for t.
    """

    reduction: Reduction = "sum"

    def forward(
        self, y: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, ""], SavedProbabilities]:
        t = same_shape(y, target)
        terms = torch.where(t == 0, 0.0, t * y.log())  # 0 log 0 = 0, which floats call NaN
        return -terms.sum() * self._scale(y), SavedProbabilities(y, t)

    def backward(self, saved: SavedProbabilities, dE: Tensor | float = 1.0) -> Tensor:
        y, t = saved
        # E = -1/M Σ_n Σ_k t[n,k] log y[n,k]
        return torch.where(t == 0, 0.0, t / y) * (-dE * self._scale(y))

    def _scale(self, y: Tensor) -> float:
        return 1.0 if self.reduction == "sum" else one_over(y.numel() // y.shape[class_axis(y)])


class SavedCrossEntropy(NamedTuple):
    """What the cross-entropy keeps; exps in the shape of the logits."""

    exps: Tensor  # e^x, with the largest x of each example subtracted first
    sums: Tensor  # Σ_j e^x[n,j], with 1 for the axis of classes
    q: Tensor | float  # what the log-probabilities have for weights in E: of all classes, or of
    # `labels`; 1.0 where all examples count alike
    labels: Tensor | None  # the class of each example, where q is 0 for all others
    mass: Tensor | None  # Σ_k q[n,k], with 1 for the axis of classes; None where it is 1 throughout
    total: Tensor | float  # M, what the sum is divided by

    @property
    def p(self) -> Tensor:
        """Return the posterior probabilities, softmax(x)."""
        return self.exps / self.sums


@dataclass(frozen=True, eq=False)
class CrossEntropyLoss(Loss[SavedCrossEntropy]):
    """E = -1/M Σ_n Σ_k q[n,k] log p[n,k],  p = softmax(x),  q[n,k] = w[k] t[n,k]

    t[n,k] is 1 for the class of example n and else 0 where the target holds class indices, and the
    target itself where it holds probabilities; smoothed by ε: (1-ε) t[n,k] + ε/K. w are the class
    weights, 1 without. Examples of class `ignore_index` have q = 0; None ignores no example, which
    saves the search for them.
    M = 1 for "sum"; for "mean" the number of examples, or with class indices Σ_n w[class of n] over
    the examples that are not ignored.

    log p[n,k] = x[n,k] - log Σ_j e^x[n,j], so ∂log p[n,k]/∂x[n,j] = δ_kj - p[n,j], and
    ∂E/∂x[n,j] = 1/M (p[n,j] Σ_k q[n,k] - q[n,j]), which is the lectures' y - t where Σ_k q = 1.
    `Softmax` with `CrossEntropyOfProbabilities` is the same in two steps; a test holds them equal.

    Shapes: x (N, K), (K,) or (N, K, ...), the classes along axis 1, or 0 if there is one axis only;
    target int64 without the class axis, or floats in the shape of x; weight (K,).
    Raises ValueError for a target of another shape; an index that is no class stops the program as
    torch's own does (IndexError or RuntimeError on the CPU, a device assertion on CUDA).
    Source: IISc, K-class logistic regression, ∇E = Σ_n (y_nj - t_nj) φ_n; label smoothing from
    Szegedy et al. 2016, section 7; arguments as in torch.nn.
    """

    weight: Tensor | None = None
    ignore_index: int | None = -100
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0

    def forward(
        self, y: Float[Tensor, "*shape"], target: Tensor
    ) -> tuple[Float[Tensor, ""], SavedCrossEntropy]:
        axis = class_axis(y)
        x = y - y.amax(axis, keepdim=True)  # p stays the same, and no exponential overflows
        exps = x.exp()
        sums = exps.sum(axis, keepdim=True)
        q, labels, mass, total = self._q(y, target, axis)
        of_q = x if labels is None else x.gather(axis, labels)
        log_p = of_q - sums.log()  # not log(p), which is -inf where p is too small for a number
        E = scaled(log_p, q).sum() / -total
        return E, SavedCrossEntropy(exps, sums, q, labels, mass, total)

    def backward(self, saved: SavedCrossEntropy, dE: Tensor | float = 1.0) -> Tensor:
        _, _, q, labels, mass, total = saved
        p = saved.p
        # E = -1/M Σ_n Σ_k q[n,k] log p[n,k]
        scale = dE / total
        if isinstance(total, Tensor):
            # Where every example is ignored E is 0/0, yet no output has a part in it, as in torch.
            scale = torch.where(total == 0, 0.0, scale)
        p = p if mass is None else p * mass
        if labels is None:
            return scaled(p - q, scale)
        minus_q = -q if isinstance(q, Tensor) else p.new_full(labels.shape, -q)
        return scaled(p.scatter_add_(class_axis(p), labels, minus_q), scale)

    def _q(
        self, y: Tensor, target: Tensor, axis: int
    ) -> tuple[Tensor | float, Tensor | None, Tensor | None, Tensor | float]:
        """Return q, its classes, Σ_k q and M as they are kept; of y only shape and dtype matter."""
        classes, smoothing = y.shape[axis], self.label_smoothing
        examples = y.numel() // classes
        total: Tensor | float = float(examples) if examples else nan
        w = None
        if self.weight is not None:
            w = self.weight.reshape(-1, *(1 for _ in y.shape[axis + 1 :])).expand(y.shape)
        # With class indices, unless some are ignored or weighted, Σ_k q is 1 and M a plain number.
        plain = not target.is_floating_point() and self.ignore_index is None and w is None
        valid: Tensor | float = 1.0
        if target.is_floating_point():
            t = same_shape(y, target)
        else:
            index = target.unsqueeze(axis)
            same_shape(y.select(axis, 0), target)
            if plain and not smoothing:
                return 1.0, index, None, 1.0 if self.reduction == "sum" else total
            valid = y.new_ones(index.shape)
            if self.ignore_index is not None:
                valid = (index != self.ignore_index).to(y.dtype)
                index = torch.where(index == self.ignore_index, 0, index)
            of_class = valid if w is None else valid * w.gather(axis, index)
            total = total if plain else of_class.sum()
            if not smoothing:
                total = 1.0 if self.reduction == "sum" else total
                return of_class, index, of_class, total
            t = torch.zeros_like(y).scatter_(axis, index, valid)
        q = (1 - smoothing) * t + smoothing / classes * valid if smoothing else t
        q = q if w is None else q * w
        mass = None if plain else q.sum(axis, keepdim=True)
        return q, None, mass, 1.0 if self.reduction == "sum" else total


@dataclass(frozen=True)
class Penalty:
    """λ R(w),  R = ½ Σ w² ("l2") or Σ |w| ("l1"), over the weights; biases are left out

    ∂λR/∂w = λ w, or λ sign(w) with sign(0) = 0 as in torch.
    It stands once beside the sum over the examples and does not flow through any delta.
    The weight decay of an optimiser is the l2 form over all parameters, biases too.
    Source: IISc, E = -Σ t ln y + λ R(w).
    """

    strength: float
    norm: Literal["l2", "l1"] = "l2"

    def forward(self, params: Parameters) -> Tensor:
        """Return λ R(w)."""
        total = params.flat.new_zeros(())
        for w in weights(params).values():
            total = total + (0.5 * (w * w).sum() if self.norm == "l2" else w.abs().sum())
        return self.strength * total

    def backward(self, params: Parameters, grads: Parameters) -> None:
        """Add ∂λR/∂w to the gradients."""
        for w, dw in zip(weights(params).values(), weights(grads).values(), strict=True):
            dw.add_(w if self.norm == "l2" else w.sign(), alpha=self.strength)


def weights(params: Parameters) -> dict[str, Tensor]:
    """Return the weights among the parameters: those with two axes or more, but no bias."""
    return {
        name: w
        for name, w in params.named().items()
        if w.ndim > 1 and name.split(".")[-1] != "bias"  # Maxout's bias has two axes
    }


def class_axis(logits: Tensor) -> int:
    """Return where torch.nn.CrossEntropyLoss looks for the classes."""
    return 1 if logits.ndim > 1 else 0


def same_shape(y: Tensor, target: Tensor) -> Tensor:
    """Return the target; raise ValueError if its shape is not y's, as broadcasting would hide."""
    if target.shape != y.shape:
        raise ValueError(f"the target has shape {tuple(target.shape)}, expected {tuple(y.shape)}")
    return target


def scaled(gradient: Tensor, factor: Tensor | float) -> Tensor:
    """Return factor · gradient: the gradient itself for 1, as for a sum, which saves a pass."""
    return gradient if isinstance(factor, float) and factor == 1.0 else gradient * factor


def one_over(count: int) -> float:
    """Return 1/count; NaN for 0, as the mean of nothing is in torch."""
    return 1 / count if count else nan
