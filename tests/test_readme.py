"""The README keeps its word: its commands, outputs, figures, code, quotations, tables and links.

Each section is played from top to bottom as by a reader who sits in a clone: Python blocks are
executed, `$` lines are run and what they print is compared with what the README shows. The two
commands that install are run by .ci/run.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen

import pytest
import torch

from manualbp.checks.compare import CompareConfig
from manualbp.checks.doctor.command import CheckConfig
from manualbp.checks.doctor.selftest_config import SelftestConfig
from manualbp.checks.tolerances import TOLERANCES
from manualbp.cli import main
from manualbp.explain.config import ExplainConfig
from manualbp.training.config import TrainConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

BLOCK = re.compile(
    r"^(?:<!-- (?P<verb>[\w ]+) (?P<path>\S+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

VARIES = {
    r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d": "DATE",
    # The last columns of an experiment: epochs and updates, then seconds.
    r"(?m)(?<=\.\d{4})( +[\d,]+){1,3} +[\d.]+$": " COUNTS",
    r"(?<=Learning rate  )[\d.e-]+|(?<=loss    at )[\d.]+|(?<=Diverges       at )[\d.]+": "RATE",
    r"\b[\d.]+ s\b": "SECONDS",
    r"[\d,]+ updates\b": "UPDATES",
    r"(?<=epoch )\d+|(?<=patience exhausted after )\d+": "EPOCHS",
    r"\b0\.\d{4}\b|\b1\.0000\b": "FIGURE",
    # Errors of rounding; a table shows nothing but 0 where there is none.
    r"\d\.\de-(?!0[1-4])\d\d|(?<= )0(?= )": "ROUNDING",
    r"(?m)^\d+ passed(, \d+ (skipped|deselected))* in [\d.]+s( \([\d:]+\))?$": "ALL PASSED",
}
"""What is not the same on every machine or day, and what it is compared as."""

FIGURE_TOLERANCE = 0.03
"""Rounding, which differs between machines, moves an accuracy or a loss by less than this."""


@dataclass(frozen=True)
class Block:
    """A block of code, with what the comment above it says is to be done with it."""

    verb: str | None
    path: str | None
    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Section:
    title: str
    blocks: list[Block]

    @property
    def writes_code(self) -> bool:
        return any(block.verb == "write" for block in self.blocks)


def sections() -> list[Section]:
    found: list[Section] = []
    starts = [0, *(match.start() for match in re.finditer(r"^## ", README, re.MULTILINE))]
    for start, end in zip(starts, [*starts[1:], len(README)], strict=True):
        blocks = [
            Block(
                match["verb"],
                match["path"],
                match["language"],
                match["text"],
                README.count("\n", 0, match.start()) + 1,
            )
            for match in BLOCK.finditer(README, start, end)
        ]
        found.append(Section(README[start:end].split("\n", 1)[0].strip("# "), blocks))
    return found


SECTIONS = sections()
BLOCKS = [block for section in SECTIONS for block in section.blocks]
RUN_ELSEWHERE = ("sh", "math")
"""`sh` blocks install, and are run by .ci/run, or start TensorBoard, below."""


@pytest.fixture(autouse=True)
def a_reader_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The README's outputs are those of a CPU, in a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "section", [s for s in SECTIONS if s.blocks], ids=lambda section: section.title
)
def test_section(section, capsys):
    # A program that is already loaded does not find a new layer.
    program = in_a_copy if section.writes_code else in_this_process
    if section.writes_code:
        for name in ("manualbp", "reference", "tests"):
            shutil.copytree(ROOT / name, name)
        shutil.copy(ROOT / "pyproject.toml", ".")
    for block in section.blocks:
        play(block, program, capsys)


def play(block: Block, program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if block.language in RUN_ELSEWHERE or block.verb == "quoted from":
        return
    if block.verb == "write":
        assert block.path is not None
        Path(block.path).write_text(block.text, encoding="utf-8")
    elif block.verb == "change":
        assert block.path is not None
        change(Path(block.path), block.text)
    elif block.language == "python":
        exec(compile(block.text, f"README.md, line {block.line}", "exec"), {})
    else:
        assert block.language == "console", f"line {block.line}: who runs {block.language}?"
        for step in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, shown = step.split("\n", 1)
            interrupted = shown.startswith("^C\n")
            printed = program(command, capsys, interrupted=interrupted)
            require_same(command, shown.removeprefix("^C\n"), printed)


def in_this_process(
    command: str, capsys: pytest.CaptureFixture[str], *, interrupted: bool = False
) -> str:
    """Return what the program prints; it is spared the seconds of its start."""
    name, *words = shlex.split(command)
    assert name == "manualbp", command
    ctrl_c = Thread(target=interrupt_once_it_listens, args=(signal.getsignal(signal.SIGINT),))
    if interrupted:
        ctrl_c.start()
    main(words)
    if interrupted:
        ctrl_c.join()
    printed = capsys.readouterr()
    return printed.out + printed.err


def interrupt_once_it_listens(before: Any) -> None:
    """Do as Ctrl-C does, as soon as the run has a handler of its own for it."""
    deadline = time.monotonic() + 60
    while signal.getsignal(signal.SIGINT) == before and time.monotonic() < deadline:
        time.sleep(0.001)
    if signal.getsignal(signal.SIGINT) != before:
        os.kill(os.getpid(), signal.SIGINT)


def in_a_copy(command: str, capsys: pytest.CaptureFixture[str], *, interrupted: bool) -> str:
    """Return what the command prints, with the copy's code before what is installed."""
    assert not interrupted
    pipe = subprocess.run(
        ["bash", "-c", command], env=environment(), capture_output=True, text=True, check=False
    )
    return pipe.stdout + pipe.stderr


