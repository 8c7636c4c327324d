"""Dropout: leave units out at random while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from manualbp.layers.base import EVALUATION, Layer, Mode
from manualbp.parameters import Views


class SavedDropout(NamedTuple):
    """The mask that the forward pass drew, divided by 1-p; None when nothing is left out."""

    mask: Tensor | None  # the shape of x


@dataclass(frozen=True)
class Dropout(Layer[SavedDropout]):
    """y[j] = m[j] x[j] while training, m[j] = 1/(1-p) with probability 1-p, else 0; otherwise y = x

    The division keeps the mean, E[y] = x, so that evaluation needs no change. The mask comes from
    `mode.generator`, drawn in float32: one seed gives one mask whatever the dtype of x. On the CPU
    it is the mask that torch.nn.Dropout draws.
    Raises ValueError if p is not in [0, 1].
    Source: Srivastava et al. 2014.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p is a probability, between 0 and 1; got {self.p}")

    def forward(
        self, params: Views, x: Float[Tensor, "*shape"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*shape"], SavedDropout]:
        if not mode.training or self.p == 0:
            return x, SavedDropout(None)
        keep = 1 - self.p
        drawn = torch.empty_like(x, dtype=torch.float32)
        mask = drawn.bernoulli_(keep, generator=mode.generator).to(x.dtype)
        if keep > 0:
            mask = mask / keep
        return x * mask, SavedDropout(mask)

    def backward(
        self, params: Views, saved: SavedDropout, dy: Float[Tensor, "*shape"], grads: Views
    ) -> Float[Tensor, "*shape"]:
        if saved.mask is None:
            return dy
        # y[j] = m[j] x[j]
        return dy * saved.mask  # ∂E/∂x[j] = dy[j] m[j]
