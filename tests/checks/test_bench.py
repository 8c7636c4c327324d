"""The bench proves that all variants agree, times them in turn, and counts memory."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from platform import python_version
from typing import Any

import pytest
import torch
from rich.console import Console
from small_runs import call, events
from torch import Tensor

from manualbp.checks.bench import BenchConfig, bench, measure
from manualbp.checks.bench.measure import Result, proof_batches, prove, time_rounds
from manualbp.checks.bench.memory import Memory, memory_of_step, saved_by_autograd, saved_by_hand
from manualbp.checks.bench.report import print_results
from manualbp.checks.bench.variants import (
    BUILDERS,
    Autograd,
    ByHand,
    CompiledStep,
    Floor,
    NotAvailable,
    Observed,
    Variant,
)
from manualbp.checks.bench.workloads import WORKLOADS, Batch, Problem
from manualbp.errors import CheckFailed
from manualbp.layers import EVALUATION, Linear, Mode
from manualbp.layers.base import SavedInput
from manualbp.losses import HalfSquaredError
from manualbp.optimizers import SGD
from manualbp.recording import Captured, Tape
from manualbp.training.engine import ManualEngine
from manualbp.training.step import TrainingStep

CPU = torch.device("cpu")
QUICK = ("--device", "cpu", "--no-compile", "--repeats", 2)
EAGER = {"autograd_default", "autograd_foreach", "autograd_fused", "manual", "manual_eager"}


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manualbp.checks.bench.measure.ROUND_SECONDS", 1e-3)


def small_problem(name: str = "W1", dtype: torch.dtype = torch.float64) -> Problem:
    return WORKLOADS[name].problem(dtype, CPU)


def nothing(_: str) -> None:
    pass


# The command --------------------------------------------------------------------------------------


def test_json_has_everything_and_nothing_else_is_printed() -> None:
    done = call("bench", "--workload", "W1", "--threads", 1, "--json", *QUICK)
    assert done.code == 0, done.err
    (result,) = json.loads(done.out)
    times = result["microseconds_per_step"]
    assert times.keys() == EAGER | {"floor"}
    for time in times.values():
        assert time.keys() == {"median", "q1", "q3"}
        assert 0 < time["q1"] <= time["median"] <= time["q3"]
    assert result["best_autograd"] in EAGER - {"manual", "manual_eager"}
    assert (result["ratio_to_compile"], result["compiled_ratio"]) == (None, None)
    assert result["memory_bytes"].keys() == EAGER
    total = {name: m["live"] + m["step"] for name, m in result["memory_bytes"].items()}
    assert result["memory_ratio"] == pytest.approx(total["manual"] / total["autograd_default"])
    assert result["saved_bytes"].keys() == {"manual", "autograd"}
    assert set(result["unavailable"]) == {"compile", "compile_step", "manual_compiled"}
    assert result["versions"].keys() == {"torch", "python"}
    assert (result["workload"], result["threads"], result["rounds"]) == ("W1", 1, 2)
    assert (result["dtype"], result["device"]) == ("float32", "cpu")
    assert done.err == ""


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    options = {"workload": ("W1",), "repeats": 1, "compile": False, "device": "cpu", "quiet": True}
    try:
        (result,) = bench(BenchConfig(threads=before + 1, **options))
    finally:
        torch.set_flush_denormal(False)
    assert result.threads == before + 1
    assert torch.get_num_threads() == before


def test_tables_of_an_own_network_fit_80_columns() -> None:
    done = call(
        *("bench", "--data", "breast_cancer", "--hidden", 8, "--batch-size", 16),
        *("--optimizer", "adam", "--dtype", "float64", *QUICK),
    )
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80
    assert "mlp/breast_cancer: 2 threads, float64, cpu" in done.out
    for label in ("by hand, recorded", "autograd, fused", "matrix products"):
        assert label in done.out
    said = " ".join(done.out.split())  # where lines are broken depends on the words
    assert "autograd, all compiled. left out by --no-compile" in said


def test_tables_hold_memory_and_versions() -> None:
    done = call("bench", "--workload", "W1", "--threads", 1, *QUICK)
    title = f"W1: 1 thread, float32, cpu, torch {torch.__version__}, Python {python_version()}"
    assert title in done.out
    assert done.out.index("peak") < done.out.index("by hand, recorded")
    (row,) = [line for line in done.out.splitlines() if line.startswith("autograd, fused")]
    problem = small_problem("W1", torch.float32)
    memory = memory_of_step(lambda: Autograd(problem, "fused"), problem)
    assert row.split()[-2:] == [f"{memory.total / 1000:.1f}", f"{memory.peak / 1000:.1f}"]
    saved = saved_by_hand(problem), saved_by_autograd(problem)
    assert (
        "Saved for the backward pass: {} bytes by hand, {} by autograd.".format(*saved) in done.out
    )


def test_tables_of_a_large_network_fit_80_columns() -> None:
    names = [*BUILDERS, "floor"]
    result = Result(
        *("mlp/breast_cancer", 16, "bfloat16", "cuda", 3),
        times={name: [100_000, 123_456, 150_000] for name in names},
        unavailable={},
        memory_bytes={name: Memory(800_000_000, 90_000_000, 850_000_000) for name in names},
        saved_bytes={"manual": 100_000_000, "autograd": 100_000_000},
    )
    console = Console(width=80, record=True, file=StringIO())
    print_results(console, [result])
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = [" ".join(line.split()) for line in lines if line.startswith("autograd, all")]
    assert row == "autograd, all compiled 123,456 111,728 - 136,728 1.00 890,000 850,000"


def test_quiet_prints_nothing() -> None:
    done = call("bench", "--workload", "W1", "--quiet", *QUICK)
    assert (done.code, done.out, done.err) == (0, "", "")


def test_chart_and_event_file(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "charts"
    assert call("bench", "--workload", "W1", "--save", directory, *QUICK).code == 0
    png = (directory / "bench.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    (image,) = events(directory).Images("bench/microseconds_per_step")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    size = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    assert (image.width, image.height) == size


def test_a_picture_that_cannot_be_written_is_told_of_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manualbp.checks.bench.measure_workload", None)
    (tmp_path / "bench.png").mkdir()
    done = call("bench", "--save", tmp_path, *QUICK)
    assert (done.code, done.out) == (2, "")
    assert "bench.png in it is a directory" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workload", "W2c"], "--workload W2c: there is no such workload; did you mean W2b?"),
        (["--workload", "W1", "zzz"], "there are: W1, W2a, W2b, W3-128, W3-1024"),
        (["--repeats", 0], "--repeats is 0: it must be at least 1"),
        (["--threads", -1], "--threads is -1: it must be from 0 to 1024"),
        (["--threads", 3_000_000_000], "--threads is 3000000000: it must be from 0 to 1024"),
        (["--hidden", 0], "--hidden is 0"),
        (["--data", "irs"], "did you mean 'iris'?"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_measured(
    options: list[Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manualbp.checks.bench.measure_workload", None)
    done = call("bench", *options)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""


def test_a_directory_that_cannot_be_made_is_told_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manualbp.checks.bench.measure_workload", None)
    (tmp_path / "file").touch()
    done = call("bench", "--workload", "W1", "--save", tmp_path / "file")
    assert done.code == 2
    assert f"--save {tmp_path / 'file'}: cannot be made" in done.err


# The proof ----------------------------------------------------------------------------------------


def test_a_planted_bug_stops_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Linear.backward_parameters

    def wrong(self: Linear, params: Any, saved: Any, dy: Tensor, grads: Any) -> None:
        right(self, params, saved, dy * (1 + 1e-7), grads)

    monkeypatch.setattr(Linear, "backward_parameters", wrong)
    done = call("bench", "--workload", "W1", "--save", tmp_path, "--json", *QUICK)
    assert done.code == 1
    assert "W1 is not timed: manual differs from autograd_default at step 1 in gradient" in done.err
    assert len(done.err.splitlines()) == 1
    assert done.out == ""
    assert list(tmp_path.iterdir()) == []


class Altered(Autograd):
    """Autograd, with a tensor changed before anyone sees it, from some step on."""

    def __init__(
        self, problem: Problem, step: int, kind: str, name: str, *, factor: float, plus: float = 0
    ) -> None:
        super().__init__(problem)
        self.step, self.kind, self.name = step, kind, name
        self.factor, self.plus = factor, plus

    def observe(self, x: Tensor, target: Tensor) -> Observed:
        observed = super().observe(x, target)
        self.step -= 1
        if self.step <= 0:
            observed[self.kind][self.name].mul_(self.factor).add_(self.plus)
        return observed


@pytest.mark.parametrize(
    ("kind", "name"), [("loss", "E"), ("gradient", "2.bias"), ("parameter", "0.weight")]
)
@pytest.mark.parametrize("factor", [1 + 1e-8, float("nan")])
def test_every_kind_of_tensor_is_compared_at_every_step(
    kind: str, name: str, factor: float
) -> None:
    problem = small_problem()
    wrong = Altered(problem, 3, kind, name, factor=factor)
    variants: dict[str, Variant] = {"right": Autograd(problem), "wrong": wrong}
    with pytest.raises(CheckFailed, match=f"wrong differs .* at step 3 in {kind} {name} by"):
        prove("W1", variants, proof_batches(problem), {}, nothing)


def test_rounding_is_no_difference() -> None:
    problem = small_problem()
    where = (problem, 1, "gradient", "0.bias")
    variants: dict[str, Variant] = {"a": Autograd(problem), "b": Altered(*where, factor=1 + 1e-13)}
    prove("W1", variants, proof_batches(problem), {}, nothing)
    # A gradient that cancels out is rounding of the others: anything so small, or zero.
    for plus in (2e-18, 0):
        vanished = Altered(*where, factor=0, plus=plus)
        variants = {"a": vanished, "b": Altered(*where, factor=0, plus=1e-18)}
        prove("W1", variants, proof_batches(problem), {}, nothing)


def test_the_proof_has_changing_batches_and_a_smaller_one_before_the_last() -> None:
    batches = proof_batches(small_problem("W2a"))
    assert [len(x) for x, _ in batches] == [32, 32, 32, 32, 32, 21, 32]
    assert [len(target) for _, target in batches] == [len(x) for x, _ in batches]
    assert len({x[0, 0].item() for x, _ in batches}) == 7
    assert [len(x) for x, _ in proof_batches(small_problem("W1"))] == [1] * 7


@pytest.mark.parametrize("name", ["W1", "W2a", "W2b"])
def test_all_eager_variants_agree(name: str) -> None:
    problem = small_problem(name)
    variants = {variant: BUILDERS[variant](problem) for variant in BUILDERS if variant in EAGER}
    unavailable: dict[str, str] = {}
    prove(name, variants, proof_batches(problem), unavailable, nothing)
    assert unavailable == {}


# Variants -----------------------------------------------------------------------------------------


def test_compiled_variants_are_proved_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def uncompiled(function: Any, **_: object) -> Any:
        return function

    monkeypatch.setattr(torch, "compile", uncompiled)
    done = call("bench", "--workload", "W1", "--device", "cpu", "--repeats", 1, "--json")
    assert done.code == 0, done.err
    (result,) = json.loads(done.out)
    assert result["unavailable"] == {}
    times = {name: time["median"] for name, time in result["microseconds_per_step"].items()}
    assert times.keys() == {*BUILDERS, "floor"} - {"manual_parts"}  # W1 is too small for them
    # With one round a ratio is that of two times.
    best, by_hand = times[result["best_autograd"]], times["manual"]
    assert best == min(time for name, time in times.items() if name.startswith("autograd"))
    assert result["ratio"] == pytest.approx(best / by_hand)
    assert result["compiled_ratio"] == pytest.approx(best / times["manual_compiled"])
    assert result["ratio_to_floor"] == pytest.approx(by_hand / times["floor"])
    best = min(times["compile"], times["compile_step"])
    assert result["ratio_to_compile"] == pytest.approx(best / by_hand)


def test_a_graph_of_the_compiled_step_copies_x_and_target_and_no_parameter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compile_, copied = torch.compile, list[tuple[int, ...]]()

    def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Any:
        inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
        for node, example in zip(inputs, examples, strict=True):
            if "_dynamo_static_input_type" not in node.meta.get("tensor_dict", {}):
                copied.append(tuple(example.shape))
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function, backend=backend))
    problem = WORKLOADS["W2a"].problem(torch.float32, torch.device("cpu"))
    step = CompiledStep(problem)
    step.gradients(step.values, *problem.batches[0])
    assert copied == [(32, 64), (32,)]


def test_where_compiling_fails_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(function: Any, **_: object) -> Any:
        def compiled(*arguments: object) -> Any:
            raise RuntimeError("No working C++ compiler found\nin a long list")

        return compiled

    monkeypatch.setattr(torch, "compile", failing)
    done = call("bench", "--workload", "W1", "--device", "cpu", "--repeats", 1)
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert (
        "Not available: by hand, compiled; autograd, compiled; autograd, all compiled. "
        "RuntimeError: No working C++ compiler found" in said
    )
    assert "long list" not in said


def test_an_update_rule_without_a_fused_form_is_told_as_such() -> None:
    done = call("bench", "--data", "iris", "--optimizer", "rmsprop", "--json", *QUICK)
    assert done.code == 0, done.err
    (result,) = json.loads(done.out)
    assert "fused" in result["unavailable"]["autograd_fused"]
    assert "autograd_fused" not in result["microseconds_per_step"]
    assert "autograd_foreach" in result["microseconds_per_step"]


def test_floor_is_the_products_without_dx_of_the_first_layer() -> None:
    problem = small_problem("W2a")
    floor = Floor(problem)
    floor.run([], 1)
    found = Counter((a.shape, b.shape) for a, b in (p.args for p in floor.products))
    forward = [((32, 64), (64, 128)), ((32, 128), (128, 64)), ((32, 64), (64, 10))]
    weights = [((128, 32), (32, 64)), ((64, 32), (32, 128)), ((10, 32), (32, 64))]
    inputs = [((32, 10), (10, 64)), ((32, 64), (64, 128))]
    assert found == Counter([*forward, *weights, *inputs])
    for product in floor.products:
        a, b = product.args
        assert torch.equal(product.keywords["out"], a @ b)
        assert a.abs().sum() > 0


# Time ---------------------------------------------------------------------------------------------


class Listening:
    """A variant that does nothing but write down who ran on what."""

    def __init__(self, name: str, log: list[tuple[str, list[float], int]]) -> None:
        self.name, self.log = name, log

    def run(self, batches: Iterable[Batch], count: int) -> None:
        self.log.append((self.name, [x.sum().item() for x, _ in batches], count))


def test_variants_take_turns_and_batches_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manualbp.checks.bench.measure.MOST_STEPS", 4)
    log: list[tuple[str, list[float], int]] = []
    names = ["a", "b", "c"]
    problem = small_problem()
    times = time_rounds({n: Listening(n, log) for n in names}, problem, 5, {}, nothing)
    assert list(times) == names
    rounds = log[-5 * 3 * 2 :]  # after the warm-up; each turn has a step that is not timed
    turns = [rounds[i : i + 2] for i in range(0, len(rounds), 2)]
    order = [first[0] for first, _ in turns]
    assert all(first[0] == second[0] for first, second in turns)
    assert all(len(xs) == count for _, xs, count in rounds)
    assert [(first[2], second[2]) for first, second in turns] == [(1, 4)] * 15
    assert all(set(order[i : i + 3]) == set(names) for i in range(0, 15, 3))
    assert len({tuple(order[i : i + 3]) for i in range(0, 15, 3)}) > 1
    fed = [x for name, xs, _ in log if name == "a" for x in xs]
    prepared = [x.sum().item() for x, _ in problem.batches]
    assert fed == [prepared[i % len(prepared)] for i in range(len(fed))]


@pytest.mark.parametrize("name", ["W1", "W2a"])
def test_the_losses_of_all_steps_are_in_the_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = small_problem(name)
    batches = problem.batches[:4]
    autograd = Autograd(problem)
    expected = torch.stack([autograd.update(*batch).detach() for batch in batches])
    by_hand = ByHand(problem)
    kind, found = type(problem.step.loss), list[Tensor]()
    forward = kind.forward

    def noted(loss: Any, y: Tensor, target: Tensor) -> Any:
        error, saved = forward(loss, y, target)
        if not Tape.running:  # a recording is not the place to keep anything
            found.append(error)
        return error, saved

    monkeypatch.setattr(kind, "forward", noted)
    by_hand.run(batches, 4)
    together = expected.mean() if problem.step.loss.reduction == "mean" else expected.sum()
    torch.testing.assert_close(found[-1].clone(), together)


def test_a_variant_that_fails_while_warming_up_is_left_out() -> None:
    class Failing(Listening):
        def run(self, batches: Iterable[Batch], count: int) -> None:
            raise NotAvailable("no reason")

    unavailable: dict[str, str] = {}
    variants = {"a": Listening("a", []), "b": Failing("b", [])}
    times = time_rounds(variants, small_problem(), 1, unavailable, nothing)
    assert list(times) == ["a"]
    assert unavailable == {"b": "no reason"}


def test_ratios_are_medians_of_those_in_each_round_and_of_the_best() -> None:
    # Times of two quiet rounds, with one between them in which all takes longer, not all alike.
    times = {
        "manual": [10, 100, 11],
        "autograd_default": [50, 500, 51],
        "autograd_foreach": [40, 900, 44],
        "autograd_fused": [60, 100, 60],
        "compile": [30, 30, 30],
        "compile_step": [20, 200, 22],
        "floor": [5, 5, 5.5],
        "manual_compiled": [1, 9, 1.1],
    }
    result = Result(
        *("W1", 2, "float32", "cpu", 3),
        times=times,
        unavailable={},
        memory_bytes={
            "manual": Memory(20, 10, 25),
            "autograd_default": Memory(40, 40, 50),
            "autograd_fused": Memory(40, 20, 60),
        },
        saved_bytes={},
    )
    assert (result.best(times), result.as_json()["best_autograd"]) == (
        "manual_compiled",
        "autograd_foreach",
    )
    assert (result.ratio, result.ratio_to_compile) == (4, 2)
    assert result.compiled_ratio == pytest.approx(40)
    assert (result.ratio_to_floor, result.memory_ratio) == (2, 0.5)
    found = result.as_json()["microseconds_per_step"]["autograd_default"]
    assert found == {"median": 51, "q1": 50.5, "q3": 275.5}


@pytest.mark.parametrize(("one_thread", "hindered"), [(None, False), (10.0, True), (40.0, False)])
def test_threads_that_wait_for_a_core_are_told_of(one_thread: float | None, hindered: bool) -> None:
    medians = {"manual": 10, "autograd_default": 50, "floor": 5}
    memory = Memory(1, 1, 1)
    result = Result(
        *("W1", 2, "float32", "cpu", 3),
        times={name: [median] for name, median in medians.items()},
        unavailable={},
        memory_bytes={"manual": memory, "autograd_default": memory},
        saved_bytes={"manual": 1, "autograd": 1},
        one_thread=one_thread,
    )
    assert result.as_json()["hindered"] == hindered
    console = Console(width=80, record=True, file=StringIO())
    print_results(console, [result])
    text = " ".join(console.export_text().split())
    assert ("autograd takes 5 times as long with 2 threads as with one" in text) == hindered


@pytest.mark.parametrize(
    ("whole", "parts", "ratio", "memory_ratio"),
    [(10, 12, 2.0, 0.5), (12, 10, 2.0, 0.5), (10, 21, 2.0, 1.5), (30, 25, 0.8, 0.5)],
    ids=["parts are slower", "parts are faster", "parts are slower than autograd", "all are"],
)
def test_parts_count_for_time_if_faster_and_for_memory_if_not_slower_than_autograd(
    whole: float, parts: float, ratio: float, memory_ratio: float
) -> None:
    medians = {"manual": whole, "manual_parts": parts, "autograd_default": 20, "floor": 5}
    result = Result(
        *("W1", 2, "float32", "cpu", 3),
        times={name: [median] for name, median in medians.items()},
        unavailable={},
        memory_bytes={
            "manual": Memory(100, 50, 0),
            "manual_parts": Memory(40, 10, 0),
            "autograd_default": Memory(50, 50, 0),
        },
        saved_bytes={},
    )
    assert (result.ratio, result.memory_ratio) == (ratio, memory_ratio)


def test_parts_are_measured_where_the_batch_is_large() -> None:
    large, small = small_problem("W3-1024", torch.float32), small_problem()
    variant = BUILDERS["manual_parts"](large)
    assert isinstance(variant, ByHand)
    assert variant.engine.training_step.micro_batch == 256
    with pytest.raises(NotAvailable, match="too small"):
        BUILDERS["manual_parts"](small)


# Memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rows"), [("manual", 0), ("manual_parts", 256)])
def test_on_a_gpu_memory_is_that_of_the_same_step_unrecorded(
    name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replay of a CUDA graph shows no tensors."""
    built: list[int] = []

    def eager(problem: Problem) -> None:
        built.append(problem.step.micro_batch)

    problem = small_problem("W3-1024", torch.float32)
    monkeypatch.setitem(BUILDERS, "manual_eager", eager)
    monkeypatch.setattr(
        measure, "memory_of_step", lambda build, problem: (build(), Memory(100, 50, 120))[1]
    )
    assert measure._memory(name, problem) == Memory(100, 50, 120)
    assert built == []  # on the CPU it shows them
    monkeypatch.setattr(Problem, "device", torch.device("cuda"))
    copies = sum(argument.nbytes for argument in problem.batches[0])
    assert measure._memory(name, problem) == Memory(100 + copies, 50, 120 + copies)
    assert built == [rows]


