"""The worked 2-2-2 example from the first sum to the 10,000th update, and the 2-1-1 exercise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure as Picture

from manualbp.checks.differences import central_differences
from manualbp.explain.networks import flat, float64
from manualbp.explain.page import Page, as_numbers, close
from manualbp.explain.pictures import chart
from manualbp.explain.registry import topic
from manualbp.explain.worked import (
    Biases,
    Example,
    Order,
    Point,
    batch_results,
    error_of_printed_weights,
    example,
    parameters,
    plain_course,
    printed_products,
    quantities,
    recovered_weights,
    sequential_gradient,
)
from manualbp.lectures import digits_agreeing, figure, figures, rounds_to

BIASES: dict[Biases, str] = {"fixed": "fixed", "own": "per unit", "shared": "per layer"}
ORDERS: dict[Order, str] = {"original": "orig", "updated": "upd"}
"""The two orders, and how the names of the figures spell them."""

RESULTS = ("E_after_1", "E_after_10000", "o1_after_10000", "o2_after_10000")
"""The four results of training that the lecture prints."""

UPDATES: int = figure("C.given.iterations").value
AT = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 9999, UPDATES, UPDATES + 1)


@topic("worked-example", "The worked 2-2-2 example, every number of it", "R23", "R25", "R26")
def worked_example(page: Page) -> None:
    """Walk forward and backward once, then train in both orders."""
    worked = example()
    q = quantities(worked)
    _network(page, worked)
    _forward(page, q)
    _error(page, q)
    _output_layer(page, q)
    _hidden_layer(page, q)
    _other_lecture(page, q)
    _rounding(page, q)
    stated = worked.course(AT)
    sequential = worked.course(AT, order="updated")
    _first_update(page, worked, sequential[1])
    _training(page, worked, stated, sequential)
    _matrices(page)


def _network(page: Page, worked: Example) -> None:
    page.say(
        """A network with two inputs i1, i2, two hidden units h1, h2 and two outputs o1, o2, all
        units sigmoid units. One example, one rate, eight weights. Below stands every number of the
        lecture, computed by the same layers, loss and update rule that train any other network
        here, and beside it what the lecture prints."""
    )
    page.heading("What is given")
    page.given("i1, i2", worked.x[0], "inputs")
    page.given("t1, t2", worked.target[0], "targets of o1 and o2")
    weights = parameters(worked.net.params)
    page.given("w1, w2", weights[0:2], "from i1 and i2 to h1")
    page.given("w3, w4", weights[2:4], "from i1 and i2 to h2")
    page.given("w5, w6", weights[4:6], "from h1 and h2 to o1")
    page.given("w7, w8", weights[6:8], "from h1 and h2 to o2")
    page.given("b1, b2", [weights[8], weights[10]], "biases of the hidden and the output units")
    page.given("η", worked.eta, "learning rate")
    page.say(
        """w3, w4, w7 and w8 stood in a picture. They follow from what is printed: the output of o2
        gives its ∂E/∂net, and the updated w7 and w8 then give the old ones; for h2 its output and
        its two updated weights make three linear equations for w3, w4 and its ∂E/∂net."""
    )
    page.line(
        "w3, w4, w7, w8",
        "solved from out_h2, out_o2 and the updated weights",
        recovered_weights(),
        figure="C.recovered",
    )
    agree = [round(found, 6) for found in recovered_weights()]
    page.claim("To six places they are 0.25, 0.3, 0.5 and 0.55.", agree == [0.25, 0.3, 0.5, 0.55])


def _forward(page: Page, q: dict[str, float]) -> None:
    page.heading("Forward")
    page.say(
        """Each unit adds up its inputs times its weights, net_j = Σ_i w_ji x_i + b, and squashes
        the sum, out_j = 1 / (1 + e^-net_j)."""
    )
    out = [f"{q[name]:.9g}" for name in ("out_h1", "out_h2")]
    sums = {
        "h1": ("w1 i1 + w2 i2 + b1", "0.15·0.05 + 0.2·0.1 + 0.35"),
        "h2": ("w3 i1 + w4 i2 + b1", "0.25·0.05 + 0.3·0.1 + 0.35"),
        "o1": ("w5 out_h1 + w6 out_h2 + b2", f"0.4·{out[0]} + 0.45·{out[1]} + 0.6"),
        "o2": ("w7 out_h1 + w8 out_h2 + b2", f"0.5·{out[0]} + 0.55·{out[1]} + 0.6"),
    }
    for unit, (equation, numbers) in sums.items():
        _line(page, q, f"net_{unit}", f"net_{unit}", equation, numbers)
        net = f"{q[f'net_{unit}']:.10g}"
        _line(
            page, q, f"out_{unit}", f"out_{unit}", f"1 / (1 + e^-net_{unit})", f"1 / (1 + e^-{net})"
        )


def _error(page: Page, q: dict[str, float]) -> None:
    page.heading("Error")
    for k, target in ((1, "0.01"), (2, "0.99")):
        numbers = f"½ ({target} - {q[f'out_o{k}']:.9g})²"
        _line(page, q, f"E_o{k}", f"E_o{k}", f"½ (t{k} - out_o{k})²", numbers)
    numbers = f"{q['E_o1']:.9g} + {q['E_o2']:.9g}"
    _line(page, q, "E_total", "E", "Σ_k ½ (t_k - out_k)² = E_o1 + E_o2", numbers)


def _output_layer(page: Page, q: dict[str, float]) -> None:
    page.heading("Backward: the output layer")
    page.say(
        """The chain rule takes ∂E/∂w5 apart: ∂E/∂w5 = ∂E/∂out_o1 · ∂out_o1/∂net_o1 · ∂net_o1/∂w5.
        The first two factors together are ∂E/∂net_o1, the δ of the unit. In general
        δ_k = (out_k - t_k) out_k (1 - out_k) and ∂E/∂w_kj = δ_k out_j."""
    )
    for k, target in ((1, "0.01"), (2, "0.99")):
        out, error, slope = (q[f"{name}_o{k}"] for name in ("out", "dE_dout", "dout_dnet"))
        _line(page, q, f"dE_dout_o{k}", f"∂E/∂out_o{k}", f"-(t{k} - out_o{k})",
              f"-({target} - {out:.9g})")  # fmt: skip
        _line(page, q, f"dout_dnet_o{k}", f"∂out_o{k}/∂net_o{k}", f"out_o{k} (1 - out_o{k})",
              f"{out:.9g} (1 - {out:.9g})")  # fmt: skip
        name = "dEo1_dnet_o1" if k == 1 else "dE_dnet_o2"
        _line(page, q, name, f"δ_o{k}", f"∂E/∂out_o{k} · ∂out_o{k}/∂net_o{k}",
              f"{_n(error)} · {_n(slope)}")  # fmt: skip
    _line(page, q, "dnet_o1_dw5", "∂net_o1/∂w5", "out_h1")
    for w, (k, j) in enumerate(((1, 1), (1, 2), (2, 1), (2, 2)), 5):
        numbers = f"{_n(q[f'dE_dnet_o{k}'])} · {_n(q[f'out_h{j}'])}"
        _line(page, q, f"dE_dw{w}", f"∂E/∂w{w}", f"δ_o{k} out_h{j}", numbers)
    page.say(
        """The new output weights can be written down now. They come into force only when the
        hidden layer is done: the lecture says so, and so does the chain rule, whose derivatives
        are all taken at one point."""
    )
    for w, old in ((5, 0.4), (6, 0.45), (7, 0.5), (8, 0.55)):
        _new_weight(page, q, w, old)


def _hidden_layer(page: Page, q: dict[str, float]) -> None:
    page.heading("Backward: the hidden layer")
    page.say(
        """h1 has a part in both errors, so what comes back to it is a sum,
        ∂E/∂out_h1 = δ_o1 w5 + δ_o2 w7, with the weights that the forward pass used. In general
        δ_j = out_j (1 - out_j) Σ_k δ_k w_kj: the recursion takes any number of layers down."""
    )
    weights = {(1, 1): (5, 0.4), (2, 1): (7, 0.5), (1, 2): (6, 0.45), (2, 2): (8, 0.55)}
    _line(page, q, "dnet_o1_dout_h1", "∂net_o1/∂out_h1", "w5")
    for j in (1, 2):
        for k in (1, 2):
            w, number = weights[k, j]
            numbers = f"{_n(q[f'dE_dnet_o{k}'])} · {number}"
            _line(page, q, f"dEo{k}_dout_h{j}", f"∂E_o{k}/∂out_h{j}", f"δ_o{k} w{w}", numbers)
        sent = [q[f"dEo{k}_dout_h{j}"] for k in (1, 2)]
        _line(page, q, f"dE_dout_h{j}", f"∂E/∂out_h{j}", f"∂E_o1/∂out_h{j} + ∂E_o2/∂out_h{j}",
              f"{_n(sent[0])} + {_n(sent[1])}")  # fmt: skip
        out, total, slope = (q[f"{name}_h{j}"] for name in ("out", "dE_dout", "dout_dnet"))
        _line(page, q, f"dout_dnet_h{j}", f"∂out_h{j}/∂net_h{j}", f"out_h{j} (1 - out_h{j})",
              f"{out:.9g} (1 - {out:.9g})")  # fmt: skip
        _line(page, q, f"dE_dnet_h{j}", f"δ_h{j}", f"∂E/∂out_h{j} · ∂out_h{j}/∂net_h{j}",
              f"{total:.9g} · {slope:.9g}")  # fmt: skip
    _line(page, q, "dnet_h1_dw1", "∂net_h1/∂w1", "i1")
    inputs = (0.05, 0.1)
    for w, (j, i) in enumerate(((1, 1), (1, 2), (2, 1), (2, 2)), 1):
        numbers = f"{q[f'dE_dnet_h{j}']:.9g} · {inputs[i - 1]}"
        _line(page, q, f"dE_dw{w}", f"∂E/∂w{w}", f"δ_h{j} i{i}", numbers)
    for w, old in ((1, 0.15), (2, 0.2), (3, 0.25), (4, 0.3)):
        _new_weight(page, q, w, old)
    page.say(
        """The lecture leaves the biases as they are, without saying so. Each of them is shared by
        the units of a layer and has a gradient like any weight, with 1 as its input: the sum of
        the δ of its units."""
    )
    for layer, units in (("1", "h"), ("2", "o")):
        deltas = [q[f"dE_dnet_{units}{j}"] for j in (1, 2)]
        _line(page, q, f"dE_db{layer}", f"∂E/∂b{layer}", f"δ_{units}1 + δ_{units}2",
              f"{_n(deltas[0])} + {_n(deltas[1])}")  # fmt: skip


def _other_lecture(page: Page, q: dict[str, float]) -> None:
    page.heading("The same example in another lecture")
    shared = [name for name in q if f"Z.{name}" in figures()]
    fit = [name for name in shared if rounds_to(q[name], figure(f"Z.{name}").printed or "")]
    page.claim(
        """Krzywicki prints the same example, up to the new weights. His numbers round to the same
        strings but for one, which both lectures round the wrong way.""",
        set(shared) - set(fit) == {"dEo2_dout_h1"},
        f"{len(fit)} of {len(shared)} printed numbers; dE_o2/dout_h1 is -0.0190491183",
    )
    page.line(
        "δ_o1, δ_o2, δ_h1, δ_h2",
        "out (1 - out) (t - out), out (1 - out) Σ_k w_kh δ_k",
        [-q[f"dE_dnet_{unit}"] for unit in ("o1", "o2", "h1", "h2")],
        figure="Z.delta_signs",
    )
    page.say(
        """These are his δ: he defines them with the opposite sign, and adds η δ x where the others
        subtract. Three slips to know of: he states the first target as 0.1 and computes with 0.01;
        he writes w3 where net_h1 takes w2; and his sentence on w_ji says from j to i, while all
        his formulas mean to j from i."""
    )
    wrong_target = Example(example().net, example().x, float64([[0.1, 0.99]]), 0.5)
    other = quantities(wrong_target)
    names = ("E_total", "dE_dout_o1", "dE_dw5", "w5_new", "w6_new", "dE_dout_h1", "w1_new")
    printed = [name for name in names if f"C.{name}" in figures()]
    page.claim(
        "With the target 0.1 none of the printed numbers would come out.",
        not any(rounds_to(other[name], figure(f"C.{name}").printed or "") for name in printed),
        f"E would be {other['E_total']:.9f}, the new w5 {other['w5_new']:.9f}",
    )


def _rounding(page: Page, q: dict[str, float]) -> None:
    page.heading("Why last digits may differ")
    page.say(
        """Whoever multiplies the printed, rounded numbers gets last digits of their own; here
        nothing is rounded on the way."""
    )
    names = ("dE_dw5", "dEo1_dnet_o1", "dEo1_dout_h1", "dE_dout_h1", "dE_dw1")
    rows = [
        (name.replace("dE", "∂E").replace("_d", "/∂"), f"{product:.12g}", f"{q[name]:.12g}",
         figure(f"C.{name}").printed)
        for name, product in zip(names, printed_products(), strict=True)
    ]  # fmt: skip
    page.table(("quantity", "from rounded numbers", "from exact ones", "printed"), rows)
    page.line(
        "from rounded numbers",
        "products and sums of what is printed",
        printed_products(),
        figure="C.printed_products",
    )


def _first_update(page: Page, worked: Example, sequential: Point) -> None:
    page.heading("After one update: two orders")
    page.say(
        """The new weights lower the error. By the rule that the lecture states, and with its own
        new weights, it is the number below, which is not the number that it prints."""
    )
    (one,) = worked.course([1])
    page.line(
        "E after one update",
        "½ Σ_k (t_k - out_k)² with all eight new weights",
        one.error,
        equals=figure("S222.traj.fixed.orig.1").value[0],
        because="the figure S222.traj.fixed.orig.1",
    )
    page.line(
        "E of the printed weights",
        "the same with w1 = 0.149780716, ..., w8 = 0.561370121 as printed",
        error_of_printed_weights(),
        figure="C.E_from_printed_weights",
    )
    page.say(
        """The printed results come from another order: the output weights are changed first, and
        the hidden δ are then computed with the changed ones, δ_h1 = out_h1 (1 - out_h1)
        (δ_o1 new w5 + δ_o2 new w7). That is no longer the gradient of E, as differences of E tell:
        they know no chain rule, and no order."""
    )
    right, wrong = parameters(worked.training().gradients())[:4], sequential_gradient(worked)
    page.line(
        "∂E/∂w1..w4",
        "with the w5, ..., w8 of the forward pass",
        right,
        equals=hidden_differences(worked),
        because="central differences of E",
        tolerance=1e-6,
    )
    page.line(
        "“∂E/∂w1..w4”",
        "with the new w5, ..., w8",
        wrong,
        equals=figure("K.trap.sequential").value[1],
        because="the figure K.trap.sequential",
    )
    page.claim(
        f"The second is not the gradient: that of w1 is {1 - wrong[0] / right[0]:.0%} too small.",
        not close(as_numbers(wrong), as_numbers(hidden_differences(worked)), 0.1),
    )
    for w in (1, 2, 3, 4):
        new = sequential.parameters[w - 1]
        old, gradient = parameters(worked.net.params)[w - 1], wrong[w - 1]
        page.line(
            f"new w{w}",
            f"w{w} - η “∂E/∂w{w}”",
            new,
            numbers=f"{old:.9g} - 0.5 · {gradient:.9g}",
            figure=f"S222_seq.w{w}_new",
        )
    page.line(
        "E after one update",
        "½ Σ_k (t_k - out_k)², hidden δ from changed weights",
        sequential.error,
        figure="C.E_after_1",
    )


def _training(page: Page, worked: Example, stated: list[Point], sequential: list[Point]) -> None:
    page.heading(f"{UPDATES:,} updates, in both orders")
    page.say(
        """The lecture goes on until 10,000 updates are made, the first one included. In the order
        that changes the output weights first, with fixed biases, all its results come out:"""
    )
    last = _at(UPDATES, sequential)
    page.line("E", "½ Σ_k (t_k - out_k)²", last.error, figure="C.E_after_10000")
    for k in (1, 2):
        page.line(f"out_o{k}", "after 10,000 updates", last.outputs[k - 1],
                  figure=f"C.o{k}_after_10000")  # fmt: skip
    page.say("By the stated rule, which is gradient descent, the same network goes another way:")
    gradient = _at(UPDATES, stated)
    page.line(
        "E, out_o1, out_o2",
        "after 10,000 updates along the gradient",
        [gradient.error, *gradient.outputs],
        figure="S222.traj.fixed.orig.10000",
    )
    page.table(
        ("", "printed", "stated rule", "digits", "changed first", "digits"),
        [
            (name, *_beside(short, stated_value, sequential_value))
            for name, short, stated_value, sequential_value in zip(
                ("E, 1 update", "E, 10,000", "out_o1, 10,000", "out_o2, 10,000"),
                RESULTS,
                (_at(1, stated).error, gradient.error, *gradient.outputs),
                (_at(1, sequential).error, last.error, *last.outputs),
                strict=True,
            )
        ],
    )
    page.say(
        """That the two are so close is due to the example: its inputs are small, so the hidden
        weights learn little, and it is only they that the order concerns."""
    )
    _count(page, sequential)
    _variants(page, worked, {"original": gradient, "updated": last})
    page.picture(
        "training",
        "The error over 10,000 updates, for three ways to treat the biases",
        lambda: _picture(worked),
    )


def _count(page: Page, sequential: list[Point]) -> None:
    printed = [figure(f"C.o{k}_after_10000").printed or "" for k in (1, 2)]
    around = [_at(UPDATES + more, sequential) for more in (-1, 0, 1)]
    fits = [all(map(rounds_to, point.outputs, printed)) for point in around]
    page.claim(
        "It is 10,000 updates exactly: one fewer or one more does not give the printed outputs.",
        fits == [False, True, False],
        "; ".join(f"{p.updates:,}: {p.outputs[0]:.9f}, {p.outputs[1]:.9f}" for p in around),
    )


def _variants(page: Page, worked: Example, fixed: dict[Order, Point]) -> None:
    page.heading("What becomes of the biases")
    page.say(
        """The text does not say that the biases stay. Three modes times two orders make six
        trainings; plain arithmetic, written out weight by weight, runs all of them."""
    )
    rows: list[tuple[object, ...]] = []
    matches: list[bool] = []
    for biases, words in BIASES.items():
        for order, short in ORDERS.items():
            one, end = (plain_course(worked, n, biases, order) for n in (1, UPDATES))
            numbers = (one[0], *end)
            fit = [
                rounds_to(number, figure(f"C.{name}").printed or "")
                for number, name in zip(numbers, RESULTS, strict=True)
            ]
            matches.append(all(fit))
            page.line(
                f"{biases}, {order}",
                "E, out_o1, out_o2 after 10,000 updates",
                end,
                figure=f"S222.traj.{biases}.{short}.{UPDATES}",
            )
            rows.append((words, order, f"{one[0]:.9f}", f"{end[0]:.4e}", f"{end[1]:.9f}",
                         f"{end[2]:.9f}", f"{sum(fit)} of 4"))  # fmt: skip
    page.table(
        ("biases", "hidden δ from", "E, 1", "E, 10,000", "out_o1", "out_o2", "printed"), rows
    )
    page.claim(
        "Of the six only one gives all four printed results: fixed biases, changed weights first.",
        matches == [False, True, False, False, False, False],
    )
    for order, point in fixed.items():
        page.line(
            f"fixed, {order}",
            "plain arithmetic, beside the layers and their training step",
            plain_course(worked, UPDATES, "fixed", order),
            equals=[point.error, *point.outputs],
            because="10,000 recorded training steps",
        )


def _matrices(page: Page) -> None:
    batch = example("S222_batch3")
    page.heading("The same with matrices, for several examples at once")
    page.say(
        """Rows of X are examples, a row of W belongs to a receiving unit:
        H = σ(X W1ᵀ + b1), O = σ(H W2ᵀ + b2), D2 = (O - T) ∘ O ∘ (1 - O),
        D1 = (D2 W2) ∘ H ∘ (1 - H), ∂E/∂W2 = D2ᵀ H, ∂E/∂W1 = D1ᵀ X; ∘ is elementwise. The products
        D2ᵀ H and D1ᵀ X sum over the examples by themselves. With three examples:"""
    )
    page.given("X", batch.x)
    page.given("T", batch.target)
    outputs, first, second = batch_results(batch)
    expected = figure("C.matrix.batch3").value
    because = "the figure C.matrix.batch3"
    page.line("O", "σ(H W2ᵀ + b2)", outputs, equals=expected[0], because=because)
    page.line("∂E/∂W1", "D1ᵀ X", first, equals=expected[1], because=because)
    page.line("∂E/∂W2", "D2ᵀ H", second, equals=expected[2], because=because)
    alone = [
        parameters(Example(batch.net, x, t, batch.eta).training("own").gradients())
        for x, t in zip(torch.split(batch.x, 1), torch.split(batch.target, 1), strict=True)
    ]
    page.line(
        "Σ_n ∂E_n/∂w1..w8",
        "one example after the other, then added",
        float64(alone).sum(0)[:8],
        equals=[*flat(first), *flat(second)],
        because="the matrix products",
    )


@topic("exercise-2-1-1", "The exercise with two inputs, one hidden unit, one output", "R27")
def exercise(page: Page) -> None:
    """Solve the exercise: forward, error, backward, training."""
    worked = example("E211")
    net, (w1, w2, w3, b1, b2) = worked.net, parameters(worked.net.params)
    page.say(
        """Inputs 0.1 and 0.5, desired output 0.2, one hidden unit: write the forward pass, compute
        the error, send it back, train. The exercise gives no weights, no activation and no rate;
        we take sigmoid units and the numbers that h1 and o1 have in the 2-2-2 example."""
    )
    page.heading("What is given")
    page.given("i1, i2", worked.x[0], "inputs")
    page.given("t", worked.target[0, 0], "desired output")
    page.given("w1, w2", [w1, w2], "from the inputs to the hidden unit h")
    page.given("w3", w3, "from h to the output o")
    page.given("b1, b2", [b1, b2], "biases of h and o")
    page.given("η", worked.eta, "learning rate")
    hidden, h, output, o = net.stages(worked.x, net.output_error(worked.x, worked.target))
    forward = figure("E211.forward").value
    steps = (
        ("net_h", "w1 i1 + w2 i2 + b1", "0.15·0.1 + 0.2·0.5 + 0.35", hidden.y),
        ("out_h", "1 / (1 + e^-net_h)", f"1 / (1 + e^-{_n(float(hidden.y))})", h.y),
        ("net_o", "w3 out_h + b2", f"0.4·{_n(float(h.y))} + 0.6", output.y),
        ("out_o", "1 / (1 + e^-net_o)", f"1 / (1 + e^-{_n(float(output.y))})", o.y),
        ("E", "½ (t - out_o)²", f"½ (0.2 - {_n(float(o.y))})²", None),
    )
    page.heading("Forward, and the error")
    for (name, equation, numbers, value), right in zip(steps, forward, strict=True):
        result = net.error(worked.x, worked.target) if value is None else float(value)
        page.line(name, equation, result, numbers=numbers, equals=right,
                  because="the figure E211.forward")  # fmt: skip
    page.heading("Backward")
    page.say("δ is ∂E/∂net of a unit, and at the same time ∂E/∂b, as 1 is the bias's input.")
    gradients = parameters(worked.training("own").gradients())
    out_h, out_o, error = float(h.y), float(o.y), float(o.dy)
    delta_o, delta_h, sent = float(o.dx), float(h.dx), float(h.dy)
    d1, d2, d3, db1, db2 = figure("E211.grads").value
    lines = (
        ("δ_o = ∂E/∂b2", "(out_o - t) out_o (1 - out_o)",
         f"{_n(error)} · {_n(out_o)} · (1 - {_n(out_o)})", delta_o, db2),
        ("∂E/∂w3", "δ_o out_h", f"{_n(delta_o)} · {_n(out_h)}", gradients[2], d3),
        ("δ_h = ∂E/∂b1", "δ_o w3 out_h (1 - out_h)",
         f"{_n(sent)} · {_n(out_h)} · (1 - {_n(out_h)})", delta_h, db1),
        ("∂E/∂w1", "δ_h i1", f"{_n(delta_h)} · 0.1", gradients[0], d1),
        ("∂E/∂w2", "δ_h i2", f"{_n(delta_h)} · 0.5", gradients[1], d2),
    )  # fmt: skip
    for name, equation, numbers, value, right in lines:
        page.line(name, equation, value, numbers=numbers, equals=right,
                  because="the figure E211.grads")  # fmt: skip
    _exercise_training(page)


EXERCISE: dict[str, tuple[Biases, Order, str]] = {
    "fixed": ("fixed", "original", "biases fixed"),
    "fixed_seq": ("fixed", "updated", "w3 changed first"),
    "biases_updated": ("own", "original", "biases trained"),
    "no_bias": ("fixed", "original", "no biases"),
}
"""The ways to train the 2-1-1 network, by the names of their figures."""


def exercise_course(mode: str, at: Sequence[int]) -> list[Point]:
    """Train the 2-1-1 network in one of the modes of EXERCISE."""
    biases, order, _ = EXERCISE[mode]
    start = example("E211")
    return (start.without_biases() if mode == "no_bias" else start).course(at, biases, order)


def _exercise_training(page: Page) -> None:
    at = (1, 10, 100, 1000)
    page.heading("Training")
    page.say(
        """Four ways to go on: the biases stay, as in the 2-2-2 example; they stay, and w3 is
        changed before δ_h is computed, which is not the gradient; they learn as well; there are
        none. E and the output on the way:"""
    )
    courses = {mode: exercise_course(mode, at) for mode in EXERCISE}
    page.table(
        ("updates", *(words for _, _, words in EXERCISE.values())),
        [
            (updates, *(f"{c[k].error:.2e} {c[k].outputs[0]:.5f}" for c in courses.values()))
            for k, updates in enumerate(at)
        ],
    )
    for mode, points in courses.items():
        end = points[-1]
        page.line(
            EXERCISE[mode][2],
            "E, out_o, w1, w2, w3, b1, b2 after 1,000 updates",
            [end.error, *end.outputs, *end.parameters],
            figure=f"E211.{mode}.1000",
        )
    best = min(courses, key=lambda mode: courses[mode][-1].error)
    page.claim(
        "The network learns fastest when its biases learn too.",
        best == "biases_updated",
        f"E after 1,000 updates: {courses[best][-1].error:.2g}",
    )


def hidden_differences(worked: Example) -> list[float]:
    """Return ∂E/∂w1, ..., ∂E/∂w4 from differences of E."""
    net, one = worked.net, torch.ones((), dtype=torch.float64)

    def error() -> torch.Tensor:
        return net.loss.forward(net.predict(worked.x), worked.target)[0]

    return flat(central_differences(error, net.params.views["0"].weight, one))


def _at(updates: int, points: list[Point]) -> Point:
    return next(point for point in points if point.updates == updates)


def _line(
    page: Page, q: dict[str, float], name: str, symbol: str, equation: str, numbers: str = ""
) -> None:
    """Write a quantity beside Cazenave's printed number, or the figure where he prints none."""
    known = f"C.{name}" if f"C.{name}" in figures() else f"S222.{name}"
    page.line(symbol, equation, q[name], numbers=numbers, figure=known)


