import io
import math
from typing import Any

import numpy as np
import pytest
import torch

from manualbp.errors import UsageError
from manualbp.training.early_stopping import Decision, EarlyStopping

KEEP_ON = Decision(improved=False, stop=False, reason=None)
IMPROVED = Decision(improved=True, stop=False, reason=None)
EXHAUSTED = Decision(improved=False, stop=True, reason="patience exhausted")
REACHED = Decision(improved=True, stop=True, reason="threshold reached")
DIVERGED = Decision(improved=False, stop=True, reason="diverged")
NON_FINITE = Decision(improved=False, stop=True, reason="non-finite")

NAN, INF = math.nan, math.inf

# name: settings, values of epochs 0, 1, ..., decisions, best epoch at the end. The values are
# those of mode "min"; their negatives in mode "max" must lead to the same decisions. All numbers
# are sums of powers of two, so that a difference is exactly what it looks like.
TABLE: dict[str, tuple[dict[str, Any], list[float], list[Decision], int | None]] = {
    "patience counts validations in a row": (
        {"patience": 2},
        [3.0, 4.0, 2.0, 2.5, 2.25],
        [IMPROVED, KEEP_ON, IMPROVED, KEEP_ON, EXHAUSTED],
        2,
    ),
    "an equal value is no improvement": (
        {"patience": 2},
        [3.0, 3.0, 3.0],
        [IMPROVED, KEEP_ON, EXHAUSTED],
        0,
    ),
    "patience 1 stops at the first that does not improve": (
        {"patience": 1},
        [3.0, 2.0, 2.0],
        [IMPROVED, IMPROVED, EXHAUSTED],
        1,
    ),
    "patience 0 is as 1, and never stops at an improvement": (
        {"patience": 0},
        [3.0, 2.0, 2.0],
        [IMPROVED, IMPROVED, EXHAUSTED],
        1,
    ),
    "patience None never stops": (
        {"patience": None},
        [1.0] + [2.0] * 50,
        [IMPROVED] + [KEEP_ON] * 50,
        0,
    ),
    "exactly min_delta is no improvement, a little more is one": (
        {"patience": 3, "min_delta": 0.5},
        [3.0, 2.5, 2.5 - 2**-20, 2.0 - 2**-20],
        [IMPROVED, KEEP_ON, IMPROVED, KEEP_ON],
        2,
    ),
    "small steps add up against the same best": (
        {"patience": 3, "min_delta": 0.5},
        [3.0, 2.75, 2.5, 2.25, 2.0, 1.75, 1.5],
        [IMPROVED, KEEP_ON, KEEP_ON, IMPROVED, KEEP_ON, KEEP_ON, IMPROVED],
        6,
    ),
    "steps too small for the patience": (
        {"patience": 2, "min_delta": 0.5},
        [3.0, 2.75, 2.5],
        [IMPROVED, KEEP_ON, EXHAUSTED],
        0,
    ),
    "below the baseline everything counts, the best is followed": (
        {"patience": 3, "baseline": 1.0},
        [4.0, 3.0, 2.0],
        [IMPROVED, IMPROVED, Decision(True, True, "patience exhausted")],
        2,
    ),
    "patience begins anew once the baseline is beaten": (
        {"patience": 2, "baseline": 1.0},
        [2.0, 0.75, 0.75, 0.75],
        [IMPROVED, IMPROVED, KEEP_ON, EXHAUSTED],
        1,
    ),
    "the baseline is beaten by more than min_delta or not at all": (
        {"patience": 2, "baseline": 1.0, "min_delta": 0.25},
        [2.0, 0.75],
        [IMPROVED, Decision(True, True, "patience exhausted")],
        1,
    ),
    "before start_from_epoch nothing counts and nothing is best": (
        {"patience": 1, "start_from_epoch": 3},
        [1.0, 2.0, 3.0, 4.0, 5.0],
        [KEEP_ON, KEEP_ON, KEEP_ON, IMPROVED, EXHAUSTED],
        3,
    ),
    "no epoch is best when training ends before start_from_epoch": (
        {"patience": 1, "start_from_epoch": 3},
        [1.0, 2.0],
        [KEEP_ON, KEEP_ON],
        None,
    ),
    "thresholds do not hold before start_from_epoch": (
        {
            "patience": 9,
            "start_from_epoch": 2,
            "stopping_threshold": 1.0,
            "divergence_threshold": 5.0,
        },
        [0.5, 8.0, 8.0],
        [KEEP_ON, KEEP_ON, Decision(True, True, "diverged")],
        2,
    ),
    "the stopping threshold itself is enough": (
        {"patience": 9, "stopping_threshold": 1.0},
        [2.0, 1.0 + 2**-20, 1.0],
        [IMPROVED, IMPROVED, REACHED],
        2,
    ),
    "what reaches the threshold is best even within min_delta": (
        {"patience": 9, "stopping_threshold": 1.0, "min_delta": 0.5},
        [1.25, 1.0],
        [IMPROVED, REACHED],
        1,
    ),
    "reaching the threshold comes before the patience": (
        {"patience": 1, "stopping_threshold": 1.0, "baseline": 0.0},
        [1.0],
        [REACHED],
        0,
    ),
    "a threshold of zero is one": (
        {"patience": 9, "stopping_threshold": 0.0},
        [1.0, 0.0],
        [IMPROVED, REACHED],
        1,
    ),
    "the divergence threshold itself is not yet too bad": (
        {"patience": 9, "divergence_threshold": 8.0},
        [4.0, 8.0, 8.0 + 2**-20],
        [IMPROVED, KEEP_ON, DIVERGED],
        0,
    ),
    "divergence comes before the patience": (
        {"patience": 1, "divergence_threshold": 8.0},
        [4.0, 9.0],
        [IMPROVED, DIVERGED],
        0,
    ),
    "NaN stops": ({"patience": 9}, [2.0, NAN], [IMPROVED, NON_FINITE], 0),
    "infinity stops": ({"patience": 9}, [2.0, INF], [IMPROVED, NON_FINITE], 0),
    "an infinitely good value stops and is not best": (
        {"patience": 9, "stopping_threshold": 1.0},
        [2.0, -INF],
        [IMPROVED, NON_FINITE],
        0,
    ),
    "NaN stops before start_from_epoch too": (
        {"patience": 9, "start_from_epoch": 5},
        [NAN],
        [NON_FINITE],
        None,
    ),
    "unchecked, NaN is one without improvement, the first too": (
        {"patience": 2, "check_finite": False, "stopping_threshold": 1.0},
        [NAN, 3.0, NAN, NAN],
        [KEEP_ON, IMPROVED, KEEP_ON, EXHAUSTED],
        1,
    ),
    "unchecked, NaN does not diverge": (
        {"patience": 9, "check_finite": False, "divergence_threshold": 8.0},
        [3.0, NAN],
        [IMPROVED, KEEP_ON],
        0,
    ),
    "unchecked, infinity is one without improvement, the first too": (
        {"patience": 2, "check_finite": False},
        [INF, 3.0, INF, INF],
        [KEEP_ON, IMPROVED, KEEP_ON, EXHAUSTED],
        1,
    ),
    "unchecked, infinity diverges": (
        {"patience": 9, "check_finite": False, "divergence_threshold": 8.0},
        [3.0, INF],
        [IMPROVED, DIVERGED],
        0,
    ),
}

