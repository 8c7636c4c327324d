"""Each cause on operations that are written here by hand, as a person would, with one mistake.

What is expected is the whole list of causes, so that a wrong one beside the right one fails too.
"""

from dataclasses import dataclass, field

import pytest
import torch

from manualbp.checks.agreement import make_inputs
from manualbp.checks.differences import central_differences
from manualbp.checks.doctor.diagnosis import diagnose
from manualbp.checks.doctor.mutants import cases, specimen
from manualbp.checks.doctor.subject import LayerSubject
from manualbp.checks.doctor.truth import converted
from manualbp.layers import Linear


@dataclass
class Pair:
    """A forward and a backward function; `state` is what a mistake keeps between runs."""

    forward: object
    backward: object
    name: str = "pair"
    state: dict = field(default_factory=dict)

    def run(self, arguments):
        return PairPass(self, arguments)


class PairPass:
    def __init__(self, pair, arguments):
        self.pair, self.arguments = pair, arguments
        pair.state["latest"] = arguments
        with torch.no_grad():
            self.outputs = (pair.forward(**arguments),)

    def backward(self, dys):
        return self.pair.backward(self, dys[0], **self.arguments)


def truth_of(forward):
    def truth(arguments, dys):
        leaves = {
            n: t.double().requires_grad_() if t.is_floating_point() else t
            for n, t in arguments.items()
        }
        floats = {n: t for n, t in leaves.items() if t.is_floating_point()}
        y = forward(**leaves)
        found = torch.autograd.grad(
            y, list(floats.values()), dys[0].double(), allow_unused=True, materialize_grads=True
        )
        return dict(zip(floats, found, strict=True))

    return truth


def draw(shapes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)
        if isinstance(s, tuple)
        else s
        for n, s in shapes.items()
    }


def examine(forward, backward, shapes, seed=0, dtype=torch.float64):
    arguments = draw(shapes, seed, dtype)
    y = forward(**arguments)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed + 9)).to(y)
    return diagnose(Pair(forward, backward), arguments, [dy], truth_of(forward))


def causes(found):
    return sorted({(d.cause, d.argument) for d in found})


def linear(x, w, b):
    return x @ w.T + b


def linear_backward(p, dy, x, w, b):
    return {"x": dy @ w, "w": dy.T @ x, "b": dy.sum(0)}


LINEAR = {"x": (4, 5), "w": (3, 5), "b": (3,)}
SQUARE = {"x": (5, 5), "w": (5, 5), "b": (5,)}


def normalise(x):
    return x / x.norm(dim=-1, keepdim=True)


def normalise_backward(p, dy, x):
    y, norm = p.outputs[0], x.norm(dim=-1, keepdim=True)
    return {"x": (dy - y * (dy * y).sum(-1, keepdim=True)) / norm}


def centre(x):
    return x - x.mean(1, keepdim=True)


def swish(x):
    return x * x.sigmoid()


def swish_slope(x):
    s = x.sigmoid()
    return s + x * s * (1 - s)


def cubed(x):
    return x**3


def outer(a, b):
    return a[:, None] * b


def variance(x):
    return x.var(0)


def gather(table, i):
    return table[i]


INDEX = torch.tensor([1, 0, 2, 1, 1, 3])
RELU_DENSE = {"x": (6, 4), "w": (5, 4)}


def relu_dense(x, w):
    return (x @ w.T).relu()


def tanh_dense(x, w):
    return (x @ w.T).tanh()


def pool(x):
    return x.unfold(-1, 2, 2).amax(-1)