@pytest.mark.cuda
def test_on_a_gpu_everything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manualbp.checks.bench.measure.ROUND_SECONDS", 0.05)
    options = {"workload": ("W3-1024",), "repeats": 2, "compile": False, "quiet": True}
    (result,) = bench(BenchConfig(device="cuda", **options))
    assert result.device == "cuda"
    assert result.times.keys() == {*EAGER, "manual_parts", "floor"}
    manual, parts = (result.memory_bytes[name].total for name in ("manual", "manual_parts"))
    params = 4 * (784 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10)
    assert 2 * params < parts < manual < 2 * result.memory_bytes["autograd_default"].total


def test_memory_is_what_is_alive_between_steps_and_at_the_worst_moment() -> None:
    problem = small_problem(dtype=torch.float32)  # batches of 2 + 2 numbers, 16 bytes

    class Allocating:
        def __init__(self) -> None:
            self.kept = torch.zeros(1000)
            self.made = torch.zeros(30)

        def run(self, batches: Iterable[Batch], count: int) -> None:
            a = torch.zeros(100)
            b = a.view(10, 10)[1:]  # no memory of its own
            del a
            b = b + 1  # 90 numbers while the 100 are still there
            torch.zeros(50)

    allocating = memory_of_step(Allocating, problem)
    assert allocating == Memory(16 + 4 * 1030, 4 * 190, 16 + 4 * (1030 + 190))

    class GivingBack(Allocating):
        def run(self, batches: Iterable[Batch], count: int) -> None:
            del self.made
            self.made = torch.zeros(30)

    assert memory_of_step(GivingBack, problem) == Memory(16 + 4 * 1030, 4 * 30, 16 + 4 * 1030)

    class Still(Allocating):
        def run(self, batches: Iterable[Batch], count: int) -> None:
            self.kept.add_(1)

    assert memory_of_step(Still, problem) == Memory(16 + 4 * 1030, 0, 16 + 4 * 1030)

    class Growing(Allocating):
        def run(self, batches: Iterable[Batch], count: int) -> None:
            self.kept = torch.zeros(len(self.kept) + 1)

    assert memory_of_step(Growing, problem).live == 16 + 4 * 1033  # after the three to warm up

    class LargeAtFirst(Still):
        def __init__(self) -> None:
            super().__init__()
            torch.zeros(5000)  # gone before the step that counts

    assert memory_of_step(LargeAtFirst, problem) == memory_of_step(Still, problem)


