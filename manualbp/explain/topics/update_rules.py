"""Update rules: plain descent, momentum, Nesterov's two forms, AdaGrad and RMSProp on one bowl."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from manualbp.explain.examples import worked_example_descent
from manualbp.explain.networks import float64
from manualbp.explain.page import Page
from manualbp.explain.pictures import chart
from manualbp.explain.registry import topic
from manualbp.lectures import setting
from manualbp.optimizers import SGD, Adagrad, LookAheadNesterov, Optimizer, RMSprop, descend, steps

CURVATURE = float64([1.0, 10.0])
"""Of the bowl: how fast its slope grows along w1 and along w2."""
START = float64(setting("QUAD")["w0"])
SEEN = [1, 2, 3, 10, 100]
"""The steps after which the points are compared."""

RULES: Mapping[str, Optimizer] = {
    "gd": SGD(0.05),
    "momentum": SGD(0.05, momentum=0.9),
    "nesterov_lookahead_form": LookAheadNesterov(0.05, momentum=0.9),
    "nesterov_torch_form": SGD(0.05, momentum=0.9, nesterov=True),
    "adagrad": Adagrad(0.5, eps=1e-8),
    "adagrad_eps_inside": Adagrad(0.5, initial_accumulator_value=1e-8, eps=0.0),
    "rmsprop": RMSprop(0.05, alpha=0.9, eps=1e-8),
    "rmsprop_eps_inside": RMSprop(0.05, alpha=0.9, eps=1e-8, eps_inside_root=True),
}
"""The rules, under the names of the figures."""

LABELS = {
    "gd": "gradient descent",
    "momentum": "momentum",
    "nesterov_lookahead_form": "Nesterov",
    "adagrad": "AdaGrad",
    "rmsprop": "RMSProp",
}
"""The rules of the race."""


def bowl(w: Tensor) -> Tensor:
    """Return E = ½ (w1² + 10 w2²) for points w (..., 2)."""
    return 0.5 * (CURVATURE * w * w).sum(-1)


def bowl_gradient(w: Tensor) -> Tensor:
    """Return ∂E/∂w = (w1, 10 w2)."""
    return CURVATURE * w


def bowl_path(name: str, updates: int = 100) -> Tensor:
    """Return the points (updates + 1, 2) of one of RULES from (5, 1)."""
    return descend(RULES[name], bowl_gradient, START, updates)


def worked_example_errors(momentum: float, updates: int) -> list[float]:
    """Return E of the 2-2-2 network before and after each update, at η = 0.5."""
    return worked_example_descent(SGD(0.5, momentum)).errors(updates)


@topic("optimizers", "Update rules, step by step", "R29", "R30", "R31", "R32")
def optimizers(page: Page) -> None:
    """Walk each rule through its first steps, then let them race."""
    page.say(
        """All rules get the same: the weights w and the gradient g = ∂E/∂w. They differ in what
        they remember. Here they go down a bowl ten times as steep across as along, so that no
        single rate suits both directions."""
    )
    page.given("w(0)", START)
    page.line(
        "g(0)",
        "(w1, 10 w2), as E = ½ (w1² + 10 w2²)",
        bowl_gradient(START),
        numbers="(5, 10 · 1)",
        equals=[
            float(bowl(START + h) - bowl(START - h)) / 2e-6
            for h in (float64([1e-6, 0]), float64([0, 1e-6]))
        ],
        because="central differences",
        tolerance=1e-8,
    )
    _plain(page)
    _momentum(page)
    _nesterov(page)
    _adagrad(page)
    _rmsprop(page)
    _race(page)
    _on_a_network(page)


def _first_steps(name: str) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Return w, g and memory after the first three steps."""
    return list(islice(steps(RULES[name], bowl_gradient, START), 3))


def _points(page: Page, name: str) -> None:
    """Write the points after SEEN steps, each held against the figure."""
    path = bowl_path(name)
    names = ", ".join(f"w({step})" for step in SEEN)
    page.line(names, "", path[SEEN], figure=f"Z.opt.{name}")


