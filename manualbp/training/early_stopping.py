"""Early stopping: after each validation, is this the best epoch so far, and is it time to stop?

Here is only the decision. Copying and restoring weights is the work of the training loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypedDict

from manualbp.errors import UsageError

StopReason = Literal[
    "patience exhausted",
    "threshold reached",
    "diverged",
    "non-finite",
    "max epochs",
    "interrupted",
]
"""Why a training run ended. The last two come from the training loop, the others from here."""


class Decision(NamedTuple):
    """What follows from one validation."""

    improved: bool
    """This epoch is the best so far: its weights are the ones to keep."""
    stop: bool
    reason: StopReason | None
    """Why to stop; None where `stop` is False."""


class EarlyStoppingState(TypedDict):
    """What a checkpoint keeps. `monitor` and `mode` say what `best` is a value of."""

    monitor: str
    mode: str
    best: float | None
    best_epoch: int | None
    wait: int
    value: float | None
    reason: StopReason | None


@dataclass(kw_only=True)
class EarlyStopping:
    """Stop when the monitored value has not improved for `patience` validations.

    Let m_e be the monitored value after epoch e, and b the best one before it (at first the worst
    value there is). For mode "min"

        improved_e = b - m_e > min_delta,    and then b := m_e,

    and for mode "max" the same with m_e - b. So b is always the value of epoch `best_epoch`, whose
    weights are the ones to keep. It is not always the very best value seen: an epoch that is
    better by no more than min_delta leaves b alone. Small steps still add up, as the next epoch is
    measured against the same b. A NaN never improves anything.

    Settings, with the names and meanings of Keras and Lightning unless said otherwise:

    monitor
        The name of the value; the training loop passes the value itself.
    patience
        Stop after this many validations in a row without improvement. 0 means the same as 1: stop
        at the first. None: never stop for this reason.
    min_delta
        By how much a value must be better; exactly min_delta is not enough.
    mode
        "min": less is better; "max": more is better; "auto": "max" where the monitor's name ends in
        accuracy or r2, and else "min".
    baseline
        Until a value is better than this by more than min_delta, every validation counts as one
        without improvement. The best epoch is followed all the same. (Keras documents this, but
        never stops while the value goes on improving below the baseline.)
    start_from_epoch
        Before this epoch a value is neither the best, nor counted, nor held against a threshold
        (Keras). So `best_epoch` is None when training ends before it.
    stopping_threshold
        Stop at a value as good as this or better. It then is the best one, min_delta or not, so
        that the weights kept are those that reached the threshold.
    divergence_threshold
        Stop at a value worse than this.
    check_finite
        Stop at NaN or ±infinity, whatever the epoch.

    Raises UsageError for settings that make no sense.
    """

    monitor: str = "val_loss"
    patience: int | None
    min_delta: float = 0.0
    mode: str = "auto"
    baseline: float | None = None
    start_from_epoch: int = 0
    stopping_threshold: float | None = None
    divergence_threshold: float | None = None
    check_finite: bool = True

    # The state, all of it: what `update` changes and a checkpoint keeps.
    best: float | None = field(default=None, init=False)
    best_epoch: int | None = field(default=None, init=False)
    wait: int = field(default=0, init=False)
    """Validations without improvement since the last one that counted as improvement."""
    value: float | None = field(default=None, init=False)
    """The last one that counted; None where that is NaN, or there is none."""
    reason: StopReason | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max", "auto"):
            raise UsageError(f"early stopping: mode must be min, max or auto, not {self.mode!r}")
        if self.patience is not None and self.patience < 0:
            raise UsageError(f"early stopping: patience must be 0 or more, not {self.patience}")
        for name in ("min_delta", "baseline", "stopping_threshold", "divergence_threshold"):
            value: float | None = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UsageError(f"early stopping: {name} must be a finite number, not {value}")
        if self.min_delta < 0:
            raise UsageError(f"early stopping: min_delta must be 0 or more, not {self.min_delta}")
        if self.mode == "auto":
            self.mode = "max" if self.monitor.endswith(("accuracy", "r2")) else "min"

    def update(self, epoch: int, value: float) -> Decision:
        """Take in the monitored value of a validation after `epoch`, and decide."""
        value = float(value)  # A NumPy number is a float too, but has no place in a checkpoint.
        if self.check_finite and not math.isfinite(value):
            return self._decide(improved=False, reason="non-finite")
        if epoch < self.start_from_epoch:
            return self._decide(improved=False, reason=None)

        self.value = None if math.isnan(value) else value
        beats_baseline = (
            self.baseline is None or self._advantage(value, self.baseline) > self.min_delta
        )
        least = 0 if self._reached(value) else self.min_delta
        improved = self._advantage(value, self.best) > least

        if improved:
            self.best, self.best_epoch = value, epoch
        self.wait = 0 if improved and beats_baseline else self.wait + 1
        return self._decide(improved, self._reason_to_stop(value))

    def state_dict(self) -> EarlyStoppingState:
        """Return the state, in plain Python values."""
        return {
            "monitor": self.monitor,
            "mode": self.mode,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "wait": self.wait,
            "value": self.value,
            "reason": self.reason,
        }

    def load_state_dict(self, state: EarlyStoppingState) -> None:
        """Go on from a state; the settings, patience for instance, may be others than before.

        A reason to stop that the settings do not give any more is forgotten.
        Raises UsageError where `best` is the value of another monitor or mode: then it compares
        with nothing here.
        """
        if (state["monitor"], state["mode"]) != (self.monitor, self.mode):
            raise UsageError(
                f"early stopping: the checkpoint follows {state['monitor']} ({state['mode']}), "
                f"this run {self.monitor} ({self.mode}); resume with the same monitor"
            )
        self.best = state["best"]
        self.best_epoch = state["best_epoch"]
        self.wait = state["wait"]
        self.value = state["value"]
        self.reason = state["reason"]
        if self.reason not in (None, "non-finite"):
            self.reason = self._reason_to_stop(math.nan if self.value is None else self.value)

    def _reached(self, value: float) -> bool:
        """Return whether the value is as good as the stopping threshold."""
        # Comparisons with NaN are False: a NaN reaches no threshold and improves nothing.
        threshold = self.stopping_threshold
        return threshold is not None and self._advantage(value, threshold) >= 0

    def _reason_to_stop(self, value: float) -> StopReason | None:
        """Return what there is against going on after this value and the present wait."""
        limit = self.divergence_threshold
        if self._reached(value):
            return "threshold reached"
        if limit is not None and self._advantage(value, limit) < 0:
            return "diverged"
        if self.patience is not None and self.wait >= max(self.patience, 1):
            return "patience exhausted"
        return None

    def _advantage(self, value: float, over: float | None) -> float:
        """Return by how much `value` is better than `over`; None is worse than every number."""
        sign = 1 if self.mode == "max" else -1
        return sign * (value - (-sign * math.inf if over is None else over))

    def _decide(self, improved: bool, reason: StopReason | None) -> Decision:
        self.reason = reason
        return Decision(improved, stop=reason is not None, reason=reason)
