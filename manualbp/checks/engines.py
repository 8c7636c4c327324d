"""The engines that know autograd: the twin alone, and both sides in lockstep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from manualbp.checks.agreement import relative_error
from manualbp.errors import CheckFailed
from manualbp.parameters import Parameters
from manualbp.training.checkpoint import random_state, restore_random_state
from manualbp.training.config import TrainConfig
from manualbp.training.engine import Engine, ManualEngine
from manualbp.training.injection import mended
from manualbp.training.step import TrainingStep
from reference.optimizers import LookAheadNesterov
from reference.twins import set_generator, twin, twin_loss, twin_optimizer


class AutogradEngine:
    """The twin through torch.autograd and torch.optim, from the same start.

    With `computed_in`, a type narrower than that of the weights, under torch.autocast.
    """

    def __init__(
        self,
        step: TrainingStep,
        weights: Mapping[str, Tensor],
        generator: torch.Generator,
        *,
        computed_in: torch.dtype | None = None,
    ) -> None:
        self.training_step = step
        some = next(iter(weights.values()))
        self.dtype = some.dtype
        self.computed_in = computed_in or some.dtype
        self.module = twin(step.model).to(some.device, some.dtype)
        self.module.load_state_dict(weights)
        self.named = dict(self.module.named_parameters())
        self.loss = twin_loss(step.loss)
        for name in step.frozen:
            self.named[name].requires_grad_(False)
        learning = [p for name, p in self.named.items() if name not in step.frozen]
        self.optimizer = twin_optimizer(step.optimizer, learning)
        self.generator = generator
        set_generator(self.module, generator)
        self._rates: Iterator[float] = iter(())

    def plan(self, rates: Sequence[float]) -> None:
        """Set the learning rates of the coming updates."""
        self._rates = iter(rates)

    def context(self) -> AbstractContextManager[object]:
        """Return a context in which autograd can work."""
        return torch.enable_grad()

    def step(self, x: Tensor, target: Tensor) -> Tensor:
        """Make one update; return the outputs before it."""
        plan = self.training_step
        for group in self.optimizer.param_groups:
            group["lr"] = next(self._rates)
        if isinstance(self.optimizer, LookAheadNesterov):
            self.optimizer.look_ahead()
        self.optimizer.zero_grad()
        self.module.train()
        rows = plan.micro_batch or len(x)
        outputs: list[Tensor] = []
        for x_part, target_part in zip(
            torch.split(x, rows), torch.split(target, rows), strict=True
        ):
            y = self._outputs(x_part)
            share = len(x_part) / len(x) if plan.loss.reduction == "mean" else 1.0
            torch.autograd.backward([share * self.loss(y, target_part)])
            outputs.append(y.detach())
        if plan.penalty:
            torch.autograd.backward([self._penalty(plan.penalty.strength, plan.penalty.norm)])
        if plan.clip_value is not None:
            nn.utils.clip_grad_value_(self.named.values(), plan.clip_value)
        if plan.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.named.values(), plan.clip_norm)
        self.optimizer.step()
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _outputs(self, x: Tensor) -> Tensor:
        if self.computed_in == self.dtype:
            return self.module(x)
        with torch.autocast(x.device.type, self.computed_in):
            return self.module(x).to(self.dtype)

    def _penalty(self, strength: float, norm: str) -> Tensor:
        # Maxout's bias has two axes, and is none the less no weight.
        weights = [w for n, w in self.named.items() if w.ndim > 1 and not n.endswith("bias")]
        terms = [0.5 * w.square().sum() if norm == "l2" else w.abs().sum() for w in weights]
        return strength * torch.stack(terms).sum()

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Return the outputs in evaluation mode."""
        self.module.eval()
        return self._outputs(x)

    def weights(self) -> Mapping[str, Tensor]:
        """Return the parameters themselves, not copies."""
        return {name: parameter.detach() for name, parameter in self.named.items()}

    def copy_weights(self) -> dict[str, Tensor]:
        """Return copies of the parameters."""
        return {name: weight.clone() for name, weight in self.weights().items()}

    def watch(self) -> None:
        """Do nothing: the gradients are there by themselves."""

    def gradients(self) -> Mapping[str, Tensor]:
        """Return copies of the last update's gradients."""
        return {
            name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
            for name, weight in self.named.items()
        }

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Copy parameters in; ValueError if names or shapes differ."""
        try:
            self.module.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(" ".join(str(error).split())) from None

    def memory(self) -> dict[str, Any]:
        """Return a copy of the optimiser's state, with its name, and of the masks' generator."""
        state = self.optimizer.state_dict()["state"]
        copies = {
            index: {name: value.clone() for name, value in tensors.items() if value is not None}
            for index, tensors in state.items()
        }
        return {
            "optimizer": type(self.optimizer).__name__,
            "state": copies,
            "random": random_state({"masks": self.generator}),
        }

    def load_memory(self, memory: Mapping[str, Any]) -> None:
        """Take such a copy back."""
        here, there = type(self.optimizer).__name__, memory["optimizer"]
        if here != there:
            raise ValueError(f"the memory is that of torch's {there}, expected {here}")
        groups = self.optimizer.state_dict()["param_groups"]
        # torch would keep the very tensors of the memory, and change them with the next update.
        self.optimizer.load_state_dict(deepcopy({"state": memory["state"], "param_groups": groups}))
        restore_random_state({"masks": self.generator}, memory["random"])


class LockstepEngine:
    """By hand and through autograd on the same batches, compared after every update.

    Both sides make each update from the parameters that the hand-written side has reached, and with
    an optimiser's memory of their own. So rounding does not add up over the run, which at a kink or
    in bfloat16 would soon lead two correct sides apart. A difference beyond `limit` stops the run
    with CheckFailed, which names the step and the tensor. Errors are relative to the largest number
    so far of all tensors of a kind, gradients or parameters: gradients that are about to vanish,
    those of one layer or late in the run, are rounding only.
    """

    def __init__(self, manual: ManualEngine, autograd: AutogradEngine, limit: float) -> None:
        self.manual = manual
        self.autograd = autograd
        self.limit = limit
        self._scale = {"gradients": 0.0, "parameters": 0.0}
        self._largest = {"gradients": 0.0, "parameters": 0.0}

    def plan(self, rates: Sequence[float]) -> None:
        """Set the learning rates of the coming updates."""
        self.manual.plan(rates)
        self.autograd.plan(rates)

    def context(self) -> AbstractContextManager[object]:
        """Return a context in which autograd can work; by hand, each update enters its own."""
        return self.autograd.context()

    def step(self, x: Tensor, target: Tensor) -> Tensor:
        """Make the same update on both sides; return the hand-written outputs before it."""
        self.autograd.load_weights(self.manual.weights())
        y = self.manual.step(x, target)
        self.autograd.step(x, target)
        self._compare("gradients", self.manual.gradients(), self.autograd.gradients())
        self._compare("parameters", self.manual.weights(), self.autograd.weights())
        return y

    def _compare(self, kind: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
        scale = max(self._scale[kind], *(theirs[name].abs().max().item() for name in ours))
        self._scale[kind] = scale
        for name, a in ours.items():
            b = theirs[name]
            error = relative_error(a, b) and (a - b).abs().max().item() / max(scale, 1e-300)
            self._largest[kind] = max(self._largest[kind], error)
            if not error <= self.limit:
                raise CheckFailed(
                    f"lockstep: at step {self.manual.steps} the {kind} of {name} differ by "
                    f"{error:.2e} of the largest, more than the limit {self.limit:.0e}"
                )

    def take_differences(self) -> dict[str, float]:
        """Return the largest errors of "gradients" and "parameters", and begin anew from zero."""
        largest, self._largest = self._largest, {"gradients": 0.0, "parameters": 0.0}
        return largest

    def predict(self, x: Tensor) -> Tensor:
        """Return the hand-written outputs in evaluation mode."""
        return self.manual.predict(x)

    def weights(self) -> Mapping[str, Tensor]:
        """Return the hand-written side's parameters."""
        return self.manual.weights()

    def copy_weights(self) -> Mapping[str, Tensor]:
        """Return copies of the hand-written side's parameters."""
        return self.manual.copy_weights()

    def watch(self) -> None:
        """Do nothing: the gradients are there by themselves."""

    def gradients(self) -> Mapping[str, Tensor]:
        """Return copies of the hand-written side's gradients."""
        return self.manual.gradients()

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Copy parameters into both sides."""
        self.manual.load_weights(state)
        self.autograd.load_weights(state)

    def memory(self) -> dict[str, Any]:
        """Return a copy of what both sides depend on, and of the largest errors."""
        return {
            "manual": self.manual.memory(),
            "autograd": self.autograd.memory(),
            "scale": dict(self._scale),
            "largest": dict(self._largest),
        }

    def load_memory(self, memory: Mapping[str, Any]) -> None:
        """Take such a copy back."""
        self.manual.load_memory(memory["manual"])
        self.autograd.load_memory(memory["autograd"])
        self._scale, self._largest = dict(memory["scale"]), dict(memory["largest"])


LIMITS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.5}
"""How far the two sides may lie apart after an update from the same parameters, by rounding."""


def build_engine(
    config: TrainConfig,
    step: TrainingStep,
    params: Parameters,
    generator: Callable[[], torch.Generator],
) -> Engine:
    """Return the engine asked for; `generator` gives each side masks from the same start."""
    if config.engine == "manual":
        compiled = config.compile
        return ManualEngine(step, params, generator(), recorded=not compiled, compiled=compiled)
    computed_in = params.working.dtype
    right = replace(step, model=mended(step.model))  # autograd has none of our mistakes
    autograd = AutogradEngine(right, params.state_dict(), generator(), computed_in=computed_in)
    if config.engine == "autograd":
        return autograd
    limit = config.lockstep_limit or LIMITS[computed_in]
    manual = ManualEngine(step, params, generator(), separate_gradients=True)
    return LockstepEngine(manual, autograd, limit)