def _plain(page: Page) -> None:
    page.heading("Gradient descent")
    page.say("w ← w - η g, with η = 0.05. It remembers nothing.")
    page.line(
        "w(1)",
        "w(0) - η g(0)",
        bowl_path("gd", 1)[1],
        numbers="(5 - 0.05 · 5, 1 - 0.05 · 10)",
        equals=[4.75, 0.5],
        because="the numbers put in",
    )
    _points(page, "gd")
    page.line(
        "w_i(100)",
        "(1 - η c_i)^100 w_i(0), c = (1, 10)",
        bowl_path("gd")[100],
        equals=[0.95**100 * 5, 0.5**100],
        because="the closed form",
    )


def _momentum(page: Page) -> None:
    page.heading("Momentum")
    page.say(
        """The lecture: Δw(n) = η δ x + α Δw(n-1), with Δw(0) = 0. As δ x = -g, and with the
        velocity v = -Δw/η: v ← α v + g, w ← w - η v. Steps that agree add up, steps that go back
        and forth cancel. η = 0.05, α = 0.9."""
    )
    (w1, _, m1), (w2, g1, m2), _ = _first_steps("momentum")
    v = "momentum_buffer"
    page.line("v(1)", "α · 0 + g(0)", m1[v], equals=bowl_gradient(START), because="the gradient")
    page.line(
        "w(1)",
        "w(1) = w(0) - η v(1)",
        w1,
        numbers="(5 - 0.05 · 5, 1 - 0.05 · 10)",
        equals=bowl_path("gd", 1)[1],
        because="the first step of plain descent",
    )
    page.line(
        "v(2)",
        "v(2) = α v(1) + g(1)",
        m2[v],
        numbers=f"(0.9 · 5 + {g1[0]:g}, 0.9 · 10 + {g1[1]:g})",
        equals=[0.9 * 5 + 4.75, 0.9 * 10 + 5],
        because="the numbers put in",
    )
    page.line(
        "w(2)",
        "w(2) = w(1) - η v(2)",
        w2,
        numbers=f"(4.75 - 0.05 · {m2[v][0]:g}, 0.5 - 0.05 · {m2[v][1]:g})",
        equals=[4.75 - 0.05 * 9.25, 0.5 - 0.05 * 14],
        because="the numbers put in",
    )
    _points(page, "momentum")


def _nesterov(page: Page) -> None:
    page.heading("Nesterov's accelerated gradient")
    page.say(
        """Momentum, but the gradient is taken where the momentum is about to lead:
        v ← γ v + η g(w - γ v), w ← w - v. The lecture has the name only; this is the usual form.
        η = 0.05, γ = 0.9. (manualbp keeps the velocity with the other sign: w ← w + v.)"""
    )
    (w1, _, m1), (w2, g2, _), _ = _first_steps("nesterov_lookahead_form")
    v1 = -m1["velocity"]
    page.line(
        "v(1)",
        "v(1) = γ · 0 + η g(w(0))",
        v1,
        numbers="(0.05 · 5, 0.05 · 10)",
        equals=[0.25, 0.5],
        because="the numbers put in",
    )
    ahead = w1 - 0.9 * v1
    page.line(
        "w(1) - γ v(1)",
        "",
        ahead,
        numbers="(4.75 - 0.9 · 0.25, 0.5 - 0.9 · 0.5)",
        equals=[4.525, 0.05],
        because="the numbers put in",
    )
    page.line(
        "g there",
        "g(w(1) - γ v(1))",
        g2,
        numbers="(4.525, 10 · 0.05)",
        equals=bowl_gradient(ahead),
        because="the gradient of E",
    )
    page.line(
        "w(2)",
        "w(2) = w(1) - [γ v(1) + η g]",
        w2,
        numbers="(4.75 - 0.225 - 0.05 · 4.525, 0.5 - 0.45 - 0.05 · 0.5)",
        equals=[4.75 - 0.225 - 0.05 * 4.525, 0.5 - 0.45 - 0.05 * 0.5],
        because="the numbers put in",
    )
    _points(page, "nesterov_lookahead_form")
    page.say(
        """torch stores the point to look at, w - γ v, instead of w. So it needs no gradient
        anywhere but at its weights: v ← μ v + g, w ← w - η (g + μ v)."""
    )
    _points(page, "nesterov_torch_form")
    looked_at = [
        w + 0.9 * memory["velocity"]
        for w, _, memory in islice(
            steps(RULES["nesterov_lookahead_form"], bowl_gradient, START), 100
        )
    ]
    page.line(
        "w(n) - γ v(n) of the first form, n = 1, 2, 3, 100",
        "",
        torch.stack([looked_at[i] for i in (0, 1, 2, 99)]),
        equals=bowl_path("nesterov_torch_form")[[1, 2, 3, 100]],
        because="w(n) of torch's form",
    )


