"""Load what a user names, `file.py:Name` or `package.module:Name`, as a Subject with its inputs.

LOADING A TARGET EXECUTES THE CODE OF ITS FILE, as `python file.py` would.

Name is one of:

- a torch.autograd.Function (the class);
- a torch.nn.Module, an instance or a class that is built without arguments;
- one of our layers, an instance or the class;
- a callable: it calls Functions, and autograd calls their backward passes;
- a pair of functions: a tuple (forward, backward), or an object with these two methods and no
  __call__. `y, saved = forward(*inputs)` and `gradients = backward(dy, saved)`, one gradient for
  each input, None for those that have none. Several outputs are a tuple y, and dy is one then. If
  forward returns y alone, backward takes dy alone.

Its inputs come from a function `Name_inputs()` or else `example_inputs()` in the same file, which
returns a tensor or a tuple: floating tensors are examined, or only those that require a gradient if
any does; anything else is handed on. Without such a function they come from the shapes that are
asked for, or small ones are found by trial: one to four tensors. Class indices are not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature, isclass, signature
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function

from manualbp.checks.agreement import make_inputs
from manualbp.checks.contract import WithLoss, WithLossTwin, loss_case
from manualbp.checks.doctor.contracts import first_line
from manualbp.checks.doctor.inputs import Shape, draw, find_inputs, tensors_wanted
from manualbp.checks.doctor.subject import Arguments, Subject
from manualbp.checks.doctor.subjects import (
    OfLayer,
    OfModule,
    OfPair,
    ThroughAutograd,
    floating_of,
    moved,
    own_random_numbers,
    recorded,
    set_seed,
    tensors_of,
)
from manualbp.checks.doctor.truth import Reference, Truth
from manualbp.checks.registry import find_cases
from manualbp.checks.user_code import example_inputs, execution, load_from_module, load_object
from manualbp.errors import UsageError
from manualbp.layers import AnyLayer, Layer
from reference.cases import Case, LossCase
from reference.twins import set_generator, twin, twin_loss

Call = Callable[..., Any]


@dataclass(frozen=True)
class Target:
    """A subject with the inputs on which it is examined."""

    subject: Subject
    arguments: Arguments
    inputs: str  # where the inputs are from, in words
    truth: Truth | None = None  # where there is one of its own
    module: ModuleType | None = None
    thing: object = None
    call_with: Callable[[Arguments], list[object]] | None = None
    """Returns the positional arguments of a call, constants among them."""


def load(
    target: str,
    shapes: Sequence[Shape] = (),
    *,
    reference: str | None = None,
    seed: int = 0,
) -> Target:
    """Return the target with its inputs. Raises UsageError, in one line, for a bad one.

    This executes the code of the file, and of the reference's file.
    """
    module, thing = load_from_module(target)
    examples = None if shapes else example_inputs(module, target.rpartition(":")[2])
    found = wrap(thing, target, examples, shapes, seed=seed, module=module)
    if reference is None:
        return found
    return with_reference(found, load_object(reference), reference)


def wrap(
    thing: object,
    name: str,
    examples: Call | Sequence[object] | None = None,
    shapes: Sequence[Shape] = (),
    *,
    seed: int = 0,
    module: ModuleType | None = None,
) -> Target:
    """Return anything that can be examined as a target; `examples` are inputs or return them."""
    if isinstance(thing, Layer) or (isclass(thing) and issubclass(thing, Layer)):
        return _layer(cast(object, thing), name, examples, shapes, seed)
    if isclass(thing) and issubclass(thing, nn.Module):
        try:
            thing = thing()
        except TypeError as error:
            raise UsageError(
                f"{name}: the module cannot be built without arguments ({first_line(error)}); name "
                "an instance, such as net = Net(3, 2)"
            ) from None
    if isinstance(thing, nn.Module):
        forward: Call = thing
        wanted = signature(thing.forward)
    elif isclass(thing) and issubclass(thing, Function):
        forward, wanted = cast(Any, thing).apply, _of_function(thing)
    else:
        pair = _pair(thing)
        if pair is None and not callable(thing):
            raise UsageError(
                f"{name}: an object of type {type(thing).__name__} cannot be examined; expected "
                "a layer, a torch.autograd.Function, a module, a callable, or a pair (forward, "
                "backward)"
            )
        forward = pair[0] if pair else cast(Call, thing)
        wanted = _signature(forward)
    values, words = _inputs(forward, wanted, name, examples, shapes, seed)
    names = _names(values, wanted)
    call_with = _filler(values, names)
    arguments = {
        names[i]: value.detach().clone()
        for i, value in enumerate(values)
        if isinstance(value, Tensor)
    }
    chosen = [
        names[i]
        for i, value in enumerate(values)
        if isinstance(value, Tensor) and value.requires_grad
    ]
    differentiable = chosen or None
    if isinstance(thing, nn.Module):
        parameters = {n: p.detach().clone() for n, p in thing.named_parameters()}
        arguments = _kept_apart(arguments, parameters)
        if differentiable is not None:
            differentiable = [*differentiable, *parameters]
        of_module = OfModule(thing, lambda part, given: part(*call_with(given)))
        subject: Subject = ThroughAutograd(name, of_module, differentiable, seed)
    elif isclass(thing) and issubclass(thing, Function):
        returned: list[object] = []
        apply = cast(Call, cast(Any, recorded(thing, returned)).apply)
        if len(arguments) != len(values):
            returned = []  # what it returns has places for the constants too
        subject = ThroughAutograd(
            name, lambda given: apply(*call_with(given)), differentiable, seed, returned
        )
    elif (pair := _pair(thing)) is not None:
        own_forward, own_backward = pair
        subject = OfPair(name, lambda given: own_forward(*call_with(given)), own_backward, seed)
    else:
        subject = ThroughAutograd(
            name, lambda given: forward(*call_with(given)), differentiable, seed
        )
    if not any(tensor.is_floating_point() for tensor in arguments.values()):
        raise UsageError(f"{name}: none of its inputs is a floating-point tensor")
    return Target(subject, arguments, words, None, module, thing, call_with)


def with_reference(target: Target, function: object, name: str) -> Target:
    """Return the target with the truth from a differentiable callable that takes the same inputs.

    Raises UsageError where that does not compute the same outputs.
    """
    if isclass(function) and issubclass(function, nn.Module):
        function = function()
    if not callable(function) or target.call_with is None:
        raise UsageError(f"--reference {name}: expected a function of the target's inputs")
    fill, call = target.call_with, cast(Call, function)
    subject = target.subject
    own, seed = None, 0
    if isinstance(subject, ThroughAutograd):
        own, seed = subject.differentiable, subject.seed
    of_module = None
    if isinstance(function, nn.Module):
        of_module = OfModule(function, lambda part, given: part(*fill(given)))

    def outputs(given: Arguments) -> list[Tensor]:
        set_seed(seed)
        result = of_module(given) if of_module else call(*fill(given))
        found = floating_of(result)
        return subject.judged(found) if isinstance(subject, ThroughAutograd) else found

    truth = Reference(outputs, f"autograd through {name}", own)
    _require_the_same(target, truth, name)
    return Target(
        subject, target.arguments, target.inputs, truth, target.module, target.thing, fill
    )


def _require_the_same(target: Target, truth: Reference, name: str) -> None:
    try:
        with own_random_numbers():
            expected = truth.outputs(target.arguments)
            got = target.subject.run(target.arguments).outputs
    except Exception as error:  # the reference's own, whatever it is
        raise UsageError(
            f"--reference {name}: it fails on the target's inputs: {first_line(error)}"
        ) from None
    if [y.shape for y in got] != [y.shape for y in expected]:
        raise UsageError(
            f"--reference {name}: its outputs have other shapes than the target's: "
            f"{[tuple(y.shape) for y in expected]}, not {[tuple(y.shape) for y in got]}"
        )
    for a, b in zip(got, expected, strict=True):
        if not torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-5, equal_nan=True):
            apart = (a.double() - b.double()).abs().max().item()
            raise UsageError(
                f"--reference {name}: it computes something else than the target: the outputs "
                f"differ by up to {apart:.3g}"
            )


# Inputs -------------------------------------------------------------------------------------------


def _inputs(
    forward: Call,
    wanted: Signature | None,
    name: str,
    examples: Call | Sequence[object] | None,
    shapes: Sequence[Shape],
    seed: int,
) -> tuple[list[object], str]:
    """Return the values of a call and, in words, where they are from. Raises UsageError."""
    if shapes:
        generator = torch.Generator().manual_seed(seed)
        return [draw(shape, generator) for shape in shapes], "from --shape, from N(0, 1)"
    if callable(examples):
        function = examples
        with execution(f"{name}: its function of example inputs"), own_random_numbers():
            set_seed(seed)
            values = function()
        return _listed(values), f"from {getattr(function, '__name__', 'its function')}()"
    if examples is not None:
        return list(examples), "given"
    names = tensors_wanted(wanted)
    with own_random_numbers(), torch.no_grad():
        set_seed(seed)
        returned: list[str] = []
        found = find_inputs(
            lambda tensors: _outputs(forward(*tensors), returned),
            names,
            seed,
            lambda tensors: _backward_takes(forward, tensors),
        )
    if found is None and returned:
        raise UsageError(
            f"{name}: the forward pass returns an object of type {returned[0]}, expected a tensor "
            "or a tuple of tensors"
        )
    if found is None:
        raise UsageError(
            f"{name}: no small inputs were found that its forward pass takes; give --shape, such "
            "as --shape 4x3 3x2, or write a function example_inputs() in its file"
        )
    return list(found[0]), found[1]


def _outputs(result: Any, others: list[str]) -> list[object]:
    """Return the first output, of several; what is no tensor is noted in `others`."""
    if isinstance(result, (tuple, list)):
        parts = cast(Sequence[object], result)
        return [part for item in parts for part in _outputs(item, others)][:1]
    if not isinstance(result, Tensor):
        others.append(type(result).__name__)
    return [result]


def _backward_takes(forward: Call, tensors: Sequence[Tensor]) -> bool:
    """Tell whether the backward pass of a Function has axes enough to work on."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    try:
        with torch.enable_grad():
            outputs = [y for y in tensors_of(forward(*leaves)) if y.requires_grad]
            torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
    except IndexError:
        return False  # an axis that it asks for is not there
    except Exception:  # the target's own, whatever it is: the examination says so
        return True
    return True


