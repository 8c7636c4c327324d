"""Kandemir, "A1 - Deep Learning"."""

from __future__ import annotations

import torch
from torch import Tensor

from manualbp.explain.errata.entry import erratum
from manualbp.explain.networks import Network, flat, float64, network, values_and_slopes
from manualbp.explain.page import Page
from manualbp.explain.topics.moments import network as moments_network
from manualbp.explain.topics.moments import random_target
from manualbp.explain.worked import example, sequential_gradient
from manualbp.layers import Sigmoid
from manualbp.lectures import figure, setting
from manualbp.moments import backward_moments
from manualbp.optimizers import SGD

DEEP = setting("KAND_3HIDDEN")
X, Y, ALPHA = float64([DEEP["x"]]), float64([[DEEP["y"]]]), DEEP["alpha"]
ONE = float64([[1.0]])


def deep() -> Network:
    """Return the network with three hidden layers, 3-4-3-2-1."""
    return network(DEEP["W"], Sigmoid())


def shallow() -> tuple[Network, Tensor, Tensor]:
    """Return the network with one hidden layer, 3-2-1, its input and target."""
    data = setting("KAND_1HIDDEN")
    net = network([data["W1"], [[w] for w in data["w2"]]], Sigmoid())
    return net, float64([data["x"]]), float64([[data["y"]]])


@erratum(
    "E-KAND-1",
    "the slides on ∇J, l.128, 132, 138 and 144; Error Backpropagation, l.219",
    stands="∇J = (y - ŷ) ∇ŷ",
    right="∇J = -(y - ŷ) ∇ŷ, as J = ½ (y - ŷ)² falls where ŷ comes closer to y.",
)
def _(page: Page) -> None:
    errors = deep().descent(X, Y, SGD(ALPHA)).errors(10)
    page.line(
        "J after 0, 1, 2, 5, 10 updates, right sign",
        "",
        [errors[n] for n in (0, 1, 2, 5, 10)],
        equals=figure("K.J_traj").value[:5],
        because="the figure K.J_traj",
    )
    errors = deep().descent(X, Y, SGD(-ALPHA)).errors(10)
    page.line(
        "J after 0, 1, 2, 5, 10 updates, sign as printed",
        "",
        [errors[n] for n in (0, 1, 2, 5, 10)],
        figure="K.J_traj_literal",
    )


@erratum(
    "E-KAND-2",
    "Error Backpropagation, l.219",
    stands="The brace under (y - ŷ) ∇ŷ says ∇ŷ.",
    right="The product is -∇J; ∇ŷ is its second factor alone.",
)
def _(page: Page) -> None:
    net = deep()
    model_gradient, gradient = net.pull_back(X, ONE)[3], net.gradients(X, Y)[3]
    page.line("∇ŷ by w_4", "h_3", model_gradient, figure="K.grad_yhat_W4")
    page.line("∇J by w_4", "-(y - ŷ) h_3", gradient, figure="K.grad_J_W4")


@erratum(
    "E-KAND-3",
    "Gradients of Layer 2, second slide, l.201",
    stands="∂f_2/∂f_2 as a factor of the chain",
    right="∂h_2/∂f_2, as on l.191. The other is the identity, and loses σ'(f_2).",
)
def _(page: Page) -> None:
    net = deep()
    sent_back = net.stages(X, ONE)[3].dy  # ∂ŷ/∂h_2: what comes into the second sigmoid layer
    below = network(DEEP["W"][:2], Sigmoid())
    rows = [net.pull_back(X, ONE)[1][0], below.pull_back(X, sent_back)[1][0]]
    page.line(
        "∇ŷ by W_2, row 1: right; with ∂f_2/∂f_2",
        "",
        torch.stack(rows),
        figure="K.trap.missing_factor",
    )