def _adagrad(page: Page) -> None:
    page.heading("AdaGrad")
    page.say(
        """Each weight gets a rate of its own, divided by the length of all its gradients so far:
        s ← s + g², w ← w - η g / (√s + ε). η = 0.5, ε = 1e-8. The first step is η in every
        direction, however steep; from then on the rates can only fall."""
    )
    (w1, _, m1), (w2, g1, m2), _ = _first_steps("adagrad")
    page.line(
        "s(1)",
        "s(1) = g(0)²",
        m1["sum"],
        numbers="(5², 10²)",
        equals=[25.0, 100.0],
        because="the numbers put in",
    )
    page.line(
        "w(1)",
        "w(1) = w(0) - η g(0) / (√s(1) + ε)",
        w1,
        numbers="(5 - 0.5 · 5/(5 + ε), 1 - 0.5 · 10/(10 + ε))",
        equals=[5 - 0.5 * 5 / (5 + 1e-8), 1 - 0.5 * 10 / (10 + 1e-8)],
        because="the numbers put in",
    )
    page.line(
        "s(2)",
        "s(2) = s(1) + g(1)²",
        m2["sum"],
        numbers=f"(25 + {g1[0]:.4g}², 100 + {g1[1]:.4g}²)",
        equals=m1["sum"] + bowl_gradient(w1) ** 2,
        because="the sum of the squares",
    )
    page.line(
        "w(2)",
        "w(2) = w(1) - η g(1) / (√s(2) + ε)",
        w2,
        numbers=f"(4.5 - 0.5 · 4.5/√{m2['sum'][0]:.2f}, 0.5 - 0.5 · 5/√{m2['sum'][1]:.0f})",
        equals=w1 - 0.5 * bowl_gradient(w1) / (m2["sum"].sqrt() + 1e-8),
        because="the numbers put in",
    )
    _points(page, "adagrad")
    page.say(
        """ε keeps the quotient from being 0/0. Some write it inside the root, g / √(s + ε); here
        that changes the tenth digit. A sum that begins at ε instead of 0 is the same."""
    )
    _points(page, "adagrad_eps_inside")


def _rmsprop(page: Page) -> None:
    page.heading("RMSProp")
    page.say(
        """AdaGrad's sum never forgets, so its rates come to a standstill. RMSProp takes a running
        mean: s ← ρ s + (1 - ρ) g², w ← w - η g / (√s + ε). η = 0.05, ρ = 0.9, ε = 1e-8."""
    )
    (w1, _, m1), (w2, g1, m2), _ = _first_steps("rmsprop")
    s = "square_avg"
    page.line(
        "s(1)",
        "s(1) = ρ · 0 + (1 - ρ) g(0)²",
        m1[s],
        numbers="(0.1 · 25, 0.1 · 100)",
        equals=[2.5, 10.0],
        because="the numbers put in",
    )
    page.line(
        "w(1)",
        "w(1) = w(0) - η g(0) / (√s(1) + ε)",
        w1,
        numbers="(5 - 0.05 · 5/√2.5, 1 - 0.05 · 10/√10)",
        equals=[5 - 0.05 * 5 / (2.5**0.5 + 1e-8), 1 - 0.05 * 10 / (10**0.5 + 1e-8)],
        because="the numbers put in",
    )
    page.line(
        "s(2)",
        "s(2) = ρ s(1) + (1 - ρ) g(1)²",
        m2[s],
        numbers=f"(0.9 · 2.5 + 0.1 · {g1[0]:.4g}², 0.9 · 10 + 0.1 · {g1[1]:.4g}²)",
        equals=0.9 * m1[s] + 0.1 * bowl_gradient(w1) ** 2,
        because="the running mean",
    )
    page.line(
        "w(2)",
        "w(2) = w(1) - η g(1) / (√s(2) + ε)",
        w2,
        numbers=f"({w1[0]:.4f} - 0.05 · {g1[0]:.4f}/√{m2[s][0]:.4f}, ...)",
        equals=w1 - 0.05 * bowl_gradient(w1) / (m2[s].sqrt() + 1e-8),
        because="the numbers put in",
    )
    _points(page, "rmsprop")
    page.say(
        """With ε inside the root it shows once the gradients come down towards √ε: after 100 steps
        w2 differs in the fifth digit."""
    )
    _points(page, "rmsprop_eps_inside")


