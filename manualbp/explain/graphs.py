"""Computational graphs: a formula as boxes of primitive operations, walked forward and backward.

Each box knows its value and its derivative by each of its inputs, nothing else. The chain rule for
a box a that goes into boxes b is ∂y/∂a = Σ_b ∂y/∂b ∂b/∂a.
The layers need no such graph: they are written out whole. It is here to be looked at.
Source: Kandemir, "the computational graph of a perceptron" and "chain rule".
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from manualbp.explain.networks import float64, values_and_slopes
from manualbp.layers import AnyLayer


@dataclass(frozen=True, eq=False)
class Node:
    """One box: its value, what it was computed from, and its derivative by each of these."""

    name: str
    value: float
    inputs: tuple[Node, ...] = ()
    slopes: tuple[float, ...] = ()  # ∂value/∂input, one for each input


def variable(name: str, value: float) -> Node:
    """Return a box that depends on nothing."""
    return Node(name, value)


def product(name: str, *factors: Node) -> Node:
    """Y = Π_i a_i;  ∂y/∂a_i is the product of the others"""
    values = [a.value for a in factors]
    slopes = tuple(prod(values[:i] + values[i + 1 :]) for i in range(len(values)))
    return Node(name, prod(values), factors, slopes)


def total(name: str, *terms: Node) -> Node:
    """Y = Σ_i a_i;  ∂y/∂a_i = 1"""
    return Node(name, sum(a.value for a in terms), terms, (1.0,) * len(terms))


def function(name: str, a: Node, value: float, slope: float) -> Node:
    """Y = f(a), with f(a) and f'(a) given: sin(a) and cos(a), e^a and e^a"""
    return Node(name, value, (a,), (slope,))


def activation(name: str, layer: AnyLayer, a: Node) -> Node:
    """Y = f(a) for an activation function of the layers"""
    value, slope = values_and_slopes(layer, float64([a.value]))
    return function(name, a, float(value), float(slope))


def in_order(y: Node) -> list[Node]:
    """Return all boxes that y depends on, y last and every box after its inputs."""
    order: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node not in order:
            for a in node.inputs:
                visit(a)
            order[node] = None

    visit(y)
    return list(order)


def derivatives(y: Node) -> dict[Node, float]:
    """Return ∂y/∂a for every box a: each box is visited once, after all boxes that it goes into."""
    order = in_order(y)
    dy_d = dict.fromkeys(order, 0.0)
    dy_d[y] = 1.0
    for b in reversed(order):
        for a, db_da in zip(b.inputs, b.slopes, strict=True):
            dy_d[a] += dy_d[b] * db_da  # ∂y/∂a += ∂y/∂b ∂b/∂a
    return dy_d