def environment() -> dict[str, str]:
    """Return the environment without what steers the pytest that runs this."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return mine | {"PATH": programs, "PYTHONPATH": str(Path.cwd())}


def change(path: Path, diff: str) -> None:
    """Replace the lines marked - by those marked +."""
    old = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] == "-")
    new = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] == "+")
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path} does not have once:\n{old}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def require_same(command: str, shown: str, printed: str) -> None:
    """Compare an output with the README's, in which "..." stands for anything."""
    pattern = re.escape(comparable(shown)).replace(re.escape("..."), ".*")
    assert re.fullmatch(pattern, comparable(printed), re.DOTALL), (
        f"$ {command}\nThe README shows:\n{shown}\nand it is:\n{printed}"
    )
    if "..." not in shown:
        assert figures(printed) == pytest.approx(figures(shown), abs=FIGURE_TOLERANCE), command


def comparable(text: str) -> str:
    for pattern, name in VARIES.items():
        text = re.sub(pattern, name, text)
    # Columns are as wide as their widest number.
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def figures(text: str) -> list[float]:
    (pattern,) = (pattern for pattern, name in VARIES.items() if name == "FIGURE")
    return [float(figure) for figure in re.findall(pattern, text)]


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("Test accuracy  0.9815", "Test accuracy  0.9415"),
        ("All 9 tensors agree", "All 8 tensors agree"),
        ("dx  4×5  2.1e-16  agree", "dx  4×5  2.1e-03  agree"),
        ("dx  4×5  2.1e-16  agree", "dx  4×5  2.1e-16  differ"),
        ("...\nlast", "first\nlast but one"),
        ("54 passed, 52 skipped in 9.30s", "1 failed, 53 passed, 52 skipped in 9.30s"),
        ("0.1  0.0279  0.9545  57  77  308  0.2", "0.1  0.0279  0.8545  57  77  308  0.2"),
        ("0.1  0.0279  0.9545  57  77  308  0.2", "0.2  0.0279  0.9545  57  77  308  0.2"),
        ("something", ""),
    ],
)
def test_another_output_is_noticed(shown, printed):
    with pytest.raises(AssertionError):
        require_same("", shown, printed)


def test_rounding_and_time_are_not_noticed():
    shown = (
        "dx  4×5  0  1.2e-16  0  agree\naccuracy 0.9815, 1,508 updates/s, 1.6 s\n54 passed in 9.3s"
    )
    printed = (
        "dx  4×5  2.2e-16  0  3.1e-15  agree\naccuracy 0.9741, 2 updates/s, 61.3 s\n9 passed in 1s"
    )
    require_same("", shown, printed)


