"""The examination as an assertion, for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from manualbp.checks.doctor.contracts import CONTRACTS
from manualbp.checks.doctor.examination import examine
from manualbp.checks.doctor.report import report_lines
from manualbp.checks.doctor.targets import load, on_device, with_reference, wrap
from manualbp.errors import UsageError, did_you_mean
from manualbp.training.config import DTYPES

LINES = 30
"""How many lines of a report an AssertionError has."""


def assert_agree(
    target: object,
    inputs: Sequence[object],
    reference: Callable[..., Any] | None,
    dtypes: Sequence[str],
    contracts: Sequence[str] | None,
    device: str | None,
    seed: int,
) -> None:
    """Do what `manualbp.checks.assert_gradients_agree` says."""
    known = cast(dict[str, torch.dtype], DTYPES)
    _require_known("dtypes", dtypes, list(known))
    _require_known("contracts", contracts or (), list(CONTRACTS))
    if isinstance(target, str):
        found = load(target, seed=seed)
    else:
        name = getattr(target, "__name__", type(target).__name__)
        found = wrap(target, name, list(inputs) or None, seed=seed)
    if reference is not None:
        found = with_reference(found, reference, getattr(reference, "__name__", "reference"))
    arguments = found.arguments
    if device is not None:
        arguments = on_device(arguments, torch.device(device))
    report = examine(
        found.subject,
        arguments,
        found.truth,
        dtypes=[known[name] for name in dtypes],
        contracts=tuple(CONTRACTS) if contracts is None else contracts,
        seed=seed,
    )
    if report.verdict == "FAIL":
        cause = report.diagnoses[0].words  # a failure has one, and pytest's summary one line
        lines = [line.plain for line in report_lines(report, found.inputs)]
        raise AssertionError("\n".join([cause, *lines[:LINES]]))


def _require_known(option: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"{option}: {name!r} is not known; {did_you_mean(name, known)}")
