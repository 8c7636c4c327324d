"""The perceptron: a unit with a step, and the rule that trains it though it has no gradient.

All numbers are Python's. Integers and Fractions stay exact through all of learning, floats follow
float64. The difference can be seen: whether an example counts as right hangs on a ≥ 0, and a is
often 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import isfinite, sqrt
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from manualbp.errors import UsageError
from manualbp.layers import Linear, Sequential, Sign, Step
from manualbp.parameters import Parameters

Number: TypeAlias = int | float | Fraction
Vector: TypeAlias = tuple[Number, ...]
Outputs: TypeAlias = tuple[int, int]

ZERO_ONE: Outputs = (0, 1)
MINUS_PLUS_ONE: Outputs = (-1, 1)


class Row(NamedTuple):
    """One example as learning meets it: a and y before the update, w and b after it."""

    epoch: int  # from 1
    example: int  # from 1
    x: Vector
    target: Number
    a: Number
    y: int
    dw: Vector
    db: Number
    w: Vector
    b: Number

    @property
    def numbers(self) -> list[Number]:
        """Return the row as it stands in the lecture's table, epoch and a put in."""
        return [
            self.epoch,
            *self.x,
            self.target,
            self.a,
            self.y,
            *self.dw,
            self.db,
            *self.w,
            self.b,
        ]


class State(NamedTuple):
    """All that learning remembers from one example to the next."""

    w: Vector
    b: Number


class Cycle(NamedTuple):
    """The state after epoch `last` is the one after epoch `first`, so it goes round for ever."""

    first: int
    last: int

    def __str__(self) -> str:
        """Name the cycle in a sentence."""
        length = self.last - self.first
        period = "every epoch repeats" if length == 1 else f"every {length} epochs repeat"
        return (
            f"the state after epoch {self.last} is the one after epoch {self.first}: "
            f"from there on {period} the same updates for ever"
        )


@dataclass(frozen=True)
class Learning:
    """What came of learning, with every row on the way. At most one of two things is true:

    it `converged`, that is the last epoch changed nothing; or it runs in a `cycle`. If neither is,
    `max_epochs` was reached.
    """

    rows: tuple[Row, ...]
    states: tuple[State, ...]  # at the start, after epoch 1, 2, ...
    rate: Number
    outputs: Outputs
    converged: bool
    cycle: Cycle | None

    @property
    def epochs(self) -> int:
        """Return how many epochs were run, the last one without a mistake included."""
        return len(self.states) - 1

    @property
    def mistakes(self) -> list[int]:
        """Return how many examples each epoch met with a wrong output; each made one update."""
        wrong = [row.epoch for row in self.rows if row.y != row.target]
        return [wrong.count(epoch) for epoch in range(1, self.epochs + 1)]

    @property
    def updates(self) -> int:
        """Return how often the weights were changed."""
        return sum(self.mistakes)

    @property
    def w(self) -> Vector:
        """Return the weights at the end."""
        return self.states[-1].w

    @property
    def b(self) -> Number:
        """Return the bias at the end; it is minus the threshold."""
        return self.states[-1].b

    def unit(self, epoch: int = -1) -> tuple[Sequential, Parameters]:
        """Return the unit after an epoch as layers, and their parameters in float64."""
        w, b = self.states[epoch]
        model = Sequential(Linear(len(w), 1), Step() if self.outputs == ZERO_ONE else Sign())
        params = Parameters.zeros(model.shapes(), dtype=torch.float64)
        params.views["0"].weight.copy_(torch.tensor([[float(v) for v in w]]))
        params.views["0"].bias.fill_(float(b))
        return model, params


