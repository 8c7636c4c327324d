"""Find the twin of a hand-written layer, loss or update rule: same file name, same class name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from importlib import import_module
from typing import Any, cast

import torch
from torch import nn

from manualbp.layers import AnyLayer, Layer
from manualbp.losses import AnyLoss
from manualbp.optimizers import Optimizer


def twin(layer: AnyLayer) -> nn.Module:
    """Return the autograd equivalent of a layer; the layers inside it become their twins too.

    Raises LookupError that names the missing file or class.
    """
    return _counterpart(layer)(**{name: _converted(value) for name, value in _fields(layer)})


def twin_loss(loss: AnyLoss) -> nn.Module:
    """Return the autograd equivalent of a loss."""
    return _counterpart(loss)(**dict(_fields(loss)))


def twin_optimizer(
    rule: Optimizer, params: Iterable[nn.Parameter], **options: bool
) -> torch.optim.Optimizer:
    """Return the torch.optim equivalent of an update rule, with options such as `fused`."""
    return _counterpart(rule)(params, **dict(_fields(rule)), **options)


def set_generator(module: nn.Module, generator: torch.Generator | None) -> None:
    """Let every twin that draws random numbers draw them from `generator`."""
    for part in module.modules():
        if hasattr(part, "generator"):
            object.__setattr__(part, "generator", generator)  # no parameter, nothing to register


def _counterpart(thing: object) -> Any:
    cls = type(thing)
    module = cls.__module__.replace("manualbp.", "reference.", 1)
    path = module.replace(".", "/") + ".py"
    try:
        return getattr(import_module(module), cls.__name__)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise LookupError(f"{cls.__name__} has no twin: the file {path} is missing") from None
    except AttributeError:
        raise LookupError(f"{cls.__name__} has no twin: {path} does not define it") from None


def _fields(thing: Any) -> list[tuple[str, Any]]:
    return [(field.name, getattr(thing, field.name)) for field in fields(thing)]


def _converted(value: Any) -> Any:
    if isinstance(value, Layer):
        return twin(cast(AnyLayer, value))
    if isinstance(value, tuple):
        return tuple(_converted(item) for item in cast(tuple[Any, ...], value))
    return value
