"""The same training step in different ways: by hand, and as well as torch does it.

Each makes an update on every batch that it is given: it moves the batch to where the step runs,
computes outputs, error and gradients, and changes its parameters. All start from the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from manualbp.checks.bench.workloads import Batch, Problem
from manualbp.errors import UsageError
from manualbp.recording import as_cuda_graph
from manualbp.training.engine import ManualEngine, threads_for
from reference.optimizers import LookAheadNesterov
from reference.twins import twin, twin_loss, twin_optimizer

TOO_SMALL = "its batches are too small to be cut into parts"

Implementation = Literal["default", "foreach", "fused"]


class NotAvailable(Exception):
    """A variant cannot be had here; the message is the reason, in one line."""


@runtime_checkable
class Timed(Protocol):
    """What can be timed."""

    def run(self, batches: Iterable[Batch], count: int) -> None:
        """Make `count` updates, one on each of the batches."""
        ...


Observed = Mapping[str, Mapping[str, Tensor]]
"""Copies of loss and gradients of an update and of the parameters after it, by kind ("loss",
"gradient", "parameter") and name."""


@runtime_checkable
class Variant(Timed, Protocol):
    """What can be compared with autograd besides."""

    def observe(self, x: Tensor, target: Tensor) -> Observed:
        """Make one update and return what there is to compare."""
        ...


class ByHand:
    """By hand, with the engine of `manualbp train`: recorded, compiled, or run as it stands."""

    def __init__(self, problem: Problem, *, recorded: bool = True, compiled: bool = False) -> None:
        masks = torch.Generator(problem.device).manual_seed(0)
        self.step = problem.step
        self.engine = ManualEngine(
            problem.step, problem.start.clone(), masks, recorded=recorded, compiled=compiled
        )
        x = torch.zeros_like(problem.batches[0][0], device=problem.device)
        with self.engine.context():
            y, _ = self.step.model.forward(self.engine.params.views, x)
        self.rows = len(x)
        self._outputs = y.new_empty(0, *y.shape)  # of the steps of a run
        self._places: Sequence[Tensor] = ()

    def run(self, batches: Iterable[Batch], count: int) -> None:
        """Plan the learning rates, make the updates, and compute the loss before each of them.

        All as in an epoch of training: the outputs are kept, and their loss, which no update needs,
        is computed at the end for all at once. A step too small to be shared has one thread of
        those there are.
        """
        self.engine.plan([self.step.optimizer.lr] * count)
        size = threads_for(self.engine.params.flat.numel(), self.rows)
        with self.engine.context(), threads(size):
            if count > len(self._places):
                self._outputs = self._outputs.new_empty(count, *self._outputs.shape[1:])
                self._places = self._outputs.unbind()
            targets: list[Tensor] = []
            for (x, target), place in zip(batches, self._places, strict=False):
                place.copy_(self.engine.step(x, target))
                targets.append(target)
            self.step.loss.forward(self._outputs[:count].flatten(0, 1), torch.cat(targets))

    def observe(self, x: Tensor, target: Tensor) -> Observed:
        """Make one update and return what there is to compare."""
        self.engine.plan([self.step.optimizer.lr])
        self.engine.watch()
        y = self.engine.step(x, target)
        error, _ = self.step.loss.forward(y, target)
        return _copies(error, self.engine.gradients(), self.engine.weights())


class Autograd:
    """torch.nn, torch.autograd and torch.optim, in the loop that everyone writes."""

    def __init__(self, problem: Problem, implementation: Implementation = "default") -> None:
        flat = problem.start.flat
        self.module = twin(problem.step.model).to(flat.device, flat.dtype)
        self.module.load_state_dict(problem.start.state_dict())
        self.parameters = dict(self.module.named_parameters())
        self.loss = twin_loss(problem.step.loss)
        self.optimizer = _optimizer(problem, self.parameters.values(), implementation)
        self.error: Callable[[Tensor, Tensor], Tensor] = self.eager_error

    def eager_error(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch."""
        return self.loss(self.module(x), target)

    def update(self, x: Tensor, target: Tensor) -> Tensor:
        """Make one update and return the loss before it."""
        if isinstance(self.optimizer, LookAheadNesterov):
            self.optimizer.look_ahead()
        self.optimizer.zero_grad()
        error = self.error(x, target)
        cast(Any, error).backward()
        self.optimizer.step()
        return error

    def run(self, batches: Iterable[Batch], count: int) -> None:
        """Make the updates."""
        for x, target in batches:
            self.update(x, target)

    def observe(self, x: Tensor, target: Tensor) -> Observed:
        """Make one update and return what there is to compare."""
        error = self.update(x, target).detach()
        gradients = {name: cast(Tensor, p.grad) for name, p in self.parameters.items()}
        return _copies(error, gradients, {n: p.detach() for n, p in self.parameters.items()})


