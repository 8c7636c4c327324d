"""What can be named as a target, where its inputs come from, and how a bad one is refused."""

from pathlib import Path
from typing import Any

import examined_functions
import pytest
import torch
from torch import Tensor

from manualbp.checks.doctor.inputs import parse_shapes
from manualbp.checks.doctor.subjects import OfLayer, OfPair, ThroughAutograd
from manualbp.checks.doctor.targets import Target, load, of_case
from manualbp.checks.doctor.truth import Reference
from manualbp.checks.registry import layer_cases, loss_cases
from manualbp.errors import UsageError

FILE = examined_functions.__file__


def shapes(target: Target) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in target.arguments.items()}


def gradients(target: Target) -> dict[str, Any]:
    arguments = {n: t.double() if t.is_floating_point() else t for n, t in target.arguments.items()}
    run = target.subject.run(arguments)
    return dict(run.backward([torch.ones_like(y) for y in run.outputs]))


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("LinearFunction", ThroughAutograd, {"x": (4, 3), "weight": (2, 3), "bias": (2,)}),
        ("LayerNorm", ThroughAutograd, {"x": (4, 3), "gamma": (3,), "beta": (3,)}),
        ("WithSetup", ThroughAutograd, {"u": (4, 3), "v": (4, 3)}),
        ("Mask", ThroughAutograd, {"x": (4, 3)}),
        ("linear", ThroughAutograd, {"x": (4, 3), "weight": (2, 3), "bias": (2,)}),
        ("net", ThroughAutograd, {"x": (4, 3), "linear.weight": (2, 3), "linear.bias": (2,)}),
        ("Net", ThroughAutograd, {"x": (4, 3), "linear.weight": (2, 3), "linear.bias": (2,)}),
        ("pair", OfPair, {"x": (4, 3), "w": (2, 3)}),
        ("CrossEntropy", ThroughAutograd, {"x": (4, 5), "target": (4,)}),
    ],
)
def test_kinds_of_targets_and_their_inputs(
    name: str, kind: type, expected: dict[str, tuple[int, ...]]
) -> None:
    target = load(f"{FILE}:{name}")
    assert isinstance(target.subject, kind)
    assert shapes(target) == expected
    found = gradients(target)
    assert {n: tuple(g.shape) for n, g in found.items()} == {
        n: s for n, s in expected.items() if n != "target"
    }
    assert (
        "example" in target.inputs
        or "found by trial" in target.inputs
        or "_inputs" in target.inputs
    )


def test_a_layer_of_ours_is_a_target() -> None:
    target = load("manualbp.layers:Linear")
    assert isinstance(target.subject, OfLayer)
    assert shapes(target) == {"x": (4, 5), "weight": (3, 5), "bias": (3,)}
    assert isinstance(target.truth, Reference)
    target = load("manualbp.layers:Softmax", parse_shapes(["2x7"]))
    assert shapes(target) == {"x": (2, 7)}


@pytest.mark.parametrize("case", [*layer_cases()[::7], *loss_cases()[::5]], ids=lambda c: c.name)
def test_cases_of_the_registry_have_a_truth(case: Any) -> None:
    target = of_case(case)
    assert target.truth is not None
    run = target.subject.run(target.arguments)
    dys = [torch.ones_like(y) for y in run.outputs]
    found = target.truth(target.arguments, dys)
    for name, gradient in run.backward(dys).items():
        assert gradient is not None
        assert torch.allclose(gradient, found[name])


def test_shapes_can_be_given() -> None:
    target = load(f"{FILE}:LinearFunction", parse_shapes(["7x2", "5x2", "5"]))
    assert shapes(target) == {"x": (7, 2), "weight": (5, 2), "bias": (5,)}
    assert parse_shapes(["scalar", "3", "2x3x4"]) == [(), (3,), (2, 3, 4)]


