"""The perceptron's tables: AND row by row, OR, NAND, XOR with its cycle and its remedies."""

import pytest
import torch

from manualbp.explain.topics.perceptron import examples, xor_network
from manualbp.lectures import setting
from manualbp.perceptron import MINUS_PLUS_ONE, ZERO_ONE, learn, mistake_bound, most_right

AND = examples("AND")
XOR = examples("XOR_PERC")


def summary(learning):
    return [learning.epochs, learning.updates, *learning.w, learning.b]


@pytest.mark.figures("Z.AND.e?.r?")
def test_every_row_of_the_and_table(lecture):
    rows = learn(*AND).rows
    assert len(rows) == 24
    for row in rows:
        lecture.expect(f"Z.AND.e{row.epoch}.r{row.example}", row.numbers)


@pytest.mark.figures("Z.AND.init", "Z.given.and_eta")
def test_the_start_of_the_and_table(lecture):
    learning = learn(*AND)
    for number in (*learning.states[0].w, learning.states[0].b):
        lecture.expect("Z.AND.init", number)
    lecture.expect("Z.given.and_eta", learning.rate)


@pytest.mark.figures("Z.AND.summary", "Z.AND.final_a", "Z.AND.mistakes_per_epoch")
def test_and_converges(lecture):
    learning = learn(*AND)
    last = [row for row in learning.rows if row.y != row.target][-1]
    update = [last.epoch, last.example]
    lecture.expect(
        "Z.AND.summary",
        [learning.epochs, learning.updates, update, *learning.w, learning.b],
    )
    model, params = learning.unit()
    a, _ = model.layers[0].forward(params.views["0"], torch.tensor(AND[0], dtype=torch.float64))
    lecture.expect("Z.AND.final_a", a.squeeze(1))
    lecture.expect("Z.AND.mistakes_per_epoch", learning.mistakes)
    assert learning.converged
    assert learning.cycle is None


@pytest.mark.figures("Z.OR.summary", "Z.NAND.summary")
def test_or_and_nand(lecture):
    lecture.expect("Z.OR.summary", summary(learn(*examples("OR"))))
    lecture.expect("Z.NAND.summary", summary(learn(*examples("NAND"))))


@pytest.mark.figures("Z.AND.pm1", "D.given.targets")
def test_outputs_of_minus_and_plus_one_take_the_same_path(lecture):
    x, t = AND
    lecture.expect("D.given.targets", MINUS_PLUS_ONE)
    signs = learn(x, [MINUS_PLUS_ONE[v] for v in t], outputs=MINUS_PLUS_ONE)
    lecture.expect("Z.AND.pm1", summary(signs))
    assert signs.states == learn(x, t, outputs=ZERO_ONE).states
    assert [row.y for row in signs.rows] == [2 * row.y - 1 for row in learn(x, t).rows]


@pytest.mark.figures("Z.AND.init2")
def test_another_start(lecture):
    given = setting("AND_INIT2")
    start = {"rate": given["eta"], "weight": given["w"], "bias": given["b"]}
    learning = learn(*AND, **start, exact=True)
    lecture.expect("Z.AND.init2", summary(learning))
    assert learning.updates <= mistake_bound(*AND, **start).updates


@pytest.mark.figures("Z.AND.eta")
def test_the_rate_does_not_matter_but_rounding_does(lecture):
    exact = learn(*AND, rate=0.1, exact=True)
    tenth = learn(*AND, rate=0.1)
    half = learn(*AND, rate=0.5)
    runs = [[run.epochs, run.updates] for run in (exact, tenth, half)]
    lecture.expect("Z.AND.eta", runs)
    one = learn(*AND)
    assert [[10 * v for v in (*s.w, s.b)] for s in exact.states] == [
        [*s.w, s.b] for s in one.states
    ]
    assert runs[0] == [one.epochs, one.updates] != runs[1]  # the trap
    assert tenth.b == -0.20000000000000004


@pytest.mark.figures("Z.AND.bound")
def test_the_mistake_bound_of_and(lecture):
    bound = mistake_bound(*AND)
    lecture.expect("Z.AND.bound", [*bound, learn(*AND).updates])


@pytest.mark.figures("Z.trap.double_bias")
def test_a_bias_that_is_counted_twice_gives_another_table(lecture):
    x, t = AND
    twice = learn([(1, *x_n) for x_n in x], t)
    lecture.expect("Z.trap.double_bias", summary(twice))
    right = learn(x, t)
    assert [right.epochs, right.updates] != lecture["Z.trap.double_bias"].value[:2]


@pytest.mark.figures("Z.XOR.cycle", "Z.XOR.best")
def test_xor_has_no_unit_and_learning_it_goes_round(lecture):
    learning = learn(*XOR)
    lecture.expect("Z.XOR.cycle", [[*s.w, s.b] for s in learning.states[1:]])
    assert not learning.converged
    assert learning.cycle == (2, 3)
    assert str(learning.cycle).startswith("the state after epoch 3 is the one after epoch 2")
    assert learning.mistakes[-1] == 4
    lecture.expect("Z.XOR.best", len(most_right(*XOR)))


@pytest.mark.figures("C.XOR.handcoded")
def test_a_feature_by_hand_makes_xor_separable(lecture):
    learning = learn(*examples("XOR_FEAT"))
    found = [learning.epochs, learning.updates, learning.w, learning.b]
    lecture.expect("C.XOR.handcoded", found)
    assert learning.converged


@pytest.mark.figures("C.XOR.two_layer")
def test_a_hidden_layer_makes_xor_separable(lecture):
    model, params = xor_network()
    y, _ = model.forward(params.views, torch.tensor(XOR[0], dtype=torch.float64))
    lecture.expect("C.XOR.two_layer", y.squeeze(1))