class CompiledAutograd(Autograd):
    """Outputs and loss as one program of torch.compile, which compiles their gradients as well."""

    def __init__(self, problem: Problem) -> None:
        try:
            super().__init__(problem, "fused")
        except NotAvailable:
            super().__init__(problem)
        self.error = _compiled(self.eager_error, problem, fullgraph=True)

    def update(self, x: Tensor, target: Tensor) -> Tensor:
        """Make one update and return the loss before it."""
        _begin_step(x)
        return super().update(x, target)


class CompiledStep(Autograd):
    """The whole step compiled, as far as torch.compile goes: the gradients as one program, by
    torch.func, and the update of torch.optim as another.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.values = {name: p.detach() for name, p in self.parameters.items()}
        # They stay where they are. Else a CUDA graph would copy them at each replay.
        for value in self.values.values():
            cast(Any, torch)._dynamo.mark_static_address(value)
        gradients = cast(Any, torch.func.grad_and_value(self.functional_error))
        self.gradients = _compiled(gradients, problem, fullgraph=True)
        self.compiled_update = _compiled(self.optimizer.step, problem)

    def functional_error(self, values: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch as a function of the parameters."""
        return self.loss(cast(Any, torch.func.functional_call)(self.module, values, (x,)), target)

    def update(self, x: Tensor, target: Tensor) -> Tensor:
        """Make one update and return the loss before it."""
        _begin_step(x)
        if isinstance(self.optimizer, LookAheadNesterov):
            self.optimizer.look_ahead()
        gradients, error = self.gradients(self.values, x, target)
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name]
        self.compiled_update()
        return error


class IfItCompiles:
    """A variant that torch.compile has a part in: NotAvailable where that fails.

    A function is compiled when it is called first, so this may come from any step.
    """

    def __init__(self, variant: Variant) -> None:
        self.variant = variant

    def run(self, batches: Iterable[Batch], count: int) -> None:
        """Make the updates."""
        with _not_available_if_it_fails():
            self.variant.run(batches, count)

    def observe(self, x: Tensor, target: Tensor) -> Observed:
        """Make one update and return what there is to compare."""
        with _not_available_if_it_fails():
            return self.variant.observe(x, target)


class Floor:
    """The matrix products of autograd's step and nothing else, into buffers that stand ready.

    The product for dx of the first layer is not among them: nobody asks for it. The operands are
    those of a real step, which then stay as they are.
    """

    def __init__(self, problem: Problem) -> None:
        x, target = problem.batches[0]
        with _Products() as products:
            Autograd(problem).update(x.to(problem.device), target.to(problem.device))
        self.products = products.calls
        self._compute = self._one_by_one
        if problem.start.flat.is_cuda and self.products:
            # As a step by hand is: to start the products from Python takes longer than they take.
            self._one_by_one()
            self._compute, _ = as_cuda_graph(self._one_by_one, [])

    @torch.inference_mode()
    def run(self, batches: Iterable[Batch], count: int) -> None:
        """Compute the products so many times."""
        for _ in range(count):
            self._compute()

    def _one_by_one(self) -> list[Tensor]:
        return [product() for product in self.products]


