"""`manualbp locate`: the layer of a network at which the gradients part, and no other one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from math import isfinite
from typing import Any, cast, get_args

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from manualbp.checks.doctor.subject import Diagnosis
from manualbp.checks.user_code import (
    ROWS,
    example_inputs,
    execution,
    load_network,
    rows_for,
)
from manualbp.checks.watching import AUTOGRAD, Finding, exact, judged, watch_layer, watch_module
from manualbp.errors import UsageError, did_you_mean
from manualbp.layers import AnyLayer, Layer
from manualbp.losses import AnyLoss
from manualbp.models import ModelName, build
from manualbp.parameters import Parameters
from manualbp.training.config import DeviceName, resolve_device
from manualbp.training.data import load
from manualbp.training.objective import objective
from reference.twins import twin_loss

FEW_ROWS = 8
"""Rows for a model of the user's: for its layers differences may have to be taken."""


@dataclass(frozen=True)
class LocateConfig:
    """Find the layer at which the hand-written gradient first goes wrong.

    First is in the order of the backward pass, from the outputs to the inputs.

    Each layer is judged apart, so one wrong layer does not blame the others.
    """

    model: str = "mlp"
    """mlp, logistic, maxout or residual; or file.py:NAME, a torch.nn model of your own, a layer of
    manualbp, or a function that returns one. The code of the file is executed."""
    data: str | None = None
    """Data set whose first rows go in, as with train; not given: digits, and for a model of your
    own what a function NAME_inputs() or example_inputs() in its file returns, or else random
    rows."""
    device: DeviceName = "auto"
    """auto: CUDA where there is one, else the CPU."""
    seed: int = 0
    """Seed of all random numbers."""
    json: bool = False
    """Print the findings as a JSON list on standard output."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Location:
    """The findings on all layers, in the order of the backward pass."""

    network: str
    inputs: str  # what went in
    findings: list[Finding]

    @cached_property
    def diagnoses(self) -> list[Diagnosis]:
        """Return what is wrong with the first layer that is wrong, as far as it is recognised."""
        first = self.wrong[0] if self.wrong else None
        if first is None or first.examined is None:
            return []
        from manualbp.checks.doctor.diagnosis import diagnose  # with all its hypotheses

        subject, arguments, dy, truth = first.examined
        try:
            return diagnose(subject, arguments, [dy], truth)
        except UsageError:
            return []  # more arguments were wanted than differences can be taken of

    @property
    def wrong(self) -> list[Finding]:
        """Return the findings on the layers that are wrong."""
        return [finding for finding in self.findings if finding.verdict == "differ"]

    def as_json(self) -> list[dict[str, Any]]:
        """Return what --json prints: an object for each layer; null for an infinite error."""
        return [
            {
                "layer": finding.path,
                "class": finding.kind,
                "reference": finding.reference or None,
                "errors": {n: e if isfinite(e) else None for n, e in finding.errors.items()},
                "differing": list(finding.differing),
                "failure": finding.failure or None,
                "verdict": finding.verdict,
                "diagnoses": [
                    asdict(diagnosis)
                    for diagnosis in (self.diagnoses if finding in self.wrong[:1] else [])
                ],
            }
            for finding in self.findings
        ]


def locate(config: LocateConfig) -> Location:
    """Return what is found. Raises UsageError for a model that is not there or does not run."""
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"--seed is {config.seed}: it must be from 0 to {2**32 - 1}")
    device = resolve_device(config.device)
    if ":" in config.model:
        return _of_own_model(config, device)
    if config.model not in get_args(ModelName):
        hint = did_you_mean(config.model, get_args(ModelName))
        raise UsageError(
            f"--model {config.model}: there is no such model; {hint} Or is it file.py:NAME?"
        )
    data = load(config.data or "digits", seed=config.seed, dtype=torch.float64, device=device)
    goal = objective(data, "auto", "mean", label_smoothing=0.0)
    batch = goal.targets(data.train)
    x, target = batch.x[:ROWS], batch.t[:ROWS]
    model = build(cast(ModelName, config.model), data.features, goal.outputs)
    parameters = _parameters(model, device, config.seed)
    losses: list[Finding] = []

    def upstream(y: Tensor) -> Tensor:
        finding, dy = _judged_loss(goal.loss, y, target)
        losses.append(finding)
        return dy

    findings = watch_layer(model, parameters, x, upstream, config.seed)
    return Location(config.model, f"{len(x)} rows of {data.name}", [*losses, *findings])


def _of_own_model(config: LocateConfig, device: torch.device) -> Location:
    module, model = load_network(config.model, config.seed)
    name = config.model.rpartition(":")[2]
    given = None if config.data else example_inputs(module, name)
    if given is None:
        x = rows_for(model, config.data, config.seed)[:FEW_ROWS].to(device)
        what = f"{len(x)} {f'rows of {config.data}' if config.data else 'random rows'}"
    else:
        cast(Any, torch).manual_seed(config.seed)
        what = f"{given.__name__}()"
        with execution(what):
            x = _only_floats(given(), what).to(device, torch.float64)

    def upstream(y: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(config.seed)
        return torch.randn(y.shape, generator=generator, dtype=torch.float64).to(device)

    try:
        if isinstance(model, Layer):
            parameters = _parameters(model, device, config.seed)
            findings = watch_layer(model, parameters, x, upstream, config.seed)
        else:
            findings = watch_module(model, x, upstream, config.seed)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        shape = "×".join(map(str, x.shape))
        said = " ".join(str(error).split())
        hint = "" if config.data or given else f"; others may come from {name}_inputs() in its file"
        raise UsageError(
            f"--model {config.model} does not run on inputs of shape {shape}: {said}{hint}"
        ) from error
    return Location(name, what, findings)


def _only_floats(inputs: object, what: str) -> Tensor:
    """Return the one tensor of floating point that a user's function returns, alone or in a tuple.

    Raises UsageError for anything else.
    """
    listed = cast("tuple[object, ...]", inputs if isinstance(inputs, tuple) else (inputs,))
    x = listed[0] if len(listed) == 1 else None
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise UsageError(f"{what} has to return one tensor of floating point, for a model's input")
    return x.detach()


def _parameters(layer: AnyLayer, device: torch.device, seed: int) -> Parameters:
    start = torch.Generator().manual_seed(seed)
    return layer.parameters(start, dtype=torch.float64, device=device)


def _judged_loss(loss: AnyLoss, y: Tensor, target: Tensor) -> tuple[Finding, Tensor]:
    """Return the finding on the loss, and the right dy."""
    error, saved = loss.forward(y, target)
    ours = {"E": error, "dy": loss.backward(saved)}
    leaf = y.detach().clone().requires_grad_()
    value = twin_loss(loss)(leaf, target)
    (dy,) = torch.autograd.grad(value, leaf)
    reference = exact(AUTOGRAD, {"E": value.detach(), "dy": dy})
    return judged("loss", type(loss).__name__, reference, ours), dy


def print_location(console: Console, found: Location) -> None:
    """Print a table in 80 columns, and what it comes to."""
    title = f"{found.network} on {found.inputs}, in the order of the backward pass"
    console.print(Text(title, style="bold"), soft_wrap=True)
    first = found.wrong[0] if found.wrong else None
    console.print(Text(_line("layer", "class", "against", "worst error", "verdict")))
    for finding in found.findings:
        worst = max(finding.errors.values(), default=0.0)
        error = "" if not finding.reference else "0" if worst == 0 else f"{worst:.1e}"
        verdict = finding.verdict + (" <- first" if finding is first else "")
        words = (finding.path or "whole", finding.kind, finding.reference or "-", error)
        style = {"agree": "green", "differ": "bold red"}.get(finding.verdict, "yellow")
        console.print(Text.assemble(_line(*words, ""), (verdict, style)), soft_wrap=True)
    console.print()
    for line in _conclusion(found):
        console.print(line)


def _line(path: str, kind: str, reference: str, error: str, verdict: str) -> str:
    path = path if len(path) <= 17 else f"…{path[-16:]}"
    kind = kind if len(kind) <= 16 else f"{kind[:15]}…"
    return f"  {path:<17}  {kind:<16}  {reference:<11}  {error:>11}  {verdict}"


def _conclusion(found: Location) -> list[Text]:
    findings, wrong = found.findings, found.wrong
    examined = [finding for finding in findings if finding.verdict != "not examined"]
    if not wrong:
        lines = [Text(f"All {len(examined)} agree in float64.", style="bold green")]
    else:
        first = wrong[0]
        lines = [Text(f"The gradients part at {_name(first)}: {_what(first)}.", style="bold red")]
        for diagnosis in found.diagnoses:
            about = f"d{diagnosis.argument}: " if diagnosis.argument else ""
            lines.append(Text(f"  {about}{diagnosis.words}", style="bold red"))
            lines.append(Text(f"    evidence: {diagnosis.evidence}"))
        lines += [Text(f"Wrong too, apart from that: {_name(f)}: {_what(f)}.") for f in wrong[1:]]
    if len(examined) < len(findings):
        lines.append(
            Text(
                "Not examined: layers with several outputs, with inputs that are no tensors of\n"
                "floating point, or with too many numbers for differences."
            )
        )
    return lines


def _name(finding: Finding) -> str:
    return f"{finding.path} ({finding.kind})" if finding.path else f"the whole ({finding.kind})"


def _what(finding: Finding) -> str:
    if finding.failure:
        return f"its backward pass raises {finding.failure}"
    errors = [f"{n} is off by {finding.errors[n]:.1e} of its largest" for n in finding.differing]
    return ", ".join(errors)