def test_a_recording_holds_no_copy_of_a_large_batch() -> None:
    problem = small_problem("W3-128", torch.float32)
    by_hand = ByHand(problem)
    memory = memory_of_step(lambda: by_hand, problem)
    update = by_hand.engine._update
    assert isinstance(update, Captured)
    (recording,) = update.recordings.values()
    batch = sum(tensor.nbytes for tensor in problem.batches[0])
    momentum = params = problem.start.flat.nbytes
    own = memory.live - (params + momentum + batch + recording.buffer_bytes)
    assert 0 < own < problem.batches[0][0].nbytes / 10


def test_saved_bytes_of_a_network_worked_out_by_hand() -> None:
    # x, both sigmoids' outputs, and the error or, for autograd, the target: 2 numbers each.
    problem = small_problem(dtype=torch.float32)
    assert saved_by_hand(problem) == 4 * 2 * 4
    assert saved_by_autograd(problem) == 4 * 2 * 4


def test_of_a_batch_in_parts_one_part_is_saved_at_a_time() -> None:
    whole = small_problem("W2a")
    parts = replace(whole, step=replace(whole.step, micro_batch=8))
    assert saved_by_hand(whole) == 4 * saved_by_hand(parts)


def test_parameters_are_not_among_the_saved_bytes() -> None:
    class SavesItsWeight(Linear):
        def forward(self, params: Any, x: Any, *, mode: Mode = EVALUATION) -> Any:
            y, _ = super().forward(params, x, mode=mode)
            return y, SavedInput(params.weight)

    layer = SavesItsWeight(2, 2)
    start = layer.parameters(torch.Generator().manual_seed(0))
    step = TrainingStep(layer, HalfSquaredError(), SGD())
    problem = Problem(step, start, 0, [(torch.ones(1, 2), torch.zeros(1, 2))])
    assert saved_by_hand(problem) == 2 * 4  # the error


