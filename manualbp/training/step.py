"""One training step by hand: forward, error, backward, update. It depends on tensors only.

No number is read back from the device and nothing branches on data, so the step can be recorded
once and replayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manualbp.layers import AnyLayer, Mode
from manualbp.losses import AnyLoss, Penalty
from manualbp.optimizers import Optimizer, State, clip_norm_, clip_value_
from manualbp.parameters import Parameters


@dataclass(frozen=True)
class TrainingStep:
    """What one update does, `micro_batch` rows at a time; 0 is all at once."""

    model: AnyLayer
    loss: AnyLoss
    optimizer: Optimizer
    penalty: Penalty | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    micro_batch: int = 0
    frozen: tuple[str, ...] = ()
    """Parameters that keep their values, by torch.nn's names: "0.bias"."""

    def __call__(
        self,
        params: Parameters,
        grads: Parameters,
        state: State,
        x: Tensor,
        target: Tensor,
        coefficients: Sequence[Tensor],
        mode: Mode,
    ) -> Tensor:
        """Change params, grads and state in place; return the outputs y before the update.

        x (N, ...), target (N, ...), y (N, ...); `coefficients` as `Optimizer.coefficients` gives.
        """
        self.begin(params, grads, state)
        outputs = [
            self.add_gradients(params, grads, x_part, target_part, mode, share)
            for x_part, target_part, share in self.parts(x, target)
        ]
        self.update(params, grads, state, coefficients)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def begin(self, params: Parameters, grads: Parameters, state: State) -> None:
        """Make ready for gradients to be added up."""
        frozen = self._kept(params)
        self.optimizer.begin(params.flat, grads.flat, state)
        _restore(params, frozen)  # a rule that looks ahead has moved all parameters
        params.round_off()

    def parts(self, x: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Yield the micro-batches, with the share that the error of each has in the batch's."""
        rows = self.micro_batch or max(len(x), 1)
        both = zip(torch.split(x, rows), torch.split(target, rows), strict=True)
        for x_part, target_part in both:
            # The batch's mean is the parts' means, each with the share of its rows.
            share = len(x_part) / len(x) if self.loss.reduction == "mean" and len(x) else 1.0
            yield x_part, target_part, share

    def add_gradients(
        self,
        params: Parameters,
        grads: Parameters,
        x: Tensor,
        target: Tensor,
        mode: Mode,
        share: float = 1.0,
    ) -> Tensor:
        """Add `share` · ∂E/∂w of these rows to `grads`; return their outputs.

        Both passes of the model are in the type of `params.working`, the loss between them in that
        of `grads`. With mixed precision these are bfloat16 and float32: rounded to bfloat16 are the
        parameters, x, the output of each operation of the two passes, ∂E/∂y, and what one layer
        adds to a gradient at a time. A product of matrices sums in float32 before it is rounded.
        Not rounded are the loss, sums of gradients, and all of `update`. Each conversion below
        then makes a copy; where the two types are one it returns the tensor itself.
        """
        y, saved = self.model.forward(params.views, x.to(params.working.dtype), mode=mode)
        outputs = y.to(grads.flat.dtype)
        _, saved_error = self.loss.forward(outputs, target)
        dy = self.loss.backward(saved_error, share).to(y.dtype)
        self.model.backward_parameters(params.views, saved, dy, grads.views)
        return outputs

    def update(
        self,
        params: Parameters,
        grads: Parameters,
        state: State,
        coefficients: Sequence[Tensor],
    ) -> None:
        """Add the penalty, clip, and change the parameters."""
        if self.penalty:
            self.penalty.backward(params, grads)
        for name in self.frozen:
            grads.named()[name].zero_()  # they have no part in the length that is clipped
        if self.clip_value is not None:
            clip_value_(grads.flat, self.clip_value)
        if self.clip_norm is not None:
            clip_norm_(grads.flat, self.clip_norm)
        frozen = self._kept(params)
        self.optimizer.update(params.flat, grads.flat, state, coefficients)
        _restore(params, frozen)  # weight decay has moved all parameters

    def _kept(self, params: Parameters) -> dict[str, Tensor]:
        return {name: params.named()[name].clone() for name in self.frozen}

    @property
    def needs_gradients(self) -> bool:
        """Return whether the gradients are needed by themselves, and not only added to momentum."""
        clipped = self.clip_norm is not None or self.clip_value is not None
        return clipped or bool(self.frozen)


def _restore(params: Parameters, kept: Mapping[str, Tensor]) -> None:
    for name, tensor in kept.items():
        params.named()[name].copy_(tensor)
