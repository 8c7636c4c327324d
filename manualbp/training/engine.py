"""An engine makes the updates: by hand (here), through autograd, or both (in manualbp/checks)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from manualbp.layers import EVALUATION, Mode
from manualbp.optimizers import SGD
from manualbp.parameters import Parameters, Shapes
from manualbp.recording import Captured, Step, capture
from manualbp.training.checkpoint import random_state, restore_random_state
from manualbp.training.compiled import Compiled
from manualbp.training.step import TrainingStep

Numbers = tuple[float, ...]


class Engine(Protocol):
    """What the training loop needs of an engine. All names of tensors are torch.nn's."""

    def plan(self, rates: Sequence[float]) -> None:
        """Set the learning rates of the coming updates."""
        ...

    def context(self) -> AbstractContextManager[object]:
        """Return what updates run in; to enter it once for many saves time."""
        ...

    def step(self, x: Tensor, target: Tensor) -> Tensor:
        """Make one update; return the outputs before it, which the next update may overwrite."""
        ...

    def predict(self, x: Tensor) -> Tensor:
        """Return the outputs in evaluation mode, which the next call may overwrite."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """Return the parameters themselves, not copies."""
        ...

    def copy_weights(self) -> Mapping[str, Tensor]:
        """Return copies of the parameters, which later updates leave alone."""
        ...

    def watch(self) -> None:
        """Hear that the gradients of the next update will be asked for."""
        ...

    def gradients(self) -> Mapping[str, Tensor]:
        """Return copies of the last update's gradients, if `watch` was called before it."""
        ...

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Copy parameters in; ValueError if names or shapes differ."""
        ...

    def memory(self) -> dict[str, Any]:
        """Return a copy of all else that the next updates depend on: optimiser and masks."""
        ...

    def load_memory(self, memory: Mapping[str, Any]) -> None:
        """Take such a copy back."""
        ...


class Copies(Mapping[str, Tensor]):
    """A flat copy of all parameters, or of all gradients. What lies where is worked out when
    somebody first asks for one: most copies are kept for an epoch and never looked at.
    """

    def __init__(self, shapes: Shapes, flat: Tensor) -> None:
        self._shapes = shapes
        self._flat = flat

    @cached_property
    def _named(self) -> Mapping[str, Tensor]:
        return Parameters(self._shapes, self._flat).named()

    def __getitem__(self, name: str) -> Tensor:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)


class ManualEngine:
    """Every pass by hand. The step is recorded and replayed (`recorded`), or passed as one program
    through torch.compile (`compiled`, which cannot draw dropout masks; batches of another size than
    the first are recorded), or else run as it stands.

    Where update rule and step allow it, the backward pass adds straight into the momentum, and the
    gradients by themselves are known only after `watch`; not so with `separate_gradients`.
    """

    def __init__(
        self,
        step: TrainingStep,
        params: Parameters,
        generator: torch.Generator,
        *,
        recorded: bool = True,
        compiled: bool = False,
        separate_gradients: bool = False,
    ) -> None:
        self.training_step = step
        self.params = params
        self.state = step.optimizer.init(params.flat)
        shared = step.optimizer.accumulator(self.state)
        if shared is None or step.needs_gradients or separate_gradients:
            self.grads = params.zeros_like()
        else:
            self.grads = Parameters(params.shapes, shared)
        self.generator = generator
        self.mode = Mode(training=True, generator=generator)
        self.steps = 0
        self._before: tuple[Tensor, Tensor] | None = None
        count = len(step.optimizer.coefficients(1, step.optimizer.lr))
        self._coefficients = params.flat.new_zeros(count)
        self._numbers: Numbers = ()  # what the coefficients are
        self._table: list[Numbers] = []  # what they will be, and the same on the device
        self._values = params.flat.new_zeros(0, count)
        self._rows: Sequence[Tensor] = ()
        self._coming: Iterator[tuple[Numbers, Tensor]] = iter(())
        recorded = recorded or compiled
        self._update: Step = _execution(self._plain_update, recorded)
        self._compiled = Compiled(self._flat_update, others=self._update) if compiled else None
        self._update = self._compiled or self._update
        self._predict = _execution(self._plain_predict, recorded)
        self._form: tuple[Any, ...] = ()  # of the last batch, and the update for such:
        self._update_of_form = self._update

    def plan(self, rates: Sequence[float]) -> None:
        """Compute the coefficients of the coming updates and bring them to the device at once."""
        rule = self.training_step.optimizer
        table = [rule.coefficients(self.steps + i, rate) for i, rate in enumerate(rates, 1)]
        if table != self._table:  # with a constant rate most rules need the same every epoch
            self._table, (count,) = table, self._coefficients.shape
            if len(table) > len(self._rows):  # in one place, whose views are made once
                with torch.inference_mode(False):
                    self._values = self._coefficients.new_empty(len(table), count)
                    self._rows = self._values.unbind()
            values = torch.tensor(table, dtype=torch.float64).view(-1, count)
            self._values.narrow(0, 0, len(table)).copy_(values)
        self._coming = zip(table, self._rows, strict=False)

    def context(self) -> AbstractContextManager[object]:
        """Return inference mode."""
        return torch.inference_mode()

    def step(self, x: Tensor, target: Tensor) -> Tensor:
        """Make one update; return the outputs before it, which the next update overwrites."""
        if not torch.is_inference_mode_enabled():
            with self.context():
                return self.step(x, target)
        numbers, row = next(self._coming)
        if numbers != self._numbers:
            self._numbers = numbers
            self._coefficients.copy_(row)
        self.steps += 1
        # Not the device: a batch on another one is only brought over.
        form = x.shape, target.shape, x.dtype, target.dtype
        if form != self._form:
            update = self._update
            self._update_of_form = (
                update.like(x, target) if isinstance(update, Captured) else update
            )
            self._form = form
        return self._update_of_form(x, target)

    def _plain_update(self, x: Tensor, target: Tensor) -> Tensor:
        coefficients = self._coefficients.unbind()
        return self.training_step(
            self.params, self.grads, self.state, x, target, coefficients, self.mode
        )

    def _flat_update(self, x: Tensor, target: Tensor) -> Tensor:
        """Make the update with new views: a compiled one takes each tensor for independent."""
        coefficients = self._coefficients.unbind()
        params, grads = self.params.with_new_views(), self.grads.with_new_views()
        return self.training_step(params, grads, self.state, x, target, coefficients, self.mode)

    def watch(self) -> None:
        """Remember what is needed to tell the gradients of the next update from the momentum."""
        self._before = self.params.flat.clone(), self.grads.flat.clone()

    def predict(self, x: Tensor) -> Tensor:
        """Return the outputs in evaluation mode, which the next call overwrites."""
        return self._predict(x)

    def _plain_predict(self, x: Tensor) -> Tensor:
        params = self.params
        params.round_off()
        x = x.to(params.working.dtype)
        y, _ = self.training_step.model.forward(params.views, x, mode=EVALUATION)
        return y.to(params.flat.dtype)

    def weights(self) -> Mapping[str, Tensor]:
        """Return the parameters themselves, not copies."""
        return self.params.named()

    def copy_weights(self) -> Mapping[str, Tensor]:
        """Return copies of the parameters, made as one."""
        return Copies(self.params.shapes, self.params.flat.clone())

    def gradients(self) -> Mapping[str, Tensor]:
        """Return copies of the last update's gradients; `watch` was called before it."""
        if self.grads.flat is not self.state.get("momentum_buffer"):
            return Copies(self.params.shapes, self.grads.flat.clone())
        assert self._before is not None, "watch() comes before the update"
        params, v = self._before
        rule = cast(SGD, self.training_step.optimizer)
        return Copies(self.params.shapes, rule.gradient(self.grads.flat, v, params))

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Copy parameters in; ValueError if names or shapes differ."""
        self.params.load_state_dict(state)

    def memory(self) -> dict[str, Any]:
        """Return a copy of the optimiser's tensors, the count of updates and the masks' state."""
        return {
            "state": {
                name: Copies(self.params.shapes, flat.clone()) for name, flat in self.state.items()
            },
            "steps": self.steps,
            "compiled_rows": self._compiled.rows if self._compiled else 0,
            "random": random_state({"masks": self.generator}),
        }

    def load_memory(self, memory: Mapping[str, Any]) -> None:
        """Take such a copy back."""
        for name, flat in self.state.items():
            # By the parameters' names, because where they lie may change with the program.
            Parameters(self.params.shapes, flat).load_state_dict(memory["state"][name])
        self.steps = memory["steps"]
        if self._compiled:
            self._compiled.rows = memory["compiled_rows"]
        restore_random_state({"masks": self.generator}, memory["random"])


WORTH_SHARING = 5e7
"""Operations of an update below which a second thread costs more than it brings."""


def threads_for(parameters: int, rows: int) -> int:
    """Return how many threads serve an update: one, unless it has work enough for all.

    About 6 operations a parameter and row: 2 forward, 4 backward.
    """
    return torch.get_num_threads() if 6 * parameters * rows > WORTH_SHARING else 1


def flush_denormals() -> None:
    """Let denormal numbers count as zero in this process, on the CPU.

    Numbers that fade, such as the momentum of a unit that has died, become denormal, which take a
    processor ten times as long.
    """
    # Where a plot is the first to ask for it afterwards, NumPy before 2.4 warns that its smallest
    # number is zero.
    for dtype in (np.float32, np.float64):
        np.finfo(dtype)
    torch.set_flush_denormal(True)


def _execution(step: Step, recorded: bool) -> Step:
    """Return the function that runs `step`, recorded or as it stands."""
    return capture(step) if recorded else torch.inference_mode()(step)
