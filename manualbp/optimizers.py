"""Update rules over one flat tensor: w the parameters, g = ∂E/∂w, η the learning rate.

A rule is a frozen dataclass of hyper-parameters with torch.optim's names; its memory is a dict of
flat tensors with torch.optim's names that the caller keeps. One training step is

    rule.begin(params, grads, state)                  # make ready to add gradients up
    ... forward, backward: grads += ∂E/∂w ...
    rule.update(params, grads, state, coefficients)   # change params and state in place

The numbers that change from step to step, -η first, come as tensors without axes: `coefficients`
computes them on the host, and the step itself depends on tensors only. So nothing in it waits for
the device, and it can be recorded once and replayed with other numbers. They come with their signs,
because to hand over a factor of -1 with each call takes as long as a small operation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from math import sqrt

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Optimizer(ABC):
    """The protocol of an update rule."""

    lr: float = 1e-3

    def init(self, params: Tensor) -> State:
        """Return the rule's memory before the first step."""
        return {}

    def accumulator(self, state: State) -> Tensor | None:
        """Return the tensor of `state` that may be passed as `grads`, or None if there is none.

        Where a rule only ever adds the gradient to its memory, the backward pass can do so itself,
        and two passes over all parameters fall away. Then nobody sees the gradient by itself.
        """
        return None

    def begin(self, params: Tensor, grads: Tensor, state: State) -> None:
        """Make ready for a backward pass, which adds into `grads`."""
        grads.zero_()

    def coefficients(self, step: int, lr: float) -> tuple[float, ...]:
        """Return the numbers that `update` needs at this step, counted from 1."""
        return (-lr,)

    @abstractmethod
    def update(
        self, params: Tensor, grads: Tensor, state: State, coefficients: Sequence[Tensor]
    ) -> None:
        """Change `params` and `state` in place; `grads` stays."""


@dataclass(frozen=True)
class SGD(Optimizer):
    """w ← w - η v,  v ← μ v + (1-d) g';  with `nesterov`  w ← w - η (g' + μ v)

    g' = g + λ w with weight decay λ; μ momentum, d dampening, which the first step leaves out as
    torch does. Without momentum v = g'.
    Source: Krzywicki, momentum; Sutskever et al. 2013 and torch.optim.SGD for the form of Nesterov.
    """

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def init(self, params: Tensor) -> State:
        return {"momentum_buffer": torch.zeros_like(params)} if self.momentum else {}

    def coefficients(self, step: int, lr: float) -> tuple[float, ...]:
        return -lr, 1.0 if step == 1 else 1 - self.dampening

    def accumulator(self, state: State) -> Tensor | None:
        return None if self.dampening or self.nesterov else state.get("momentum_buffer")

    def begin(self, params: Tensor, grads: Tensor, state: State) -> None:
        if grads is not state.get("momentum_buffer"):
            grads.zero_()
            return
        grads.mul_(self.momentum)  # μ v, to which the backward pass adds g
        if self.weight_decay:
            grads.add_(params, alpha=self.weight_decay)  # ... and this λ w

    def gradient(self, accumulated: Tensor, v: Tensor, params: Tensor) -> Tensor:
        """Return g where μ v + λ w + g was accumulated; v and w are those before the step."""
        return accumulated.sub(v, alpha=self.momentum).sub_(params, alpha=self.weight_decay)

    def update(
        self, params: Tensor, grads: Tensor, state: State, coefficients: Sequence[Tensor]
    ) -> None:
        minus_lr, gain = coefficients
        if grads is state.get("momentum_buffer"):
            params.addcmul_(grads, minus_lr)
            return
        g = decayed(grads, params, self.weight_decay)
        if self.momentum:
            v = state["momentum_buffer"].mul_(self.momentum)
            v.addcmul_(g, gain) if self.dampening else v.add_(g)  # v ← μ v + (1-d) g
            g = g.add(v, alpha=self.momentum) if self.nesterov else v
        params.addcmul_(g, minus_lr)