def _listed(values: object) -> list[object]:
    return list(cast(Sequence[object], values)) if isinstance(values, (tuple, list)) else [values]


def _names(values: Sequence[object], wanted: Signature | None) -> list[str]:
    """Return the parameters' names of the values, or x0, x1, ..."""
    names: list[str] = []
    for parameter in wanted.parameters.values() if wanted else ():
        if parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    rest = range(len(names), len(values))
    return [*names, *(f"x{i}" if len(values) > 1 else "x" for i in rest)][: len(values)]


def _filler(values: Sequence[object], names: Sequence[str]) -> Callable[[Arguments], list[object]]:
    """Return a function that puts arguments in their places among the constants."""

    def fill(arguments: Arguments) -> list[object]:
        return [
            arguments[_input_name(name, arguments)] if isinstance(value, Tensor) else value
            for name, value in zip(names, values, strict=True)
        ]

    return fill


def _input_name(name: str, arguments: Arguments) -> str:
    return f"input.{name}" if f"input.{name}" in arguments else name


def _kept_apart(inputs: Arguments, parameters: Arguments) -> dict[str, Tensor]:
    """Return both; an input with a parameter's name is called input.NAME."""
    named = {f"input.{n}" if n in parameters else n: tensor for n, tensor in inputs.items()}
    return {**named, **parameters}


