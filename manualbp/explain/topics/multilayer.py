"""Deep nets: three hidden layers by hand (backprop-step-by-step), a hundred (deep-networks).

Source: Kandemir, "deep neural nets" to "the backprop algorithm"; Porr, end of section 6.
"""

from __future__ import annotations

from math import cos, sin, sqrt

import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from manualbp.checks.audit import Recorder
from manualbp.checks.differences import central_differences
from manualbp.explain.networks import Network, float64, network, values_and_slopes
from manualbp.explain.page import Page
from manualbp.explain.pictures import chart
from manualbp.explain.registry import topic
from manualbp.explain.reuse import rebuilt_for_each_layer, with_stored_factors
from manualbp.initializers import Initializer
from manualbp.layers import EVALUATION, AnyLayer, Linear, ReLU, Sequential, Sigmoid, Tanh
from manualbp.lectures import figure, setting
from manualbp.optimizers import SGD

ONE = float64([[1.0]])
DEPTH = 100
WIDTH = 64


@topic(
    "backprop-step-by-step",
    "Backpropagation through a 3-4-3-2-1 net, every factor stored and counted",
    "R02",
    "R05",
    "R23",
    "R24",
    "R40",
)
def backprop_step_by_step(page: Page) -> None:
    """Write forward pass, backward pass, what is stored and reused, and the update."""
    given = setting("KAND_3HIDDEN")
    W, alpha = [float64(w) for w in given["W"]], given["alpha"]
    x, y = float64([given["x"]]), float64([[given["y"]]])
    net = network(W, Sigmoid())

    page.heading("The net")
    page.say(
        """Three hidden layers with 4, 3 and 2 sigmoid units, one linear output, no biases. The
        matrix W_l has a row for each unit that a weight leaves and a column for each unit that it
        enters."""
    )
    page.given("x", given["x"], "the inputs")
    page.given("y", given["y"], "the target")
    page.given("α", alpha, "the learning rate")
    page.say(
        """The weights follow a rule, so that anybody can make them again:
        W_l[i,j] = 0.5 sin(i + 2j + 3l), with i, j and l counted from 1."""
    )
    page.line(
        "W_1",
        "0.5 sin(i + 2j + 3)",
        W[0],
        equals=[[0.5 * sin(i + 2 * j + 3) for j in range(1, 5)] for i in range(1, 4)],
        because="the rule",
    )

    page.heading("Forward: keep every activation map")
    page.say(
        """Layer by layer f_l[j] = Σ_i h_{l-1}[i] W_l[i,j] and h_l[j] = σ(f_l[j]), where h_0 = x.
        What comes out of a layer is called its activation map. The backward pass will need all of
        them, so they are stored."""
    )
    for l, h in enumerate(net.activation_maps(x), 1):
        page.line(f"h_{l}", f"σ(Σ_i h_{l - 1}[i] W_{l}[i,j])", h[0], figure=f"K.h{l}")
    yhat = net.predict(x).item()
    page.line("ŷ", "Σ_i h_3[i] W_4[i,1]", yhat, figure="K.yhat")
    page.line(
        "J",
        "½ (y - ŷ)²",
        net.error(x, y),
        numbers=f"½ ({given['y']} - {yhat:.6g})²",
        figure="K.J",
    )

    page.heading("Backward: each factor from the one above")
    page.say(
        """Let r_l[j] = ∂ŷ/∂f_l[j] say how much the output moves when the sum in unit j of layer l
        does. At the top r_4 = 1, for ŷ = f_4. One layer down a unit acts on ŷ through all units
        above it, and its own slope σ'(f) = h (1 - h) comes from the stored map."""
    )
    stages = net.stages(x, ONE)
    below = {l: stages[2 * l - 2].dy for l in (1, 2, 3)}  # ∂ŷ/∂f_l, which enters Linear l
    for l in (3, 2, 1):
        page.line(
            f"r_{l}",
            f"(Σ_k W_{l + 1}[j,k] r_{l + 1}[k]) h_{l}[j] (1 - h_{l}[j])",
            below[l][0],
            equals=numerical_r(W, l, stages[2 * l - 2].y)[0],
            because=f"central differences of ŷ by f_{l}",
            absolute=1e-9,
        )
    page.say(
        """With these, every weight has its gradient: it multiplies what comes in at its beginning,
        h_{l-1}[i], and acts through r_l[j] at its end."""
    )
    of_yhat, of_J = net.pull_back(x, ONE), net.gradients(x, y)
    page.line("∂ŷ/∂W_4[i]", "h_3[i]", of_yhat[3], figure="K.grad_yhat_W4")
    for l in (3, 2, 1):
        page.line(
            f"∂ŷ/∂W_{l}[i,j]",
            f"{f'h_{l - 1}' if l > 1 else 'x'}[i] r_{l}[j]",
            of_yhat[l - 1],
            figure=f"K.grad_yhat_W{l}",
        )
    page.say(
        """Every layer has its slope in this chain. The lecture prints ∂f_2/∂f_2, which is 1, where
        ∂h_2/∂f_2 belongs. Without that factor the first row of ∂ŷ/∂W_2 comes out four times too
        large:"""
    )
    page.line(
        "without h_2 (1 - h_2)",
        "h_1[1] Σ_k W_3[j,k] r_3[k]",
        stages[2].x[0, 0] * stages[3].dy[0],
        equals=figure("K.trap.missing_factor").value[1],
        because="what the lecture's line comes to, K.trap.missing_factor",
    )

    page.heading("What the storing saves")
    page.say(
        """Counted while it runs, by a recorder that sees every tensor operation: one backward pass
        that hands each r down, and the same gradients with the chain of each matrix begun anew at
        the output. A product is Σ_k W[j,k] r[k] for all j."""
    )
    stored, rebuilt = with_stored_factors(net, x, ONE), rebuilt_for_each_layer(net, x, ONE)
    page.line(
        "products",
        "[L, L (L+1) / 2] for L = 3 hidden layers",
        [stored.products, rebuilt.products],
        numbers="[1 + 1 + 1, 1 + 2 + 3]",
        figure="K.reuse_counts",
    )
    page.claim(
        "Both give the same gradients to the last bit.",
        all(map(torch.equal, stored.gradients, rebuilt.gradients)),
    )
    recorder = Recorder()
    with recorder:
        net.model.forward(net.params.views, x, mode=EVALUATION)
    page.claim(
        "σ is evaluated for each layer on the way forward, and not once more on the way back.",
        recorder.counts["sigmoid"] == 3 and stored.operations["sigmoid"] == 0,
        f"{recorder.counts['sigmoid']} times forward, {stored.operations['sigmoid']} backward",
    )
    rows: list[tuple[int, int, int]] = []
    for hidden in (1, 3, 10, 30):
        deep = network([rotation(l) for l in range(1, hidden + 2)], Tanh())
        start, dy = float64([[0.5, -0.25]]), float64([[1.0, 1.0]])
        counts = [
            f(deep, start, dy).products for f in (with_stored_factors, rebuilt_for_each_layer)
        ]
        rows.append((hidden, counts[0], counts[1]))
    page.table(("hidden layers", "stored", "begun anew"), rows, "Products of a backward pass")
    page.claim(
        "It is L products against L (L+1) / 2, at every depth.",
        all((s, b) == (L, L * (L + 1) // 2) for L, s, b in rows),
    )

    page.heading("Error times gradient of the model")
    page.say(
        """J depends on the weights through ŷ alone, so its gradient is ∂J/∂ŷ = -(y - ŷ) times what
        was just found. Mind the minus: the lecture's slides leave it out."""
    )
    for l in (4, 3, 2, 1):
        page.line(
            f"∂J/∂W_{l}",
            f"-(y - ŷ) ∂ŷ/∂W_{l}",
            of_J[l - 1],
            numbers=f"-({given['y']} - {yhat:.6g}) ∂ŷ/∂W_{l}",
            figure=f"K.grad_J_W{l}",
        )

    page.heading("Update, and again")
    page.say(
        """Only now do the weights change, all at once: W_l ← W_l - α ∂J/∂W_l. Had W_4 changed
        before r_3 was formed, r_3 would not be the factor of the net that gave ŷ."""
    )
    down, up = (net.copy().descent(x, y, SGD(rate)).errors(100) for rate in (alpha, -alpha))
    page.line("J after 1 update", "½ (y - ŷ)²", down[1], figure="K.J_after1")
    page.line(
        "J after 0, 1, 2, 5, 10, 50, 100",
        "½ (y - ŷ)²",
        [down[n] for n in (0, 1, 2, 5, 10, 50, 100)],
        figure="K.J_traj",
    )
    wrong = figure("K.J_traj_literal").value
    page.claim(
        "With the sign as it is printed J rises instead.",
        all(abs(up[n] - v) < 1e-12 for n, v in zip((0, 1, 2, 5, 10), wrong, strict=True)),
        "J = " + ", ".join(f"{up[n]:.4f}" for n in (0, 1, 2, 5, 10)) + " after 0, 1, 2, 5, 10",
    )
    page.picture(
        "descent",
        "J over the updates with the right sign and with the printed one, α = 0.1.",
        lambda: draw_descent(down, up[:21]),
    )


@topic("deep-networks", "How deep? Nets of 1, 2, 3 and 100 hidden layers", "R40")
def deep_networks(page: Page) -> None:
    """Write outputs and gradients at several depths, and what happens to the backward signal."""
    page.heading("The same recipe at any depth")
    page.say(
        """Nothing in the recipe counts the layers: h_l = σ(h_{l-1} W_l) forward and
        r_{l-1} = (r_l W_lᵀ) * σ'(f_{l-1}) backward, as often as there are layers."""
    )
    one = setting("KAND_1HIDDEN")
    shallow = network([one["W1"], [[w] for w in one["w2"]]], Sigmoid())
    page.line(
        "ŷ, 1 hidden layer",
        "Σ_i h_1[i] w_2[i]",
        shallow.predict(float64([one["x"]])).item(),
        equals=figure("K.net1").value[2],
        because="the figure K.net1",
    )
    for hidden, name, known in ((2, "KAND_2HIDDEN", "K.net2"), (3, "KAND_3HIDDEN", "K.yhat")):
        given = setting(name)
        output = network(given["W"], Sigmoid()).predict(float64([given["x"]])).item()
        equation = f"Σ_i h_{hidden}[i] w_{hidden + 1}[i]"
        page.line(f"ŷ, {hidden} hidden layers", equation, output, figure=known)
    deep, x = hundred_rotations(Tanh())
    page.say(
        """And a hundred hidden layers of two tanh units. W_l turns the plane by the angle l:
        W_l = [[cos l, -sin l], [sin l, cos l]]; the inputs are (0.5, -0.25), the output adds both
        units up."""
    )
    gradients = deep.pull_back(x, ONE)
    known = figure("K.deep100").value
    page.line(
        "ŷ, 100 hidden layers",
        "h_100[1] + h_100[2]",
        deep.predict(x).item(),
        equals=known[0],
        because="the figure K.deep100",
    )
    page.line(
        "∂ŷ/∂W_1[i,j]",
        "x[i] r_1[j]",
        gradients[0],
        equals=known[1],
        because="the figure K.deep100",
    )
    autograd = deep.through_autograd(x, ONE)
    worst = max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(gradients, autograd, strict=True)
    )
    page.claim(
        "All 101 gradients are autograd's.",
        worst < 1e-12,
        f"largest relative difference {worst:.1e}",
    )

    page.heading("What a hundred factors do to the signal")
    page.say(
        """Each layer multiplies the backward signal r by a matrix and by slopes. A rotation keeps
        its length, so linear layers that rotate hand it down unchanged. The slopes of tanh are at
        most 1, those of the sigmoid at most ¼: a hundred of them can make r as short as
        ¼ · ¼ · ... = 4⁻¹⁰⁰ of what it was."""
    )
    linear, sigmoid = hundred_rotations(None)[0], hundred_rotations(Sigmoid())[0]
    lengths = {
        "linear": backward_lengths(linear, x),
        "tanh": backward_lengths(deep, x),
        "sigmoid": backward_lengths(sigmoid, x),
    }
    page.table(
        ("layer", *lengths),
        [(l, *(f"{lengths[unit][l - 1]:.3g}" for unit in lengths)) for l in (100, 75, 50, 25, 1)],
        "Length of r_l = ∂ŷ/∂f_l, by the kind of unit",
    )
    page.line(
        "|r_1|, linear",
        "|r_100|",
        lengths["linear"][0],
        equals=sqrt(2),
        because="the length of the output weights, (1, 1)",
    )
    page.claim(
        """Through sigmoid units no more is left than 4⁻¹⁰⁰ √2; a step of any usual size leaves W_1
        as it is.""",
        lengths["sigmoid"][0] <= sqrt(2) * 4.0**-DEPTH,
        f"|r_1| = {lengths['sigmoid'][0]:.1e}, the bound is {sqrt(2) * 4.0**-DEPTH:.1e}",
    )
    page.say(
        """Through tanh the signal shrinks too, but ever more slowly: activations come closer to 0
        from layer to layer, and there the slope of tanh is 1."""
    )

    page.heading("So the start matters")
    page.say(
        f"""Weights of the right size do for random matrices what rotations do: they keep the length
        about the same. Below are nets of {DEPTH} layers of {WIDTH} units with weights drawn at
        random (seed {page.seed}). "Glorot" keeps it for tanh, "He" for ReLU, which lets half of the
        signal through; torch's default is smaller than both."""
    )
    kinds: dict[str, tuple[AnyLayer, Initializer]] = {
        "ReLU, He": (ReLU(), "he"),
        "tanh, Glorot": (Tanh(), "xavier"),
        "tanh, torch's": (Tanh(), "torch"),
        "ReLU, torch's": (ReLU(), "torch"),
        "sigmoid, Glorot": (Sigmoid(), "xavier"),
    }
    drawn = {name: drawn_lengths(*kind, page.seed) for name, kind in kinds.items()}
    page.table(
        ("net", "layer 100", "layer 50", "layer 1"),
        [(name, *(f"{values[l - 1]:.3g}" for l in (100, 50, 1))) for name, values in drawn.items()],
        "Length of ∂E/∂h_l, where ∂E/∂h_100 has length 1",
    )
    page.claim(
        "He keeps more than torch's default for ReLU, and Glorot for tanh.",
        drawn["ReLU, He"][0] > 1e10 * drawn["ReLU, torch's"][0]
        and drawn["tanh, Glorot"][0] > 1e10 * drawn["tanh, torch's"][0],
    )
    page.picture(
        "lengths",
        "Length of the backward signal from the output (left) to the first layer (right).",
        lambda: draw_lengths(lengths, drawn),
    )

    page.heading("A hundred layers learn")
    target = float64([[0.7]])
    losses = deep.copy().descent(x, target, SGD(0.1)).errors(10)
    page.claim(
        "10 updates of the 100 rotating tanh layers, α = 0.1, bring ŷ close to its target 0.7.",
        losses[-1] < 0.01 * losses[0],
        f"J = {losses[0]:.4g} before, {losses[-1]:.4g} after",
    )
    still = sigmoid.copy()
    still.descent(x, target, SGD(0.1)).run(10)
    page.claim(
        "In the sigmoid net the same 10 updates leave W_1 as it was, to the last bit.",
        torch.equal(still.matrices[0], sigmoid.matrices[0]),
    )


def numerical_r(W: list[Tensor], l: int, f: Tensor) -> Tensor:
    """Return ∂ŷ/∂f_l from differences: f_l is moved, the net above it evaluated."""
    above, f = network(W[l:], Sigmoid()), f.clone()
    return central_differences(lambda: above.predict(values_and_slopes(Sigmoid(), f)[0]), f, ONE)


def rotation(angle: float) -> list[list[float]]:
    """Return the matrix by which a row vector is turned."""
    return [[cos(angle), -sin(angle)], [sin(angle), cos(angle)]]


def hundred_rotations(unit: AnyLayer | None) -> tuple[Network, Tensor]:
    """Return the lecture's net of 100 hidden layers with another kind of unit, and its inputs."""
    given = setting("DEEP100")
    turns = [rotation(l) for l in range(1, given["layers"] + 1)]
    return network([*turns, [[w] for w in given["w_out"]]], unit), float64([given["x"]])


def backward_lengths(net: Network, x: Tensor) -> list[float]:
    """Return |∂ŷ/∂f_1|, ..., |∂ŷ/∂f_100|."""
    inner = [s for s in net.stages(x, ONE) if isinstance(s.layer, Linear)][:-1]
    return [length(s.dy) for s in inner]


def drawn_lengths(unit: AnyLayer, initializer: Initializer, seed: int) -> list[float]:
    """Return |∂E/∂h_1|, ..., |∂E/∂h_100| of a net with random weights, where the last is 1."""
    linear = Linear(WIDTH, WIDTH, bias=False, initializer=initializer)
    model = Sequential(*[linear, unit] * DEPTH)
    generator = torch.Generator().manual_seed(seed)
    net = Network(model, model.parameters(generator, dtype=torch.float64))
    x = torch.randn(1, WIDTH, generator=generator, dtype=torch.float64)
    dy = torch.randn(1, WIDTH, generator=generator, dtype=torch.float64)
    stages = net.stages(x, dy / length(dy))
    return [length(s.dy) for s in stages[1::2]]


def length(r: Tensor) -> float:
    """Return √(Σ_j r[j]²)."""
    return float((r * r).sum().sqrt())


def draw_descent(down: list[float], up: list[float]) -> Picture:
    """Draw J over the updates."""
    picture, axes = chart()
    axes.plot(down, label="W - α ∂J/∂W")
    axes.plot(up, label="with the printed sign")
    axes.set(xlabel="update", ylabel="J", yscale="log")
    axes.legend()
    return picture


def draw_lengths(turned: dict[str, list[float]], drawn: dict[str, list[float]]) -> Picture:
    """Draw the length of the backward signal over the layers."""
    picture, axes = chart(8, 4.5)
    for name, values in turned.items():
        axes.plot(range(1, DEPTH + 1), values, label=f"{name}, rotations")
    for name, values in drawn.items():
        axes.plot(range(1, DEPTH + 1), values, "--", label=name)
    axes.set(xlabel="layer", ylabel="length of the backward signal", yscale="log")
    axes.invert_xaxis()
    axes.legend(fontsize=8)
    return picture
