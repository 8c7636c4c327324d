"""Schedules: those of torch.optim.lr_scheduler, and the cosine by its formula."""

from math import cos, pi

import pytest
import torch
from torch.optim import lr_scheduler

from manualbp.schedules import Constant, CosineWithWarmup, Exponential, StepDecay

TORCH = {
    "constant": (Constant(), lambda rule: lr_scheduler.ConstantLR(rule, factor=1.0)),
    "step": (StepDecay(7, 0.5), lambda rule: lr_scheduler.StepLR(rule, 7, 0.5)),
    "step, every epoch": (StepDecay(1, 0.5), lambda rule: lr_scheduler.StepLR(rule, 1, 0.5)),
    "step, defaults": (StepDecay(), lambda rule: lr_scheduler.StepLR(rule, 30)),
    "exponential": (Exponential(0.9), lambda rule: lr_scheduler.ExponentialLR(rule, 0.9)),
    "cosine": (
        CosineWithWarmup(100, warmup_epochs=0),
        lambda rule: lr_scheduler.CosineAnnealingLR(rule, 100),
    ),
}


@pytest.mark.parametrize(("schedule", "torch_schedule"), TORCH.values(), ids=TORCH)
def test_whole_epochs_have_the_rate_of_torch(schedule, torch_schedule):
    rule = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch_schedule(rule)
    for epoch in range(100):
        assert schedule.factor(epoch) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        rule.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", [StepDecay(7, 0.5), StepDecay(1, 0.9), Exponential(0.9)])
def test_within_an_epoch_a_rate_that_falls_in_steps_stays(schedule):
    for epoch in range(30):
        for part in (0.25, 0.5, 0.99):
            assert schedule.factor(epoch + part) == schedule.factor(epoch)


def test_cosine_with_warm_up():
    """Up along a line for 4 epochs, then down along half a cosine for 16."""
    schedule = CosineWithWarmup(20, warmup_epochs=4)
    assert [schedule.factor(e) for e in (0, 1, 2, 3.5)] == [0, 0.25, 0.5, 0.875]
    for e in (4, 5.25, 12, 16, 19.75, 20):
        assert schedule.factor(e) == pytest.approx((1 + cos(pi * (e - 4) / 16)) / 2, abs=1e-15)
    assert schedule.factor(4) == 1
    assert schedule.factor(12) == pytest.approx(0.5)
    assert schedule.factor(20) == schedule.factor(25) == 0


def test_cosine_whose_warm_up_is_the_whole_run_does_not_divide_by_zero():
    schedule = CosineWithWarmup(5, warmup_epochs=5)
    assert [schedule.factor(e) for e in (0, 2.5, 5, 6)] == [0, 0.5, 1, 0]