def learn(
    x: Tensor | Sequence[Sequence[Number]],
    target: Tensor | Sequence[Number],
    *,
    rate: Number = 1,
    weight: Sequence[Number] | None = None,
    bias: Number = 0,
    outputs: Outputs = ZERO_ONE,
    exact: bool = False,
    max_epochs: int = 1000,
) -> Learning:
    """Go through the examples in order, epoch after epoch, and correct w and b after each mistake.

    a = Σ_i w[i] x[i] + b
    y = high if a ≥ 0 else low
    Δw[i] = η (t - y) / (high - low) x[i],  Δb = η (t - y) / (high - low)

    The quotient is 0 for a right output, and else +1 or -1. So outputs 0/1 and -1/+1 take the same
    path; for -1/+1 it is t, and the rule is w ← w + η t x after a mistake.

    Shapes: x (N, I), target (N,), weight (I,), zero if None. `exact` reads floats as the decimal
    numbers they are written as, 0.1 as 1/10, and computes without rounding.
    Ends after an epoch without a mistake, at a state met before, or after `max_epochs`.
    Source: Krzywicki, "perceptron learning algorithm"; IISc, "perceptron".
    """
    inputs, targets = _examples(x, target, outputs, exact)
    eta = _number(rate, exact)
    if not eta > 0:
        raise UsageError(f"the learning rate is {rate}, expected a positive number")
    w = tuple(_number(v, exact) for v in weight or [0] * len(inputs[0]))
    b = _number(bias, exact)
    if len(w) != len(inputs[0]):
        raise UsageError(f"there are {len(w)} weights for {len(inputs[0])} inputs")
    low, high = outputs
    rows: list[Row] = []
    states = [State(w, b)]
    met = {states[0]: 0}
    for epoch in range(1, max_epochs + 1):
        for n, (x_n, t) in enumerate(zip(inputs, targets, strict=True), start=1):
            a = sum(w_i * x_i for w_i, x_i in zip(w, x_n, strict=True)) + b
            y = high if a >= 0 else low
            change = eta * ((t > y) - (t < y))
            dw, db = tuple(change * x_i for x_i in x_n), change
            w = tuple(w_i + dw_i for w_i, dw_i in zip(w, dw, strict=True))
            b = b + db
            rows.append(Row(epoch, n, x_n, t, a, y, dw, db, w, b))
        states.append(State(w, b))
        converged = all(row.y == row.target for row in rows[-len(inputs) :])
        # An epoch is a function of the state it begins with, so a state met before starts a round.
        cycle = Cycle(met[states[-1]], epoch) if states[-1] in met and not converged else None
        if converged or cycle:
            return Learning(tuple(rows), tuple(states), eta, outputs, converged, cycle)
        met[states[-1]] = epoch
    return Learning(tuple(rows), tuple(states), eta, outputs, converged=False, cycle=None)


class Margin(NamedTuple):
    """The unit that keeps all examples as far as it can from its boundary.

    s[n] (Σ_i w[i] x[n,i] + b) ≥ 1 for all n, with s = +1 or -1 for the two targets, and |(w, b)| as
    small as can be. γ = 1 / |(w, b)| is then the largest margin that a unit vector can have.
    """

    w: tuple[Fraction, ...]
    b: Fraction

    @property
    def gamma_squared(self) -> Fraction:
        """Return γ², which is exact where γ is not."""
        return 1 / _dot((*self.w, self.b), (*self.w, self.b))


def largest_margin(
    x: Tensor | Sequence[Sequence[Number]],
    target: Tensor | Sequence[Number],
    *,
    outputs: Outputs = ZERO_ONE,
) -> Margin | None:
    """Return the unit with the largest margin, or None if no unit gets all examples right.

    Let z[n] = s[n] (x[n], 1). The shortest v with v · z[n] ≥ 1 is v = Σ_n u[n] z[n] with u ≥ 0,
    where u[n] > 0 only if v · z[n] = 1; at most I+1 such examples are needed. All choices of them
    are tried, in exact numbers; so this is for small sets.
    Shapes: x (N, I), target (N,).  Source: Boser, Guyon & Vapnik 1992.
    """
    inputs, targets = _examples(x, target, outputs, exact=True)
    z = [
        [Fraction(v) if t == outputs[1] else -Fraction(v) for v in (*x_n, 1)]
        for x_n, t in zip(inputs, targets, strict=True)
    ]
    for size in range(1, len(z[0]) + 1):
        for support in combinations(z, size):
            u = _solve([[*(_dot(p, q) for q in support), Fraction(1)] for p in support])
            if u is None or min(u) < 0:
                continue
            *w, b = (_dot(u, component) for component in zip(*support, strict=True))
            if all(_dot((*w, b), p) >= 1 for p in z):
                return Margin(tuple(w), b)
    return None


class MistakeBound(NamedTuple):
    """R², γ, and the number of updates that learning cannot exceed."""

    radius_squared: Fraction  # of the longest (x[n], 1)
    gamma: float
    updates: float