every_row_and_mode = pytest.mark.parametrize(
    ("row", "mode"), [(row, mode) for row in TABLE for mode in ("min", "max")]
)


def in_mode(mode: str, row: str) -> tuple[dict[str, Any], list[float]]:
    settings, values, _, _ = TABLE[row]
    if mode == "min":
        return {**settings, "mode": mode}, values
    turned = {
        name: -value
        for name, value in settings.items()
        if name in ("baseline", "stopping_threshold", "divergence_threshold")
    }
    return {**settings, **turned, "mode": mode}, [-value for value in values]


@every_row_and_mode
def test_decisions(row: str, mode: str) -> None:
    settings, values = in_mode(mode, row)
    stopping = EarlyStopping(**settings)
    assert [stopping.update(epoch, value) for epoch, value in enumerate(values)] == TABLE[row][2]


@every_row_and_mode
def test_best_is_the_value_of_the_best_epoch(row: str, mode: str) -> None:
    settings, values = in_mode(mode, row)
    stopping = EarlyStopping(**settings)
    kept = None  # as a training loop keeps the weights
    for epoch, value in enumerate(values):
        if stopping.update(epoch, value).improved:
            kept = epoch
        assert stopping.best_epoch == kept
        assert stopping.best == (None if kept is None else values[kept])
    assert stopping.best_epoch == TABLE[row][3]


@every_row_and_mode
def test_resumed_at_every_epoch_the_decisions_are_the_same(row: str, mode: str) -> None:
    settings, values = in_mode(mode, row)
    epochs = list(enumerate(values))
    for cut in range(len(epochs) + 1):
        before = EarlyStopping(**settings)
        decisions = [before.update(*epoch) for epoch in epochs[:cut]]
        after = EarlyStopping(**settings)
        after.load_state_dict(through_a_file(before.state_dict()))
        assert after == before  # a dataclass: settings and state, field by field
        decisions += [after.update(*epoch) for epoch in epochs[cut:]]
        assert decisions == TABLE[row][2]


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_wait_and_reason_are_visible() -> None:
    stopping = EarlyStopping(patience=3)
    seen = [(stopping.wait, stopping.reason)]
    for epoch, value in enumerate([2.0, 2.5, 2.5, 1.5, 2.0, 2.0, 2.0]):
        stopping.update(epoch, value)
        seen.append((stopping.wait, stopping.reason))
    assert [wait for wait, _ in seen] == [0, 0, 1, 2, 0, 1, 2, 3]
    assert [reason for _, reason in seen] == [None] * 7 + ["patience exhausted"]


