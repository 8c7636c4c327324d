"""Layers of linear units: Linear, and Maxout, the largest of several linear pieces."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from manualbp.initializers import Initializer, initialize_bias, initialize_weight
from manualbp.layers.base import EVALUATION, Layer, Mode, SavedInput, add_product
from manualbp.parameters import Shapes, Views


@dataclass(frozen=True)
class Linear(Layer[SavedInput]):
    """y[n,o] = Σ_i W[o,i] x[n,i] + b[o]

    Shapes: x (..., I), W (O, I), b (O,), y (..., O); n runs over all leading axes.
    Raises ValueError if the last axis of x is not I long.
    Source: Porr, eqs. 2 and 15; IISc, "forward equations"; Kandemir, f_l = W_l^T h_{l-1}.
    """

    in_features: int
    out_features: int
    bias: bool = True
    _: KW_ONLY
    initializer: Initializer = "torch"

    def shapes(self) -> Shapes:
        weight = {"weight": (self.out_features, self.in_features)}
        return weight | {"bias": (self.out_features,)} if self.bias else weight

    def initialize(self, params: Views, generator: torch.Generator | None = None) -> None:
        initialize_weight(params.weight, self.initializer, generator)
        if self.bias:
            initialize_bias(params.bias, self.in_features, self.initializer, generator)

    def forward(
        self, params: Views, x: Float[Tensor, "*batch i"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*batch o"], SavedInput]:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x has {x.shape[-1]} features, expected {self.in_features}")
        rows = x.reshape(-1, self.in_features)
        if self.bias:
            y = torch.addmm(params.bias, rows, params.weight.T)
        else:
            y = rows @ params.weight.T
        return y.view(*x.shape[:-1], self.out_features), SavedInput(x)

    def backward(
        self, params: Views, saved: SavedInput, dy: Float[Tensor, "*batch o"], grads: Views
    ) -> Float[Tensor, "*batch i"]:
        self.backward_parameters(params, saved, dy, grads)
        # y[n,o] = Σ_i W[o,i] x[n,i] + b[o]
        return dy @ params.weight  # ∂E/∂x[n,i] = Σ_o dy[n,o] W[o,i]

    def backward_parameters(
        self, params: Views, saved: SavedInput, dy: Float[Tensor, "*batch o"], grads: Views
    ) -> None:
        rows, dy_rows = saved.x.reshape(-1, self.in_features), dy.reshape(-1, self.out_features)
        # y[n,o] = Σ_i W[o,i] x[n,i] + b[o]
        if self.bias:  # first, while dy is in the cache
            # ∂E/∂b[o] += Σ_n dy[n,o] · 1, as one product that adds where the gradient belongs
            add_product(grads.bias, dy_rows.T, dy_rows.new_ones(len(dy_rows)))
        add_product(grads.weight, dy_rows.T, rows)  # ∂E/∂W[o,i] += Σ_n dy[n,o] x[n,i]


class SavedMaxout(NamedTuple):
    """What Maxout keeps: its input, and which share of dy each piece gets."""

    x: Tensor  # (..., I), for ∂E/∂W
    share: Tensor  # (P, N, O), ∂y/∂(piece): 1 for the winner, 0 for the losers


@dataclass(frozen=True)
class Maxout(Layer[SavedMaxout]):
    """y[n,o] = max_p v[p,n,o],  v[p,n,o] = Σ_i W[p,o,i] x[n,i] + b[p,o]

    Shapes: x (..., I), W (P, O, I), b (P, O), y (..., O); P pieces.
    Where several pieces tie for the maximum, `ties` decides who gets dy: "split", each an equal
    part (torch.amax, torch.maximum), or "first", the one with the smallest p (torch.max with dim).
    Raises ValueError if the last axis of x is not I long.
    Source: Kandemir, "Maxout"; Goodfellow et al. 2013.
    """

    in_features: int
    out_features: int
    pieces: int = 2
    bias: bool = True
    _: KW_ONLY
    ties: Literal["split", "first"] = "split"
    initializer: Initializer = "torch"

    def shapes(self) -> Shapes:
        weight = {"weight": (self.pieces, self.out_features, self.in_features)}
        return weight | {"bias": (self.pieces, self.out_features)} if self.bias else weight

    def initialize(self, params: Views, generator: torch.Generator | None = None) -> None:
        initialize_weight(params.weight, self.initializer, generator)
        if self.bias:
            initialize_bias(params.bias, self.in_features, self.initializer, generator)

    def forward(
        self, params: Views, x: Float[Tensor, "*batch i"], *, mode: Mode = EVALUATION
    ) -> tuple[Float[Tensor, "*batch o"], SavedMaxout]:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x has {x.shape[-1]} features, expected {self.in_features}")
        rows = x.reshape(-1, self.in_features)
        v = rows @ params.weight.mT  # (N, I) @ (P, I, O) = (P, N, O)
        if self.bias:
            v = v + params.bias.unsqueeze(1)
        y = v.amax(0)
        wins = (v == y).to(v.dtype)
        if self.ties == "split":
            share = wins / wins.sum(0)
        else:
            share = wins * (wins.cumsum(0) == 1)  # 1 at the first winner only
        return y.view(*x.shape[:-1], self.out_features), SavedMaxout(x, share)

    def backward(
        self, params: Views, saved: SavedMaxout, dy: Float[Tensor, "*batch o"], grads: Views
    ) -> Float[Tensor, "*batch i"]:
        dv = self._backward_pieces(saved, dy, grads)
        # v[p,n,o] = Σ_i W[p,o,i] x[n,i] + b[p,o]
        dx = (dv @ params.weight).sum(0)  # ∂E/∂x[n,i] = Σ_p Σ_o dv[p,n,o] W[p,o,i]
        return dx.view(saved.x.shape)

    def backward_parameters(
        self, params: Views, saved: SavedMaxout, dy: Float[Tensor, "*batch o"], grads: Views
    ) -> None:
        self._backward_pieces(saved, dy, grads)

    def _backward_pieces(self, saved: SavedMaxout, dy: Tensor, grads: Views) -> Tensor:
        """Add the gradients of W and b to `grads` and return dv (P, N, O)."""
        rows = saved.x.reshape(-1, self.in_features)
        # y[n,o] = max_p v[p,n,o]
        dv = saved.share * dy.reshape(-1, self.out_features)  # ∂E/∂v[p,n,o] = share[p,n,o] dy[n,o]
        # v[p,n,o] = Σ_i W[p,o,i] x[n,i] + b[p,o]
        grads.weight.add_(dv.mT @ rows)  # ∂E/∂W[p,o,i] += Σ_n dv[p,n,o] x[n,i]
        if self.bias:
            grads.bias.add_(dv.sum(1))  # ∂E/∂b[p,o] += Σ_n dv[p,n,o]
        return dv