def test_peak_of_a_step_worked_out_by_hand() -> None:
    # Autograd on W1: x, t and 12 parameters stay; at the end there are 12 gradients more.
    problem = small_problem(dtype=torch.float32)
    peak = memory_of_step(lambda: Autograd(problem), problem).peak
    assert 4 * (2 + 2 + 12 + 12) <= peak <= 4 * (2 + 2 + 12 + 12 + 10)


# Workloads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "x_shape", "parameters", "state", "threads"),
    [
        ("W1", (1, 2), 2 * 3 + 2 * 3, [], 2),
        ("W2a", (32, 64), 65 * 128 + 129 * 64 + 65 * 10, ["momentum_buffer"], 1),
        ("W2b", (32, 64), 65 * 128 + 129 * 64 + 65 * 10, ["exp_avg", "exp_avg_sq"], 2),
        ("W3-128", (128, 784), 785 * 512 + 513 * 256 + 257 * 10, ["momentum_buffer"], 2),
        ("W3-1024", (1024, 784), 785 * 512 + 513 * 256 + 257 * 10, ["momentum_buffer"], 2),
    ],
)
def test_workloads_are_those_of_the_table(
    name: str, x_shape: tuple[int, ...], parameters: int, state: list[str], threads: int
) -> None:
    problem = small_problem(name, torch.float32)
    assert WORKLOADS[name].threads == threads
    assert sum(p.numel() for p in problem.start.named().values()) == parameters
    masks = torch.Generator()
    assert list(ManualEngine(problem.step, problem.start, masks).state) == state
    assert 16 <= len(problem.batches) <= 64
    for x, target in problem.batches:
        assert x.shape == x_shape
        assert len(target) == len(x)
    x = torch.cat([x for x, _ in problem.batches])
    assert x.dtype == torch.float32
    assert (x == 0).double().mean() < 1e-6
    assert x.mean().abs() < 0.3
    assert 0.7 < x.std() < 1.3
    assert len(x.unique(dim=0)) == len(x)