@dataclass(frozen=True)
class LookAheadNesterov(Optimizer):
    """v ← μ v - η g(w + μ v),  w ← w + v: the gradient is taken where the momentum is about to lead

    Between two steps the parameters are w; from `begin` to `update` they are w + μ v, and because
    w + v_new = (w + μ v_old) - η g, the update needs no way back. With a constant η the points
    w + μ v run through the parameters of SGD(nesterov=True).
    Source: Nesterov 1983; Sutskever et al. 2013, eqs. 3 and 4.
    """

    momentum: float = 0.9
    weight_decay: float = 0.0

    def init(self, params: Tensor) -> State:
        return {"velocity": torch.zeros_like(params)}

    def begin(self, params: Tensor, grads: Tensor, state: State) -> None:
        grads.zero_()
        params.add_(state["velocity"], alpha=self.momentum)  # w + μ v

    def update(
        self, params: Tensor, grads: Tensor, state: State, coefficients: Sequence[Tensor]
    ) -> None:
        (minus_lr,) = coefficients
        step = decayed(grads, params, self.weight_decay) * minus_lr
        state["velocity"].mul_(self.momentum).add_(step)  # v ← μ v - η g
        params.add_(step)  # w + v = (w + μ v_old) - η g


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """s ← s + g²,  w ← w - η_t g / (√s + ε),  η_t = η / (1 + (t-1) `lr_decay`)

    Every parameter has a rate of its own, which only ever falls. The other form in use,
    g / √(s + ε), is `initial_accumulator_value=ε, eps=0`.
    Source: Krzywicki, AdaGrad; Duchi et al. 2011; ε placed as in torch.optim.Adagrad.
    """

    lr: float = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    def init(self, params: Tensor) -> State:
        return {"sum": torch.full_like(params, self.initial_accumulator_value)}

    def coefficients(self, step: int, lr: float) -> tuple[float, ...]:
        return (-lr / (1 + (step - 1) * self.lr_decay),)

    def update(
        self, params: Tensor, grads: Tensor, state: State, coefficients: Sequence[Tensor]
    ) -> None:
        (minus_lr,) = coefficients
        g = decayed(grads, params, self.weight_decay)
        s = state["sum"].addcmul_(g, g)
        params.addcmul_(g / s.sqrt().add_(self.eps), minus_lr)


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """s ← α s + (1-α) g²,  w ← w - η g / (√s + ε)

    `centered` takes the square of the running mean away from s, so that it is a variance;
    `momentum` μ runs over the divided gradients: b ← μ b + g / (√s + ε), w ← w - η b.
    `eps_inside_root` divides by √(s + ε) instead, as Keras does.
    Source: Krzywicki, RMSProp; Tieleman & Hinton 2012; ε placed as in torch.optim.RMSprop.
    """

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False
    eps_inside_root: bool = False

    def init(self, params: Tensor) -> State:
        names = ["square_avg"]
        names += ["grad_avg"] if self.centered else []
        names += ["momentum_buffer"] if self.momentum else []
        return {name: torch.zeros_like(params) for name in names}

    def update(
        self, params: Tensor, grads: Tensor, state: State, coefficients: Sequence[Tensor]
    ) -> None:
        (minus_lr,) = coefficients
        g = decayed(grads, params, self.weight_decay)
        s = state["square_avg"].mul_(self.alpha).addcmul_(g, g, value=1 - self.alpha)
        if self.centered:
            mean = state["grad_avg"].lerp_(g, 1 - self.alpha)
            s = s.addcmul(mean, mean, value=-1)
        step = g / ((s + self.eps).sqrt() if self.eps_inside_root else s.sqrt().add_(self.eps))
        if self.momentum:
            step = state["momentum_buffer"].mul_(self.momentum).add_(step)
        params.addcmul_(step, minus_lr)


