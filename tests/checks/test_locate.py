"""`manualbp locate`: one wrong layer is named, and the others are not blamed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Outcome, call
from torch import Tensor

from manualbp.layers import Linear, Maxout, ReLU, Residual, Sequential
from manualbp.losses import CrossEntropyLoss

CPU = ("--device", "cpu")


def findings(outcome: Outcome) -> list[dict[str, Any]]:
    return json.loads(outcome.out)


def wrong(outcome: Outcome) -> dict[str, list[str]]:
    return {f["layer"]: f["differing"] for f in findings(outcome) if f["verdict"] == "differ"}


@pytest.mark.parametrize("model", ["mlp", "logistic", "maxout", "residual"])
@pytest.mark.parametrize("data", ["digits", "diabetes"])
def test_right_networks(model: str, data: str) -> None:
    outcome = call("locate", "--model", model, "--data", data, *CPU, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = findings(outcome)
    assert {f["verdict"] for f in found} == {"agree"}
    assert all(error < 1e-12 for f in found for error in f["errors"].values())


def test_the_order_is_that_of_the_backward_pass() -> None:
    found = findings(call("locate", "--model", "mlp", *CPU, "--json"))
    assert [(f["layer"], f["class"]) for f in found] == [
        ("loss", "CrossEntropyLoss"),
        ("4", "Linear"),
        ("3", "ReLU"),
        ("2", "Linear"),
        ("1", "ReLU"),
        ("0", "Linear"),
        ("", "Sequential"),
    ]
    assert list(found[1]["errors"]) == ["y", "dx", "dweight", "dbias"]


def plant(
    monkeypatch: pytest.MonkeyPatch, cls: type, method: str, change: Any, only: Any = None
) -> None:
    """Change what a method returns, for layers that are equal to `only`."""
    right = getattr(cls, method)

    def planted(self: Any, *arguments: Any, **others: Any) -> Any:
        result = right(self, *arguments, **others)
        return result if only is not None and self != only else change(result, *arguments)

    monkeypatch.setattr(cls, method, planted)


def test_one_wrong_layer_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    second = Linear(128, 64)
    plant(monkeypatch, Linear, "backward", lambda dx, *_: -dx, only=second)
    outcome = call("locate", *CPU, "--json")
    assert outcome.code == 1
    assert wrong(outcome) == {"2": ["dx"]}
    table = call("locate", *CPU)
    assert table.code == 1
    assert "The gradients part at 2 (Linear): dx is off by 2.0e+00 of its largest." in table.out
    assert table.out.count("differ ") == 1
    assert "the sign" in table.out or "-1" in table.out
    assert max(map(len, table.out.splitlines())) <= 80


def test_a_thousandth_in_one_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(_: None, params: Any, saved: Any, dy: Tensor, grads: Any) -> None:
        grads.weight[3, 5] *= 1.001

    plant(monkeypatch, Linear, "backward_parameters", change, only=Linear(64, 10))
    assert wrong(call("locate", *CPU, "--json")) == {"4": ["dweight"]}


def test_several_wrong_layers_and_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, ReLU, "backward", lambda dx, *_: 2 * dx)
    plant(monkeypatch, CrossEntropyLoss, "backward", lambda dy, *_: 3 * dy)
    outcome = call("locate", *CPU, "--json")
    assert wrong(outcome) == {"loss": ["dy"], "3": ["dx"], "1": ["dx"]}
    said = call("locate", *CPU).out
    assert "The gradients part at loss (CrossEntropyLoss): dy" in said
    assert "Wrong too, apart from that: 3 (ReLU): dx" in said


def test_a_wrong_forward_pass_blames_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, ReLU, "forward", lambda result, *_: (result[0] + 0.1, result[1]))
    assert wrong(call("locate", *CPU, "--json")) == {"3": ["y"], "1": ["y"]}


def test_a_wrong_residual_does_not_blame_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Residual, "backward", lambda dx, params, saved, dy, grads: dx - dy)
    outcome = call("locate", "--model", "residual", *CPU, "--json")
    assert wrong(outcome) == {"2": ["dx"], "1": ["dx"]}


def test_wrong_glue_is_the_sequences_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Sequential, "backward", lambda dx, *_: dx / 2)
    outcome = call("locate", "--model", "mlp", *CPU, "--json")
    assert wrong(outcome) == {"": ["dx"]}


def test_the_pass_without_dx_is_examined_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(_: None, params: Any, saved: Any, dy: Tensor, grads: Any) -> None:
        grads.bias.zero_()

    plant(monkeypatch, Maxout, "backward_parameters", change, only=Maxout(64, 128))
    outcome = call("locate", "--model", "maxout", *CPU, "--json")
    assert wrong(outcome) == {"0": ["dbias without dx"]}


def test_a_backward_pass_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(dx: Tensor, *_: Any) -> Tensor:
        raise RuntimeError("shapes do\nnot fit")

    plant(monkeypatch, ReLU, "backward", change)
    outcome = call("locate", *CPU)
    assert outcome.code == 1
    assert "3 (ReLU): its backward pass raises RuntimeError: shapes do not fit." in " ".join(
        outcome.out.split()
    )


def test_a_layer_that_overwrites_what_it_is_handed(monkeypatch: pytest.MonkeyPatch) -> None:
    # It spoils dy for itself only: the layers after it have a dy of their own.
    right = Linear.backward

    def spoils(self: Any, params: Any, saved: Any, dy: Tensor, grads: Any) -> Tensor:
        dy.mul_(2)
        return right(self, params, saved, dy, grads)

    monkeypatch.setattr(Linear, "backward", spoils)
    outcome = call("locate", *CPU, "--json")
    assert wrong(outcome).keys() == {"4", "2", "0"}


NETS = '''
from dataclasses import dataclass

import torch
from torch import nn

from manualbp import as_function
from manualbp.layers import Dropout, Linear, Maxout, ReLU, Residual, Sequential, Tanh


class HalfSquare(torch.autograd.Function):
    """x², whose backward pass forgets the 2."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.saved_tensors[0]


