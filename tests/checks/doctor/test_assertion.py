"""`assert_gradients_agree`, as a function and as a pytest fixture."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from examined_functions import LinearFunction, WrongSign, linear

from manualbp.checks import assert_gradients_agree
from manualbp.errors import UsageError
from manualbp.layers import Linear

ROOT = Path(__file__).parents[3]


def test_a_right_pass() -> None:
    assert_gradients_agree(LinearFunction)
    x, weight, bias = torch.randn(5, 3), torch.randn(2, 3), torch.randn(2)
    assert_gradients_agree(LinearFunction, x, weight, bias, reference=linear)
    assert_gradients_agree(Linear(3, 2), x)


def test_a_wrong_pass() -> None:
    with pytest.raises(AssertionError) as error:
        assert_gradients_agree(WrongSign, dtypes=["float64"])
    first, second, *_ = str(error.value).splitlines()
    assert first == "the gradient of weight has the wrong sign"
    assert second == "WrongSign  FAIL"


def test_only_inputs_that_require_a_gradient_if_any_does() -> None:
    x, weight, bias = torch.randn(5, 3, requires_grad=True), torch.randn(2, 3), torch.randn(2)
    none = ["requires_grad"]
    assert_gradients_agree(LinearFunction.apply, x, weight, bias, contracts=none)
    with pytest.raises(AssertionError, match="dweight"):
        assert_gradients_agree(WrongSign, x, weight.requires_grad_(), bias, contracts=())


@pytest.mark.parametrize("option", ["dtypes", "contracts"])
def test_names_that_are_not_known(option: str) -> None:
    with pytest.raises(UsageError, match="'floot' is not known"):
        assert_gradients_agree(LinearFunction, **{option: ["floot"]})


def test_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_with_fixture.py").write_text(
        "import torch\n"
        "def test_right(assert_gradients_agree):\n"
        "    assert_gradients_agree(torch.sin, torch.randn(3))\n"
    )
    # The installation registers the fixture: an environment of before has to install again.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=None
    )
    assert "1 passed" in result.stdout, result.stdout + result.stderr


def test_the_entry_point_names_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"manualbp": "manualbp.checks.pytest_plugin"}


def test_the_plugin_loads_neither_torch_nor_numpy() -> None:
    program = (
        "import sys, manualbp.checks.pytest_plugin; print({'torch', 'numpy'} & {*sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "set()"
