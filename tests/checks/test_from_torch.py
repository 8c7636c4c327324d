"""torch.nn models as their hand-written equals, and `manualbp compare --model`."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from small_runs import call
from torch import Tensor, nn

from manualbp import from_torch
from manualbp.checks import registry
from manualbp.checks.registry import case_owner, layer_cases
from manualbp.checks.user_code import load_model
from manualbp.cli import main
from manualbp.errors import UsageError
from manualbp.layers import (
    ELU,
    GELU,
    Dropout,
    LeakyReLU,
    Linear,
    ReLU,
    Sequential,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from manualbp.layers.base import AnyLayer, Mode
from reference.cases import Case
from reference.twins import twin


@pytest.mark.parametrize("case", layer_cases(), ids=lambda c: f"{case_owner(c)}, {c.name}")
def test_every_twin_becomes_its_layer_again(case: Case) -> None:
    module = twin(case.layer)
    layer, parameters = from_torch(module)
    assert layer == case.layer
    assert parameters.named().keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        assert torch.equal(parameters.named()[name], value)


PAIRS: list[tuple[nn.Module, AnyLayer]] = [
    (nn.Linear(5, 3), Linear(5, 3)),
    (nn.Linear(5, 3, bias=False), Linear(5, 3, bias=False)),
    (nn.ReLU(inplace=True), ReLU()),
    (nn.LeakyReLU(0.2), LeakyReLU(0.2)),
    (nn.ELU(0.7), ELU(0.7)),
    (nn.GELU("tanh"), GELU("tanh")),
    (nn.SiLU(), SiLU()),
    (nn.Sigmoid(), Sigmoid()),
    (nn.Tanh(), Tanh()),
    (nn.Softplus(2.0, 5.0), Softplus(2.0, 5.0)),
    (nn.Softmax(0), Softmax(0)),
    (nn.Dropout(0.3), Dropout(0.3)),
    (nn.Identity(), Sequential()),
]


@pytest.mark.parametrize(("module", "expected"), PAIRS, ids=lambda pair: type(pair).__name__)
def test_layers_of_torch(module: nn.Module, expected: AnyLayer) -> None:
    layer, parameters = from_torch(module.double())
    assert layer == expected
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.manual_seed(1)
    theirs = module(x.clone()).detach()
    torch.manual_seed(1)
    ours, _ = layer.forward(parameters.views, x, mode=Mode(training=True))
    if not isinstance(expected, Dropout):  # whose mask torch draws in x's dtype
        torch.testing.assert_close(ours, theirs)


def test_names_nesting_and_dtype() -> None:
    shared = nn.Tanh()
    encoder = nn.Sequential(OrderedDict(fc=nn.Linear(5, 4), act=shared))
    model = nn.Sequential(OrderedDict(enc=encoder, skip=nn.Identity(), act=shared)).bfloat16()
    layer, parameters = from_torch(model)
    assert layer == Sequential(Sequential(Linear(5, 4), Tanh()), Sequential(), Tanh())
    assert list(parameters.named()) == ["0.0.weight", "0.0.bias"]
    assert parameters.flat.dtype == torch.bfloat16
    parameters.flat.zero_()
    assert encoder.fc.weight.abs().min() > 0  # copies


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class OwnSequence(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


twice = nn.Linear(2, 2)
hooked = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
hooked[0].register_forward_hook(lambda module, inputs, y: 2 * y)
FAULTS: list[tuple[nn.Module, str]] = [
    (
        nn.Sequential(nn.Sequential(nn.Conv2d(1, 1, 1)), nn.Linear(2, 2), nn.LSTM(2, 2)),
        r"0\.0 \(Conv2d\) has no hand-written equal; 2 \(LSTM\) has no hand-written equal$",
    ),
    (nn.Softmax(), r"the model \(Softmax\) has dim=None"),
    (Own(), r"the model \(Own\) has no hand-written equal: it is no nn.Sequential"),
    (hooked, r"0 \(Linear\) has a hook, of which nothing is known by hand$"),
    (nn.Sequential(OwnSequence()), r"0 \(OwnSequence\) has no hand-written equal"),
    (nn.Sequential(twice, nn.ReLU(), twice), r"2\.weight is the same parameter as 0\.weight"),
    (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))), r"0 \(Parametrized"),
]


@pytest.mark.parametrize(("module", "message"), FAULTS, ids=lambda item: type(item).__name__)
def test_what_cannot_be_converted_is_named(module: nn.Module, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        from_torch(module)
    assert "\n" not in str(error.value)


def test_a_new_layer_is_converted_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Softsign(ReLU):
        pass

    monkeypatch.setattr("manualbp.checks.conversion.layers", lambda: [*registry.layers(), Softsign])
    layer, _ = from_torch(nn.Softsign())
    assert isinstance(layer, Softsign)


def test_a_setting_that_is_not_there_by_hand_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Softshrink(ReLU):
        pass

    monkeypatch.setattr("manualbp.checks.conversion.layers", lambda: [Softshrink])
    assert isinstance(from_torch(nn.Softshrink())[0], Softshrink)
    with pytest.raises(UsageError, match=r"has lambd=0.7, which is not there by hand"):
        from_torch(nn.Softshrink(0.7))


NET = """
from torch import nn
print("executed")
net = nn.Sequential(
    nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Sequential(nn.Linear(7, 3))
)
def make():
    return net
