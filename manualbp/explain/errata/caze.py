"""Cazenave, "Deep Learning: Backpropagation"."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product

from manualbp.explain.errata.entry import erratum
from manualbp.explain.page import Page
from manualbp.explain.worked import (
    Biases,
    Order,
    Point,
    error_of_printed_weights,
    example,
    plain_course,
    recovered_weights,
)
from manualbp.layers import Linear
from manualbp.lectures import figure, rounds_to

BIASES: Mapping[Biases, str] = {
    "fixed": "fixed",
    "own": "trained, one for each unit",
    "shared": "trained, one for each layer",
}
ORDERS: tuple[Order, ...] = ("original", "updated")

AFTER_TRAINING = ("C.E_after_1", "C.E_after_10000", "C.o1_after_10000", "C.o2_after_10000")
"""The four results that the document prints after training."""


@cache
def course(order: Order) -> list[Point]:
    """Return the worked example after 1, 9,999, 10,000 and 10,001 updates."""
    return example().course((1, 9_999, 10_000, 10_001), order=order)


def after_training(order: Order) -> list[float]:
    """Return what the document prints: E after one update, E and both outputs after 10,000."""
    first, _, last, _ = course(order)
    return [first.error, last.error, *last.outputs]


@erratum(
    "E-CAZE-1",
    "Output Layer, l.228, against Backpropagation, l.323 to 325",
    stands="The rule: original weights send the error back. The results after training: "
    "0.291027924, 0.000035085, 0.015912196, 0.984065734.",
    right="The rule is right, and w1 to w4 follow it. The four results come from the other order: "
    "w5 to w8 are updated first, and the new ones send the error back.",
)
def _(page: Page) -> None:
    names = ("E after 1 update", "E after 10,000", "o1 after 10,000", "o2 after 10,000")
    page.say("With the updated weights sending the error back:")
    found = after_training("updated")
    for name, value, reference in zip(names, found, AFTER_TRAINING, strict=True):
        page.line(name, "", value, figure=reference)
    page.say("By the stated rule, with the original weights:")
    first, last = (f"S222.traj.fixed.orig.{updates}" for updates in (1, 10_000))
    expected = [(figure(first).value[0], first), *((value, last) for value in figure(last).value)]
    for name, value, (equals, reference) in zip(
        names, after_training("original"), expected, strict=True
    ):
        page.line(name, "", value, equals=equals, because=f"the figure {reference}")
    page.line(
        "E with the eight updated weights as printed",
        "",
        error_of_printed_weights(),
        figure="C.E_from_printed_weights",
    )
    printed = [figure(name).printed or "" for name in AFTER_TRAINING]
    variants: list[str] = []
    for biases, order in product(BIASES, ORDERS):
        values = [plain_course(example(), 1, biases, order)[0]]
        values += plain_course(example(), 10_000, biases, order)
        if all(rounds_to(value, text) for value, text in zip(values, printed, strict=True)):
            variants.append(f"biases {biases}, {order} weights")
    page.claim(
        """Of six ways to train (biases fixed, one for each unit, one for each layer; either order)
        one alone gives all four printed results.""",
        variants == ["biases fixed, updated weights"],
        "; ".join(variants),
    )


@erratum(
    "E-CAZE-2",
    "Output Layer to Backpropagation, l.214 to 325",
    stands="Nothing about the biases: b1 and b2 are not mentioned again.",
    right="They stay at 0.35 and 0.60. Trained, they give other results.",
)
def _(page: Page) -> None:
    for biases, meaning in BIASES.items():
        (point,) = example().course([1000], biases)
        page.line(
            f"E, o1, o2 after 1,000 updates, biases {meaning}",
            "",
            [point.error, *point.outputs],
            figure=f"S222.traj.{biases}.orig.1000",
        )


@erratum(
    "E-CAZE-3",
    "Hidden Layer, l.279 (and KRZY (8), l.477)",
    stands="∂E_o2/∂out_h1 = -0.019049119",
    right="-0.019049118. It is the only printed result that is not rounded right; the sum below "
    "it is right again.",
)
def _(page: Page) -> None:
    worked = example()
    sent = worked.net.stages(worked.x, worked.net.output_error(worked.x, worked.target))[2].dy
    w = worked.net.params.views["2"].weight
    page.line(
        "∂E_o2/∂out_h1", "∂E_o2/∂net_o2 · w7", float(sent[0, 1] * w[1, 0]), figure="C.dEo2_dout_h1"
    )
    page.line(
        "∂E/∂out_h1",
        "∂E_o1/∂out_h1 + ∂E_o2/∂out_h1",
        float((sent @ w)[0, 0]),
        figure="C.dE_dout_h1",
    )


@erratum(
    "E-CAZE-4",
    "Formalization of a neural network, l.62 and l.66",
    stands="ξ = Σ w_i x_i from i = 1 in one place, from i = 0 in the other.",
    right="The second has the bias in it: w_0 is the bias and x_0 = 1.",
)
def _(page: Page) -> None:
    worked = example()
    first = worked.net.params.views["0"]
    without = Linear(2, 2, bias=False)
    from_one, _ = without.forward(first, worked.x)
    page.line(
        "net_h1, from i = 1",
        "w1 i1 + w2 i2",
        float(from_one[0, 0]),
        numbers="0.15 · 0.05 + 0.2 · 0.10",
        equals=0.0275,
        because="by hand",
    )
    from_zero, _ = Linear(2, 2).forward(first, worked.x)
    page.line(
        "net_h1, from i = 0", "b1 · 1 + w1 i1 + w2 i2", float(from_zero[0, 0]), figure="C.net_h1"
    )


@erratum(
    "E-CAZE-5",
    "Backpropagation, l.114",
    stands="a single training set",
    right="A single training example: one pair of inputs with its two targets.",
)
def _(page: Page) -> None:
    worked = example()
    page.claim(
        "There is one row of inputs and one of targets.",
        len(worked.x) == len(worked.target) == 1,
        f"inputs {tuple(worked.x.shape)}, targets {tuple(worked.target.shape)}",
    )


@erratum(
    "E-CAZE-6",
    "Formalization, Architecture, to Backpropagation, l.89 to 114",
    stands="w3, w4, w7 and w8 are in a figure only, not in the text.",
    right="0.25, 0.30, 0.50 and 0.55: the printed results determine them.",
)
def _(page: Page) -> None:
    found = recovered_weights()
    page.line(
        "w3, w4, w7, w8 from the printed results",
        "",
        found,
        figure="C.recovered",
    )
    page.line(
        "the same, to the digits that are printed",
        "",
        found,
        equals=[0.25, 0.30, 0.50, 0.55],
        because="the two places that weights are given with",
        tolerance=2e-8,
    )


@erratum(
    "E-CAZE-7",
    "Backpropagation, the exercise, l.331 to 336",
    stands="An exercise, 2-1-1, with inputs 0.1 and 0.5 and the target 0.2.",
    right="Weights, activation, biases and rate have to be chosen; the numbers depend on them. "
    "manualbp explain exercise-2-1-1 says what we take.",
)
def _(page: Page) -> None:
    ours = example("E211")
    page.line(
        "E with b1 = 0.35, b2 = 0.60",
        "½ (out - 0.2)²",
        ours.net.error(ours.x, ours.target),
        equals=figure("E211.forward").value[4],
        because="the figure E211.forward",
    )
    bare = ours.without_biases()
    page.line(
        "E with b1 = b2 = 0",
        "½ (out - 0.2)²",
        bare.net.error(bare.x, bare.target),
        equals=figure("E211.no_bias.0").value[0],
        because="the figure E211.no_bias.0",
    )


@erratum(
    "E-CAZE-8",
    "Backpropagation, l.324",
    stands="10,000 repetitions, after a first update that is shown by hand.",
    right="10,000 updates in all: the first is one of them.",
)
def _(page: Page) -> None:
    printed = figure("C.o1_after_10000").printed or ""
    _, *around = course("updated")
    page.table(("updates", "o1"), [(p.updates, f"{p.outputs[0]:.12f}") for p in around])
    page.claim(
        "Only 10,000 gives the printed output.",
        [rounds_to(p.outputs[0], printed) for p in around] == [False, True, False],
        f"printed {printed}",
    )


@erratum(
    "E-CAZE-9",
    "Hidden Layer, l.289",
    stands="0.59326999 (1 - 0.59326999), where 0.593269992 stands elsewhere.",
    right="One digit less of the same number. The product is the same to the 9 digits printed.",
)
def _(page: Page) -> None:
    short = float(figure("C.out_h1_short").printed or "")
    h = float(example().net.activation_maps(example().x)[0][0, 0])
    page.line("out_h1 (1 - out_h1), all digits", "", h * (1 - h), figure="C.dout_dnet_h1")
    page.line(
        "0.59326999 (1 - 0.59326999)",
        "",
        short * (1 - short),
        figure="C.dout_dnet_h1",
        tolerance=1e-8,
    )


@erratum(
    "E-CAZE-10",
    "Backpropagation, the last slide, l.340",
    stands="The connections between two layers as a matrix; not which way round.",
    right="Say it: a row for each receiving unit, or for each source. The other way round is "
    "another network.",
)
def _(page: Page) -> None:
    worked = example()
    first, layer = worked.net.params.clone(), Linear(2, 2)
    net_h, _ = layer.forward(first.views["0"], worked.x)
    page.line(
        "net_h1, a row for each receiving unit",
        "w1 i1 + w2 i2 + b1",
        float(net_h[0, 0]),
        figure="C.net_h1",
    )
    weight = first.views["0"].weight
    weight.copy_(weight.T.clone())
    net_h, _ = layer.forward(first.views["0"], worked.x)
    page.line(
        "net_h1, transposed",
        "w1 i1 + w3 i2 + b1",
        float(net_h[0, 0]),
        equals=0.15 * 0.05 + 0.25 * 0.10 + 0.35,
        because="by hand",
    )
    page.claim(
        "Here the shape does not tell them apart either.",
        weight.shape == weight.T.shape,
        f"both {tuple(weight.shape)}",
    )
