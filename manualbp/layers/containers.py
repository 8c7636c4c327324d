"""Layers made of layers: Sequential and Residual. They obey the same protocol as a leaf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manualbp.layers.base import EVALUATION, AnyLayer, Layer, Mode
from manualbp.parameters import Shapes, Views

SavedSequence = tuple[Any, ...]


@dataclass(frozen=True, init=False)
class Sequential(Layer[SavedSequence]):
    """h_0 = x,  h_l = f_l(h_{l-1}),  y = h_L

    The chain rule, written as a loop: what `backward` of layer l returns is ∂E/∂h_{l-1}, and that
    is what layer l-1 takes as its dy. Each factor is computed once and handed down, so L layers
    cost L products, not L(L+1)/2.
    Source: Kandemir, "backprop algorithm"; IISc, δ^{l-1}_j = g'(a^{l-1}_j) Σ_k δ^l_k w^l_kj.
    """

    layers: tuple[AnyLayer, ...]

    def __init__(self, *layers: AnyLayer) -> None:
        object.__setattr__(self, "layers", layers)

    def shapes(self) -> Shapes:
        return {str(l): layer.shapes() for l, layer in enumerate(self.layers)}

    def initialize(self, params: Views, generator: torch.Generator | None = None) -> None:
        for l, layer in enumerate(self.layers):
            layer.initialize(params[str(l)], generator)

    def forward(
        self, params: Views, x: Tensor, *, mode: Mode = EVALUATION
    ) -> tuple[Tensor, SavedSequence]:
        h = x
        saved: list[Any] = []
        for l, layer in enumerate(self.layers):
            h, saved_l = layer.forward(params[str(l)], h, mode=mode)  # h_l = f_l(h_{l-1})
            saved.append(saved_l)
        return h, tuple(saved)

    def backward(self, params: Views, saved: SavedSequence, dy: Tensor, grads: Views) -> Tensor:
        return self._backward_down_to(0, params, saved, dy, grads)

    def backward_parameters(
        self, params: Views, saved: SavedSequence, dy: Tensor, grads: Views
    ) -> None:
        if self.layers:
            dh = self._backward_down_to(1, params, saved, dy, grads)
            self.layers[0].backward_parameters(params["0"], saved[0], dh, grads["0"])

    def _backward_down_to(
        self, first: int, params: Views, saved: SavedSequence, dy: Tensor, grads: Views
    ) -> Tensor:
        dh = dy
        for l in reversed(range(first, len(self.layers))):
            # h_l = f_l(h_{l-1}), so ∂E/∂h_{l-1} follows from ∂E/∂h_l
            dh = self.layers[l].backward(params[str(l)], saved[l], dh, grads[str(l)])
        return dh


@dataclass(frozen=True)
class Residual(Layer[Any]):
    """y = x + f(x)

    Raises ValueError if f(x) has another shape than x.
    Source: He et al. 2016, eq. 1.
    """

    inner: AnyLayer

    def shapes(self) -> Shapes:
        return {"inner": self.inner.shapes()}

    def initialize(self, params: Views, generator: torch.Generator | None = None) -> None:
        self.inner.initialize(params["inner"], generator)

    def forward(self, params: Views, x: Tensor, *, mode: Mode = EVALUATION) -> tuple[Tensor, Any]:
        f, saved = self.inner.forward(params["inner"], x, mode=mode)
        if f.shape != x.shape:
            raise ValueError(f"the inner layer turns {tuple(x.shape)} into {tuple(f.shape)}")
        return x + f, saved

    def backward(self, params: Views, saved: Any, dy: Tensor, grads: Views) -> Tensor:
        # y = x + f(x)
        return dy + self.inner.backward(params["inner"], saved, dy, grads["inner"])  # dx = dy + df

    def backward_parameters(self, params: Views, saved: Any, dy: Tensor, grads: Views) -> None:
        self.inner.backward_parameters(params["inner"], saved, dy, grads["inner"])
