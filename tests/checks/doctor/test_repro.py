"""`manualbp check --write-repro`: a file of tests that fail now and pass once all is mended."""

import subprocess
import sys
from pathlib import Path

import examined_functions
import pytest
from small_runs import call

SOURCE = Path(examined_functions.__file__).read_text(encoding="utf-8")

# What mends each of the wrong ones: a replacement in its own file.
MENDED = {
    "WrongSign": ("None if dweight is None else -dweight", "dweight"),
    "WrongShape": ("return dx, dweight, dy.sum(1)", "return dx, dweight, dy.sum(0)"),
    "ComputesAll": ("return dbias  # one", "return dx, dweight, dbias  # one"),
    "TwiceAtTheKink": ("dy * (x > 0) + 2 * dy * (x == 0)", "dy * (x > 0)"),
    "NeedsContiguous": ("2 * dy.view(-1).view(dy.shape)", "2 * dy"),
    "MaxToAll": (
        "dy[..., None] * (x == x.amax(-1, keepdim=True))\n\n\nclass LargerOfTwoToBoth",
        "MaxShared.backward(ctx, dy)\n\n\nclass LargerOfTwoToBoth",
    ),
    "LargerOfTwoToBoth": ("dy * (b >= a)", "dy * (b > a)"),
    "LosesOneOutput": (
        "None if ds is None or dc is None else TwoOutputs.backward(ctx, ds, dc)",
        "UsedApart.backward(ctx, ds, dc)",
    ),
    "WritesToDy": ("return dy.mul_(2)", "return dy * 2"),
    "WritesToX": ("        x.data.zero_()\n", ""),
    "CapsDy": ("dy.clamp(-100, 100)", "dy"),
    "IgnoresDy": ("torch.full_like(dy, 2.0)", "2 * dy"),
    "Remembers": ("return 2 * dy * Remembers.last", "return 2 * dy * ctx.saved_tensors[0]"),
    "Accumulates": ("        return Accumulates.buffer\n", "        return 2 * dy\n"),
    "SpendsItsContext": ("ctx.calls += 1", "ctx.calls = 1"),
    "BatchTooSmall": ("2 * dy if len(dy) > 1 else 3 * dy", "2 * dy"),
    "BatchNotEmpty": ("        dy.amax()\n", ""),
    "WrongInPlace": (
        "return -dy * (ctx.saved_tensors[0] > 0)",
        "return dy * ctx.saved_tensors[0].sign()",
    ),
    "WrongOutputOfTwo": ("-dy * ctx.saved_tensors[0].cos()", "dy * ctx.saved_tensors[0].cos()"),
    "HandsOutItsBuffer": ("buffer.copy_(1.5 * dy)", "(1.5 * dy)"),
    "KeepsTooLittle": ("return dy * self.x", "return 2 * dy * self.x"),
    "Rolls": ("(1 + 0.01 * (Rolls.calls % 2))", "1"),
    "Float32Inside": (
        "dy.float() * ctx.saved_tensors[0].float().exp()",
        "dy * ctx.saved_tensors[0].exp()",
    ),
    "HalfInside": ("(dy.half() * x.half().exp()).to(x.dtype)", "dy * x.exp()"),
    "Fails": ('raise KeyError("no such thing")', "return 2 * dy"),
    "wrong_pair": ("dy @ saved[1])", "(dy @ saved[1], dy.T @ saved[0]))"),
}


@pytest.mark.parametrize("name", MENDED)
def test_it_fails_now_and_passes_once_mended(name: str, tmp_path: Path) -> None:
    target, repro = tmp_path / "target_of_repro.py", tmp_path / "test_repro_of_it.py"
    target.write_text(SOURCE)
    code, out, err = call("check", f"{target}:{name}", "--write-repro", repro)
    assert (code, err) == (1, "")
    assert "it fails now, and passes once the target is mended" in out
    assert " manualbp." not in repro.read_text()
    assert set(outcomes(repro)) == {"FAILED"}
    old, new = MENDED[name]
    text = SOURCE.replace(old, new)
    if name == "Remembers":
        text = text.replace("Remembers.last = x.clone()", "ctx.save_for_backward(x)")
    assert text != SOURCE
    target.write_text(text)
    assert set(outcomes(repro)) == {"PASSED"}


def outcomes(path: Path) -> list[str]:
    """Run every test of the file, each in a fresh namespace, as pytest would."""
    text = path.read_text()
    names = [line.split("(")[0].removeprefix("def ") for line in text.splitlines()]
    found: list[str] = []
    for name in (name for name in names if name.startswith("test_")):
        folders = list(sys.path)
        space: dict[str, object] = {"__name__": "repro"}
        try:
            exec(compile(text, str(path), "exec"), space)
            space[name]()  # pyright: ignore
            found.append("PASSED")
        except Exception:
            found.append("FAILED")
        finally:
            sys.path[:] = folders
            del sys.modules["target_of_repro"]
    return found


def test_pytest_runs_the_file(tmp_path: Path) -> None:
    target, repro = tmp_path / "target_of_repro.py", tmp_path / "test_repro_of_it.py"
    target.write_text(SOURCE)
    call("check", f"{target}:WrongSign", "--dtype", "float64", "--write-repro", repro)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(repro)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "failed" in result.stdout
    assert "error" not in result.stdout.lower().replace("assertionerror", "")


def test_nothing_is_written_for_a_right_target(tmp_path: Path) -> None:
    repro = tmp_path / "test_repro_of_it.py"
    code, out, _ = call("check", f"{examined_functions.__file__}:Double", "--write-repro", repro)
    assert code == 0
    assert "nothing to show" in out
    assert not repro.exists()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    repro = tmp_path / "no" / "test_it.py"
    words = ("check", f"{examined_functions.__file__}:WrongSign", "--write-repro", repro)
    code, _, err = call(*words)
    assert code == 2
    assert "No such file or directory" in err
