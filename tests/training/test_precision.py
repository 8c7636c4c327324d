"""Mixed precision: passes in bfloat16; parameters, loss, sums of gradients and update in float32.

And TF32, which is off unless asked for.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import a_run, call, fitted
from torch import Tensor, nn

from manualbp.checks.agreement import rows
from manualbp.checks.engines import AutogradEngine
from manualbp.errors import UsageError
from manualbp.layers import Linear, Mode, ReLU, Sequential
from manualbp.losses import CrossEntropyLoss
from manualbp.optimizers import SGD, Optimizer
from manualbp.parameters import Parameters
from manualbp.training import checkpoint
from manualbp.training.config import TrainConfig
from manualbp.training.engine import ManualEngine
from manualbp.training.step import TrainingStep

MIXED: dict[str, Any] = {"precision": "bf16-mixed", "data": "iris", "hidden": (6,)}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "mse"},
        {"loss": "half-squared-error"},
        {"loss": "bce", "data": "breast_cancer"},
        {"model": "logistic"},
        {"model": "maxout"},
        {"model": "residual"},
        {"activation": "gelu", "hidden": (6, 6, 6)},
        {"batch_size": 16, "accumulate": 4},
    ],
    ids=str,
)
def test_gradients_are_as_near_the_truth_as_those_of_autocast(settings: dict[str, Any]) -> None:
    found: dict[str, dict[str, Tensor]] = {}
    for name, more in {
        "ours": {},
        "autocast": {"engine": "autograd"},
        "truth": {"engine": "autograd", "precision": "full", "dtype": "float64"},
    }.items():
        run = a_run(**{**MIXED, "clip_norm": 1e9, **settings, **more})
        engine, train = run.trainer.engine, run.trainer.train
        start = torch.Generator().manual_seed(0)
        engine.load_weights(run.step.model.parameters(start).state_dict())  # the same float32
        engine.plan([0.1])
        y = engine.step(train.x, train.t)
        gradients = {f"d{n}": g.clone() for n, g in engine.gradients().items()}
        found[name] = {"y": y.clone(), **gradients}
    assert {t.dtype for t in found["ours"].values()} == {torch.float32}
    # The limit is that of the type in which the passes were computed.
    narrow = [
        {name: tensor.bfloat16() for name, tensor in found[side].items()}
        for side in ("ours", "autocast")
    ]
    for row in rows("step", str(settings), *narrow, found["truth"]):
        assert row.verdict == "agree", row
        assert row.error_vs_truth > 1e-4  # it was bfloat16 indeed


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "look-ahead", "rmsprop", "adamw"])
def test_lockstep_with_autocast(optimizer: str) -> None:
    trainer, _ = fitted(
        engine="lockstep", optimizer=optimizer, max_epochs=3, **{**MIXED, "dropout": 0.2}
    )
    differences = trainer.engine.take_differences()
    assert differences["gradients"] < 0.01
    assert differences["parameters"] < 0.01


def engine(
    rule: Optimizer, dtype: torch.dtype = torch.float32, rounded_to: torch.dtype | None = None
) -> ManualEngine:
    model = Sequential(Linear(4, 3), ReLU(), Linear(3, 2))
    params = Parameters.zeros(model.shapes(), dtype=dtype)
    params.flat.fill_(1.0)
    step = TrainingStep(model, CrossEntropyLoss(), rule)
    return ManualEngine(
        step, Parameters(params.shapes, params.flat, rounded_to=rounded_to), torch.Generator()
    )


def test_updates_too_small_for_bfloat16_add_up_in_the_masters() -> None:
    """Near 1 bfloat16 has steps of 2⁻⁷; these updates are smaller a thousand times."""
    x, target = torch.ones(8, 4), torch.zeros(8, dtype=torch.long)
    moved: dict[str, Tensor] = {}
    for name, dtype, rounded_to in (
        ("mixed", torch.float32, torch.bfloat16),
        ("full", torch.float32, None),
        ("bfloat16", torch.bfloat16, None),
    ):
        trained = engine(SGD(1e-5), dtype, rounded_to)
        trained.plan([1e-5] * 100)
        for _ in range(100):
            trained.step(x.to(dtype), target)
        moved[name] = trained.weights()["2.weight"].double() - 1
    assert not moved["bfloat16"].any()
    assert moved["full"].abs().min() > 1e-5
    assert moved["full"].abs().max() < 2**-8
    torch.testing.assert_close(moved["mixed"], moved["full"], rtol=2**-6, atol=0)


def test_the_layers_see_the_masters_rounded_after_every_change() -> None:
    trained = engine(SGD(0.5), rounded_to=torch.bfloat16)
    params = trained.params
    x, target = torch.ones(8, 4), torch.zeros(8, dtype=torch.long)
    trained.plan([0.5, 0.5])
    trained.step(x, target)
    before = params.flat.bfloat16()
    y = trained.predict(x)
    assert torch.equal(params.working, before)
    assert y.dtype == torch.float32
    trained.step(x, target)
    assert torch.equal(params.working, before)
    trained.load_weights({name: w + 0.3 for name, w in trained.weights().items()})
    assert torch.equal(params.working, params.flat.bfloat16())
    assert torch.equal(params.clone().working, params.working)
    assert {w.dtype for w in params.named().values()} == {torch.float32}
    assert params.views["0"].weight.dtype == torch.bfloat16
    assert params.zeros_like().views["0"].weight.dtype == torch.float32


def test_the_loss_is_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    right = CrossEntropyLoss.forward

    def forward(self: CrossEntropyLoss, y: Tensor, target: Tensor) -> Any:
        seen.append(y.dtype)
        error, saved = right(self, y, target)
        seen.extend([error.dtype, saved.p.dtype])
        return error, saved

    monkeypatch.setattr(CrossEntropyLoss, "forward", forward)
    trained = engine(SGD(0.1), rounded_to=torch.bfloat16)
    trained.plan([0.1])
    trained.step(torch.ones(8, 4), torch.zeros(8, dtype=torch.long))
    assert set(seen) == {torch.float32}


def test_parameters_of_full_precision_are_one_tensor_and_a_step_makes_no_copy_of_it() -> None:
    trained = engine(SGD(0.1))
    assert trained.params.working is trained.params.flat
    assert trained.params.named()["0.weight"] is trained.params.views["0"].weight


def test_masks_of_dropout_are_those_of_full_precision() -> None:
    """One seed leaves out the same units."""
    masks: list[Tensor] = []
    for precision in ("full", "bf16-mixed"):
        run = a_run(**{**MIXED, "dropout": 0.5, "hidden": (64,), "precision": precision})
        x = run.trainer.train.x.to(run.params.working.dtype)
        mode = Mode(training=True, generator=torch.Generator().manual_seed(0))
        _, saved = run.step.model.forward(run.params.views, x, mode=mode)
        masks.append(saved[2].mask > 0)
    assert torch.equal(*masks)


def test_the_default_run_learns_as_well_as_in_float32() -> None:
    best: dict[str, float] = {}
    for precision in ("full", "bf16-mixed"):
        _, reports = fitted(precision=precision, max_epochs=12)
        best[precision] = min(report.val["loss"] for report in reports)
        assert max(report.val["accuracy"] for report in reports) > 0.96
    assert best["bf16-mixed"] == pytest.approx(best["full"], rel=0.1)


@pytest.mark.parametrize("side", ["manual", "autograd"])
def test_a_run_says_its_precision_and_its_checkpoints_hold_float32(
    side: str, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    words = ("--data", "iris", "--hidden", 6, "--max-epochs", 2, "--device", "cpu", "--json")
    outcome = call(
        *("train", *words, "--precision", "bf16-mixed", "--engine", side, "--run-dir", path)
    )
    assert (outcome.code, outcome.err.count("Traceback")) == (0, 0)
    assert '"precision": "bf16-mixed"' in outcome.out
    last = checkpoint.load(path / "last.pt")
    tensors = [*last["weights"].values(), *last["best"].values()]
    tensors += [*checkpoint.load(path / "best.pt")["weights"].values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert any(not torch.equal(t, t.bfloat16().float()) for t in tensors)
    nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).load_state_dict(last["weights"])


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_mixed_precision_has_float32_beside_bfloat16(dtype: str) -> None:
    with pytest.raises(UsageError, match=f"goes with --dtype float32, not {dtype}"):
        TrainConfig(precision="bf16-mixed", dtype=dtype).validate()


def test_autograd_in_full_precision_does_without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "autocast")
    run = a_run(**{**MIXED, "precision": "full"})
    side = AutogradEngine(run.step, run.params.state_dict(), torch.Generator())
    side.plan([0.1])
    assert side.step(run.trainer.train.x, run.trainer.train.t).dtype == torch.float32


@pytest.fixture
def products() -> Iterator[None]:
    """Put back what a run sets for the process."""
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    in_bfloat16 = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    yield
    torch.set_float32_matmul_precision("highest")  # torch's own choice
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = in_bfloat16


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize(("words", "setting"), [((), "ieee"), (("--tf32",), "tf32")])
def test_tf32_is_off_unless_asked_for(words: tuple[str, ...], setting: str, tmp_path: Path) -> None:
    torch.backends.cuda.matmul.fp32_precision = "ieee" if words else "tf32"
    for part in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
        part.fp32_precision = "ieee" if words else "tf32"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    small = ("--data", "iris", "--hidden", 6, "--max-epochs", 1, "--json")
    outcome = call("train", *small, *words, "--run-dir", tmp_path / "run")
    assert torch.backends.cuda.matmul.fp32_precision == setting
    assert torch.backends.cudnn.conv.fp32_precision == setting
    assert torch.backends.cudnn.rnn.fp32_precision == setting
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    # Both of torch's switches, which raise an error where they differ: torch.compile reads them.
    assert torch.get_float32_matmul_precision() == ("high" if words else "highest")
    assert torch.backends.cuda.matmul.allow_tf32 == bool(words)
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    assert f'"tf32": {"true" if words else "false"}' in outcome.out
    saved = (tmp_path / "run" / "config.json").read_text()
    assert f'"tf32": {"true" if words else "false"}' in saved
