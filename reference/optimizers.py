"""Twins of the update rules: torch.optim's own, and the two that torch does not have; CASES."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn

import manualbp.optimizers as by_hand

SGD = torch.optim.SGD
Adagrad = torch.optim.Adagrad
Adam = torch.optim.Adam
AdamW = torch.optim.AdamW


class RMSprop(torch.optim.RMSprop):
    """torch.optim's, and with `eps_inside_root` g / √(s + ε), which torch does not have."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        eps_inside_root: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(params, lr, alpha, eps, weight_decay, momentum, centered, foreach=foreach)
        self.eps_inside_root = eps_inside_root

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Change the parameters."""
        if not self.eps_inside_root:
            return cast(Any, super()).step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                for name in ("square_avg", "grad_avg", "momentum_buffer"):
                    state.setdefault(name, torch.zeros_like(p))
                g = p.grad + group["weight_decay"] * p
                state["square_avg"].lerp_(g * g, 1 - group["alpha"])
                state["grad_avg"].lerp_(g, 1 - group["alpha"])
                s = state["square_avg"] - group["centered"] * state["grad_avg"] ** 2
                b = state["momentum_buffer"].mul_(group["momentum"])
                b += g / torch.sqrt(s + group["eps"])
                p -= group["lr"] * b
        return None


class LookAheadNesterov(torch.optim.Optimizer):
    """v ← μ v - η g(w + μ v), w ← w + v; `look_ahead` moves to w + μ v before the forward pass."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["velocity"] = torch.zeros_like(p)

    @torch.no_grad()
    def look_ahead(self) -> None:
        """Move to w + μ v."""
        for group in self.param_groups:
            for p in group["params"]:
                p += group["momentum"] * self.state[p]["velocity"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Move from w + μ v back to w, then on to w + v."""
        for group in self.param_groups:
            for p in group["params"]:
                v = self.state[p]["velocity"]
                gradient = p.grad + group["weight_decay"] * p
                p -= group["momentum"] * v
                v *= group["momentum"]
                v -= group["lr"] * gradient
                p += v


CASES: list[by_hand.Optimizer] = [
    by_hand.SGD(0.1),
    by_hand.SGD(0.1, momentum=0.9),
    by_hand.SGD(0.1, momentum=0.9, dampening=0.3),
    by_hand.SGD(0.1, momentum=0.9, nesterov=True),
    by_hand.SGD(0.1, weight_decay=0.01),
    by_hand.SGD(0.1, momentum=0.9, dampening=0.5, weight_decay=0.01),
    by_hand.SGD(0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    by_hand.LookAheadNesterov(0.1),
    by_hand.LookAheadNesterov(0.1, momentum=0.5, weight_decay=0.01),
    by_hand.LookAheadNesterov(0.1, momentum=0.0),
    by_hand.Adagrad(),
    by_hand.Adagrad(0.1, lr_decay=0.02),
    by_hand.Adagrad(0.1, weight_decay=0.01, initial_accumulator_value=0.3, eps=1e-3),
    by_hand.RMSprop(),
    by_hand.RMSprop(alpha=0.9, weight_decay=0.01, eps=1e-3),
    by_hand.RMSprop(momentum=0.9),
    by_hand.RMSprop(centered=True),
    by_hand.RMSprop(alpha=0.9, centered=True, momentum=0.5, weight_decay=0.01),
    by_hand.RMSprop(alpha=0.9, eps=1e-3, centered=True, momentum=0.5, eps_inside_root=True),
    by_hand.Adam(),
    by_hand.Adam(0.01, betas=(0.8, 0.95), eps=1e-3),
    by_hand.Adam(0.01, weight_decay=0.01),
    by_hand.AdamW(),
    by_hand.AdamW(0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
]
