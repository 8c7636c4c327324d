"""The examination: right passes are never accused, wrong ones always, in every dtype."""

import json

import examined_functions
import pytest
import torch

from manualbp.checks.doctor import examination
from manualbp.checks.doctor.contracts import Trial
from manualbp.checks.doctor.examination import Report, Rounded, examine
from manualbp.checks.doctor.subject import Diagnosis
from manualbp.checks.doctor.targets import load, of_case, wrap
from manualbp.checks.registry import find_cases
from manualbp.errors import UsageError

FILE = examined_functions.__file__

RIGHT = (
    *("LinearFunction", "ReLU", "SavesItsOutput", "LayerNorm", "CrossEntropy", "Mask"),
    *("WithSetup", "TwoOutputs", "Log", "Float32Only", "net", "pair", "linear", "Double"),
    *("Unsummed", "Square", "InPlace", "OneOutputOfTwo", "Attention", "Queries", "Vmapped"),
    *("LeavesOneOut", "NoBias", "Embedding", "NormalisedNet", "KeepsOnItself"),
)

WRONG = (
    *("WrongSign", "WrongShape", "ComputesAll", "TwiceAtTheKink", "NeedsContiguous"),
    *("WritesToDy", "WritesToX", "IgnoresDy", "UsesDyTwice", "CapsDy", "AddsAConstant"),
    *("Remembers", "Accumulates", "SpendsItsContext", "BatchTooSmall", "BatchNotEmpty"),
    *("Float32Inside", "HalfInside", "Rolls", "Fails", "wrong_pair", "WrongInPlace"),
    *("WrongOutputOfTwo", "KeepsTooLittle"),
)


@pytest.fixture(autouse=True)
def _no_causes(monkeypatch: pytest.MonkeyPatch) -> None:
    def stub(trial: Trial) -> list[Diagnosis]:
        return [Diagnosis("stub", "", "words", "evidence")]

    monkeypatch.setattr(examination, "diagnoses_of", stub)


def report(name: str, seed: int = 0, reference: str | None = None) -> Report:
    target = load(f"{FILE}:{name}", seed=seed, reference=reference and f"{FILE}:{reference}")
    return examine(target.subject, target.arguments, target.truth, seed=seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_pass_is_not_accused(name: str, seed: int) -> None:
    found = report(name, seed)
    assert found.failures == []
    assert found.verdict == "PASS"
    assert found.diagnoses == ()
    assert found.smallest is None


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_pass_is_found(name: str) -> None:
    found = report(name)
    assert found.verdict == "FAIL"
    assert found.failures
    assert found.diagnoses[0].cause == "stub"
    assert all("\n" not in line for line in found.failures)


def test_what_is_special_about_a_target_is_said() -> None:
    assert any("it writes to its inputs" in note for note in report("InPlace").notes)
    assert any("are judged: 1" in note for note in report("OneOutputOfTwo").notes)
    (warning,) = report("KeepsOnItself").warnings
    assert "second forward: dx is another" in warning
    assert warning.endswith("it keeps one at a time")


def test_an_argument_on_which_nothing_hangs_has_the_gradient_zero() -> None:
    assert {row.verdict for row in report("LeavesOneOut").rows} == {"PASS"}


def test_inputs_that_the_backward_pass_is_meant_for() -> None:
    assert load(f"{FILE}:Attention").arguments["c"].ndim == 3
    assert load(f"{FILE}:Queries").arguments["v"].ndim == 3


@pytest.mark.parametrize("seed", range(5))
def test_the_kinks_of_a_layer_are_no_mistake_in_short_dtypes(seed: int) -> None:
    assert report("net", seed).failures == []


class StepByStep(torch.autograd.Function):
    """ReLU of a + b - c, in a kernel of its own that rounds after every operation."""

    @staticmethod
    def forward(ctx, a, b, c):
        def rounded(number: float) -> float:
            return torch.tensor(number, dtype=a.dtype).item()

        triples = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
        v = [rounded(rounded(p + q) - r) for p, q, r in triples]
        ctx.v = torch.tensor(v, dtype=torch.float64).to(a)
        return ctx.v.relu()

    @staticmethod
    def backward(ctx, dy):
        dv = dy * (ctx.v > 0)
        return dv, dv, -dv


def test_a_rounding_at_a_kink_is_no_mistake_if_inputs_nearby_are_right() -> None:
    """1 + 2⁻¹⁰ - 1 is 0 in bfloat16, and the slope of ReLU is another one there."""
    a, b, c = [1.0, 2.0, -1.0, 1.0], [0.5, 0.25, 0.5, 2.0**-10], [0.25, 0.5, 0.5, 1.0]
    target = wrap(StepByStep, "StepByStep", [torch.tensor(part) for part in (a, b, c)])
    found = examine(target.subject, target.arguments, target.truth)
    assert found.failures == []
    short = [row for row in found.rows if row.dtype == "bfloat16"]
    assert [row.verdict for row in short] == ["INCONCLUSIVE"] * 3
    assert {row.words for row in short} == {
        "off here, but not for inputs nearby: a rounding at a kink"
    }


def test_a_reference_is_the_truth() -> None:
    assert report("LinearFunction", reference="linear").verdict == "PASS"
    found = report("WrongSign", reference="linear")
    assert found.truth.startswith("autograd through")
    assert {row.tensor for row in found.rows if row.verdict == "FAIL"} == {"dweight"}


def test_the_worst_element_and_the_smallest_shape() -> None:
    target = load(f"{FILE}:OneInAThousand")
    found = examine(target.subject, target.arguments, dtypes=[torch.float64], contracts=())
    (row,) = found.rows
    assert row.worst == (3, 2)
    assert row.got == pytest.approx(1.001 * row.expected)
    assert "1 of 1000 numbers" in row.words
    assert found.smallest is not None
    rows, columns = found.smallest["x"]
    assert 77 < rows * columns < 100
    assert report("WrongSign").smallest == {"x": (1, 1), "weight": (1, 1), "bias": (1,)}


def test_a_gradient_wrong_in_a_short_dtype_alone() -> None:
    rows = {row.dtype: row for row in report("HalfInside").rows}
    assert rows["float64"].verdict == "PASS"
    assert rows["float32"].verdict == "FAIL"
    assert rows["float32"].rounding < 1e-6 < rows["float32"].error
    assert rows["bfloat16"].verdict == "PASS"


def test_other_random_numbers_in_a_short_dtype_are_inconclusive() -> None:
    verdicts = {row.dtype: row.verdict for row in report("Mask").rows}
    assert verdicts["float64"] == "PASS"
    assert verdicts["float32"] == "INCONCLUSIVE"


def test_a_subject_that_knows_float32_alone() -> None:
    found = report("Float32Only")
    assert [row.dtype for row in found.rows] == ["float32"]
    assert found.truth == "central differences in float32"
    assert any("does not compute in float64" in note for note in found.notes)


def test_what_torch_mends_is_a_note() -> None:
    assert any("torch sums it" in note for note in report("Unsummed").notes)


def test_not_deterministic_keeps_no_other_contract() -> None:
    found = report("Rolls")
    assert [outcome.contract for outcome in found.outcomes] == ["determinism"]


@pytest.mark.parametrize("name", ["Linear", "Softmax", "ReLU", "Dropout", "CrossEntropyLoss"])
def test_our_own_layers_pass(name: str) -> None:
    for case in find_cases(name):
        target = of_case(case)
        found = examine(target.subject, target.arguments, target.truth)
        assert found.failures == [], case.name
        assert found.verdict == "PASS"


def test_nothing_outside_is_changed() -> None:
    x = torch.randn(4, 3)
    kept, state = x.clone(), torch.get_rng_state()
    switches = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]
    tf32 = [switch.fp32_precision for switch in switches]
    target = wrap(examined_functions.WritesToX, "WritesToX", [x])
    examine(target.subject, target.arguments)
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert [switch.fp32_precision for switch in switches] == tf32