def _signature(function: Call) -> Signature | None:
    try:
        return signature(function)
    except (TypeError, ValueError):
        return None  # built in, without a signature


def _of_function(function: type[Function]) -> Signature:
    """Return the signature of `apply`: that of forward, without ctx where it has one."""
    own = signature(function.forward)
    parameters = list(own.parameters.values())
    base = cast(Any, Function)
    if cast(Any, function).setup_context is base.setup_context:
        parameters = parameters[1:]
    return own.replace(parameters=parameters)


def _pair(thing: object) -> tuple[Call, Call] | None:
    """Return forward and backward of a tuple or of an object that has both."""
    if type(thing) is tuple:
        parts = cast(tuple[Any, ...], thing)
        if len(parts) == 2 and all(callable(part) for part in parts):
            return parts[0], parts[1]
        return None
    owner: Any = thing
    if isclass(owner) and hasattr(owner, "forward") and hasattr(owner, "backward"):
        try:
            owner = owner()
        except TypeError:
            return None
    forward, backward = getattr(owner, "forward", None), getattr(owner, "backward", None)
    return (forward, backward) if callable(forward) and callable(backward) else None


# Layers of ours -----------------------------------------------------------------------------------


def _layer(
    thing: object,
    name: str,
    examples: Call | Sequence[object] | None,
    shapes: Sequence[Shape],
    seed: int,
) -> Target:
    if isclass(thing):
        cases = [c for c in find_cases(thing.__name__) if isinstance(c, Case)]
        own = [case for case in cases if type(case.layer) is thing]
        if own and not shapes:
            return of_case(own[0], seed)
        try:
            thing = own[0].layer if own else thing()
        except TypeError as error:
            raise UsageError(
                f"{name}: the layer cannot be built without arguments ({first_line(error)}); name "
                "an instance, such as layer = Linear(3, 2)"
            ) from None
    layer = cast(AnyLayer, thing)
    if len(shapes) > 1:
        raise UsageError(f"{name}: a layer has one input, --shape gives {len(shapes)}")

    def forward(x: Tensor) -> Tensor:
        params = layer.parameters(dtype=x.dtype)
        return layer.forward(params.views, x)[0]

    values, words = _inputs(forward, signature(forward), name, examples, shapes, seed)
    x = cast(Tensor, values[0])
    case = Case(name, layer, tuple(x.shape))
    target = of_case(case, seed, x)
    return Target(target.subject, target.arguments, words, target.truth, thing=thing)


