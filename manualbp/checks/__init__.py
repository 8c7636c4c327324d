"""Where the hand-written and the autograd side meet. Only this package knows both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def assert_gradients_agree(
    target: object,
    *inputs: object,
    reference: Callable[..., Any] | None = None,
    dtypes: Sequence[str] = ("float64", "float32", "bfloat16"),
    contracts: Sequence[str] | None = None,
    device: str | None = None,
    seed: int = 0,
) -> None:
    """Raise AssertionError, with what is wrong, if the backward pass of a target is wrong.

    `target` is what `manualbp check` takes, or the thing itself: a torch.autograd.Function, a
    module, a callable, a layer of ours or a pair (forward, backward). `inputs` are its inputs:
    floating tensors are examined, or only those that require a gradient if any does. Without inputs
    they are found as `manualbp check` finds them. `reference` is a differentiable function of the
    same inputs; without it the truth is from differences. `contracts` are names from
    `manualbp.checks.doctor.contracts.CONTRACTS`; None is all. Raises UsageError where the target
    cannot be examined.
    """
    from manualbp.checks.doctor import assertion  # here, for it imports half of torch

    assertion.assert_agree(target, inputs, reference, dtypes, contracts, device, seed)
