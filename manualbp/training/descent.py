"""Training as the lectures' examples do it: a few examples in the order in which they are listed.

No validation, no shuffling, no logs: epochs of updates, and the error after each.
"""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor

from manualbp.layers import EVALUATION, Mode
from manualbp.parameters import Parameters
from manualbp.recording import capture
from manualbp.training.step import TrainingStep

FEW = 50
"""So many updates are made as they stand: to record a step pays only where it is made often."""
AT_ONCE = 10
"""Updates that are recorded as one piece in offline training of LONG or more epochs. To record them
takes a tenth of a second, and then each is a quarter faster."""
LONG = 10_000


class Descent:
    """A network on its way down: `step`, at the rate of its rule, over x (N, ...), target (N, ...).

    `batch_size` rows make an update; 1 is online, 0 all rows, offline. `params` change in place.
    """

    def __init__(
        self,
        step: TrainingStep,
        params: Parameters,
        x: Tensor,
        target: Tensor,
        batch_size: int = 0,
    ) -> None:
        self.step = step
        self.params = params
        self.x = x
        self.target = target
        self.updates = 0
        self._grads = params.zeros_like()
        self._state = step.optimizer.init(params.flat)
        rows = batch_size or len(x)
        self._batches: list[tuple[Tensor, Tensor]] = list(
            zip(torch.split(x, rows), torch.split(target, rows), strict=True)
        )
        self._table: list[tuple[float, ...]] = []
        self._coefficients = params.flat.new_empty(0)
        self._recorded_updates = capture(self._plain_updates)
        self._recorded_error = capture(self._plain_error)

    def run(self, epochs: int) -> None:
        """Train for so many epochs more."""
        at_once = AT_ONCE if len(self._batches) == 1 and epochs >= LONG else 1
        for size in (*repeat(at_once, epochs // at_once), *repeat(1, epochs % at_once)):
            for x, target in self._batches:
                few = self.updates < FEW
                make = self._plain_updates if few else self._recorded_updates
                make(x, target, self._next_coefficients(size))

    def errors(self, epochs: int) -> list[float]:
        """Train for so many epochs more; return E before the first and after each."""
        found = [self.error()]
        for _ in range(epochs):
            self.run(1)
            found.append(self.error())
        return found

    def until(self, limit: float, most: int) -> int | None:
        """Train until E ≤ `limit`; return how many epochs it took, or None if over `most`."""
        for epoch in range(most + 1):
            if self.error() <= limit:
                return epoch
            self.run(1)
        return None

    def error(self) -> float:
        """Return E over all examples, at the parameters as they are now."""
        return self.error_on(self.x, self.target)

    def error_on(self, x: Tensor, target: Tensor) -> float:
        """Return E over other examples, for instance those set aside for validation."""
        error = self._plain_error if self.updates < FEW else self._recorded_error
        return error(x, target).item()

    def outputs(self) -> Tensor:
        """Return the outputs y (N, ...) for all examples."""
        y, _ = self.step.model.forward(self.params.views, self.x, mode=EVALUATION)
        return y

    def gradients(self) -> Parameters:
        """Return ∂E/∂w over all examples."""
        grads = self.params.zeros_like()
        self.step.add_gradients(self.params, grads, self.x, self.target, EVALUATION)
        return grads

    def _next_coefficients(self, updates: int) -> Tensor:
        rule = self.step.optimizer
        counts = range(self.updates + 1, self.updates + updates + 1)
        table = [rule.coefficients(count, rule.lr) for count in counts]
        if table != self._table:  # with most rules they are always the same
            self._table, self._coefficients = table, self.params.flat.new_tensor(table)
        self.updates += updates
        return self._coefficients

    def _plain_updates(self, x: Tensor, target: Tensor, coefficients: Tensor) -> Tensor:
        """Make one update for each row of coefficients; return the outputs before the last."""
        training, y = Mode(training=True), x
        for row in coefficients.unbind():
            y = self.step(self.params, self._grads, self._state, x, target, row.unbind(), training)
        return y

    def _plain_error(self, x: Tensor, target: Tensor) -> Tensor:
        y, _ = self.step.model.forward(self.params.views, x, mode=EVALUATION)
        error, _ = self.step.loss.forward(y, target)
        return error