def test_products_and_convolutions_are_not_rounded_to_tf32() -> None:
    found: set[str] = set()

    def watched(x: torch.Tensor) -> torch.Tensor:
        found.add(torch.backends.cuda.matmul.fp32_precision)
        found.add(torch.backends.cudnn.conv.fp32_precision)
        found.add(torch.backends.cudnn.rnn.fp32_precision)
        return x.relu()

    target = wrap(watched, "watched", [torch.randn(4, 3)])
    examine(target.subject, target.arguments)
    assert found == {"ieee"}


def test_inputs_on_which_the_forward_pass_fails_are_refused() -> None:
    target = load(f"{FILE}:LinearFunction")
    arguments = {**target.arguments, "bias": torch.randn(5).double()}
    with pytest.raises(UsageError, match="the forward pass fails on these inputs"):
        examine(target.subject, arguments)
    target = wrap(examined_functions.Log, "Log", [-torch.ones(3)])
    with pytest.raises(UsageError, match="NaN or infinity"):
        examine(target.subject, target.arguments)


def test_the_report_is_json() -> None:
    for name in ("WrongSign", "Fails", "ReLU"):
        data = json.loads(json.dumps(report(name).as_json(), allow_nan=False))
        assert data["verdict"] in ("PASS", "FAIL")
        assert {"rows", "outcomes", "diagnoses", "smallest", "arguments", "truth"} <= set(data)


def test_rounding_of_every_operation() -> None:
    x = torch.randn(50, dtype=torch.float64).float().double()
    with Rounded(torch.float32):
        y = (x * 3).exp() + 1
        y.mul_(1 / 3)
    expected = ((x.float() * 3).exp() + 1).mul_(1 / 3)
    assert torch.allclose(y, expected.double(), rtol=3e-7, atol=0)
    assert torch.equal(y, y.float().double())


@pytest.mark.cuda
def test_on_cuda() -> None:
    for name in ("LinearFunction", "LayerNorm", "ReLU", "net", "WrongSign"):
        target = load(f"{FILE}:{name}")
        arguments = {n: t.cuda() for n, t in target.arguments.items()}
        found = examine(target.subject, arguments)
        assert found.device == "cuda"
        assert found.verdict == ("FAIL" if name == "WrongSign" else "PASS"), found.failures
