"""`manualbp check`, as its users see it."""

import json
from pathlib import Path

import examined_functions
import pytest
from small_runs import call

from manualbp.checks.doctor import examination
from manualbp.checks.doctor.subject import Diagnosis
from manualbp.cli import main

FILE = examined_functions.__file__


@pytest.fixture(autouse=True)
def _a_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    cause = Diagnosis("sign", "weight", "the gradient has the wrong sign", "-1 times the truth")
    monkeypatch.setattr(examination, "diagnoses_of", lambda trial: [cause])


def test_a_right_target() -> None:
    code, out, err = call("check", f"{FILE}:LinearFunction")
    assert (code, err) == (0, "")
    assert "x 4×3, weight 2×3, bias 2 (found by trial, from N(0, 1))" in " ".join(out.split())
    assert "central differences in float64" in out
    assert "TF32 off" in out
    assert "PASS: 9 gradients, 18 contracts." in out
    title, *lines = out.splitlines()
    assert title == f"{FILE}:LinearFunction  PASS"
    assert max(map(len, lines)) <= 80


def test_a_wrong_target() -> None:
    code, out, err = call("check", f"{FILE}:WrongSign", "--dtype", "float64")
    assert (code, err) == (1, "")
    text = " ".join(out.split())
    assert "the gradient has the wrong sign evidence: -1 times the truth" in text
    assert "float64: dweight is wrong: worst at [" in text
    assert "smallest inputs that still fail: x 1×1, weight 1×1, bias 1" in text
    assert "FAIL: 1 of 3 gradients" in text
    assert text.index("wrong sign") < text.index("gradient dtype")


def test_json() -> None:
    code, out, err = call("check", f"{FILE}:WrongSign", "--json")
    assert (code, err) == (1, "")
    data = json.loads(out)
    assert data["verdict"] == "FAIL"
    assert data["inputs"] == "found by trial, from N(0, 1)"
    assert data["smallest"] == {"x": [1, 1], "weight": [1, 1], "bias": [1]}
    assert {row["dtype"] for row in data["rows"]} == {"float64", "float32", "bfloat16"}


def test_shapes_and_a_reference() -> None:
    words = ("check", f"{FILE}:LinearFunction", "--shape", "5x2", "7x2", "7")
    code, out, _ = call(*words, "--reference", f"{FILE}:linear", "--json")
    data = json.loads(out)
    assert code == 0
    assert data["arguments"] == {"x": [5, 2], "weight": [7, 2], "bias": [7]}
    assert data["truth"] == f"autograd through {FILE}:linear"


def test_layers_of_ours() -> None:
    code, out, err = call("check", "--layer", "Linear", "--dtype", "float64")
    assert (code, err) == (0, "")
    assert "Linear, without bias" in out
    assert "All 8 cases pass." in out
    assert len(json.loads(call("check", "--layer", "Softmax", "--json").out)) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name one thing to check"),
        (("a.py:f", "--layer", "Linear"), "name one thing to check"),
        (("a.py:f",), "a.py: there is no such file"),
        (("--layer", "Linnear"), "did you mean Linear?"),
        (("--layer", "Linear", "--shape", "3"), "--shape is for a TARGET"),
        ((f"{FILE}:Double", "--seed", "-1"), "--seed is -1"),
        ((f"{FILE}:Double", "--shape", "a"), "--shape a"),
        ((f"{FILE}:LinearFunction", "--shape", "3x4", "5x6", "2"), "the forward pass fails"),
        ((f"{FILE}:returns_a_text",), "the forward pass returns an object of type str"),
        ((f"{FILE}:many",), "15000 numbers and 15000 of the outputs are too many"),
        ((f"{FILE}:not_a_target",), "an object of type float cannot be examined"),
    ],
)
def test_bad_input_is_refused_in_one_line(words: tuple[str, ...], said: str) -> None:
    code, out, err = call("check", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_the_help_says_that_code_is_executed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    assert "EXECUTES" in capsys.readouterr().out


def test_a_file_beside_the_target_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_the_target.py").write_text("factor = 2.0\n")
    (tmp_path / "target.py").write_text(
        "import beside_the_target\ndef f(x): return beside_the_target.factor * x\n"
    )
    assert call("check", f"{tmp_path}/target.py:f").code == 0