@pytest.mark.parametrize(
    ("forward", "backward", "shapes"),
    [
        (linear, linear_backward, LINEAR),
        (normalise, normalise_backward, {"x": (3, 5)}),
        (swish, lambda p, dy, x: {"x": dy * swish_slope(x)}, {"x": (3, 4)}),
        (swish, lambda p, dy, x: {"x": dy * swish_slope(x)}, {"x": (1,)}),
        (swish, lambda p, dy, x: {"x": dy * swish_slope(x)}, {"x": (0, 4)}),
        (
            gather,
            lambda p, dy, table, i: {"table": torch.zeros_like(table).index_add(0, i, dy)},
            {"table": (4, 3), "i": INDEX},
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_right_pass_is_never_accused(forward, backward, shapes, dtype):
    for seed in range(3):
        assert examine(forward, backward, shapes, seed, dtype) == []


WRONG = [
    # sign and factor
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b), "w": -dy.T @ x}, LINEAR,
     [("sign", "w")]),
    (cubed, lambda p, dy, x: {"x": -3 * dy * x * x}, {"x": (4,)}, [("sign", "x")]),
    (cubed, lambda p, dy, x: {"x": dy * x * x}, {"x": (4,)}, [("constant factor", "x")]),
    (variance, lambda p, dy, x: {"x": 2 * dy * (x - x.mean(0)) / len(x)}, {"x": (5, 2)},
     [("constant factor", "x")]),
    (cubed, lambda p, dy, x: {"x": -dy * x * x}, {"x": (4,)},
     [("constant factor", "x"), ("sign", "x")]),
    # axes
    (outer, lambda p, dy, a, b: {"a": dy @ b, "b": a @ dy.T}, {"a": (4,), "b": (4,)},
     [("transposed", "b")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b), "w": x.T @ dy}, SQUARE,
     [("transposed", "w")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b), "w": 2 * x.T @ dy}, LINEAR,
     [("constant factor", "w"), ("transposed", "w")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b), "x": dy @ w.T}, SQUARE,
     [("transposed", "x")]),
    # sums
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b), "b": dy}, LINEAR,
     [("not summed", "b")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b), "b": dy[0]}, LINEAR,
     [("not summed", "b")]),
    (outer, lambda p, dy, a, b: {"a": dy @ b, "b": (a[:, None] * dy).sum(1)},
     {"a": (4,), "b": (4,)}, [("wrong sum", "b")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b), "b": dy.sum(1)}, SQUARE,
     [("wrong sum", "b")]),
    (outer, lambda p, dy, a, b: {"a": dy @ b, "b": dy * a[:, None]}, {"a": (3,), "b": (4,)},
     [("not summed", "b")]),
    # the upstream gradient
    (cubed, lambda p, dy, x: {"x": 3 * x * x}, {"x": (4,)}, [("upstream ignored", "x")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b),
     "x": torch.ones_like(dy) @ w}, LINEAR, [("upstream ignored", "x")]),
    (cubed, lambda p, dy, x: {"x": dy * 3 * x * x * dy}, {"x": (4,)}, [("upstream twice", "x")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b), "b": (dy * dy).sum(0)},
     LINEAR, [("upstream twice", "b")]),
    # terms
    (centre, lambda p, dy, x: {"x": dy.clone()}, {"x": (3, 5)}, [("missing term", "x")]),
    (normalise, lambda p, dy, x: {"x": dy / x.norm(dim=-1, keepdim=True)}, {"x": (3, 5)},
     [("missing term", "x")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b), "w": dy.T @ x + 0.01 * w},
     LINEAR, [("extra term", "w")]),
    (cubed, lambda p, dy, x: {"x": dy * 3 * x * x + 1}, {"x": (4,)}, [("extra term", "x")]),
    # the derivative of an activation
    (swish, lambda p, dy, x: {"x": dy.clone()}, {"x": (3, 4)},
     [("activation derivative missing", "x")]),
    (relu_dense, lambda p, dy, x, w: {"x": dy @ w, "w": (dy * (p.outputs[0] > 0)).T @ x},
     RELU_DENSE, [("activation derivative missing", "x")]),
    (tanh_dense, lambda p, dy, x, w: {"x": dy @ w, "w": dy.T @ x}, RELU_DENSE,
     [("activation derivative missing", "w"), ("activation derivative missing", "x")]),
    (swish, lambda p, dy, x: {"x": dy * swish_slope(swish(x))}, {"x": (3, 4)},
     [("activation derivative at y", "x")]),
    (cubed, lambda p, dy, x: {"x": dy * 3 * x**6}, {"x": (4,)},
     [("activation derivative at y", "x")]),
    (swish, lambda p, dy, x: {"x": dy * swish_slope(x) ** 2}, {"x": (3, 4)},
     [("activation derivative twice", "x")]),
    (tanh_dense, lambda p, dy, x, w: {"x": (dy * (1 - p.outputs[0] ** 2)) @ w,
     "w": (dy * (1 - p.outputs[0] ** 2) ** 2).T @ x}, RELU_DENSE,
     [("activation derivative twice", "w")]),
    # another argument, None, zero
    (outer, lambda p, dy, a, b: {"a": a @ dy, "b": dy @ b}, {"a": (4,), "b": (4,)},
     [("another argument", "a"), ("another argument", "b")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b), "x": dy.T @ x}, SQUARE,
     [("another argument", "x")]),
    (outer, lambda p, dy, a, b: {"a": dy @ b, "b": None}, {"a": (3,), "b": (4,)}, [("none", "b")]),
    (linear, lambda p, dy, x, w, b: {"x": dy @ w, "w": dy.T @ x}, LINEAR, [("none", "b")]),
    (outer, lambda p, dy, a, b: {"a": dy @ b, "b": 0 * b}, {"a": (3,), "b": (4,)},
     [("zero", "b")]),
    (cubed, lambda p, dy, x: {"x": torch.zeros_like(x)}, {"x": (4,)}, [("zero", "x")]),
    (cubed, lambda p, dy, x: {"x": dy / 0}, {"x": (4,)}, [("not finite", "x")]),
    # assigned
    (gather, lambda p, dy, table, i: {"table": torch.zeros_like(table).index_put((i,), dy)},
     {"table": (4, 3), "i": INDEX}, [("assigned", "table")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b), "w": dy[-1:].T @ x[-1:]},
     LINEAR, [("assigned", "w")]),
    # only in part
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b),
     "w": dy[:-1].T @ x[:-1]}, LINEAR, [("certain elements", "w")]),
    (swish, lambda p, dy, x: {"x": dy * swish_slope(x) * (torch.arange(7) < 6)}, {"x": (3, 7)},
     [("certain elements", "x")]),
    (swish, lambda p, dy, x: {"x": dy * torch.where(x > 0, swish_slope(x), x.sigmoid())},
     {"x": (4, 7)}, [("one branch", "x")]),
    # precision, kind
    (cubed, lambda p, dy, x: {"x": (dy * 3 * x * x).float().double()}, {"x": (9,)},
     [("precision", "x")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b),
     "w": (dy.half().T @ x.half()).double()}, LINEAR, [("precision", "w")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b),
     "w": dy.T @ x.float().double()}, LINEAR, [("precision", "w")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b),
     "w": -(dy.float().T @ x.float()).double()}, LINEAR, [("precision", "w"), ("sign", "w")]),
    (cubed, lambda p, dy, x: {"x": (dy * 3 * x * x).float()}, {"x": (9,)}, [("dtype", "x")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b),
     "b": dy.sum(0, keepdim=True)}, LINEAR, [("shape", "b")]),
    # strides
    (cubed, lambda p, dy, x: {"x": (dy.view(-1) * 3 * x.view(-1) ** 2).view(x.shape)},
     {"x": (3, 4)}, [("strides", "")]),
    (cubed, lambda p, dy, x: {"x": dy * x.sin()}, {"x": (3, 4)}, [("wrong derivative", "x")]),
    # what has no name
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b), "w": (dy.T @ x).tanh()},
     LINEAR, [("not recognised", "w")]),
]  # fmt: skip


