"""What backpropagation saves: every factor of the chain rule is computed once and handed down.

Source: Kandemir, "gradient backpropagation". For L hidden layers r_l = ∂ŷ/∂f_l follows from r_{l+1}
by one product with W_{l+1}, so all gradients together cost L products; with the chain of each layer
begun anew at the output they cost 1 + 2 + ... + L = L(L+1)/2.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from manualbp.checks.audit import Recorder
from manualbp.explain.networks import Network, transposed
from manualbp.layers import EVALUATION, Linear


@dataclass(frozen=True)
class Pass:
    """The gradients that a backward pass found, and the tensor operations that ran in it."""

    gradients: list[Tensor]  # ∂y/∂W_l, each (n_{l-1}, n_l)
    operations: Counter[str]  # by aten's names

    @property
    def products(self) -> int:
        """Return the number of products with a weight matrix, Σ_o dy[n,o] W[o,i].

        The products with an activation map that make a gradient of weights are aten's addmm_.
        """
        return self.operations["mm"]


def with_stored_factors(net: Network, x: Tensor, dy: Tensor) -> Pass:
    """Go backward once through the whole network, as Sequential does."""
    params, grads = net.params.views, net.params.zeros_like()
    _, saved = net.model.forward(params, x, mode=EVALUATION)
    recorder = Recorder()
    with recorder:
        net.model.backward_parameters(params, saved, dy, grads.views)
    return Pass(transposed(grads), recorder.counts)


def rebuilt_for_each_layer(net: Network, x: Tensor, dy: Tensor) -> Pass:
    """Begin at the output again for every matrix, and keep nothing of the chain before it."""
    params, layers = net.params.views, net.model.layers
    _, saved = net.model.forward(params, x, mode=EVALUATION)
    gradients: list[Tensor] = []
    recorder = Recorder()
    for k, layer in enumerate(layers):
        if not isinstance(layer, Linear):
            continue
        grads = net.params.zeros_like()
        with recorder:
            dh = dy
            for l in range(len(layers) - 1, k, -1):
                dh = layers[l].backward(params[str(l)], saved[l], dh, grads.views[str(l)])
            layer.backward_parameters(params[str(k)], saved[k], dh, grads.views[str(k)])
        gradients.append(grads.views[str(k)].weight.T)
    return Pass(gradients, recorder.counts)