conv = nn.Sequential(nn.Conv1d(1, 1, 1))
three = 3
def fails():
    return 1 / 0
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    return str(tmp_path / "net.py")


@pytest.mark.parametrize("name", ["net", "make"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_compare_takes_a_users_model(net: str, name: str, dtype: str) -> None:
    options = ("--device", "cpu", "--dtype", dtype, "--json")
    outcome = call("compare", "--model", f"{net}:{name}", *options)
    assert outcome.code == 0
    assert outcome.err == "executed\n"
    rows = json.loads(outcome.out)
    assert {row["layer"] for row in rows} == {name}
    assert [row["tensor"] for row in rows] == [
        *("y", "dx", "d0.weight", "d0.bias", "d3.0.weight", "d3.0.bias")
    ]


def test_compare_finds_a_mistake(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Linear.backward_parameters

    def wrong(*arguments: object) -> None:
        right(*arguments)  # pyright: ignore
        arguments[-1].bias.mul_(1.001)  # pyright: ignore

    monkeypatch.setattr(Linear, "backward_parameters", wrong)
    outcome = call("compare", "--model", f"{net}:net", "--device", "cpu")
    assert outcome.code == 1
    assert "net, random rows: d0.bias differs" in outcome.out


@pytest.mark.parametrize("model", ["mlp", "logistic", "maxout", "residual"])
def test_compare_takes_the_named_models(model: str) -> None:
    for data in ("iris", "diabetes"):
        outcome = call("compare", "--model", model, "--data", data, "--device", "cpu", "--json")
        assert (outcome.code, outcome.err) == (0, "")
        assert {row["layer"] for row in json.loads(outcome.out)} == {model}


MISTAKES = [
    ("NET:conv", r"NET:conv cannot be written by hand: 0 (Conv1d) has no hand-written equal"),
    ("NET:three", "NET:three is a int; expected a torch.nn.Module or a function of one"),
    ("NET:fails", "NET:fails() fails: line 12 of net.py: ZeroDivisionError: division by zero"),
    ("NET:nett", "NET has no nett; did you mean net?"),
    ("NET:", "expected file.py:NAME or package.module:NAME"),
    ("absent.py:net", "absent.py: there is no such file"),
    ("no_such_module:net", "No module named 'no_such_module'"),
    ("mpl", "--model mpl: there is no such model; did you mean mlp?"),
    ("NET:net --data iris", "does not take rows of shape 64×4: x has 4 features, expected 5"),
    ("NET:net --layer Linear", "--layer and --model exclude each other"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes_in_one_line(net: str, words: str, message: str) -> None:
    outcome = call("compare", "--model", *words.replace("NET", net).split())
    assert outcome.code == 2
    assert message.replace("NET", net) in outcome.err
    assert outcome.err.removeprefix("executed\n").count("\n") == 1


@pytest.mark.parametrize("code", ["1 +", "raise SystemExit", "import sys; sys.exit(0)", "1 / 0"])
def test_a_file_that_fails(tmp_path: Path, code: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(f"{code}\n")
    outcome = call("compare", "--model", f"{path}:net")
    assert outcome.code == 2
    assert f"{path} fails: " in outcome.err
    assert "line 1" in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_file_finds_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_it.py").write_text("width = 4\n")
    path = tmp_path / "it.py"
    path.write_text(
        "from neighbour_of_it import width\nfrom torch import nn\nnet = nn.Linear(width, 2)\n"
    )
    model = load_model(f"{path}:net", seed=0)
    assert isinstance(model, nn.Linear)
    assert model.in_features == 4


def test_help_says_that_the_code_is_executed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    assert "code of the file is executed" in " ".join(capsys.readouterr().out.split())
