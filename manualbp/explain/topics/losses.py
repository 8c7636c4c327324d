"""Losses: one number E, and where the backward pass begins

Every loss that the registry finds has its topic; those that students type first have more words,
and single numbers worked out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, log
from typing import Any

import torch
from torch import Tensor

from manualbp.checks.contract import WithLoss
from manualbp.checks.registry import LossCase, find_cases, losses
from manualbp.explain.layer_walk import (
    PLAIN_PYTHON,
    Walk,
    plainest,
    put,
    shape,
    topic_name,
    topic_title,
    walk_through_loss,
    write_code,
    write_details,
    write_equations,
    write_gradient,
    write_output,
)
from manualbp.explain.networks import jacobian
from manualbp.explain.page import Page, as_numbers
from manualbp.explain.plain import error as plain_error
from manualbp.explain.plain import sigmoid, softmax
from manualbp.explain.registry import topic
from manualbp.explain.scalar_formulas import cross_entropy, dot
from manualbp.layers import Softmax
from manualbp.lectures import figure, setting
from manualbp.losses import (
    AnyLoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    CrossEntropyOfProbabilities,
    HalfSquaredError,
    MSELoss,
)
from manualbp.parameters import Parameters

EXAMPLES: Mapping[type[AnyLoss], LossCase] = {
    BCEWithLogitsLoss: LossCase("example", BCEWithLogitsLoss(), (3, 1), "binary"),
    CrossEntropyLoss: LossCase("example", CrossEntropyLoss(), (2, 3), "classes"),
    CrossEntropyOfProbabilities: LossCase(
        "example",
        CrossEntropyOfProbabilities(),
        (2, 3),
        "probabilities",
        values=(0.7, 0.2, 0.1, 0.1, 0.6, 0.3),
    ),
    HalfSquaredError: LossCase("example", HalfSquaredError(), (2, 3)),
    MSELoss: LossCase("example", MSELoss(), (2, 3)),
}
"""Small cases; another loss takes the plainest of its own."""


def _nothing(page: Page, walk: Walk) -> None:
    pass


@dataclass(frozen=True)
class Written:
    """What the page of a loss says besides the general walk."""

    words: str = ""
    rows: tuple[str, ...] = ("R21",)
    y: str = "y"  # what the docstring calls the outputs
    forward: Callable[[Page, Walk], None] = _nothing
    expected: Callable[[Walk], float] | None = None  # E in plain Python
    equation: str = ""  # of E
    backward: Callable[[Page, Walk], None] = _nothing
    gradient: str = ""  # equation of ∂E/∂y
    more: Callable[[Page, Walk], None] = _nothing


def write_loss(page: Page, cls: type[AnyLoss]) -> None:
    """Write the page of a loss."""
    case: Any = EXAMPLES.get(cls) or plainest(find_cases(cls.__name__))
    walk = walk_through_loss(case, page.seed)
    written = WRITTEN.get(cls, Written(rows=()))
    if written.words:
        page.say(written.words)
    write_equations(page, cls)
    page.heading("Numbers of your own")
    page.say(f"{case.loss}, with numbers drawn from --seed {page.seed}.")
    x, t = walk.trial.inputs.x, _target(walk)
    page.given(written.y, x, f"outputs of a network, {shape(x)}")
    page.given("t", t, f"targets, {shape(t)}")
    page.heading("Forward")
    written.forward(page, walk)
    expected = written.expected(walk) if written.expected else None
    write_output(page, walk, expected, name="E", equation=written.equation)
    page.heading("Backward")
    written.backward(page, walk)
    write_gradient(page, walk, "dx", f"d{written.y}", written.gradient)
    written.more(page, walk)
    write_details(page, cls)
    write_code(page, cls)
    page.say(f"Beside autograd: manualbp compare --layer {cls.__name__}")


def _target(walk: Walk) -> Tensor:
    layer = walk.trial.case.layer
    assert isinstance(layer, WithLoss)
    return layer.target


def _targets(walk: Walk) -> Any:
    """Return the targets as nested lists."""
    return as_numbers(_target(walk))


def _one_hot(walk: Walk) -> list[list[float]]:
    classes = range(len(walk["x"][0]))
    return [[float(k == t) for k in classes] for t in _targets(walk)]


# Squared errors -----------------------------------------------------------------------------------


def _terms(walk: Walk) -> list[tuple[float, float]]:
    """Return (y, t) of every term."""
    rows = zip(walk["x"], _targets(walk), strict=True)
    return [pair for row in rows for pair in zip(*row, strict=True)]


def _error_forward(page: Page, walk: Walk) -> None:
    y, t = _terms(walk)[0]
    page.say("The error signal is what the output has too much; a negative one, too little.")
    error = walk.trial.inputs.x - _target(walk)
    page.line(
        "e[0,0]",
        "y[0,0] - t[0,0]",
        error[0, 0],
        numbers=f"{put(y)} - {put(t)}",
        equals=y - t,
        because=PLAIN_PYTHON,
    )
    plain = [
        [a - b for a, b in zip(*row, strict=True)]
        for row in zip(walk["x"], _targets(walk), strict=True)
    ]
    page.line("e", "y[n,k] - t[n,k]", error, equals=plain, because=PLAIN_PYTHON)


def _mse_backward(page: Page, walk: Walk) -> None:
    terms = _terms(walk)
    y, t = terms[0]
    page.line(
        "dy[0,0]",
        "2/M (y[0,0] - t[0,0])",
        walk["dx"][0][0],
        numbers=f"2/{len(terms)} · ({put(y)} - {put(t)})",
        equals=2 / len(terms) * (y - t),
        because=PLAIN_PYTHON,
    )


def _half_backward(page: Page, walk: Walk) -> None:
    y, t = _terms(walk)[0]
    page.line(
        "dy[0,0]",
        "y[0,0] - t[0,0]",
        walk["dx"][0][0],
        numbers=f"{put(y)} - {put(t)}",
        equals=y - t,
        because=PLAIN_PYTHON,
    )


def _mse_more(page: Page, walk: Walk) -> None:
    page.heading("The lecture's sum")
    page.say(
        """The lecture prints the mean square error without 1/M, J = Σ_i |v_i - y_i|², where v is
        the output and y the target. That is reduction="sum"."""
    )
    data = setting("COST")
    v = torch.tensor(data["v"], dtype=torch.float64)
    target = torch.tensor(data["y"], dtype=torch.float64)
    page.given("v", v)
    page.given("y", target)
    loss = MSELoss("sum")
    error, saved = loss.forward(v, target)
    page.line("J", "Σ_i Σ_k (v[i,k] - y[i,k])²", error, figure="D.cost.mse")
    page.line("dJ/dv", "2 (v[i,k] - y[i,k])", loss.backward(saved), figure="D.cost.mse_grad")
    page.say(
        """Three conventions, one gradient but for its length: sum, mean, and half the sum, which
        `half-squared-error` is. A rate that suits one of them must be changed for another."""
    )
    half = HalfSquaredError()
    ours = half.backward(half.forward(v, target)[1])
    page.line(
        "dJ/dv / 2",
        "∂/∂v ½ Σ (v - y)²",
        loss.backward(saved) / 2,
        equals=ours,
        because="HalfSquaredError",
    )


# Cross-entropies ----------------------------------------------------------------------------------


def _bce_forward(page: Page, walk: Walk) -> None:
    x, t = _terms(walk)[0]
    p = sigmoid(x)
    page.line(
        "p[0]",
        "1 / (1 + e^-x[0])",
        torch.tensor(x, dtype=torch.float64).sigmoid(),
        numbers=f"1 / (1 + e^(-{put(x)}))",
        equals=p,
        because=PLAIN_PYTHON,
    )
    term = -log(p) if t else -log(1 - p)
    stable = max(x, 0.0) - x * t + log(1 + exp(-abs(x)))
    page.say(
        f"The target is {t:g}, so of the two terms the {'first' if t else 'second'} one is left."
    )
    page.line(
        "E[0]",
        "-log p[0]" if t else "-log(1 - p[0])",
        term,
        numbers=f"-log {p if t else 1 - p:.6g}",
        equals=stable,
        because="max(x, 0) - x t + log(1 + e^-|x|)",
    )


def _bce_backward(page: Page, walk: Walk) -> None:
    terms = _terms(walk)
    x, t = terms[0]
    page.line(
        "dx[0]",
        "1/M (p[0] - t[0])",
        walk["dx"][0][0],
        numbers=f"1/{len(terms)} · ({sigmoid(x):.6g} - {t:g})",
        equals=(sigmoid(x) - t) / len(terms),
        because=PLAIN_PYTHON,
    )


def _ce_forward(page: Page, walk: Walk) -> None:
    x, t = walk["x"][0], int(_targets(walk)[0])
    p = softmax(x)
    softmax_layer, nothing = Softmax(), Parameters.zeros({}).views
    probabilities, _ = softmax_layer.forward(nothing, walk.trial.inputs.x)
    page.say("The logits become probabilities; see manualbp explain softmax.")
    page.line(
        "p",
        "e^x[n,k] / Σ_j e^x[n,j]",
        probabilities,
        equals=[softmax(row) for row in walk["x"]],
        because=PLAIN_PYTHON,
    )
    page.say(
        f"""Example 0 is of class {t}. How likely did the network hold that? The less, the larger
        its part in E."""
    )
    page.line(
        "E[0]",
        f"-log p[0,{t}]",
        -probabilities[0, t].log(),
        numbers=f"-log {p[t]:.6g}",
        equals=log(sum(map(exp, x))) - x[t],
        because="log Σ_j e^x[j] - x[t]",
    )


def _ce_backward(page: Page, walk: Walk) -> None:
    """Both ways: the Jacobian of softmax step by step, and the closed form."""
    x, t = walk.trial.inputs.x, torch.tensor(_one_hot(walk), dtype=torch.float64)
    softmax_layer, nothing = Softmax(), Parameters.zeros({})
    p, saved = softmax_layer.forward(nothing.views, x)
    of_probabilities = CrossEntropyOfProbabilities("mean")
    error, saved_error = of_probabilities.forward(p, t)
    page.say("In two steps. First through the logarithm, from E to the probabilities:")
    page.line(
        "E", "-1/N Σ_n Σ_k t[n,k] log p[n,k]", error, equals=walk["y"], because="CrossEntropyLoss"
    )
    dp = of_probabilities.backward(saved_error)
    N = len(x)
    plain = [
        [-a / b / N if a else 0.0 for a, b in zip(*row, strict=True)]
        for row in zip(_one_hot(walk), map(softmax, walk["x"]), strict=True)
    ]
    page.line("dp", "-1/N t[n,k] / p[n,k]", dp, equals=plain, because=PLAIN_PYTHON)
    page.say("Then through softmax, whose derivative is a matrix; for example 0:")
    J = jacobian(softmax_layer, x[0])
    q = [float(v) for v in p[0]]
    page.line(
        "J[k,j]",
        "∂p[k]/∂x[j] = p[k] (δ_kj - p[j])",
        J,
        equals=[[q[k] * ((k == j) - q[j]) for j in range(len(q))] for k in range(len(q))],
        because=PLAIN_PYTHON,
    )
    first = [float(v) for v in dp[0]]
    page.line(
        "dx[0,j]",
        "Σ_k dp[0,k] J[k,j]",
        dp[0] @ J,
        equals=[dot(first, [float(v) for v in J[:, j]]) for j in range(len(q))],
        because=PLAIN_PYTHON,
    )
    two_steps = softmax_layer.backward(nothing.views, saved, dp, nothing.zeros_like().views)
    page.line(
        "dx",
        "both examples, through Softmax's backward pass",
        two_steps,
        equals=walk["dx"],
        because="CrossEntropyLoss",
    )
    page.say(
        """In one step. The 1/p of the logarithm and the p of the matrix cancel, and what is left is
        the error signal: probability minus target."""
    )
    page.line(
        "dx[0,0]",
        "1/N (p[0,0] - t[0,0])",
        walk["dx"][0][0],
        numbers=f"1/{N} · ({q[0]:.6g} - {float(t[0, 0]):g})",
        equals=(q[0] - float(t[0, 0])) / N,
        because=PLAIN_PYTHON,
    )


def _ce_more(page: Page, walk: Walk) -> None:
    page.heading("The lecture's example, and what goes wrong without the matrix")
    loss = CrossEntropyLoss()
    a, target = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64), torch.tensor([2])
    page.given("a", a[0], "logits")
    page.given("t", [0.0, 0.0, 1.0], "target, the third class")
    right, printed = figure("D.delta_softmax").value
    delta = loss.backward(loss.forward(a, target)[1])[0]
    page.line("δ", "y[k] - t[k]", delta, equals=right, because="the figure D.delta_softmax")
    y = softmax([1.0, 2.0, 3.0])
    elementwise = [y[k] * (1 - y[k]) * (-t / y[k]) for k, t in enumerate((0.0, 0.0, 1.0))]
    page.say("With the diagonal of the matrix alone, g'(a_k) ∂E/∂y_k, as one formula suggests:")
    page.line(
        "δ?",
        "y[k] (1 - y[k]) · (-t[k] / y[k])",
        elementwise,
        equals=printed,
        because="the figure's second half, a trap",
    )
    page.claim(
        """It tells nothing to the wrong classes, which should be pushed down, and so is no
        gradient.""",
        elementwise[0] == 0 and float(delta[0]) > 0,
        f"δ[0] is {float(delta[0]):.6g}, not 0",
    )
    page.heading("Large logits")
    page.say("From the logits E is found without ever taking the log of a p that has become 0:")
    large = torch.tensor([[1000.0, 0.0]], dtype=torch.float64)
    error, _ = loss.forward(large, torch.tensor([1]))
    page.given("x", large[0])
    page.line(
        "E",
        "log(e^1000 + e^0) - 0, for class 1",
        error,
        equals=1000.0,
        because="1000 + log(1 + e^-1000)",
    )


def _of_probabilities_forward(page: Page, walk: Walk) -> None:
    y, t = walk["x"][0], _targets(walk)[0]
    page.line(
        "E[0]",
        "-Σ_k t[0,k] log y[0,k]",
        cross_entropy([y], [t]),
        numbers=" ".join(f"- {b:.6g}·log {a:.6g}" for a, b in zip(y, t, strict=True)),
        equals=-(_target(walk)[0] * walk.trial.inputs.x[0].log()).sum(),
        because="a product of vectors",
    )


def _of_probabilities_backward(page: Page, walk: Walk) -> None:
    y, t = _terms(walk)[0]
    page.line(
        "dy[0,0]",
        "-t[0,0] / y[0,0]",
        walk["dx"][0][0],
        numbers=f"-{t:.6g} / {y:.6g}",
        equals=-t / y,
        because=PLAIN_PYTHON,
    )


def _of_probabilities_more(page: Page, walk: Walk) -> None:
    page.heading("The lecture's two examples")
    data = setting("COST")
    v = torch.tensor(data["v"], dtype=torch.float64)
    target = torch.tensor(data["y"], dtype=torch.float64)
    page.given("v", v, "outputs")
    page.given("y", target, "targets")
    loss = CrossEntropyOfProbabilities()
    error, saved = loss.forward(v, target)
    page.line("J", "-Σ_i Σ_k y[i,k] log v[i,k]", error, figure="D.cost.ce")
    page.line("dJ/dv", "-y[i,k] / v[i,k]", loss.backward(saved), figure="D.cost.ce_grad")


WRITTEN: Mapping[type[AnyLoss], Written] = {
    BCEWithLogitsLoss: Written(
        """Two classes, one logit x each: p = σ(x) is how likely class 1 is held to be. E is large
        where a network is sure and wrong.""",
        ("R18", "R21"),
        "x",
        _bce_forward,
        lambda walk: plain_error("bce", walk["x"], _targets(walk)),
        "-1/M Σ_n [t[n] log p[n] + (1 - t[n]) log(1 - p[n])]",
        _bce_backward,
        "1/M (p[n] - t[n])",
    ),
    CrossEntropyLoss: Written(
        """K classes, K logits for each example. Softmax makes probabilities of them, and E asks
        only how likely the right class was held to be. Together the two have the simplest gradient
        of all, p - t.""",
        ("R19", "R21"),
        "x",
        _ce_forward,
        lambda walk: plain_error("cross-entropy", walk["x"], _one_hot(walk)),
        "-1/N Σ_n log p[n, t[n]]",
        _ce_backward,
        "1/N (p[n,k] - t[n,k])",
        _ce_more,
    ),
    CrossEntropyOfProbabilities: Written(
        """The cross-entropy of outputs that are probabilities already, as softmax makes them: the
        first of the two steps that `manualbp explain cross-entropy` takes at once.""",
        forward=_of_probabilities_forward,
        expected=lambda walk: cross_entropy(walk["x"], _targets(walk)),
        equation="-Σ_n Σ_k t[n,k] log y[n,k]",
        backward=_of_probabilities_backward,
        gradient="-t[n,k] / y[n,k]",
        more=_of_probabilities_more,
    ),
    HalfSquaredError: Written(
        """Half of the squared distance between outputs and targets. The half is there for the sake
        of the gradient, which then is the error signal itself.""",
        ("R01", "R21"),
        forward=_error_forward,
        expected=lambda walk: plain_error("half-squared-error", walk["x"], _targets(walk)),
        equation="½ Σ_n Σ_k e[n,k]²",
        backward=_half_backward,
        gradient="e[n,k]",
    ),
    MSELoss: Written(
        """The squared distance between outputs and targets, divided by the number of terms M, so
        that E and its gradient do not grow with the size of the batch.""",
        forward=_error_forward,
        expected=lambda walk: plain_error("mse", walk["x"], _targets(walk)),
        equation="1/M Σ_n Σ_k e[n,k]²",
        backward=_mse_backward,
        gradient="2/M e[n,k]",
        more=_mse_more,
    ),
}


def _register(cls: type[AnyLoss]) -> None:
    rows = WRITTEN[cls].rows if cls in WRITTEN else ()
    topic(topic_name(cls), topic_title(cls), *rows)(lambda page: write_loss(page, cls))


for found in losses():
    _register(found)