def test_every_kind_of_block_is_there():
    # A fence or comment that is written in another way would not be found, and so not be run.
    kinds = {(block.verb, block.language) for block in BLOCKS}
    assert kinds == {
        (None, "sh"),
        (None, "math"),
        (None, "console"),
        (None, "python"),
        ("quoted from", "python"),
        ("write", "python"),
        ("change", "diff"),
    }
    assert 2 * len(BLOCKS) == len(re.findall("^```", README, re.MULTILINE))


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.verb == "quoted from"], ids=lambda block: block.path
)
def test_quotation(block):
    source = (ROOT / block.path).read_text(encoding="utf-8")
    indents = {dedent_by(n, source) for n in (0, 4, 8)}
    assert any(block.text in text for text in indents), f"line {block.line}"


def dedent_by(spaces: int, text: str) -> str:
    return re.sub(f"^ {{{spaces}}}", "", text, flags=re.MULTILINE)


def test_installation():
    install, test = (b.text for b in BLOCKS if b.language == "sh" and "pip install" in b.text)
    before = "python3 -m venv .venv && . .venv/bin/activate && "
    assert install == before + "pip install -e . && manualbp train\n"
    assert test == before + "pip install -e '.[test]' && pytest\n"


def test_tensorboard(tmp_path):
    settings = "--data iris --engine lockstep --max-epochs 20 --quiet --run-dir runs/iris"
    assert main(["train", *settings.split(), "--dtype", "float64"]) == 0
    (command,) = (b.text for b in BLOCKS if b.language == "sh" and "tensorboard" in b.text)
    words = shlex.split(command)
    tensorboard = str(Path(sys.executable).with_name(words[0]))
    log = tmp_path / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [tensorboard, *words[1:], "--port", "0"], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        address = wait_for(lambda: address_in(log, server), "an address")
        tags = wait_for(lambda: served_tags(address), "all kinds of tags")
    finally:
        server.terminate()
        server.wait(30)
    # The first cells of the table under "Look".
    table = section_text("Look").partition("|:--")[2]
    promised = [
        tag
        for row in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
        for tag in re.findall("`([^`]*)`", row)
    ]
    assert len(promised) > 8
    for tag in promised:
        assert any(served.startswith(tag) for served in {*tags, "r2"}), tag
    for tag in tags:
        assert tag.startswith((*promised, "configuration", "_hparams_")), f"{tag} is not in it"


def address_in(log: Path, server: subprocess.Popen[bytes]) -> str | None:
    assert server.poll() is None, log.read_text()
    found = re.search(r"http://localhost:\d+", log.read_text())
    return found and found[0]


def served_tags(address: str) -> set[str]:
    """Return the tags that a TensorBoard serves, once it has read scalars, histograms and text."""
    tags: set[str] = set()
    for plugin in ("scalars", "images", "histograms", "text"):
        with urlopen(f"{address}/data/plugin/{plugin}/tags", timeout=30) as answer:
            by_run = json.load(answer)
        tags.update(tag for of_run in by_run.values() for tag in of_run)
        if not by_run:
            return set()
    return tags


def wait_for(find: Any, what: str) -> Any:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = find()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"no {what} after two minutes")


def section_text(title: str) -> str:
    return README.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_every_option_exists():
    options = set(re.findall(r"--([a-z][a-z0-9-]+)", README))
    configs = (TrainConfig, CompareConfig, ExplainConfig, CheckConfig, SelftestConfig)
    ours = {name.replace("_", "-") for c in configs for name in c.__dataclass_fields__}
    assert "engine" in options
    assert options <= ours | {"help", "logdir", "tb"}  # and those of tensorboard and pytest


def test_defaults_are_as_the_table_says():
    rows = re.findall(r"^\| `--([\w-]+)` \| (?:`([^`]*)`)? \|", section_text("Train"), re.MULTILINE)
    assert len(rows) > 10
    for option, shown in rows:
        value = getattr(TrainConfig(), option.replace("-", "_"))
        words = (
            map(str, value) if isinstance(value, tuple) else ["" if value is None else str(value)]
        )
        assert shown == " ".join(words), option


def test_tolerances_are_as_the_table_says():
    rows = re.findall(r"^\| (\w+) \| ([\de.-]+) \| (\d+) \|$", README, re.MULTILINE)
    shown = {getattr(torch, dtype): (float(floor), float(by)) for dtype, floor, by in rows}
    assert shown == {dtype: (t.floor, t.factor) for dtype, t in TOLERANCES.items()}


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_pictures_are_small():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < 200_000, picture
