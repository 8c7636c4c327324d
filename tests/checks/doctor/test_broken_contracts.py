"""What a person reads first whose pass breaks a contract: what is wrong, with what shows it."""

import json

import examined_functions
import pytest
from small_runs import call

FILE = examined_functions.__file__

BROKEN = [
    ("ComputesAll", "the backward pass breaks down if only x needs a gradient", "number of grad"),
    ("AsksForAnother", "the gradient of bias is missing if only bias needs one", "dbias is None"),
    ("HalvesWhenAlone", "the gradient of x is another if only x needs one", "instead of"),
    ("WritesToX", "the forward pass changes x in place, which belongs to the caller", "other num"),
    ("CapsDy", "the gradient of x is cut off at ±200: a larger dy does not", "no more than 200"),
    ("CutsDyOff", "the gradient of x is wrong for a large dy: dy is cut off at ±50", "±50 gives"),
    ("ClipsItsNorm", "it is scaled down to a norm of 100", "the same direction"),
    ("OverflowsForLargeDy", "the gradient of x overflows for a large dy", "2^40"),
    ("BendsForLargeDy", "not proportional to dy, as every gradient is; the law", "1024 dy:"),
    ("DividesByDy", "the gradient of x is not a number for dy = 0", "12 of 12"),
    ("AddsForDyZero", "the gradient of x is wrong: a term is added", "dy = 0 gives up to 1"),
    ("BatchTooSmall", "for a batch of one, the gradient of x is wrong by the constant factor 1.5",
     "with 4 it is right"),
    ("FailsForOne", "for a batch of one, the backward pass breaks down", "with 4 it is right"),
    ("BatchNotEmpty", "the backward pass breaks down for an empty batch", "amax()"),
    ("NotZeroForNoExample", "the gradient of bias is wrong for an empty batch", "is not zero"),
    ("ReadsMemoryOfTheWeight", "the gradient of x is wrong where weight is strided in memory",
     "the same numbers"),
    ("NeedsAContiguousInput", "the backward pass breaks down where x is transposed in memory",
     "view size"),
    ("MaxToAll", "each of 2 tied numbers, such as equal maxima, gets the whole", "add up to"),
    ("LargerOfTwoToBoth", "b and a are equal: each of 2 tied numbers, such as equal maxima, gets",
     "b[1], a[0, 1], a[1, 1], a[2, 1] and 1 more"),
    ("LargerOfTwoToNone", "none of the tied numbers, such as equal maxima", "add up to 0"),
    ("TiesCutInHalf", "what tied numbers, such as equal maxima, get together", "stay tied"),
    ("NeedsBothOutputs", "the backward pass breaks down if only output 0 is used", "NoneType"),
    ("LosesOneOutput", "the gradient of x is wrong if only output 0 is used", "dx is None"),
    ("Remembers", "the gradient of x is that of the second forward pass", "two forward passes"),
    ("HandsOutItsBuffer", "the gradient of x is written to by the next backward pass", "another"),
    ("HalfInside", "precision is lost in the gradient of x: it goes through float16", "float32"),
    ("Float32Inside", "precision is lost in the gradient of x: it goes through float32", "e-08"),
]  # fmt: skip


def test_a_gradient_that_is_never_a_number_is_not_blamed_on_dy() -> None:
    code, out, _ = call("check", f"{FILE}:NeverANumber", "--json")
    assert code == 1
    words = [diagnosis["words"] for diagnosis in json.loads(out)["diagnoses"]]
    assert words == ["the gradient of x is not finite"]


@pytest.mark.parametrize(("name", "words", "evidence"), BROKEN)
def test_the_cause_of_a_broken_contract_in_words(name: str, words: str, evidence: str) -> None:
    code, out, _ = call("check", f"{FILE}:{name}", "--json")
    assert code == 1
    first, *others = json.loads(out)["diagnoses"]
    assert words in first["words"]
    assert evidence in first["evidence"]
    assert others == []


def test_the_cause_comes_first_in_the_report() -> None:
    _, out, _ = call("check", f"{FILE}:CapsDy", "--dtype", "float64")
    lines = out.splitlines()
    assert lines[0] == f"{FILE}:CapsDy  FAIL"
    assert lines[1] == "  the gradient of x is cut off at ±200: a larger dy does not make it larger"


def test_what_is_kept_on_ctx_is_a_warning_and_no_mistake() -> None:
    code, out, _ = call("check", f"{FILE}:Square", "--json")
    data = json.loads(out)
    assert (code, data["verdict"], data["failures"]) == (0, "PASS", [])
    (warning,) = data["warnings"]
    assert "dx would be wrong, without an error, if x is overwritten in place" in warning
    assert "save_for_backward" in warning
    code, out, _ = call("check", f"{FILE}:Square")
    assert code == 0
    assert "warning   inputs overwritten: dx would be wrong" in out
    assert "PASS: 3 gradients, 17 contracts. Warnings: 1." in out
