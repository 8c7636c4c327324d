"""Why the outputs of a softmax trained with the cross-entropy are posterior probabilities."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from manualbp.explain.examples import linear_model, rows
from manualbp.explain.networks import Network, float64, nested
from manualbp.explain.page import Page
from manualbp.explain.registry import topic
from manualbp.explain.topics.least_squares import least_squares, one_hot
from manualbp.explain.topics.logistic_regression import K_CLASSES, maximum_likelihood
from manualbp.layers import Linear, Sequential, Softmax
from manualbp.lectures import setting
from manualbp.optimizers import SGD
from manualbp.parameters import Parameters

ETA = 0.1
UPDATES = 2000


def counts() -> Tensor:
    """Return the example: how often each class (column) was seen at x = 0, 1, 2 (row)."""
    return float64(setting("POSTERIOR")["counts"])


def examples(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return an example for each count: one-hot x (N, rows) and classes (N,)."""
    times = table.flatten().long()
    cells = torch.arange(len(times)).repeat_interleave(times)
    units = torch.eye(len(table), dtype=torch.float64)
    return units[cells // table.shape[1]], cells % table.shape[1]


def untrained(table: Tensor) -> Network:
    """Return softmax regression on one-hot x, without bias, with W = 0."""
    model = Sequential(Linear(*table.shape, bias=False))
    params = Parameters.zeros(model.shapes(), dtype=torch.float64)
    return Network(model, params, K_CLASSES)


def probabilities(net: Network, x: Tensor) -> Tensor:
    """Return the softmax of the network's logits."""
    return Softmax().forward(Parameters.zeros({}).views, net.predict(x))[0]


def learned(table: Tensor) -> tuple[Network, Tensor]:
    """Return the network trained on the counts, and its outputs, a row for each x."""
    x, classes = examples(table)
    net = untrained(table)
    net.descent(x, classes, SGD(ETA)).run(UPDATES)
    return net, probabilities(net, torch.eye(len(table), dtype=torch.float64))


def bell_curves(examples_per_class: int, mean: float) -> tuple[Tensor, Tensor]:
    """Return x (2N, 1) with N(-mean, 1) for t = 0 and N(mean, 1) for t = 1, t (2N, 1).

    The numbers are the middles of N parts of equal probability, the same in every run.
    """
    p = (torch.arange(examples_per_class, dtype=torch.float64) + 0.5) / examples_per_class
    x = (2 * p - 1).erfinv() * sqrt(2)
    t = torch.zeros(2 * examples_per_class, dtype=torch.float64)
    t[examples_per_class:] = 1
    return torch.cat([x - mean, x + mean]).unsqueeze(1), t.unsqueeze(1)


@topic("posteriors", "Softmax outputs become posterior probabilities", "R37")
def _posteriors(page: Page) -> None:
    _frequencies(page)
    _bayes(page)


def _frequencies(page: Page) -> None:
    table = counts()
    x, classes = examples(table)
    observed = table / table.sum(1, keepdim=True)
    names = ("x", "class 1", "class 2", "class 3")

    page.heading("Class frequencies")
    page.say(
        """Thirty examples: each x was seen ten times, and not always with the same class. The
        best that a model can say about an x is how often each class came with it."""
    )
    page.table(
        names, [(str(j), *(int(n) for n in row)) for j, row in enumerate(table)], "How often"
    )
    page.say(
        f"""The model has a row of logits for each x (φ is one-hot) and a softmax on top. It starts
        at W = 0, where all classes are equally probable, and makes {UPDATES} updates with all
        examples and η = {ETA}. It is shown examples with their classes, and never a
        frequency."""
    )
    net, y = learned(table)
    page.line(
        "y_k(x), rows x",
        "exp(a_k(x)) / Σ_j exp(a_j(x))",
        y,
        figure="D.posterior",
    )
    page.line(
        "p_k(x), rows x",
        "n_k(x) / Σ_j n_j(x)",
        observed,
        equals=y,
        because="what the network learned",
    )

    page.heading("Why")
    page.say(
        """The gradient is Σ_n (y_nk - t_nk) φ_n. With one-hot φ its entry for x is
        n(x) y_k(x) - n_k(x): the sum of the outputs minus the number of times that the class
        came. It is zero when y_k(x) is the frequency, and only then."""
    )
    largest = float(net.gradient(x, classes).flat.abs().max())
    page.claim(
        "After training the gradient is zero but for rounding.",
        largest < 1e-12,
        f"max |∂E/∂w| = {largest:.1e}",
    )
    page.line(
        "E",
        "E = -Σ_n Σ_k t_nk ln y_nk",
        net.error(x, classes),
        equals=float(-(table * observed.log()).sum()),
        because="-Σ_x Σ_k n_k(x) ln p_k(x), which no model can go below",
    )
    page.line(
        "y_k(x), least squares",
        "b_k + Σ_i w_ki φ_i",
        least_squares(x[:, 1:], one_hot(classes)).predict(
            torch.eye(len(table), dtype=torch.float64)[:, 1:]
        ),
        equals=observed,
        because="the frequencies: the mean of targets 0 and 1 is the nearest to them all",
    )
    page.say(
        """So a squared error leads to the frequencies as well, where the model can take any value
        at each x. But only the softmax makes sure on the way, and for every other x, that the
        outputs are positive and sum to 1."""
    )
    page.say("And a stiffer model, whose logits a_k = w_k0 + w_k1 x are straight lines?")
    straight = x @ torch.arange(float(len(table)), dtype=torch.float64).unsqueeze(1)
    stiff = linear_model(torch.zeros(3, 2, dtype=torch.float64), K_CLASSES)
    stiff.descent(straight, classes, SGD(0.01)).run(UPDATES)
    outputs = probabilities(stiff, straight)
    page.line(
        "Σ_n y_nk",
        "Σ_n softmax_k(w_k0 + w_k1 x_n)",
        outputs.sum(0),
        equals=table.sum(0),
        because="Σ_n t_nk: where ∂E/∂w_k0 = Σ_n (y_nk - t_nk) is zero",
        tolerance=1e-6,
    )
    page.claim(
        """It cannot follow these counts: its outputs are right on average, but they are not the
        frequencies of each x.""",
        float((outputs - x @ observed).abs().max()) > 0.1,
        f"largest difference {float((outputs - x @ observed).abs().max()):.2f}",
    )
    page.picture(
        "frequencies",
        "The outputs for the three x during training, and the observed frequencies (dashed).",
        _draw_frequencies,
    )


def _bayes(page: Page) -> None:
    page.heading("Two bell curves and Bayes' rule")
    page.say(
        """Let class 1 be spread around x = 1 and class 0 around x = -1, both as normal
        distributions of variance 1, and equally often. Bayes' rule gives the posterior
        p(1|x) = p(x|1) / (p(x|0) + p(x|1)) = σ(a), where a is the log of the ratio of the two
        densities: a = -½ (x - 1)² + ½ (x + 1)² = 2x. That is a straight line, so logistic
        regression can learn it exactly, from examples with classes alone."""
    )
    for n in (20, 200, 2000):
        w0, w1 = nested(rows(maximum_likelihood(*bell_curves(n, 1.0)).params).flatten())
        page.claim(
            f"With {n} examples of each class a = w_0 + w_1 x comes near to 2x.",
            abs(w0) < 1e-9 and abs(w1 - 2) < 2 / n**0.75,
            f"w_1 = {w1:.6f}, and w_0 = 0, as the examples are symmetric",
        )
    page.picture(
        "bayes",
        "Two classes of 200 examples each as histograms, Bayes' posterior σ(2x), and the output "
        "of logistic regression trained on the examples.",
        _draw_bayes,
    )


def _draw_frequencies() -> Picture:
    table = counts()
    x, classes = examples(table)
    units = torch.eye(len(table), dtype=torch.float64)
    net = untrained(table)
    training = net.descent(x, classes, SGD(ETA))
    seen: list[Tensor] = []
    for _ in range(41):
        seen.append(probabilities(net, units))
        training.run(1)
    outputs = torch.stack(seen)
    picture = Picture(figsize=(8.0, 3.0), layout="constrained")
    panels: Any = picture.subplots(1, len(table), sharey=True)
    for j, axes in enumerate(panels):
        for k, color in enumerate(("tab:blue", "tab:orange", "tab:green")):
            axes.plot(outputs[:, j, k], color=color, label=f"class {k + 1}")
            axes.axhline(
                float(table[j, k] / table[j].sum()), color=color, linestyle="--", linewidth=0.8
            )
        axes.set(xlabel="updates", title=f"x = {j}", ylim=(0, 1))
    panels[0].set_ylabel("y_k")
    panels[0].legend()
    return picture


def _draw_bayes() -> Picture:
    x, t = bell_curves(200, 1.0)
    grid = torch.linspace(-4, 4, 200, dtype=torch.float64).unsqueeze(1)
    found = maximum_likelihood(x, t).predict(grid).sigmoid()
    picture = Picture(figsize=(6.0, 3.8), layout="constrained")
    axes: Any = picture.subplots()
    for k, color in enumerate(("tab:blue", "tab:orange")):
        edges = nested(torch.linspace(-4, 4, 33))
        axes.hist(
            x[t == k].numpy(), edges, color=color, alpha=0.4, density=True, label=f"class {k}"
        )
    axes.plot(grid, (2 * grid).sigmoid(), "k--", label="Bayes, σ(2x)")
    axes.plot(grid, found, color="tab:red", linewidth=1, label="logistic regression")
    axes.set(xlabel="x", ylabel="density, and p(1|x)")
    axes.legend(loc="upper left")
    return picture