class _Products(TorchDispatchMode):
    """Takes down the matrix products that run, as calls with operands and results of their own."""

    def __init__(self) -> None:
        cast(Any, super()).__init__()
        self.calls: list[partial[Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            a, b = (operand.detach().clone() for operand in args[-2:])
            product = torch.bmm if a.ndim == 3 else torch.mm
            self.calls.append(partial(product, a, b, out=torch.empty_like(result)))
        return result


@contextmanager
def threads(number: int) -> Generator[None]:
    """Give torch so many threads inside the `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _copies(
    error: Tensor, gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Observed:
    kinds = {"loss": {"E": error}, "gradient": gradients, "parameter": weights}
    return {
        kind: {name: tensor.clone() for name, tensor in named.items()}
        for kind, named in kinds.items()
    }


def _optimizer(
    problem: Problem, parameters: Iterable[torch.nn.Parameter], implementation: Implementation
) -> torch.optim.Optimizer:
    """Return the twin of the update rule. Raises NotAvailable where torch has it not so."""
    options = {} if implementation == "default" else {implementation: True}
    try:
        return twin_optimizer(problem.step.optimizer, parameters, **options)
    except (TypeError, RuntimeError) as error:
        raise NotAvailable(_in_one_line(error)) from None


def _compiled(function: Callable[..., Any], problem: Problem, *, fullgraph: bool = False) -> Any:
    # On CUDA the mode that records CUDA graphs, which is torch.compile's fastest for small steps.
    mode = "reduce-overhead" if problem.device.type == "cuda" else None
    return cast(Any, torch).compile(function, fullgraph=fullgraph, dynamic=False, mode=mode)


def _begin_step(x: Tensor) -> None:
    """Tell torch.compile that a new step begins, of which all programs up to the next are a part.

    Else each program that it made a CUDA graph takes its own call for a step, and takes back the
    memory of the one before: the gradients, before the update has read them.
    """
    if x.is_cuda:
        torch.compiler.cudagraph_mark_step_begin()


@contextmanager
def _not_available_if_it_fails() -> Generator[None]:
    # torch's compiler raises RuntimeErrors of many kinds, and OSError where a program is missing.
    try:
        yield
    except (RuntimeError, OSError, UsageError) as error:
        raise NotAvailable(_in_one_line(error)) from error


def in_parts(problem: Problem) -> Problem:
    """Return the same problem with micro-batches. Raises NotAvailable where it is too small."""
    if not problem.parts:
        raise NotAvailable(TOO_SMALL)
    return replace(problem, step=replace(problem.step, micro_batch=problem.parts))


def _in_one_line(error: Exception) -> str:
    """Return the kind of an error, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


BUILDERS: Mapping[str, Callable[[Problem], Variant]] = {
    "autograd_default": Autograd,
    "autograd_foreach": partial(Autograd, implementation="foreach"),
    "autograd_fused": partial(Autograd, implementation="fused"),
    "manual": ByHand,
    "manual_parts": lambda problem: ByHand(in_parts(problem)),
    "manual_eager": partial(ByHand, recorded=False),
    "manual_compiled": lambda problem: IfItCompiles(ByHand(problem, recorded=False, compiled=True)),
    "compile": lambda problem: IfItCompiles(CompiledAutograd(problem)),
    "compile_step": lambda problem: IfItCompiles(CompiledStep(problem)),
}
"""All variants by name. The first is what the others are compared with."""

BY_HAND: Sequence[str] = ("manual", "manual_parts")
EAGER_AUTOGRAD: Sequence[str] = ("autograd_default", "autograd_foreach", "autograd_fused")
COMPILED_AUTOGRAD: Sequence[str] = ("compile", "compile_step")
COMPILED: Sequence[str] = ("manual_compiled", *COMPILED_AUTOGRAD)