def _race(page: Page) -> None:
    page.heading("Which one performs best?")
    page.say(
        """That is the lecture's question, and it has no general answer: each rule has a rate of its
        own here, and another bowl or other rates give another order. On this one, after 10 and 100
        steps:"""
    )
    paths = {name: bowl_path(name) for name in LABELS}
    errors = [bowl(path[[10, 100]]) for path in paths.values()]
    page.line("E(10), E(100)", "½ (w1² + 10 w2²)", torch.stack(errors), figure="Z.opt.compare")
    page.table(
        ("rule", "E(0)", "E(10)", "E(100)"),
        [
            (LABELS[name], *(float(bowl(path[n])) for n in (0, 10, 100)))
            for name, path in paths.items()
        ],
    )
    page.picture("optimizer-paths", "40 steps of each rule on contour lines of E", _draw_paths)
    page.picture("optimizer-race", "E after each of 100 steps", _draw_race)


def _on_a_network(page: Page) -> None:
    page.heading("Momentum on the worked 2-2-2 network")
    page.say(
        """η = 0.5, biases as they are. The first step is the same with and without, as there is no
        step before it. α = 0.9 then needs less than a twentieth of the updates."""
    )
    plain, fast = worked_example_errors(0.0, 1100), worked_example_errors(0.9, 1000)
    seen = [1, 2, 3, 10, 100, 1000]
    after = ", ".join(map(str, seen))
    page.line(
        f"E, α = 0, after {after} updates", "", [plain[n] for n in seen], figure="Z.nomomentum.222"
    )
    page.line(
        f"E, α = 0.9, after {after} updates", "", [fast[n] for n in seen], figure="Z.momentum.222"
    )
    needed = [next(n for n, e in enumerate(errors) if e <= 1e-3) for errors in (plain, fast)]
    page.line(
        "updates until E ≤ 1e-3, α = 0 and 0.9",
        "",
        [float(n) for n in needed],
        figure="Z.momentum.updates_to_1e-3",
    )
    page.table(("updates", "E, α = 0", "E, α = 0.9"), [(n, plain[n], fast[n]) for n in seen])


def _draw_paths() -> Picture:
    picture, axes = chart(8, 4.5)
    x, y = torch.linspace(-3.5, 5.5, 120), torch.linspace(-1.1, 1.1, 120)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).double()
    levels = [0.05, 0.3, 1, 2.5, 5, 9, 14, 20]
    axes.contour(x.numpy(), y.numpy(), bowl(grid).numpy(), levels, colors="0.8", linewidths=0.8)
    for name in LABELS:
        path = bowl_path(name, 40).numpy()
        axes.plot(path[:, 0], path[:, 1], ".-", markersize=4, linewidth=1.2, label=LABELS[name])
    axes.plot(0, 0, "k+", markersize=10)
    axes.set(xlabel="w1", ylabel="w2", title="E = ½ (w1² + 10 w2²) from (5, 1)")
    axes.legend(loc="lower right", fontsize="small")
    return picture


def _draw_race() -> Picture:
    picture, axes = chart(8, 4)
    for name in LABELS:
        axes.semilogy(bowl(bowl_path(name)).numpy(), label=LABELS[name])
    axes.set(xlabel="step", ylabel="E", title="The same bowl, five rules")
    axes.legend(fontsize="small")
    return picture