@dataclass(frozen=True)
class Adam(Optimizer):
    """m ← β₁ m + (1-β₁) g,  v ← β₂ v + (1-β₂) g²,  w ← w - η m̂ / (√v̂ + ε)

    m̂ = m / (1-β₁ᵗ) and v̂ = v / (1-β₂ᵗ) undo the pull of the zeros that m and v began with. Weight
    decay is added to g, as in torch.optim.Adam. With c = √(1-β₂ᵗ) the step is computed as
    η c / (1-β₁ᵗ) · m / (√v + ε c), which takes one pass less over all parameters.
    Source: Kingma & Ba 2015, algorithm 1 and the end of section 2.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def init(self, params: Tensor) -> State:
        return {"exp_avg": torch.zeros_like(params), "exp_avg_sq": torch.zeros_like(params)}

    def coefficients(self, step: int, lr: float) -> tuple[float, ...]:
        beta1, beta2 = self.betas
        c = sqrt(1 - beta2**step)
        return -lr * c / (1 - beta1**step), self.eps * c, -lr

    def update(
        self, params: Tensor, grads: Tensor, state: State, coefficients: Sequence[Tensor]
    ) -> None:
        g = decayed(grads, params, self.weight_decay)
        self._move(params, g, state, coefficients)

    def _move(
        self, params: Tensor, g: Tensor, state: State, coefficients: Sequence[Tensor]
    ) -> None:
        beta1, beta2 = self.betas
        m = state["exp_avg"].lerp_(g, 1 - beta1)
        v = state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        rate, eps, _ = coefficients  # -η c / (1-β₁ᵗ), ε c
        params.addcmul_(m / v.sqrt().add_(eps), rate)


@dataclass(frozen=True)
class AdamW(Adam):
    """As Adam, with the weights decayed apart from the gradient: w ← (1 - η λ) w, then Adam's step

    Source: Loshchilov & Hutter 2019, algorithm 2.
    """

    weight_decay: float = 1e-2

    def update(
        self, params: Tensor, grads: Tensor, state: State, coefficients: Sequence[Tensor]
    ) -> None:
        params.addcmul_(params, coefficients[2], value=self.weight_decay)
        self._move(params, grads, state, coefficients)


def steps(
    rule: Optimizer, gradient: Callable[[Tensor], Tensor], start: Tensor
) -> Iterator[tuple[Tensor, Tensor, State]]:
    """Yield w, ∂E/∂w and the rule's memory after each step from `start`, without end.

    `gradient` returns ∂E/∂w, in the shape of w, for a function E of a few numbers.
    """
    w, g = start.clone(), torch.zeros_like(start)
    state = rule.init(w)
    for step in count(1):
        rule.begin(w, g, state)
        g.add_(gradient(w))
        rule.update(w, g, state, w.new_tensor(rule.coefficients(step, rule.lr)).unbind())
        yield w.clone(), g.clone(), {name: memory.clone() for name, memory in state.items()}


def descend(
    rule: Optimizer, gradient: Callable[[Tensor], Tensor], start: Tensor, updates: int
) -> Tensor:
    """Return the points w(0) = `start`, w(1), ..., w(updates) as rows."""
    return torch.stack([start, *(w for w, _, _ in islice(steps(rule, gradient, start), updates))])


def decayed(grads: Tensor, params: Tensor, weight_decay: float) -> Tensor:
    """Return g + λ w, the gradient of E + ½ λ Σ w²."""
    return grads.add(params, alpha=weight_decay) if weight_decay else grads


def clip_norm_(grads: Tensor, max_norm: float) -> Tensor:
    """Shorten the gradient to the length `max_norm` if it is longer; return its length before.

    g ← g · min(1, c / (‖g‖ + 1e-6)),  ‖g‖ over all parameters together, as in
    torch.nn.utils.clip_grad_norm_. Source: Pascanu et al. 2013, algorithm 1.
    """
    norm = grads.dot(grads).sqrt()
    grads.mul_((max_norm / (norm + 1e-6)).clamp_max(1.0))
    return norm


def clip_value_(grads: Tensor, max_value: float) -> None:
    """Bring every number of the gradient into [-c, c], as torch.nn.utils.clip_grad_value_."""
    grads.clamp_(-max_value, max_value)
