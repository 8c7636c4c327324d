"""The last update of an epoch: how long its gradients were, and how far it moved the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class LastUpdate:
    """Copies of the parameters before and after an update, and of the gradients.

    Training goes on while they wait for whoever draws them: nothing is computed before that.
    """

    before: Weights
    after: Weights
    gradients: Weights

    @property
    def nbytes(self) -> int:
        """Return the size of the copies."""
        return 3 * sum(weight.nbytes for weight in self.before.values())

    @property
    def gradient_norms(self) -> dict[str, float]:
        """Return |gradient|, for each parameter."""
        return {name: gradient for name, (gradient, _, _) in self._lengths.items()}

    @property
    def update_ratios(self) -> dict[str, float]:
        """Return |update| / |weight|, for each parameter."""
        return {name: step / max(old, 1e-12) for name, (_, step, old) in self._lengths.items()}

    @cached_property
    def _lengths(self) -> dict[str, list[float]]:
        """Return |gradient|, |update| and |weight|, for each parameter; in one transfer."""
        norm = cast(Any, torch.linalg).vector_norm
        lengths = [
            norm(tensor, dtype=torch.float64)
            for name, old in self.before.items()
            for tensor in (self.gradients[name], self.after[name] - old, old)
        ]
        found: Any = torch.stack(lengths).view(-1, 3)
        return dict(zip(self.before, found.tolist(), strict=True))