def test_the_same_seed_gives_the_same_inputs() -> None:
    first, again, other = (load(f"{FILE}:Double", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.arguments["x"], again.arguments["x"])
    assert not torch.equal(first.arguments["x"], other.arguments["x"])


def test_inputs_are_found_where_the_function_is_defined() -> None:
    assert load(f"{FILE}:Log").inputs == "found by trial, positive"
    assert (load(f"{FILE}:Log").arguments["x"] > 0).all()


def test_only_inputs_that_require_a_gradient_are_examined_if_any_does(tmp_path: Path) -> None:
    path = tmp_path / "some_required.py"
    path.write_text(
        "import torch\n"
        "def f(x, w, times): return times * x * w\n"
        "def example_inputs():\n"
        "    return torch.randn(3, requires_grad=True), torch.randn(3), 2.0\n"
    )
    target = load(f"{path}:f")
    assert set(target.arguments) == {"x", "w"}
    assert set(gradients(target)) == {"x"}
    assert target.inputs == "from example_inputs()"


def test_a_pair_may_be_an_object_and_keep_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "objects.py"
    path.write_text(
        "class Square:\n"
        "    def forward(self, x):\n"
        "        self.x = x\n"
        "        return x * x\n"
        "    def backward(self, dy):\n"
        "        return 2 * dy * self.x\n"
        "square = Square()\n"
    )
    for name in ("Square", "square"):
        target = load(f"{path}:{name}")
        assert isinstance(target.subject, OfPair)
        assert torch.allclose(gradients(target)["x"], 2 * target.arguments["x"])


def test_the_module_that_is_given_is_left_alone() -> None:
    target = load(f"{FILE}:net")
    module: Any = target.thing
    before = dict(module.named_parameters())
    gradients(target)
    after = dict(module.named_parameters())
    assert all(after[name] is before[name] and p.grad is None for name, p in before.items())


def test_what_torch_sums_is_remarked() -> None:
    target = load(f"{FILE}:Unsummed")
    run: Any = target.subject.run(target.arguments)
    found = run.backward([torch.ones(4, 2, dtype=torch.float64)])
    assert found["bias"].shape == (2,)
    assert "dbias is returned as 4×2 where bias is 2" in run.remarks[0]


def test_a_shape_that_torch_refuses_comes_through() -> None:
    target = load(f"{FILE}:WrongShape")
    run = target.subject.run(target.arguments)
    bias = run.backward([torch.ones(4, 2, dtype=torch.float64)])["bias"]
    assert isinstance(bias, Tensor)
    assert bias.shape == (4,)


def test_a_reference_is_a_function_of_the_same_inputs() -> None:
    target = load(f"{FILE}:LinearFunction", reference=f"{FILE}:linear")
    assert isinstance(target.truth, Reference)
    assert target.truth.words.startswith("autograd through ")


BAD = [
    ("nowhere.py:f", "nowhere.py: there is no such file"),
    ("nowhere", "expected file.py:NAME or package.module:NAME"),
    ("no.such.module:f", "ModuleNotFoundError: No module named"),
    (f"{FILE}:LinearFuncton", "did you mean LinearFunction?"),
    (f"{FILE}:not_a_target", "of type float cannot be examined"),
    (f"{FILE}:ends", "of type NoneType cannot be examined"),
    (f"{FILE}:TakesClasses", "no small inputs were found"),
    ("manualbp.layers:Sequential", None),
]


@pytest.mark.parametrize(("target", "words"), BAD)
def test_a_bad_target_is_refused_in_one_line(target: str, words: str | None) -> None:
    if words is None:
        load(target)
        return
    with pytest.raises(UsageError) as error:
        load(target)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_loaded_is_refused_in_one_line(tmp_path: Path) -> None:
    for text, words in (
        ("def f(:\n", "SyntaxError"),
        ("raise RuntimeError('first\\nsecond')\n", "RuntimeError: first second"),
        ("import sys; sys.exit(3)\n", "SystemExit"),
    ):
        path = tmp_path / "broken.py"
        path.write_text(text)
        with pytest.raises(UsageError, match=words) as error:
            load(f"{path}:f")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"), [(["4y3"], "expected lengths"), (["4x0"], "empty batches are tried anyway")]
)
def test_a_bad_shape_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_shapes(words)


def test_a_reference_of_something_else_is_refused() -> None:
    for name, words in (("Log", "it fails on the target's inputs"), ("net", "fails|other shapes")):
        with pytest.raises(UsageError, match=words):
            load(f"{FILE}:LinearFunction", reference=f"{FILE}:{name}")
    with pytest.raises(UsageError, match="computes something else"):
        load(f"{FILE}:SavesItsOutput", reference="torch:sigmoid")