def of_case(case: Case | LossCase, seed: int = 0, x: Tensor | None = None) -> Target:
    """Return a case of the registry, in float64, with the truth from its twin if it has one."""
    if isinstance(case, LossCase):
        case = loss_case(case, seed)
    inputs = make_inputs(case, torch.float64, "cpu", seed)
    named = {n: tensor.clone() for n, tensor in inputs.parameters.named().items()}
    arguments = {"x": inputs.x if x is None else x.detach().double(), **named}
    layer, owner = case.layer, type(case.layer).__name__
    if isinstance(layer, WithLoss):
        owner = type(layer.loss).__name__
    title = owner if case.name == owner else f"{owner}, {case.name}"
    subject = OfLayer(title, layer, case.training, seed)
    try:
        truth = _twin_truth(layer, training=case.training, seed=seed)
    except LookupError:
        truth = None
    return Target(subject, arguments, "from the registry", truth, thing=layer)


def _twin_truth(layer: AnyLayer, *, training: bool, seed: int) -> Reference:
    """Return autograd through the twin. Raises LookupError where there is none."""

    def outputs(arguments: Arguments) -> list[Tensor]:
        x = arguments["x"]
        module = _twin_module(moved(layer, x)).to(x.device, x.dtype).train(training)
        generator = torch.Generator(x.device).manual_seed(seed)
        set_generator(module, generator)
        given = {name: tensor for name, tensor in arguments.items() if name != "x"}
        return [torch.func.functional_call(module, given, (x,))]

    _twin_module(layer)
    return Reference(outputs, "autograd through torch's own layer")


def _twin_module(layer: AnyLayer) -> nn.Module:
    if not isinstance(layer, WithLoss):
        return twin(layer)
    loss, target = twin_loss(layer.loss), layer.target
    return WithLossTwin(twin(layer.model), lambda y: loss(y, target))


def on_device(arguments: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the arguments on a device."""
    return {name: tensor.to(device) for name, tensor in arguments.items()}