class Times(torch.autograd.Function):
    """x Wᵀ; one number of dW is a thousandth too large."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dw = (dy.T @ x).contiguous()
        place = dw.abs().argmax()
        dw.view(-1)[place] *= 1.001
        return dy @ w, dw


class Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        raise ZeroDivisionError("by me")


class OwnLinear(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i))

    def forward(self, x):
        return Times.apply(x, self.weight)


class Square(nn.Module):
    def forward(self, x):
        return HalfSquare.apply(x)


class Broken(nn.Module):
    def forward(self, x):
        return Breaks.apply(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.bn = nn.Linear(6, 5), nn.BatchNorm1d(5)
        self.own, self.square, self.drop = OwnLinear(5, 5), Square(), nn.Dropout(0.3)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        h = self.fc(x).relu()
        h = h + self.drop(self.own(self.bn(h)))
        return self.out(h + torch.tanh(self.square(h)))


class Glue(nn.Module):
    """The mistake lies between the modules."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 5)

    def forward(self, x):
        return self.b(HalfSquare.apply(self.a(x)))


class Right(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2)
        self.norm, self.convolution = nn.LayerNorm(6), nn.Conv1d(1, 2, 3)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        h = self.act(self.norm(x))
        return self.last(self.convolution(h[:, None])).sum(1) + self.act(x)[:, :2]


@dataclass(frozen=True)
class BadTanh(Tanh):
    def backward(self, params, saved, dy, grads):
        return dy * (1 - saved.y)