@pytest.mark.parametrize(("forward", "backward", "shapes", "expected"), WRONG)
def test_a_mistake_is_named(forward, backward, shapes, expected):
    found = examine(forward, backward, shapes)
    assert causes(found) == expected, found
    assert all(d.words and d.evidence for d in found)


def kept(p, x):
    """Return the x of the latest forward pass, as a layer has it that keeps it on itself."""
    return p.pair.state["latest"]["x"]


def counted(p, keep):
    """Return how often the backward pass has run: since the forward pass, or ever."""
    holder = p.__dict__ if keep == "pass" else p.pair.state
    holder["count"] = holder.get("count", 0) + 1
    return holder["count"]


def total(p, gradient):
    p.pair.state["sum"] = p.pair.state.get("sum", 0) + gradient
    return p.pair.state["sum"].clone()


def draws(x):
    return x * (1 + 0.01 * torch.rand(x.shape))


def stale_buffer(p, x):
    """Return x / 2 + (the latest x) / 2, as one has it whose buffer was half written to."""
    return 0.5 * x + 0.5 * kept(p, x)


BEHAVIOUR = [
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b), "w": dy.T @ kept(p, x)},
     LINEAR, [("stale saved tensor", "w")]),
    (cubed, lambda p, dy, x: {"x": 3 * dy * kept(p, x) ** 2}, {"x": (4,)},
     [("stale saved tensor", "x")]),
    (linear,
     lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b), "w": dy.T @ stale_buffer(p, x)},
     LINEAR, [("saved tensor overwritten", "w")]),
    (cubed, lambda p, dy, x: {"x": 3 * dy * x**2 * counted(p, "pass")}, {"x": (4,)},
     [("accumulated", "x")]),
    (swish, lambda p, dy, x: {"x": dy * swish_slope(x) / counted(p, "pass")}, {"x": (4, 3)},
     [("saved tensor overwritten", "x")]),
    (linear,
     lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b),
     "b": dy.sum(0) / counted(p, "pass")},
     LINEAR, [("saved tensor overwritten", "b")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b), "w": total(p, dy.T @ x)},
     LINEAR, [("accumulated", "w")]),
    (cubed, lambda p, dy, x: {"x": total(p, 3 * dy * x**2)}, {"x": (4,)}, [("accumulated", "x")]),
    (cubed, lambda p, dy, x: {"x": draws(3 * dy * x**2)}, {"x": (4,)},
     [("not deterministic", "x")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b),
     "w": dy.T @ x * (1 + 0.1 / counted(p, "pair"))}, LINEAR, [("not deterministic", "w")]),
    (cubed, lambda p, dy, x: {"x": dy.mul_(3 * x**2)}, {"x": (4,)},
     [("in-place change", "dy"), ("strides", "")]),
    (swish, lambda p, dy, x: {"x": dy * swish_slope(x.mul_(1))}, {"x": (4,)},
     [("in-place change", "x")]),
    (lambda x: x.clone().tanh_(), lambda p, dy, x: {"x": dy.clone().mul_(1 - p.outputs[0] ** 2)},
     {"x": (4,)}, []),
    (swish, lambda p, dy, x: {"x": dy.as_strided(dy.shape, (4, 1)) * swish_slope(x)},
     {"x": (3, 4)}, [("strides", "x")]),
    (linear, lambda p, dy, x, w, b: {**linear_backward(p, dy, x, w, b),
     "b": dy.as_strided(dy.shape, (3, 1)).sum(0)}, LINEAR, [("strides", "b")]),
    (cubed, lambda p, dy, x: {"x": dy * p.lost}, {"x": (4,)}, [("error", "")]),
]  # fmt: skip


