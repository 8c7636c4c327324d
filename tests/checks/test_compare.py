"""`manualbp compare`, as its users see it."""

import io
import json
import re
from itertools import pairwise
from typing import Any

import pytest
from rich.console import Console
from small_runs import Outcome, call
from torch import Tensor

from manualbp.checks.agreement import Row
from manualbp.checks.compare import print_rows
from manualbp.checks.registry import layers, losses
from manualbp.layers import Linear, ReLU, Sigmoid
from manualbp.losses import MSELoss

DTYPES = ["float64", "float32", "bfloat16"]
FIELDS = [
    "layer",
    "case",
    "tensor",
    "shape",
    "device",
    "dtype",
    "max_abs_error",
    "max_rel_error",
    "error_vs_truth",
    "autograd_error_vs_truth",
    "verdict",
]
CPU = ("--device", "cpu")


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(outcome.out, parse_constant=refuse)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_default_model_agrees_on_real_data(dtype: str) -> None:
    outcome = call("compare", *CPU, "--dtype", dtype, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = rows(outcome)
    assert {row["tensor"]: row["shape"] for row in found} == {
        "E": [],
        "y": [64, 10],
        "dx": [64, 64],
        "d0.weight": [128, 64],
        "d0.bias": [128],
        "d2.weight": [64, 128],
        "d2.bias": [64],
        "d4.weight": [10, 64],
        "d4.bias": [10],
    }
    for row in found:
        assert list(row) == FIELDS
        assert (row["layer"], row["case"], row["verdict"]) == ("mlp", "digits", "agree")
        assert (row["device"], row["dtype"]) == ("cpu", dtype)
    worst = max(row["error_vs_truth"] for row in found)
    least, most = {"float64": (0, 1e-10), "float32": (1e-8, 1e-5), "bfloat16": (1e-3, 0.5)}[dtype]
    assert least < worst < most


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_layers_and_losses_agree(dtype: str) -> None:
    outcome = call("compare", *CPU, "--layer", "all", "--dtype", dtype, "--json")
    found = rows(outcome)
    assert [row for row in found if row["verdict"] != "agree"] == []
    assert (outcome.code, outcome.err) == (0, "")
    assert {row["layer"] for row in found} == {cls.__name__ for cls in [*layers(), *losses()]}
    assert all(list(row) == FIELDS for row in found)
    assert {row["dtype"] for row in found} == {dtype}


def test_one_layer_and_one_loss() -> None:
    linear = rows(call("compare", *CPU, "--layer", "Linear", "--json"))
    assert {row["layer"] for row in linear} == {"Linear"}
    assert {row["tensor"] for row in linear} == {"y", "dx", "dweight", "dbias"}
    mse = rows(call("compare", *CPU, "--layer", "MSELoss", "--json"))
    assert {row["layer"] for row in mse} == {"MSELoss"}
    assert {row["tensor"] for row in mse} == {"E", "dy"}


def test_the_seed_draws_other_numbers() -> None:
    one, same, other = (
        call("compare", *CPU, "--layer", "Linear", "--seed", seed, "--json").out
        for seed in (1, 1, 2)
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("linear", "did you mean Linear?"),
        ("Liner", "did you mean Linear?"),
        ("crossentropy", "did you mean CrossEntropyLoss?"),
        ("ALL", "did you mean all?"),
        ("xyz", "there are: all, BCEWithLogitsLoss, "),
    ],
)
def test_a_layer_that_is_not_there(name: str, hint: str) -> None:
    code, out, err = call("compare", "--layer", name)
    assert (code, out) == (2, "")
    assert err.startswith(f"manualbp: --layer {name}: there is no such layer or loss; {hint}")
    assert err.count("\n") == 1


def tables(outcome: Outcome) -> list[str]:
    """Return the lines; assert that each fits 80 columns and is plain text."""
    lines = outcome.out.splitlines()
    assert "\x1b" not in outcome.out
    assert max(map(len, lines)) <= 80
    return lines