ours = Sequential(
    Linear(6, 5), BadTanh(), Residual(Sequential(Linear(5, 5), ReLU(), Dropout(0.4))), Linear(5, 2)
)
good = nn.Sequential(
    nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Dropout(0.2), as_function(Maxout(5, 4)),
    as_function(Dropout(0.5)), nn.Softmax(-1),
)
inside = nn.Sequential(nn.Linear(6, 5), as_function(Sequential(Linear(5, 5), BadTanh())))
broken = nn.Sequential(nn.Linear(6, 5), Broken(), nn.Linear(5, 2))
relu_at_kinks = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.ReLU())
lstm = nn.Sequential(nn.Linear(6, 5), nn.LSTM(5, 4))
'''


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("nets") / "nets.py"
    path.write_text(NETS)
    return str(path)


def located(nets: str, name: str, *options: str) -> Outcome:
    return call("locate", "--model", f"{nets}:{name}", *CPU, *options)


EXPECTED: list[tuple[str, dict[str, list[str]]]] = [
    ("Net", {"square": ["dx"], "own": ["dweight"]}),
    ("Glue", {"": ["dx"]}),
    ("Right", {}),
    ("ours", {"1": ["dx"]}),
    ("good", {}),
    ("inside", {"1.1": ["dx"]}),
    ("relu_at_kinks", {}),
]


@pytest.mark.parametrize(("name", "expected"), EXPECTED)
@pytest.mark.parametrize("seed", ["0", "1"])
def test_a_users_network(nets: str, name: str, expected: dict[str, list[str]], seed: str) -> None:
    outcome = located(nets, name, "--json", "--seed", seed)
    assert outcome.err == ""
    assert wrong(outcome) == expected
    assert outcome.code == (1 if expected else 0)


def test_the_first_wrong_layer_is_diagnosed(nets: str) -> None:
    found = findings(located(nets, "Net", "--json"))
    said = {f["layer"]: f["diagnoses"] for f in found if f["diagnoses"]}
    assert list(said) == ["square"]
    (diagnosis,) = said["square"]
    assert (diagnosis["cause"], diagnosis["argument"]) == ("constant factor", "x")
    table = " ".join(located(nets, "Net").out.split())
    assert f"dx: {diagnosis['words']} evidence: {diagnosis['evidence']}" in table


def test_every_layer_of_a_users_network_is_examined(nets: str) -> None:
    found = findings(located(nets, "Net", "--json"))
    assert {f["layer"]: f["reference"] for f in found} == {
        "out": "by hand",
        "square": "differences",
        "drop": "differences",
        "own": "differences",
        "bn": "differences",
        "fc": "by hand",
        "": "differences",
    }
    # From the right values, not from the mistakes of the layers behind.
    right = [f for f in found if f["layer"] not in ("square", "own")]
    assert all(error < 1e-6 for f in right for error in f["errors"].values())


def test_a_function_that_raises(nets: str) -> None:
    outcome = located(nets, "broken")
    assert outcome.code == 1
    assert "part at 1 (Broken): its backward pass raises ZeroDivisionError: by me." in " ".join(
        outcome.out.split()
    )


def test_the_users_model_is_left_alone(nets: str) -> None:
    from manualbp.checks.user_code import load_network
    from manualbp.checks.watching import watch_module

    _, model = load_network(f"{nets}:Net", seed=0)
    assert isinstance(model, torch.nn.Module)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    watch_module(model, torch.randn(8, 6, dtype=torch.float64), torch.ones_like, seed=0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())


MISTAKES = [
    ("--model mpl", "--model mpl: there is no such model; did you mean mlp?"),
    ("--model NETS:nett", "did you mean"),
    ("--model NETS:lstm", "does not run on inputs of shape 8×6: "),
    ("--model NETS:lstm", "; others may come from lstm_inputs() in its file"),
    ("--model NETS:good --data iris", "does not run on inputs of shape 8×4"),
    ("--seed -1", "--seed is -1"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes_in_one_line(nets: str, words: str, message: str) -> None:
    outcome = call("locate", *CPU, *words.replace("NETS", nets).split())
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


IMAGES = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4 * 4, 3))

def net_inputs():
    return torch.randn(2, 1, 6, 6)

several = net
def several_inputs():
    return torch.randn(2, 1, 6, 6), torch.zeros(2)

failing = net
def failing_inputs():
    return torch.randn(2, 1) @ torch.randn(2)
"""


def test_inputs_come_from_a_function_beside_the_model(tmp_path: Path) -> None:
    path = tmp_path / "images.py"
    path.write_text(IMAGES)
    outcome = located(str(path), "net")
    assert outcome.out.startswith("net on net_inputs(), in the order of the backward pass\n")
    assert "0                  Conv2d" in outcome.out
    assert outcome.code == 0
    wanted = "manualbp: several_inputs() has to return one tensor of floating point, for a model's"
    assert located(str(path), "several").err.startswith(wanted)
    failing = located(str(path), "failing")
    assert failing.err.startswith("manualbp: failing_inputs() fails: line 17 of images.py: Runtime")
    assert failing.code == 2


def test_layers_without_numbers_at_hand(tmp_path: Path) -> None:
    path = tmp_path / "wide.py"
    path.write_text(
        "from torch import nn\n"
        "net = nn.Sequential(nn.Linear(300, 100), nn.LayerNorm(100), nn.Bilinear(1, 1, 1))[:2]\n"
        "wide = nn.Sequential(nn.Linear(300, 4), nn.Tanh(), nn.Unflatten(1, (1, 4)), "
        "nn.Conv1d(1, 6000, 3))\n"
    )
    assert wrong(call("locate", "--model", f"{path}:net", *CPU, "--json")) == {}
    outcome = call("locate", "--model", f"{path}:wide", *CPU)
    assert outcome.code == 0
    assert "not examined" in outcome.out
    assert "All 3 agree in float64." in outcome.out
