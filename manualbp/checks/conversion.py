"""A torch.nn model as its hand-written equal: `from_torch`.

There is no list of pairs. A hand-written layer has the name of its torch.nn namesake, or of its
twin, and the same names for its hyper-parameters, so that each is found by the other's name; a new
layer is so converted by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import MISSING, dataclass, field, fields
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn

from manualbp.checks.registry import layers
from manualbp.errors import UsageError
from manualbp.layers import AnyLayer, Sequential
from manualbp.parameters import Parameters
from reference.twins import twin

NAMESAKES = ("torch.nn.modules.", "reference.layers.")
"""Where the modules are defined that have a hand-written layer of the same name."""

WITHOUT_EFFECT = ("device", "dtype", "inplace")
"""Arguments of torch.nn's layers that change nothing of what a layer computes."""


def from_torch(module: nn.Module) -> tuple[AnyLayer, Parameters]:
    """Return the hand-written equal of a torch.nn model, and parameters with the same weights.

    nn.Sequential, nested at will, and every layer that there is by hand are converted; weights are
    copied, in their dtype and on their device, under the names that the layer gives them.
    Raises UsageError that names, by path and class, all that cannot be converted.
    """
    conversion = convert(module)
    return conversion.layer, conversion.parameters


@dataclass(frozen=True)
class Conversion:
    """A hand-written equal, and which part of it comes from where."""

    layer: AnyLayer
    parameters: Parameters
    names: Mapping[str, str]
    """The torch side's name of each parameter: {"0.weight": "encoder.weight"}."""
    leaves: Mapping[str, AnyLayer]
    """The layer that each innermost module has become, by the module's path."""


def convert(module: nn.Module) -> Conversion:
    """Do as `from_torch`, and keep account."""
    if not isinstance(cast(object, module), nn.Module):
        raise UsageError(f"from_torch takes a torch.nn.Module, not a {type(module).__name__}")
    search = _Search()
    layer = search.layer(module, "", "")
    owners: dict[int, str] = {}
    for name, weight in module.named_parameters(remove_duplicate=False):
        first = owners.setdefault(id(weight), name)
        if first != name:
            search.faults.append(f"{name} is the same parameter as {first}")
    if search.faults:
        raise UsageError(f"cannot be written by hand: {'; '.join(search.faults)}")
    theirs = dict(module.named_parameters(remove_duplicate=False))
    some = next(iter(theirs.values()), torch.empty(0))
    parameters = Parameters.zeros(layer.shapes(), dtype=some.dtype, device=some.device)
    weights = {ours: theirs[name].detach() for ours, name in search.names.items()}
    parameters.load_state_dict(weights)
    return Conversion(layer, parameters, search.names, search.leaves)


def reference_of(module: nn.Module, conversion: Conversion) -> nn.Module:
    """Return a copy of the model that autograd can compare with its hand-written equal.

    Layers that draw random numbers are exchanged for twins that take a generator.
    """
    copy = deepcopy(module).requires_grad_()
    for path, layer in conversion.leaves.items():
        if draws(layer):
            if not path:
                return twin(layer)
            owner, _, name = path.rpartition(".")
            copy.get_submodule(owner).add_module(name, twin(layer))
    for part in copy.modules():
        if hasattr(part, "inplace"):
            cast(Any, part).inplace = False  # a leaf of autograd's graph may not be overwritten
    return copy


def draws(layer: AnyLayer) -> bool:
    """Return whether a layer draws random numbers: then its twin takes a generator."""
    return hasattr(twin(layer), "generator")


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass
class _Search:
    """What has been found on the way through a model."""

    names: dict[str, str] = field(default_factory=dict[str, str])
    leaves: dict[str, AnyLayer] = field(default_factory=dict[str, AnyLayer])
    faults: list[str] = field(default_factory=list[str])

    def layer(self, module: nn.Module, path: str, own_path: str) -> AnyLayer:
        """Return the equal of the module at `path`; parameters will be called `own_path` + name.

        Where there is none, a fault is noted and what is returned stands for nothing.
        """
        if any(getattr(module, hooks) for hooks in HOOKS):
            return self._fault(module, path, "has a hook, of which nothing is known by hand")
        if is_sequence(module):
            return Sequential(
                *(
                    self.layer(child, f"{path}{name}.", f"{own_path}{l}.")
                    for l, (name, child) in enumerate(_children(module))
                )
            )
        if isinstance(module, nn.Identity):
            return Sequential()
        cls = _namesake(module)
        if cls is None:
            own_class = not type(module).__module__.startswith(NAMESAKES)
            way_out = ": it is no nn.Sequential of torch.nn's layers" if own_class else ""
            return self._fault(module, path, f"has no hand-written equal{way_out}")
        settings: dict[str, Any] = {}
        for item in fields(cls):
            if not hasattr(module, item.name):
                if item.default is MISSING:
                    return self._fault(module, path, f"does not tell its {item.name}")
                continue  # the initializer, or a slope at a kink, where torch has no choice
            value = getattr(module, item.name)
            if isinstance(value, nn.Module):  # Residual's inner layer
                inner = f"{item.name}."
                value = self.layer(value, path + inner, own_path + inner)
            elif item.type == "bool" and (value is None or isinstance(value, Tensor)):
                value = value is not None  # bias is a choice here, and a parameter there
            elif value is None and item.default is not None:
                return self._fault(module, path, f"has {item.name}=None: give it a value")
            settings[item.name] = value
        for name, parameter in signature(type(module)).parameters.items():
            value = getattr(module, name, parameter.default)
            if name not in (*settings, *WITHOUT_EFFECT) and value != parameter.default:
                return self._fault(module, path, f"has {name}={value}, which is not there by hand")
        layer = cls(**settings)
        own = [name for name, shape in layer.shapes().items() if not isinstance(shape, Mapping)]
        if {*own} != {name for name, _ in module.named_parameters(recurse=False)}:
            return self._fault(module, path, "has other parameters than by hand")
        self.names |= {own_path + name: path + name for name in own}
        self.leaves[path.removesuffix(".")] = layer
        return layer

    def _fault(self, module: nn.Module, path: str, what: str) -> AnyLayer:
        where = path.removesuffix(".") or "the model"
        self.faults.append(f"{where} ({type(module).__name__}) {what}")
        return Sequential()


def is_sequence(module: nn.Module) -> bool:
    """Return whether it is a nn.Sequential, and does what one does."""
    forward = cast(Any, type(module)).forward
    return isinstance(module, nn.Sequential) and forward is cast(Any, nn.Sequential).forward


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules directly inside, one that stands at two places twice."""
    inside = cast("Iterator[tuple[str, nn.Module]]", module.named_modules(remove_duplicate=False))
    return [(name, child) for name, child in inside if name and "." not in name]


def _namesake(module: nn.Module) -> type[AnyLayer] | None:
    if not type(module).__module__.startswith(NAMESAKES):
        return None
    return next((cls for cls in layers() if cls.__name__ == type(module).__name__), None)
