"""`manualbp check`: a target, or our own layers, through the whole examination."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console

from manualbp.checks.doctor.examination import Report, examine
from manualbp.checks.doctor.inputs import parse_shapes
from manualbp.checks.doctor.report import print_report, print_reports
from manualbp.checks.doctor.repro import write_repro
from manualbp.checks.doctor.targets import Target, load, of_case, on_device
from manualbp.checks.registry import find_cases, layers, losses
from manualbp.errors import UsageError, did_you_mean
from manualbp.training.config import DTYPES, DeviceName, DtypeName, resolve_device


@dataclass(frozen=True)
class CheckConfig:
    """Say whether a backward pass is right, and if not, what is wrong with it.

    This EXECUTES the code of the target's file, and of the reference's.

    The target is one of
    - a torch.autograd.Function, a module, or a callable that uses one
    - a layer of ours
    - a pair, `y, saved = forward(*inputs)` and `gradients = backward(dy, saved)`:
    - ... a tuple of these functions, or an object with these methods

    Exit codes: 0 where nothing is wrong, 1 where something is, 2 for bad input.

    A warning leaves it at 0: right, but wrong after a mistake elsewhere.
    """

    target: Annotated[
        tyro.conf.Positional[str | None],
        tyro.conf.arg(metavar="[TARGET]", help_behavior_hint=""),
    ] = None
    """What to examine, as file.py:Name or package.module:Name. Its inputs come from a function
    Name_inputs() or example_inputs() in the same file; or from --shape; or small ones are found by
    trial."""
    layer: str | None = None
    """Name of a layer or loss of ours, such as Linear, or all; its cases are examined instead."""
    shape: tuple[str, ...] = ()
    """Shapes of the inputs, such as 4x3 3x2; scalar is one without axes."""
    reference: str | None = None
    """Differentiable function of the same inputs, as file.py:name, whose gradients by autograd are
    right; differences in float64 if not given."""
    dtype: tuple[DtypeName, ...] = ("float64", "float32", "bfloat16")
    """Types of numbers to examine."""
    device: DeviceName = "cpu"
    """Where to examine; auto: CUDA where there is one, else the CPU."""
    seed: int = 0
    """Seed of all random numbers."""
    write_repro: Path | None = None
    """Write a pytest file that stands alone: it fails now, and passes once the target is mended."""
    json: bool = False
    """Print the report as JSON on standard output."""
    debug: bool = False
    """Show the traceback of an error."""


def check(config: CheckConfig) -> int:
    """Print the report; return 0, or 1 if something is wrong. Raises UsageError."""
    _validate(config)
    dtypes = [DTYPES[name] for name in dict.fromkeys(config.dtype)]
    device = resolve_device(config.device)
    if config.layer is not None:
        return _check_layers(config, dtypes, device)
    assert config.target is not None
    target = load(
        config.target,
        parse_shapes(config.shape),
        reference=config.reference,
        seed=config.seed,
    )
    report = _examined(target, dtypes, device, config.seed)
    if config.write_repro is not None and report.verdict == "FAIL":
        write_repro(config.write_repro, config.target, target, report)
    if config.json:
        data = report.as_json() | {"inputs": target.inputs}
        print(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_report(Console(highlight=False), report, target.inputs)
        if config.write_repro is not None:
            print(_about_repro(config.write_repro, report))
    return 1 if report.verdict == "FAIL" else 0


def _about_repro(path: Path, report: Report) -> str:
    if report.verdict == "FAIL":
        return f"Written: {path}; it fails now, and passes once the target is mended."
    return f"Not written: {path}, because there is nothing to show."


def _validate(config: CheckConfig) -> None:
    if (config.target is None) == (config.layer is None):
        raise UsageError("name one thing to check: a TARGET such as file.py:Name, or --layer NAME")
    if config.layer is not None:
        for option in ("shape", "reference", "write_repro"):
            if getattr(config, option):
                name = option.replace("_", "-")
                raise UsageError(f"--{name} is for a TARGET: --layer has inputs and a truth")
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"--seed is {config.seed}: it must be from 0 to {2**32 - 1}")


def _examined(target: Target, dtypes: list[torch.dtype], device: torch.device, seed: int) -> Report:
    arguments = on_device(target.arguments, device)
    return examine(target.subject, arguments, target.truth, dtypes=dtypes, seed=seed)


def _check_layers(config: CheckConfig, dtypes: list[torch.dtype], device: torch.device) -> int:
    assert config.layer is not None
    cases = find_cases(config.layer)
    if not cases:
        names = ["all", *sorted(cls.__name__ for cls in [*layers(), *losses()])]
        hint = did_you_mean(config.layer, names)
        raise UsageError(f"--layer {config.layer}: there is no such layer or loss; {hint}")
    reports = [_examined(of_case(case, config.seed), dtypes, device, config.seed) for case in cases]
    if config.json:
        data = [report.as_json() for report in reports]
        print(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_reports(Console(highlight=False), reports)
    return 1 if any(report.verdict == "FAIL" for report in reports) else 0