def mistake_bound(
    x: Tensor | Sequence[Sequence[Number]],
    target: Tensor | Sequence[Number],
    *,
    rate: Number = 1,
    weight: Sequence[Number] | None = None,
    bias: Number = 0,
    outputs: Outputs = ZERO_ONE,
) -> MistakeBound:
    """Return after how many updates learning must be over: (R/γ)² from a zero start.

    Let v be the unit vector with the largest margin γ, and w₀ the start (w, b). Each of k updates
    adds at least η γ to (w, b) · v, and at most η² R² to |(w, b)|², as it follows a mistake. So
    (w₀ · v + k η γ)² ≤ |w₀|² + k η² R² as soon as the bracket is positive, which bounds k.
    For w₀ = 0 that is k ≤ (R/γ)², whatever η is.
    Raises UsageError if no unit gets all examples right.
    Source: Krzywicki, "perceptron convergence theorem"; Novikoff 1962.
    """
    best = largest_margin(x, target, outputs=outputs)
    if best is None:
        raise UsageError("no unit gets all these examples right, so learning never ends")
    inputs, _ = _examples(x, target, outputs, exact=True)
    start = [Fraction(_number(v, exact=True)) for v in (*(weight or [0] * len(best.w)), bias)]
    eta = Fraction(_number(rate, exact=True))
    radius_squared = max(1 + Fraction(_dot(x_n, x_n)) for x_n in inputs)
    # The inequality is γ² k² - 2 p k - q ≤ 0, and v = γ (w, b).
    gamma_squared = best.gamma_squared
    along = _dot(start, (*best.w, best.b))
    p = radius_squared / 2 - gamma_squared * along / eta
    q = (_dot(start, start) - gamma_squared * along**2) / eta**2
    middle = p / gamma_squared
    updates = float(middle) + sqrt(middle**2 + q / gamma_squared)
    return MistakeBound(radius_squared, sqrt(gamma_squared), updates)


def most_right(
    x: Tensor | Sequence[Sequence[Number]],
    target: Tensor | Sequence[Number],
    *,
    outputs: Outputs = ZERO_ONE,
) -> list[int]:
    """Return the numbers, from 1, of as many examples as one unit can get right at once.

    All subsets are tried, the large ones first; so this is for small sets.
    """
    inputs, targets = _examples(x, target, outputs, exact=True)
    for size in range(len(inputs), 0, -1):
        for chosen in combinations(range(len(inputs)), size):
            part = [inputs[n] for n in chosen], [targets[n] for n in chosen]
            if largest_margin(*part, outputs=outputs):
                return [n + 1 for n in chosen]
    return []


def _examples(
    x: Tensor | Sequence[Sequence[Number]],
    target: Tensor | Sequence[Number],
    outputs: Outputs,
    exact: bool,
) -> tuple[list[Vector], list[Number]]:
    """Return inputs and targets as Python's numbers, checked."""
    rows: Sequence[Sequence[Number]] = _list(x) if isinstance(x, Tensor) else x
    wanted: Sequence[Number] = _list(target) if isinstance(target, Tensor) else target
    if not rows or len(rows) != len(wanted):
        raise UsageError(f"there are {len(rows)} examples and {len(wanted)} targets")
    for n, (x_n, t) in enumerate(zip(rows, wanted, strict=True), start=1):
        if len(x_n) != len(rows[0]):
            raise UsageError(f"example {n} has {len(x_n)} inputs, the first one {len(rows[0])}")
        if t not in outputs:
            raise UsageError(
                f"the target of example {n} is {t}, expected {outputs[0]} or {outputs[1]}"
            )
    return [tuple(_number(v, exact) for v in x_n) for x_n in rows], list(wanted)


def _list(tensor: Tensor) -> list[Any]:
    return cast(Any, tensor).tolist()


def _number(value: Number, exact: bool) -> Number:
    if not isfinite(value):
        raise UsageError(f"{value} is not a number that a perceptron can learn with")
    return Fraction(str(value)) if exact else value


def _dot(x: Sequence[Number], y: Sequence[Number]) -> Fraction:
    """Return Σ_i x[i] y[i] of exact numbers."""
    return sum((Fraction(a) * Fraction(b) for a, b in zip(x, y, strict=True)), start=Fraction(0))


def _solve(equations: list[list[Fraction]]) -> list[Fraction] | None:
    """Solve linear equations, a row (coefficients, right side) each; None if they are singular."""
    rows = [list(row) for row in equations]
    for i in range(len(rows)):
        pivot = next((k for k in range(i, len(rows)) if rows[k][i]), None)
        if pivot is None:
            return None
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for k in range(len(rows)):
            if k != i:
                rows[k] = [v - rows[k][i] * p for v, p in zip(rows[k], rows[i], strict=True)]
    return [row[-1] for row in rows]
