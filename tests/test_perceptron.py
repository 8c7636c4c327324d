"""The perceptron rule away from the lectures' examples: numbers of all kinds, bounds, bad input."""

from fractions import Fraction
from itertools import product

import pytest
import torch

from manualbp.errors import UsageError
from manualbp.perceptron import (
    MINUS_PLUS_ONE,
    Cycle,
    largest_margin,
    learn,
    mistake_bound,
    most_right,
)

CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def random_sets(count, separable=True):
    """Yield small sets of examples with integer inputs, and targets that some unit gives."""
    generator = torch.Generator().manual_seed(0)
    while count:
        x = torch.randint(-4, 5, (6, 2), generator=generator)
        w = torch.randint(-3, 4, (2,), generator=generator)
        b = torch.randint(-3, 4, (1,), generator=generator)
        t = (x @ w + b >= 0).long()
        if not separable:
            t[0] = 1 - t[0]
        if t.min() != t.max():
            count -= 1
            yield x, t


def right(learning, x, t):
    model, params = learning.unit()
    y, _ = model.forward(params.views, x.double())
    return int((y.squeeze(1) == t).sum())


def test_bounds_and_convergence_on_random_separable_sets():
    shares = []
    for x, t in random_sets(60):
        learning = learn(x, t)
        assert learning.converged
        assert right(learning, x, t) == len(x)
        shares.append(learning.updates / mistake_bound(x, t).updates)
    assert 0 < max(shares) <= 1


def test_bounds_hold_from_other_starts_and_at_other_rates():
    start = {"rate": Fraction(1, 3), "weight": (5, -7), "bias": 4}
    for x, t in random_sets(60):
        assert learn(x, t, **start).updates <= mistake_bound(x, t, **start).updates


def test_the_best_margin_is_the_best():
    # Directions all around: none keeps the examples farther away than the one that is found.
    sphere = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(1)).double()
    sphere = sphere / sphere.norm(dim=1, keepdim=True)
    for x, t in random_sets(10):
        best = largest_margin(x, t)
        z = (2 * t - 1).double().unsqueeze(1) * torch.cat([x, torch.ones(6, 1)], 1).double()
        v = torch.tensor([float(n) for n in (*best.w, best.b)]).double()
        gamma = float((z @ v).min() / v.norm())
        assert gamma == pytest.approx(float(best.gamma_squared) ** 0.5, rel=1e-6)
        assert 0.9 * gamma < float((z @ sphere.T).amin(0).max()) <= gamma * (1 + 1e-6)


def test_learning_ends_in_a_cycle_exactly_where_no_unit_is_right():
    ends = set()
    for x, t in random_sets(40, separable=False):
        learning = learn(x, t)
        ends.add(learning.converged)
        assert learning.converged == (largest_margin(x, t) is not None)
        assert learning.converged == (learning.cycle is None)
        chosen = [n - 1 for n in most_right(x, t)]
        assert learn(x[chosen], t[chosen]).converged
        assert (len(chosen) == len(x)) == learning.converged
    assert ends == {True, False}


def test_of_the_16_functions_of_two_bits_14_are_separable():
    functions = list(product((0, 1), repeat=4))
    assert sum(learn(CORNERS, t).converged for t in functions) == 14
    assert all(learn(CORNERS, t).cycle for t in [(0, 1, 1, 0), (1, 0, 0, 1)])


def test_a_cycle_is_named():
    assert str(Cycle(2, 3)) == (
        "the state after epoch 3 is the one after epoch 2: from there on every epoch repeats "
        "the same updates for ever"
    )
    assert "every 4 epochs repeat the same" in str(Cycle(1, 5))


def test_most_epochs():
    learning = learn(CORNERS, (0, 0, 0, 1), max_epochs=5)
    assert (learning.epochs, learning.updates) == (5, 11)
    assert not learning.converged
    assert learning.cycle is None


def test_tensors_fractions_and_decimals():
    x, t = torch.tensor(CORNERS, dtype=torch.float64), torch.tensor([0, 0, 0, 1])
    assert learn(x, t).states == learn(CORNERS, t.tolist()).states
    exact = learn(CORNERS, t, rate=Fraction(1, 10))
    assert exact.states == learn(x, t, rate=0.1, exact=True).states
    assert exact.b == Fraction(-3, 10)
    assert isinstance(learn(x, t, rate=0.1).b, float)


def test_units_as_layers():
    x, t = torch.tensor(CORNERS, dtype=torch.float64), torch.tensor([0, 0, 0, 1])
    learning = learn(CORNERS, t)
    model, params = learning.unit()
    assert model.forward(params.views, x)[0].flatten().tolist() == [0, 0, 0, 1]
    model, params = learning.unit(epoch=0)  # all zero: every output is 1
    assert model.forward(params.views, x)[0].flatten().tolist() == [1, 1, 1, 1]
    model, params = learn(CORNERS, 2 * t - 1, outputs=MINUS_PLUS_ONE).unit()
    assert model.forward(params.views, x)[0].flatten().tolist() == [-1, -1, -1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "0 examples and 0 targets"),
        ((CORNERS, [0, 1]), "4 examples and 2 targets"),
        (([(0, 0), (1,)], [0, 1]), "example 2 has 1 inputs, the first one 2"),
        ((CORNERS, [0, 0, 2, 1]), "the target of example 3 is 2, expected 0 or 1"),
        (([(0.0, float("nan"))], [1]), "nan is not a number"),
    ],
)
def test_bad_examples(arguments, message):
    for function in (learn, largest_margin, most_right, mistake_bound):
        with pytest.raises(UsageError, match=message):
            function(*arguments)


def test_other_bad_input():
    with pytest.raises(UsageError, match="the learning rate is 0, expected a positive number"):
        learn(CORNERS, [0, 0, 0, 1], rate=0)
    with pytest.raises(UsageError, match="3 weights for 2 inputs"):
        learn(CORNERS, [0, 0, 0, 1], weight=(1, 2, 3))
    with pytest.raises(UsageError, match="no unit gets all these examples right"):
        mistake_bound(CORNERS, [0, 1, 1, 0])
