"""`manualbp train --inject`: a named mistake in one gradient, beside the run without it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import accumulator, call
from torch import Tensor

from manualbp.checks.agreement import Inputs, by_hand
from manualbp.checks.engines import build_engine
from manualbp.cli import main
from manualbp.errors import UsageError
from manualbp.layers import AnyLayer
from manualbp.models import build
from manualbp.training.config import TrainConfig
from manualbp.training.injection import BUGS, inject, mended
from manualbp.training.run import prepare
from manualbp.training.run_directory import read_json

SHORT = ("--data", "iris", "--hidden", "6", "6", "--max-epochs", "3", "--device", "cpu", "--quiet")
MODEL = build("mlp", 5, 3, hidden=(4, 4), activation="tanh")
RESIDUAL = build("residual", 5, 3, hidden=(4, 4), dropout=0.3)


def gradients(model: AnyLayer, right: AnyLayer = MODEL) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    parameters = right.parameters(generator, dtype=torch.float64)
    x = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    dy = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    return by_hand(model, Inputs(parameters, x, dy, seed=2), training=True)


def last_row_lost(right: Tensor) -> Tensor:
    return torch.cat([right[:-1], torch.zeros_like(right[-1:])])


OF_PARAMETERS = [
    ("sign:0.weight", lambda right: -right),
    ("factor:2.bias", lambda right: 2 * right),
    ("zero:4.weight", torch.zeros_like),
    ("transposed:2.weight", lambda right: right.T),
    ("off-by-one:0.bias", last_row_lost),
    ("off-by-one:2.weight", last_row_lost),
]


@pytest.mark.parametrize(("text", "change"), OF_PARAMETERS, ids=lambda item: str(item)[:20])
def test_one_gradient_is_wrong_and_no_other(text: str, change: Any) -> None:
    wrong, right = gradients(inject(MODEL, text)), gradients(MODEL)
    name = f"d{text.partition(':')[2]}"
    for tensor, value in right.items():
        expected = change(value) if tensor == name else value
        torch.testing.assert_close(wrong[tensor], expected, rtol=0, atol=0)
    assert not torch.equal(wrong[name], right[name])


def test_noise_is_as_large_as_the_gradient_and_new_each_time() -> None:
    noise = gradients(inject(MODEL, "noise:0.weight"))["d0.weight"] - gradients(MODEL)["d0.weight"]
    size = gradients(MODEL)["d0.weight"].square().mean().sqrt()
    assert 0.5 < noise.square().mean().sqrt() / size < 2


def test_what_a_layer_hands_on_reaches_all_layers_before_it() -> None:
    wrong, right = gradients(inject(MODEL, "sign:3.x")), gradients(MODEL)
    for tensor in right:
        before = tensor in ("dx", "d0.weight", "d0.bias", "d2.weight", "d2.bias")
        torch.testing.assert_close(wrong[tensor], -right[tensor] if before else right[tensor])


def test_a_missing_derivative() -> None:
    wrong = gradients(inject(MODEL, "missing-activation-derivative:3.x"))
    right = gradients(MODEL)
    torch.testing.assert_close(wrong["d4.weight"], right["d4.weight"])
    # Layer 3 hands on dy, not dy (1 - y²), so that the bias before it gets Σ_n dy, here Σ_n dv W.
    dv = right["d4.bias"]
    weight = MODEL.parameters(torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(wrong["d2.bias"], dv @ weight.named()["4.weight"])


def test_inside_a_residual_layer() -> None:
    text = "sign:1.inner.0.weight"
    wrong = gradients(inject(RESIDUAL, text), RESIDUAL)
    right = gradients(RESIDUAL, RESIDUAL)
    for tensor in right:
        sign = -1 if tensor == "d1.inner.0.weight" else 1
        torch.testing.assert_close(wrong[tensor], sign * right[tensor], rtol=0, atol=0)


@pytest.mark.parametrize("text", ["sign:0.weight", "zero:2.x", "sign:1.inner.1.x"])
def test_mended(text: str) -> None:
    wrong = inject(RESIDUAL, text)
    assert wrong != RESIDUAL
    assert mended(wrong) == RESIDUAL
    assert mended(RESIDUAL) is RESIDUAL


MISTAKES = [
    ("sing:0.weight", r"there is no such bug. Did you mean sign\? There are: sign, factor, zero"),
    ("sign", r"expected BUG:TENSOR. There are: 0.weight, 0.bias, 1.x"),
    ("sign:0.wieght", r"there is no such tensor. Did you mean 0.weight\?"),
    ("sign:0.x", "there is no such tensor"),
    ("transposed:0.weight", "is transposed unnoticed only if it is square"),
    ("transposed:2.bias", "is transposed unnoticed only if it is square"),
    ("missing-activation-derivative:2.x", r"that is no activation. .*There are: 1.x, 3.x$"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_in_naming_a_mistake(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        inject(MODEL, text)
    assert str(error.value).startswith(f"--inject {text}: ")
    assert "\n" not in str(error.value)


def test_the_error_and_the_help_name_every_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert ", ".join(BUGS) in call("train", *SHORT, "--inject", "x:0.weight").err
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert all(f"{bug} " in told or f"{bug}," in told for bug in BUGS)


def curve(run: Path, tag: str) -> list[float]:
    events = accumulator.EventAccumulator(str(run), size_guidance={accumulator.SCALARS: 0})
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    outcome = call(
        "train", *SHORT, "--json", "--inject", "sign:0.weight", "--run-dir", str(tmp_path / "both")
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert [row["inject"] for row in json.loads(outcome.out)] == [None, "sign:0.weight"]
    clean, injected = tmp_path / "both" / "clean", tmp_path / "both" / "injected"
    assert read_json(clean / "config.json")["inject"] is None
    assert read_json(injected / "config.json")["inject"] == "sign:0.weight"
    # The same tags, which TensorBoard draws into the same charts, from the same start.
    for part in ("train", "val"):
        assert len(curve(clean / part, "loss")) == len(curve(injected / part, "loss")) == 3
    assert curve(clean / "train", "loss") != curve(injected / "train", "loss")
    call("train", *SHORT, "--run-dir", str(tmp_path / "alone"))
    assert curve(clean / "val", "loss") == curve(tmp_path / "alone" / "val", "loss")


def test_what_a_person_sees(tmp_path: Path) -> None:
    words = [word for word in SHORT if word != "--quiet"]
    outcome = call("train", *words, "--inject", "zero:2.weight", "--run-dir", str(tmp_path / "r"))
    assert outcome.code == 0
    assert re.search(r"^clean +\d", outcome.out, re.MULTILINE)
    assert re.search(r"^zero:2.weight +\d", outcome.out, re.MULTILINE)
    assert f"tensorboard --logdir {tmp_path / 'r'}" in outcome.out
    assert "Best" not in outcome.out


@pytest.mark.parametrize("text", ["sign:0.weight", "noise:2.weight", "zero:1.x"])
def test_recorded_as_it_stands(text: str, tmp_path: Path) -> None:
    """The step that is recorded and replayed makes the very updates of the plain one."""

    def weights(recorded: bool) -> Tensor:
        config = TrainConfig(
            data="iris", hidden=(6, 6), max_epochs=3, device="cpu", inject=text, quiet=True
        )

        def engine(*arguments: Any) -> Any:
            built = build_engine(*arguments)
            if not recorded:
                for name in ("_update", "_predict"):
                    setattr(built, name, torch.inference_mode()(getattr(built, f"_plain{name}")))
            return built

        run = prepare(config, engine)
        run.trainer.fit(Silent())
        return run.params.flat.clone()

    torch.testing.assert_close(weights(True), weights(False), rtol=1e-5, atol=1e-6)


class Silent:
    def wants_details(self, epoch: int) -> bool:
        return False

    def after_update(self, trainer: object) -> None:
        pass

    def after_epoch(self, trainer: object, report: object) -> None:
        pass


def test_lockstep_stops_at_once(tmp_path: Path) -> None:
    outcome = call(
        "train", *SHORT, "--engine", "lockstep", "--dtype", "float64",
        "--inject", "factor:2.weight", "--run-dir", str(tmp_path / "r"),
    )  # fmt: skip
    assert outcome.code == 1
    assert "lockstep: at step 1 the gradients of 2.weight differ" in outcome.err


def test_resume_keeps_the_mistake(tmp_path: Path) -> None:
    def run(name: str, epochs: str) -> Path:
        path = tmp_path / name
        words = [*SHORT, "--max-epochs", epochs, "--inject", "sign:2.weight"]
        assert call("train", *words, "--run-dir", str(path)).code == 0
        return path / "injected"

    whole, parts = run("whole", "6"), run("parts", "3")
    assert call("train", "--resume", str(parts), "--max-epochs", "6", "--quiet").code == 0
    assert read_json(parts / "config.json")["inject"] == "sign:2.weight"
    assert not (parts / "clean").exists()
    assert curve(parts / "train", "loss") == curve(whole / "train", "loss")


def test_a_run_is_not_resumed_with_another_mistake(tmp_path: Path) -> None:
    call("train", *SHORT, "--run-dir", str(tmp_path / "clean"))
    outcome = call("train", "--resume", str(tmp_path / "clean"), "--inject", "sign:0.weight")
    assert outcome.code == 2
    assert "--inject sign:0.weight: the run to resume has None" in outcome.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--engine autograd", "--inject goes with --engine manual or lockstep"),
        ("--compile", "--inject goes with --engine manual or lockstep and without --compile"),
        ("--find-lr", "--inject trains twice: leave out --find-lr"),
        ("--cross-validate 3", "--inject trains twice: leave out --cross-validate"),
    ],
)
def test_what_does_not_go_together(options: str, message: str, tmp_path: Path) -> None:
    words = ["--inject", "sign:0.weight", "--run-dir", str(tmp_path / "r"), *options.split()]
    outcome = call("train", *SHORT, *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "r").exists()