@erratum(
    "E-KAND-4",
    "Learning with neural nets, l.103 and 105; the next slide, l.116 and 118",
    stands="maximize, beside argmin; minimum gradient; steps towards the gradient",
    right="J is made small; its gradient becomes 0; steps go against it, as on l.120.",
)
def _(page: Page) -> None:
    net = deep()
    against = net.copy().descent(X, Y, SGD(ALPHA)).errors(1)[1]
    page.line("J after a step against ∇J, W - α ∇J", "", against, figure="K.J_after1")
    page.line(
        "J after a step along ∇J, W + α ∇J",
        "",
        net.copy().descent(X, Y, SGD(-ALPHA)).errors(1)[1],
        figure="K.J_after1_literal",
    )
    lengths: list[float] = []
    for updates in (0, 200):
        net.descent(X, Y, SGD(ALPHA)).errors(updates)
        lengths.append(sum(float((w * w).sum()) for w in net.gradients(X, Y)) ** 0.5)
    page.claim(
        "Where J is smallest the gradient is 0.",
        lengths[1] < 1e-6 * lengths[0],
        f"|∇J| falls from {lengths[0]:.3g} to {lengths[1]:.1g} in 200 updates",
    )


@erratum(
    "E-KAND-5",
    "Gradient Backpropagation, l.228",
    stands="Update from top to bottom, while the gradients are being computed.",
    right="First all gradients, then all updates. A layer that has been updated sends back "
    "something that is no gradient.",
)
def _(page: Page) -> None:
    worked = example()
    right = worked.net.stages(worked.x, worked.net.output_error(worked.x, worked.target))[0].dy
    page.line(
        "∂E/∂w1..w4 of the 2-2-2 example: with the original w5..w8; with the updated ones",
        "",
        [flat(right.T @ worked.x), sequential_gradient(worked)],
        figure="K.trap.sequential",
    )
    page.say("This slip is also behind the printed results of E-CAZE-1.")


@erratum(
    "E-KAND-6",
    "Neural net, l.37; the gradients of Layers 4 to 1, l.173 to 209",
    stands="w_r^l are the weights that leave unit r; f = W^T h, l.45 to 55: those that enter it.",
    right="Rows of W_l in the first reading, columns in the second. The matrix of derivatives is "
    "the same.",
)
def _(page: Page) -> None:
    net, x, _ = shallow()
    f = x[0] @ net.matrices[0]
    _, slope = values_and_slopes(Sigmoid(), f)
    sent_back = slope * net.matrices[1].squeeze(1)
    rows = torch.stack([x_r * sent_back for x_r in x[0]])
    columns = torch.stack([x[0] * d for d in sent_back], 1)
    ours = net.pull_back(x, ONE)[0]
    page.line(
        "∇ŷ by W_1, rows",
        "x_r σ'(f_j) w_2j",
        ours,
        equals=rows,
        because="each of the 3 rows by itself",
    )
    page.line(
        "∇ŷ by W_1, columns",
        "x_r σ'(f_j) w_2j",
        ours,
        equals=columns,
        because="each of the 2 columns by itself",
    )


@erratum(
    "E-KAND-7",
    "Gradient of Layer 4, l.175, against Layers 3 to 1, l.183 to 209",
    stands="∇ŷ is a column (h_3), but the chains, (∂ŷ/∂h)^T times Jacobians, give rows.",
    right="The same numbers; transpose where shapes ask for it.",
)
def _(page: Page) -> None:
    net = deep()
    column = net.pull_back(X, ONE)[3]
    page.line("∇ŷ by w_4, a column", "h_3", column, figure="K.grad_yhat_W4")
    page.line(
        "the same as a row",
        "h_3^T",
        column.T,
        equals=[figure("K.h3").value],
        because="the figure K.h3",
    )


@erratum(
    "E-KAND-8",
    "all of it; The Backprop Algorithm, l.239",
    stands="No biases; and gradients for all r and l, where no r is printed.",
    right="Without biases x = 0 gives h_1 = σ(0) = ½ whatever the weights. r counts units.",
)
def _(page: Page) -> None:
    h = deep().activation_maps(torch.zeros(1, 3, dtype=torch.float64))[0]
    page.line("h_1 at x = 0", "σ(W_1^T 0)", h[0], equals=[0.5] * 4, because="σ(0) = ½")


@erratum(
    "E-KAND-9",
    "Gradient Backpropagation, l.230",
    stands="Random variables and moments can be sent backward, too; no equation.",
    right="For a random target every delta is linear in it, so its moments follow exactly. "
    "See manualbp explain moments.",
)
def _(page: Page) -> None:
    found = backward_moments(*moments_network(), float64([0.05, 0.1]), random_target())
    page.line(
        "mean of ∂E/∂net_h",
        "A (y - m)",
        found.deltas[1].mean,
        equals=figure("K.moments.delta_hid").value[0],
        because="the figure K.moments.delta_hid",
    )
