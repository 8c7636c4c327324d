"""Learning-rate schedules: a factor for the learning rate from the epochs gone, a fraction too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import cos, floor, pi


class Schedule(ABC):
    """The protocol: `factor(0)` is for the first update."""

    @abstractmethod
    def factor(self, epoch: float) -> float:
        """Return what the learning rate is multiplied by after `epoch` epochs."""


@dataclass(frozen=True)
class Constant(Schedule):
    """η(e) = η"""

    def factor(self, epoch: float) -> float:
        return 1.0


@dataclass(frozen=True)
class StepDecay(Schedule):
    """η(e) = η γ^⌊e/s⌋: times γ every s epochs (torch's StepLR)"""

    step_size: int = 30
    gamma: float = 0.1

    def factor(self, epoch: float) -> float:
        return self.gamma ** floor(epoch / self.step_size)


@dataclass(frozen=True)
class Exponential(Schedule):
    """η(e) = η γ^⌊e⌋: times γ every epoch (torch's ExponentialLR)"""

    gamma: float = 0.97

    def factor(self, epoch: float) -> float:
        return self.gamma ** floor(epoch)


@dataclass(frozen=True)
class CosineWithWarmup(Schedule):
    """η(e) = η e/w for e < w, then η ½ (1 + cos(π (e-w)/(T-w))): up in w epochs, down to 0 at T

    Source: Loshchilov & Hutter 2017, eq. 5, without restarts; Goyal et al. 2017 for the warm-up.
    """

    max_epochs: int
    warmup_epochs: int = 5

    def factor(self, epoch: float) -> float:
        if epoch < self.warmup_epochs:
            return epoch / self.warmup_epochs
        length = max(self.max_epochs - self.warmup_epochs, 1)
        return 0.5 * (1 + cos(pi * min((epoch - self.warmup_epochs) / length, 1.0)))