def test_a_numpy_value_leaves_a_plain_state() -> None:
    stopping = EarlyStopping(patience=3, monitor="val_r2")
    decision = stopping.update(0, np.float64(0.5))
    assert (type(decision.improved), type(stopping.best)) == (bool, float)
    assert through_a_file(stopping.state_dict()) == stopping.state_dict()


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("val_loss", "min"),
        ("loss", "min"),
        ("val_accuracy", "max"),
        ("accuracy", "max"),
        ("val_balanced_accuracy", "max"),
        ("val_r2", "max"),
        ("accuracy_loss", "min"),
    ],
)
def test_auto_mode_follows_the_name(monitor: str, mode: str) -> None:
    assert EarlyStopping(patience=3, monitor=monitor).mode == mode


def test_a_given_mode_is_not_changed_by_the_name() -> None:
    assert EarlyStopping(patience=3, monitor="val_accuracy", mode="min").mode == "min"
    assert EarlyStopping(patience=3, monitor="val_loss", mode="max").mode == "max"


def test_patience_may_change_on_resuming() -> None:
    before = EarlyStopping(patience=2)
    for epoch, value in enumerate([1.0, 2.0, 2.0]):
        before.update(epoch, value)
    after = EarlyStopping(patience=4)
    after.load_state_dict(before.state_dict())
    assert [after.update(3, 2.0), after.update(4, 2.0)] == [KEEP_ON, EXHAUSTED]


@pytest.mark.parametrize(
    ("before", "value", "after", "reason"),
    [
        ({"patience": 1}, 2.0, {"patience": 2}, None),
        ({"patience": 1, "check_finite": False}, NAN, {"patience": 2}, None),
        ({"patience": 1, "check_finite": False}, NAN, {"patience": 1}, "patience exhausted"),
        ({"stopping_threshold": 0.5}, 0.5, {"stopping_threshold": 0.25}, None),
        ({"stopping_threshold": 0.5}, 0.5, {"stopping_threshold": 0.75}, "threshold reached"),
        ({"divergence_threshold": 1.5}, 2.0, {"divergence_threshold": 2.0}, None),
        ({"divergence_threshold": 1.5}, 2.0, {}, None),
        ({"divergence_threshold": 1.5}, 2.0, {"divergence_threshold": 1.0}, "diverged"),
        ({"divergence_threshold": 1.5}, INF, {}, "non-finite"),
    ],
)
def test_a_reason_that_is_none_any_more_is_forgotten_on_resuming(
    before: dict[str, Any], value: float, after: dict[str, Any], reason: str | None
) -> None:
    stopped = EarlyStopping(**{"patience": None, **before})
    assert not stopped.update(1, 1.0).stop
    assert stopped.update(2, value).stop
    resumed = EarlyStopping(**{"patience": None, **after})
    resumed.load_state_dict(through_a_file(stopped.state_dict()))
    assert resumed.reason == reason


@pytest.mark.parametrize("other", [{"monitor": "val_r2", "mode": "min"}, {"mode": "max"}])
def test_a_best_value_of_something_else_is_refused(other: dict[str, Any]) -> None:
    before = EarlyStopping(patience=2)
    before.update(0, 0.25)
    after = EarlyStopping(patience=2, **other)
    with pytest.raises(UsageError, match=r"follows val_loss \(min\).* resume with the same"):
        after.load_state_dict(before.state_dict())
    assert after.best is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": -1}, "patience must be 0 or more, not -1"),
        ({"patience": 2, "min_delta": -0.5}, "min_delta must be 0 or more, not -0.5"),
        ({"patience": 2, "min_delta": NAN}, "min_delta must be a finite number, not nan"),
        ({"patience": 2, "min_delta": INF}, "min_delta must be a finite number, not inf"),
        ({"patience": 2, "baseline": NAN}, "baseline must be a finite number, not nan"),
        ({"patience": 2, "stopping_threshold": NAN}, "stopping_threshold must be a finite"),
        ({"patience": 2, "divergence_threshold": NAN}, "divergence_threshold must be a finite"),
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        EarlyStopping(**settings)
    assert "\n" not in str(caught.value)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="mode must be min, max or auto, not 'minimum'"):
        EarlyStopping(patience=2, mode="minimum")
