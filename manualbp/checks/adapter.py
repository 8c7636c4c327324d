"""A hand-written layer inside an ordinary torch model: its two passes as a torch.autograd.Function.

    net = nn.Sequential(nn.Linear(4, 8), as_function(Maxout(8, 3)), nn.Softmax(-1))

Autograd then calls the hand-written backward pass where it would else use its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from manualbp.errors import UsageError
from manualbp.layers import AnyLayer, Layer, Mode
from manualbp.parameters import Parameters, Shapes, Views


def as_function(
    layer: AnyLayer,
    parameters: Parameters | None = None,
    *,
    generator: torch.Generator | None = None,
) -> HandWritten:
    """Return a torch.nn.Module whose gradients come from the layer's own backward pass.

    Its parameters and its state dict have torch.nn's names. They begin with the values of
    `parameters`, or as `layer.parameters()` draws them. Random layers draw from `generator`; None
    is torch's default. `train()` and `eval()` switch the layer's mode.
    Raises UsageError for what is no layer of manualbp.
    """
    if not isinstance(cast(object, layer), Layer):
        raise UsageError(
            f"as_function takes a layer such as manualbp.layers.Linear(4, 3), not a "
            f"{type(layer).__name__}"
        )
    return HandWritten(layer, parameters or layer.parameters(), generator)


class HandWritten(nn.Module):
    """A layer with its parameters. Made by `as_function`."""

    def __init__(
        self, layer: AnyLayer, parameters: Parameters, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.layer = layer
        self.generator = generator
        for name, value in parameters.state_dict().items():
            *path, last = name.split(".")
            part: nn.Module = self
            for step in path:
                if step not in dict(part.named_children()):
                    part.add_module(step, nn.Module())
                part = part.get_submodule(step)
            part.register_parameter(last, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        """Return y. It can be differentiated once."""
        # A weight that is shared under two names is asked for, and differentiated, twice.
        weights = [weight for _, weight in self.named_parameters(remove_duplicate=False)]
        mode = Mode(self.training, self.generator)
        return cast(Any, Passes).apply(self.layer, mode, x, *weights)

    def extra_repr(self) -> str:
        """Return the layer with its hyper-parameters."""
        return repr(self.layer)


class Passes(torch.autograd.Function):
    """`apply(layer, mode, x, *weights)` is y; the weights come in the order of `Views.named`."""

    @staticmethod
    def forward(ctx: Any, layer: AnyLayer, mode: Mode, x: Tensor, *weights: Tensor) -> Tensor:
        """Make the layer's forward pass."""
        y, saved = layer.forward(_views(layer.shapes(), iter(weights)), x, mode=mode)
        leaves, ctx.structure = tree_flatten(saved)
        # Autograd keeps the tensors themselves: it notices when one is overwritten, and lets go of
        # them after the backward pass.
        ctx.save_for_backward(*weights, *(leaf for leaf in leaves if isinstance(leaf, Tensor)))
        ctx.others = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        ctx.layer, ctx.count = layer, len(weights)
        # An output that shares its memory with another tensor may not be changed in place, as
        # nn.ReLU(inplace=True) after this layer would.
        return y.clone() if y is x or cast(Any, y)._is_view() else y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Make the layer's backward pass; None for x and weights that need no gradient.

        Raises RuntimeError with `create_graph=True`: what the pass does is not recorded, so that a
        second derivative would miss a part.
        """
        layer: AnyLayer = ctx.layer
        if torch.is_grad_enabled():
            name = type(layer).__name__
            raise RuntimeError(
                f"the hand-written {name} has first derivatives only: leave out "
                "create_graph=True, or put its torch.nn twin here"
            )
        (dy,) = grad_outputs
        tensors = iter(cast(tuple[Tensor, ...], ctx.saved_tensors))
        weights = [next(tensors) for _ in range(ctx.count)]
        leaves = [next(tensors) if other is None else other[0] for other in ctx.others]
        saved = tree_unflatten(leaves, ctx.structure)
        _, _, x_needs, *weights_need = cast(tuple[bool, ...], ctx.needs_input_grad)
        found = [torch.zeros_like(w, memory_format=torch.contiguous_format) for w in weights]
        params, grads = _views(layer.shapes(), iter(weights)), _views(layer.shapes(), iter(found))
        dx = None
        if x_needs:
            dx = layer.backward(params, saved, dy, grads)
        else:  # x is data, or whole numbers, which have no gradient
            layer.backward_parameters(params, saved, dy, grads)
        needed = zip(found, weights_need, strict=True)
        return None, None, dx, *(grad if needs else None for grad, needs in needed)


def _views(shapes: Shapes, tensors: Iterator[Tensor]) -> Views:
    """Return the tensors by their names in `shapes`: those of a layer before those inside it."""
    own = {name: next(tensors) for name, s in shapes.items() if not isinstance(s, Mapping)}
    parts = {name: _views(s, tensors) for name, s in shapes.items() if isinstance(s, Mapping)}
    return Views(own, parts)