def _new_weight(page: Page, q: dict[str, float], w: int, old: float) -> None:
    numbers = f"{old} - 0.5 · {_n(q[f'dE_dw{w}'])}"
    _line(page, q, f"w{w}_new", f"new w{w}", f"w{w} - η ∂E/∂w{w}", numbers)


def _n(value: float) -> str:
    """Return a number with the nine digits of the lecture, in brackets if it is negative."""
    return f"({value:.9g})" if value < 0 else f"{value:.9g}"


def _beside(name: str, *values: float) -> list[str]:
    """Return what is printed, and for each value its digits and how many of them agree."""
    printed = figure(f"C.{name}").printed or ""
    cells = [printed]
    of = digits_agreeing(float(printed), printed)
    for value in values:
        digits = of if rounds_to(value, printed) else digits_agreeing(value, printed)
        cells += [f"{value:.9f}", f"{digits} of {of}"]
    return cells


def _picture(worked: Example) -> Picture:
    picture, axes = chart()
    at = [updates for updates in AT if 0 < updates <= UPDATES]
    for biases, words in BIASES.items():
        errors = [plain_course(worked, updates, biases, "original")[0] for updates in at]
        axes.loglog(at, errors, marker=".", label=f"biases: {words}")
    axes.set_xlabel("updates")
    axes.set_ylabel("E")
    axes.legend()
    return picture
