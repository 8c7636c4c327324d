"""`manualbp compare`: by hand beside autograd, one row a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import cast, get_args

import torch
from rich.console import Console
from rich.text import Text

from manualbp.checks.agreement import (
    Inputs,
    Results,
    Row,
    autograd_results,
    by_hand,
    compare_layer,
    compare_loss,
    rows,
)
from manualbp.checks.conversion import convert, reference_of
from manualbp.checks.registry import find_cases, layers, losses
from manualbp.checks.user_code import ROWS, load_model, rows_for
from manualbp.errors import UsageError, did_you_mean
from manualbp.layers import Mode
from manualbp.models import ModelName, build
from manualbp.parameters import Parameters
from manualbp.training.config import DTYPES, DeviceName, DtypeName, resolve_device
from manualbp.training.data import load
from manualbp.training.objective import objective
from reference.cases import Case
from reference.twins import set_generator, twin, twin_loss

LEGEND = """\
max abs, max rel: by hand against autograd. by hand, autograd: each against
the float64 truth. Relative errors are max|a-b| / max|b| over a tensor."""


@dataclass(frozen=True)
class CompareConfig:
    """Compare every hand-written gradient with autograd's, tensor by tensor.

    With no options: the default model on the first batch of scikit-learn's digits.
    """

    model: str | None = None
    """mlp, logistic, maxout or residual; or file.py:NAME, a torch.nn model of your own or a
    function that returns one, against its hand-written equal. The code of the file is executed."""
    data: str | None = None
    """Data set whose first rows go in, as with train; not given: digits, and for a model of your
    own random numbers."""
    layer: str | None = None
    """Name of a layer or loss, such as Linear or CrossEntropyLoss, or all; its cases are compared
    instead."""
    dtype: DtypeName = "float64"
    """Type of all numbers; float64 shows errors best."""
    device: DeviceName = "auto"
    """auto: CUDA where there is one, else the CPU."""
    seed: int = 0
    """Seed of all random numbers."""
    json: bool = False
    """Print the rows as a JSON list on standard output."""
    debug: bool = False
    """Show the traceback of an error."""


def compare(config: CompareConfig) -> list[Row]:
    """Return the rows. Raises UsageError for a layer that is not there, with a near-miss."""
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"--seed is {config.seed}: it must be from 0 to {2**32 - 1}")
    device, dtype = resolve_device(config.device), DTYPES[config.dtype]
    if config.layer is None:
        name = config.model or "mlp"
        if ":" in name:
            return compare_own_model(name, config.data, dtype, device, config.seed)
        return compare_model(name, config.data or "digits", dtype, device, config.seed)
    for option in ("model", "data"):
        if getattr(config, option) is not None:
            raise UsageError(f"--layer and --{option} exclude each other: a layer has its cases")
    cases = find_cases(config.layer)
    if not cases:
        names = ["all", *sorted(cls.__name__ for cls in [*layers(), *losses()])]
        hint = did_you_mean(config.layer, names)
        raise UsageError(f"--layer {config.layer}: there is no such layer or loss; {hint}")
    return [
        row
        for case in cases
        for row in (
            compare_layer(case, dtype, device, config.seed)
            if isinstance(case, Case)
            else compare_loss(case, dtype, device, config.seed)
        )
    ]


def compare_own_model(
    where: str, data: str | None, dtype: torch.dtype, device: torch.device, seed: int
) -> list[Row]:
    """Compare a user's torch.nn model with its hand-written equal; dy is random.

    The rows have the names that the parameters have in the model. Raises UsageError where it cannot
    be written by hand, or does not take the data.
    """
    module = load_model(where, seed)
    try:
        conversion = convert(module)
    except UsageError as error:
        raise UsageError(f"--model {where} {error}") from None
    x = rows_for(conversion.layer, data, seed).to(device, dtype)
    params = Parameters(conversion.parameters.shapes, conversion.parameters.flat.to(device, dtype))
    try:
        y, _ = conversion.layer.forward(params.views, x)
    except (RuntimeError, ValueError, IndexError) as error:
        shape = "×".join(map(str, x.shape))
        raise UsageError(f"--model {where} does not take rows of shape {shape}: {error}") from None
    generator = torch.Generator().manual_seed(seed)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(device, dtype)
    inputs = Inputs(params, x, dy, seed)

    def through_autograd(inputs: Inputs) -> Results:
        reference = reference_of(module, conversion).to(device, inputs.x.dtype)
        weights = inputs.parameters.state_dict()
        reference.load_state_dict({conversion.names[n]: w for n, w in weights.items()})
        set_generator(reference, inputs.generator())
        return autograd_results(reference.train(), inputs)

    theirs = {f"d{ours}": f"d{name}" for ours, name in conversion.names.items()}
    by_layer = by_hand(conversion.layer, inputs, training=True)
    ours = {theirs.get(name, name): tensor for name, tensor in by_layer.items()}
    autograd, truth = through_autograd(inputs), through_autograd(inputs.to(torch.float64))
    return rows(where.rpartition(":")[2], data or "random rows", ours, autograd, truth)


def compare_model(
    name: str, data_name: str, dtype: torch.dtype, device: torch.device, seed: int
) -> list[Row]:
    """Compare one of our models with its loss on one batch, at the start."""
    if name not in get_args(ModelName):
        hint = did_you_mean(name, get_args(ModelName))
        raise UsageError(f"--model {name}: there is no such model; {hint} Or is it file.py:NAME?")
    data = load(data_name, seed=seed, dtype=dtype, device=device)
    goal = objective(data, "auto", "mean", label_smoothing=0.0)
    model, loss = build(cast(ModelName, name), data.features, goal.outputs), goal.loss
    start = torch.Generator().manual_seed(seed)
    params = model.parameters(start, dtype=dtype, device=device)
    batch = goal.targets(data.train)
    x, target = batch.x[:ROWS], batch.t[:ROWS]

    grads = params.zeros_like()
    y, saved = model.forward(params.views, x, mode=Mode(training=True))
    error, saved_error = loss.forward(y, target)
    dy = loss.backward(saved_error)
    dx = model.backward(params.views, saved, dy, grads.views)
    ours = {"E": error, "y": y, "dx": dx} | {f"d{n}": g for n, g in grads.named().items()}

    def through_autograd(params: Parameters, x: torch.Tensor) -> Results:
        module = twin(model).to(x.device, x.dtype)
        module.load_state_dict(params.state_dict())
        named = dict(module.named_parameters())
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        exact = target.to(y.dtype) if target.is_floating_point() else target
        error = twin_loss(loss)(y, exact)
        gradients = torch.autograd.grad(error, [leaf, *named.values()])
        names = ["dx", *(f"d{name}" for name in named)]
        return {"E": error.detach(), "y": y.detach()} | dict(zip(names, gradients, strict=True))

    autograd = through_autograd(params, x)
    truth = through_autograd(Parameters(params.shapes, params.flat.double()), x.double())
    return rows(name, data.name, ours, autograd, truth)


def print_rows(console: Console, found: Sequence[Row]) -> None:
    """Print a table for each layer that fits 80 columns, and a line that says what it comes to."""
    for layer, group in groupby(found, attrgetter("layer")):
        for line in _table(layer, list(group)):
            console.print(line, soft_wrap=True)
        console.print()
    console.print(LEGEND, style="dim", soft_wrap=True)
    where = f"{found[0].dtype} on {found[0].device}"
    differ = [row for row in found if row.verdict == "differ"]
    for row in differ:
        console.print(Text(f"{row.layer}, {row.case}: {row.tensor} differs", style="bold red"))
    if differ:
        console.print(f"{len(differ)} of {len(found)} tensors differ in {where}.")
    else:
        console.print(f"[bold green]All {len(found)} tensors agree[/bold green] in {where}.")


def _table(layer: str, found: Sequence[Row]) -> Iterator[Text]:
    """Yield lines of 80 columns at most; a longer name of a tensor is cut."""
    for_shapes = max(len("shape"), *(len(_shape(row)) for row in found))
    for_names = max(len("tensor"), *(len(row.tensor) for row in found))
    for_names = min(for_names, 27 - for_shapes)

    def line(name: str, shape: str, numbers: Sequence[str]) -> str:
        name = name if len(name) <= for_names else f"{name[: for_names - 1]}…"
        return f"  {name:<{for_names}}  {shape:<{for_shapes}}  " + "".join(
            f"{number:>8}  " for number in numbers
        )

    yield Text(layer, style="bold")
    yield Text(line("tensor", "shape", ("max abs", "max rel", "by hand", "autograd")) + "verdict")
    for case, rows_of_case in groupby(found, attrgetter("case")):
        yield Text(case, style="italic cyan")
        for row in rows_of_case:
            errors = (
                row.max_abs_error,
                row.max_rel_error,
                row.error_vs_truth,
                row.autograd_error_vs_truth,
            )
            numbers = ["0" if error == 0 else f"{error:.1e}" for error in errors]
            style = "green" if row.verdict == "agree" else "bold red"
            yield Text.assemble(line(row.tensor, _shape(row), numbers), (row.verdict, style))


def _shape(row: Row) -> str:
    return "×".join(map(str, row.shape)) or "scalar"