@pytest.mark.parametrize(
    "words", [(), ("--layer", "all"), ("--layer", "all", "--dtype", "float32")]
)
def test_the_table_fits_80_columns_and_leaves_nothing_out(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    lines = tables(call("compare", *CPU, *words))
    found = rows(call("compare", *CPU, *words, "--json"))
    table = [line for line in lines if line.endswith("  agree")]
    assert len(table) == len(found)
    for line, row in zip(table, found, strict=True):
        tensor, shape, *errors, verdict = line.split()
        assert tensor == row["tensor"] or row["tensor"].startswith(tensor.removesuffix("…"))
        assert shape == ("×".join(map(str, row["shape"])) or "scalar")
        numbers = [row[name] for name in FIELDS[6:10]]
        assert errors == ["0" if number == 0 else f"{number:.1e}" for number in numbers]
        assert verdict == row["verdict"]
    for row, following in pairwise(found):
        if row["layer"] != following["layer"]:
            assert following["layer"] in lines
    assert {row["case"] for row in found} <= set(lines)
    dtype = found[0]["dtype"]
    assert lines[-1] == f"All {len(found)} tensors agree in {dtype} on cpu."


def test_a_narrow_terminal_cuts_nothing_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert call("compare", *CPU).out.count("  agree\n") == 9


def test_long_names_are_cut_before_the_verdict_is() -> None:
    name, shape = "d0.a.very.long.name.of.a.weight", [100, 200, 300]
    row = Row("L", "c", name, shape, "cpu", "float32", *[1.0] * 4, "agree")
    out = io.StringIO()
    print_rows(Console(file=out, width=80), [row])
    _, heading, _, line, *_ = out.getvalue().splitlines()
    assert re.fullmatch(r"  d0\.a\.very\.long\.…  100×200×300 ( +1\.0e\+00){4}  agree", line)
    assert len(heading) == 80


def test_a_terminal_shows_colours() -> None:
    row = Row("L", "[bold]c", "dx", [1], "cpu", "float32", *[1.0] * 4, "differ")
    out = io.StringIO()
    print_rows(Console(file=out, width=80, force_terminal=True), [row])
    assert "\x1b[1;31mdiffer" in out.getvalue()
    assert "[bold]c" in out.getvalue()


# Planted bugs ------------------------------------------------------------------------------------


def wrong_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Linear.backward_parameters

    def backward_parameters(self: Linear, params: Any, saved: Any, dy: Tensor, grads: Any) -> None:
        right(self, params, saved, dy, grads)
        if self.bias:
            grads.bias.mul_(2)

    monkeypatch.setattr(Linear, "backward_parameters", backward_parameters)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_gradient_differs(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_bias(monkeypatch)
    outcome = call("compare", *CPU, "--dtype", dtype, "--json")
    assert outcome.code == 1
    differ = {row["tensor"] for row in rows(outcome) if row["verdict"] == "differ"}
    assert differ == {"d0.bias", "d2.bias", "d4.bias"}
    lines = tables(call("compare", *CPU, "--dtype", dtype))
    assert lines[-1] == f"3 of 9 tensors differ in {dtype} on cpu."
    assert lines[-4:-1] == [f"mlp, digits: {name} differs" for name in sorted(differ)]
    assert sum(line.endswith("  differ") for line in lines) == 3


def test_one_wrong_layer_among_all_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sigmoid, "backward", lambda self, params, saved, dy, grads: 1.001 * dy)
    outcome = call("compare", *CPU, "--layer", "all", "--json")
    assert outcome.code == 1
    differ = {(row["layer"], row["tensor"]) for row in rows(outcome) if row["verdict"] == "differ"}
    assert ("Sigmoid", "dx") in differ
    assert "Linear" not in {layer for layer, _ in differ}


def test_a_number_that_json_does_not_know_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    right = MSELoss.backward
    monkeypatch.setattr(
        MSELoss, "backward", lambda self, saved, dE=1.0: right(self, saved, dE) * float("nan")
    )
    outcome = call("compare", *CPU, "--layer", "MSELoss", "--json")
    assert outcome.code == 1
    dy = [row for row in rows(outcome) if row["tensor"] == "dy"]
    assert {row["verdict"] for row in dy} == {"differ"}
    assert {row["max_rel_error"] for row in dy} == {None}


def test_a_gradient_of_another_shape_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReLU, "backward", lambda self, params, saved, dy, grads: dy.sum(-1))
    outcome = call("compare", *CPU, "--layer", "ReLU")
    assert outcome.code == 1
    assert re.search(r"^  dx .* inf +inf +inf .* differ$", outcome.out, re.MULTILINE)