@pytest.mark.parametrize(("forward", "backward", "shapes", "expected"), BEHAVIOUR)
def test_what_a_pass_does_is_named(forward, backward, shapes, expected):
    found = examine(forward, backward, shapes)
    assert causes(found) == expected, found


class Assigning(Linear):
    def backward(self, params, saved, dy, grads):
        grads.weight.copy_(dy.T @ saved.x)
        grads.bias.add_(dy.sum(0))
        return dy @ params.weight


def test_a_layer_that_assigns_its_gradients_is_told():
    layer = Assigning(4, 3)
    arguments = draw({"x": (5, 4), "weight": (3, 4), "bias": (3,)})
    dy = torch.randn(5, 3, dtype=torch.float64)
    right = truth_of(lambda x, weight, bias: linear(x, weight, bias))
    found = diagnose(LayerSubject(layer), arguments, [dy], right)
    assert causes(found) == [("assigned", "weight")]
    assert diagnose(LayerSubject(Linear(4, 3)), arguments, [dy], right) == []


def relu_with_slope(at_zero):
    return lambda p, dy, x: {"x": dy * torch.heaviside(x, torch.full_like(x, at_zero))}


def test_any_slope_between_those_of_a_kink_is_right_and_no_other():
    arguments = {"x": torch.tensor([-1.0, 0.0, 2.0, 0.0, 1.0], dtype=torch.float64)}
    dys = [torch.tensor([1.0, 2.0, 3.0, -4.0, 5.0], dtype=torch.float64)]
    for at_zero in (0.0, 0.5, 1.0):
        pair = Pair(lambda x: x.relu(), relu_with_slope(at_zero))
        assert diagnose(pair, arguments, dys, lambda a, d: {"x": right_relu(a, d)}) == []
    pair = Pair(lambda x: x.relu(), relu_with_slope(1.5))
    found = diagnose(pair, arguments, dys, lambda a, d: {"x": right_relu(a, d)})
    assert causes(found) == [("kinks", "x")]


