"""Online, mini-batch and offline training: R28."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from manualbp.explain.examples import numbers, xor_descent
from manualbp.explain.networks import float64
from manualbp.explain.page import as_numbers
from manualbp.explain.topics.training_modes import (
    MODES,
    equal_patterns,
    neuron,
    noisy_targets,
    redundant_patterns,
    sigmoid_unit,
    weight_after,
    xor_in_mode,
)
from manualbp.optimizers import SGD
from manualbp.training.descent import Descent


def a_sigmoid_unit() -> Descent:
    unit, x, t = sigmoid_unit()
    return unit.descent(x, t, SGD(0.5))


@pytest.mark.figures("Z.sigmoid_unit")
def test_gradient_of_a_sigmoid_unit_over_a_set(lecture):
    unit = a_sigmoid_unit()
    found = [unit.outputs().flatten(), unit.error(), numbers(unit.gradients())]
    for ours, expected in zip(found, lecture["Z.sigmoid_unit"].value, strict=True):
        assert_close(float64(as_numbers(ours)), float64(expected), rtol=1e-12, atol=1e-16)


def test_the_error_of_a_set_is_a_sum_and_so_is_its_gradient():
    """IISc: E = Σ_n E^n."""
    unit, x, t = sigmoid_unit()
    parts = [unit.descent(x[d : d + 1], t[d : d + 1], SGD()) for d in range(4)]
    whole = a_sigmoid_unit()
    assert sum(part.error() for part in parts) == pytest.approx(whole.error(), rel=1e-15)
    total = torch.stack([numbers(part.gradients()) for part in parts]).sum(0)
    assert_close(total, numbers(whole.gradients()), rtol=0, atol=1e-15)


@pytest.mark.figures("Z.modes.E0", "Z.modes.grad")
def test_the_start_of_xor(lecture):
    training = xor_in_mode("online")
    lecture.expect("Z.modes.E0", training.error())
    lecture.expect("Z.modes.grad", numbers(training.gradients()))


@pytest.mark.figures("Z.modes.*.p1", "Z.modes.*.E1")
def test_one_epoch_in_each_mode(lecture):
    found = []
    for mode in MODES:
        training = xor_in_mode(mode)
        training.run(1)
        lecture.expect(f"Z.modes.{mode}.p1", numbers(training.params))
        share = 4 if mode == "offline_mean" else 1  # its E is the mean over the four patterns
        lecture.expect(f"Z.modes.{mode}.E1", share * training.error())
        found.append(numbers(training.params))
    # The four are different at the precision of the test.
    for i, one in enumerate(found):
        for other in found[:i]:
            assert (one - other).abs().max() > 1e-4


@pytest.mark.figures("Z.modes.*.epochs_to_0.01")
def test_epochs_until_the_error_is_small(lecture):
    for mode in ("online", "batch2", "offline_sum"):
        lecture.expect(f"Z.modes.{mode}.epochs_to_0.01", xor_in_mode(mode).until(0.01, 2000), 0)


def test_batches_of_one_are_online_and_of_all_offline_and_of_parts_accumulated():
    """Krzywicki's pseudo-code: deltas one by one, added up, then one update, is offline."""

    def after_three_epochs(batch_size, micro_batch=0):
        training = xor_descent(3, SGD(0.5), batch_size=batch_size)
        training = Descent(
            replace(training.step, micro_batch=micro_batch),
            training.params,
            training.x,
            training.target,
            batch_size,
        )
        training.run(3)
        return numbers(training.params)

    offline = after_three_epochs(0)
    assert torch.equal(after_three_epochs(4), offline)
    assert_close(after_three_epochs(0, micro_batch=1), offline, rtol=0, atol=1e-15)
    by_hand = xor_descent(3, SGD(0.5))
    for _ in range(3):
        for n in range(4):
            one = Descent(
                by_hand.step, by_hand.params, by_hand.x[n : n + 1], by_hand.target[n : n + 1]
            )
            one.run(1)
    assert_close(numbers(by_hand.params), after_three_epochs(1), rtol=0, atol=1e-15)
    assert (after_three_epochs(1) - offline).abs().max() > 1e-3


@pytest.mark.figures("Z.summean")
def test_the_sum_bears_a_smaller_rate_than_online_or_the_mean(lecture):
    expected = lecture["Z.summean"].value
    modes = ("online", "offline_sum", "offline_mean")
    for mode, distance in zip(modes, expected, strict=True):
        ours = abs(weight_after(equal_patterns(0.6, mode), 10) - 1)
        assert ours == pytest.approx(distance, rel=1e-12, abs=2e-16), mode


@pytest.mark.parametrize(
    ("mode", "limit"), [("online", 2.0), ("offline_sum", 0.5), ("offline_mean", 2.0)]
)
def test_the_limits_of_the_rate_are_exact(mode, limit):
    """At the limit |w - 1| stays 1 for ever; a little below it shrinks, a little above it grows."""
    assert abs(weight_after(equal_patterns(limit, mode), 501) - 1) == 1
    assert abs(weight_after(equal_patterns(0.99 * limit, mode), 500) - 1) < 1e-4
    assert abs(weight_after(equal_patterns(1.01 * limit, mode), 500) - 1) > 1e4


@pytest.mark.figures("Z.online_bias")
def test_online_at_a_constant_rate_does_not_settle_on_the_minimum(lecture):
    found = [weight_after(noisy_targets(mode), 200) for mode in ("online", "offline_mean")]
    lecture.expect("Z.online_bias", found)
    # A smaller rate settles closer to it.
    closer = neuron([[1.0], [1.0]], [1.05, 0.95], 0.05, batch_size=1)
    assert 0 < 1 - weight_after(closer, 2000) < 1 - found[0]


@pytest.mark.figures("Z.online_faster")
def test_online_needs_fewer_epochs_where_patterns_repeat(lecture):
    found = [redundant_patterns(mode).until(1e-6, 1000) for mode in ("online", "offline_mean")]
    lecture.expect("Z.online_faster", found, 0)