def right_relu(arguments, dys):
    return dys[0] * (arguments["x"] > 0)


def test_one_of_several_outputs_may_be_forgotten():
    class Two(Pair):
        def run(self, arguments):
            done = PairPass(self, arguments)
            done.outputs = (arguments["x"] ** 2, arguments["x"] ** 3)
            done.backward = lambda dys: {"x": 2 * arguments["x"] * dys[0]}
            return done

    def right(arguments, dys):
        x = arguments["x"]
        return {"x": 2 * x * dys[0] + 3 * x**2 * dys[1]}

    arguments = draw({"x": (5,)})
    dys = [arguments["x"].cos(), arguments["x"].sin()]
    (found,) = diagnose(Two(lambda x: x, None), arguments, dys, right)
    assert found.cause == "upstream ignored"
    assert "output 1" in found.words


@pytest.mark.parametrize(
    ("factor", "reading"),
    [
        (0.25, "1/N with N = 4, the batch size"),
        (3.0, "N with N = 3, the length of axis 0 of w"),
        (5**0.5, "√d with d = 5"),
        (0.5, "½"),
        (1024.0, "a loss scale of 2^10"),
        (1 / 20, "1/N with N = 20, the count of all numbers of x"),
    ],
)
def test_a_factor_is_read(factor, reading):
    def backward(p, dy, x, w, b):
        right = linear_backward(p, dy, x, w, b)
        return {**right, "w": factor * right["w"]}

    (found,) = examine(linear, backward, LINEAR)
    assert reading in found.words


def test_neither_the_arguments_nor_the_upstream_gradient_are_touched():
    arguments = draw({"x": (4,)})
    dy = torch.ones(1, dtype=torch.float64).expand(4)
    before = arguments["x"].clone()
    diagnose(Pair(cubed, lambda p, dy, x: {"x": dy * x.mul_(2)}), arguments, [dy], truth_of(cubed))
    assert torch.equal(arguments["x"], before)
    assert dy.stride() == (0,)


def test_truth_by_differences_accuses_nobody():
    def differences(arguments, dys):
        x = arguments["x"].clone()
        return {"x": central_differences(lambda: swish(x), x, dys[0])}

    arguments = draw({"x": (3, 4)})
    dy = torch.randn(3, 4, dtype=torch.float64)
    right = Pair(swish, lambda p, dy, x: {"x": dy * swish_slope(x)})
    assert diagnose(right, arguments, [dy], differences) == []
    wrong = Pair(swish, lambda p, dy, x: {"x": -0.5 * dy * swish_slope(x)})
    found = diagnose(wrong, arguments, [dy], differences)
    assert causes(found) == [("constant factor", "x"), ("sign", "x")]


def test_a_winner_that_rounding_decides_is_no_loss_of_precision():
    # With seed 9 two pieces of a Maxout are so near to each other that bfloat16 takes the other.
    maxout = specimen("Maxout, normal", 9).trial
    arguments = converted(maxout.arguments, torch.bfloat16)
    dys = [make_inputs(cases()["Maxout, normal"], torch.bfloat16, "cpu", 9).dy]
    right = maxout.truth(arguments, dys)["x"]
    ours = maxout.subject.run(arguments).backward(dys)["x"].double()
    assert (ours - right).abs().max() > 0.3 * right.abs().max()
    assert diagnose(maxout.subject, arguments, dys, maxout.truth) == []


@pytest.mark.parametrize("forward", [swish, cubed])
def test_precision_that_is_lost_in_one_dtype_only_is_told(forward):
    def backward(p, dy, x):
        slope = swish_slope(x) if forward is swish else 3 * x * x
        g = dy * slope
        return {"x": g.bfloat16().float() if g.dtype == torch.float32 else g}

    found = examine(forward, backward, {"x": (5, 6)}, dtype=torch.float32)
    assert causes(found) == [("precision", "x")]
