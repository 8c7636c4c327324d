import os
import pickle
import re
import resource
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from manualbp.errors import UsageError
from manualbp.training.checkpoint import (
    FORMAT,
    load,
    random_state,
    restore_random_state,
    save,
    temporary_path,
)

OLD = {"epoch": 1, "model": {"0.weight": torch.full((3,), 1.0)}}
NEW = {"epoch": 2, "model": {"0.weight": torch.full((3,), 2.0)}}


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_round_trip_is_exact(tmp_path: Path) -> None:
    numbers = torch.tensor([0.0, -0.0, 1 / 3, torch.inf, -torch.inf, torch.nan, 1e-40])
    payload = {
        "model": {"0.weight": numbers, "0.bias": numbers.bfloat16(), "2.weight": numbers.double()},
        "nothing": torch.zeros(0, 3),
        "counts": torch.tensor([2**62, -1]),
        "mask": torch.tensor([True, False]),
        "strided": torch.arange(6.0).reshape(2, 3).T,
        "stopping": {"best": 0.1, "best_epoch": None, "wait": 3, "reason": "patience exhausted"},
        "history": [{"loss": 0.5}, {"loss": 0.25}],
        "done": False,
    }
    save(tmp_path / "last.pt", payload)
    back = load(tmp_path / "last.pt")
    assert_same(back, payload)
    assert files(tmp_path) == ["last.pt"]


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        # Bit for bit: equal NaNs are equal, and -0 is not 0.
        assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
    elif isinstance(a, dict):
        entries = cast("dict[str, object]", a)
        assert list(entries) == list(b)
        for key, value in entries.items():
            assert_same(value, b[key])
    elif isinstance(a, list):
        for x, y in zip(cast("list[object]", a), b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_views_stay_views_of_one_tensor(tmp_path: Path) -> None:
    flat = torch.arange(32.0)
    save(tmp_path / "last.pt", {"flat": flat, "weight": flat.narrow(0, 16, 4)})
    back = load(tmp_path / "last.pt")
    back["flat"].zero_()
    assert back["weight"].tolist() == [0.0] * 4


def test_the_device_to_load_on_can_be_told(tmp_path: Path) -> None:
    save(tmp_path / "last.pt", OLD)
    back = load(tmp_path / "last.pt", map_location="meta")
    assert back["model"]["0.weight"].device.type == "meta"


def test_the_key_format_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='"format" is taken'):
        save(tmp_path / "last.pt", {"format": 1})
    assert files(tmp_path) == []


# Writing


def test_the_content_is_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save(path, OLD)
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            calls.append("fsync directory")
        else:
            calls.append("fsync file")
            # It is complete: nothing is left in the program's own buffer.
            assert load(temporary_path(path))["epoch"] == 2
            assert load(path)["epoch"] == 1
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        calls.append(f"replace {Path(source).name} {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    save(path, NEW)
    assert calls == ["fsync file", "replace last.pt.tmp last.pt", "fsync directory"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "last.pt"
    save(path, OLD)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, step, fail)
    expected = UsageError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        save(path, NEW)
    if expected is UsageError:
        assert str(caught.value) == f"cannot write {path}: No space left on device"
    monkeypatch.undo()
    assert files(tmp_path) == ["last.pt"]
    assert load(path)["epoch"] == 1


@pytest.fixture
def disk_of_100_kb() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("disk_of_100_kb")
def test_a_disk_that_really_is_full(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save(path, OLD)
    with pytest.raises(UsageError, match=re.escape(f"cannot write {path}: File too large")):
        save(path, {"epoch": 2, "flat": torch.zeros(100_000)})
    assert files(tmp_path) == ["last.pt"]
    assert load(path)["epoch"] == 1


def test_a_payload_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save(path, OLD)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save(path, {"epoch": 2, "function": lambda: None})
    assert files(tmp_path) == ["last.pt"]
    assert load(path)["epoch"] == 1


def test_no_directory_or_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "last.pt", tmp_path / "file" / "last.pt"):
        with pytest.raises(UsageError, match=re.escape(f"cannot write {path}: ")):
            save(path, OLD)
    assert files(tmp_path) == ["file"]


# For each line "STOP PATH" a new process saves a checkpoint of 64 MB over and over, epoch 1, 2, ...
# All of epoch k's numbers are k. At STOP, a step of the third save, it waits to be killed. (The new
# process is a fork, which need not import torch again.)
SAVES_UNTIL_KILLED = """
import os, stat, sys, threading
from pathlib import Path
import torch
from manualbp.training.checkpoint import save

def save_until_killed(path, stop):
    epoch, replace, fsync = 0, os.replace, os.fsync

    def wait(here):
        if (here, epoch) == (stop, 3):
            print("here", flush=True)
            threading.Event().wait()

    def stopping_fsync(descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            wait("written")
        fsync(descriptor)

    def stopping_replace(source, target):
        wait("synced")
        replace(source, target)
        wait("renamed")

    os.fsync, os.replace = stopping_fsync, stopping_replace
    while True:
        epoch += 1
        save(path, {"epoch": epoch, "flat": torch.full((16_000_000,), float(epoch))})
        print("saved", epoch, flush=True)

for line in sys.stdin:
    stop, path = line.rstrip().split(" ", 1)
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        save_until_killed(Path(path), stop)
    print("ended by", os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""

KillWhileSaving = Callable[[str, Path, Callable[[str], bool]], None]


@pytest.fixture(scope="module")
def kill_while_saving() -> Iterator[KillWhileSaving]:
    with subprocess.Popen(
        [sys.executable, "-c", SAVES_UNTIL_KILLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        answers, requests = server.stdout, server.stdin

        def answer() -> str:
            line = answers.readline()
            assert line, "the saving process has ended by itself"
            return line

        def kill(stop: str, path: Path, when: Callable[[str], bool]) -> None:
            print(stop, path, file=requests, flush=True)
            child = int(answer())
            try:
                while not when(answer()):
                    pass
            finally:
                os.kill(child, signal.SIGKILL)
            while not (line := answer()).startswith("ended by"):
                pass
            assert line == f"ended by {signal.SIGKILL:d}\n"

        yield kill
        requests.close()


def assert_complete(path: Path, epochs: Sequence[int]) -> None:
    back = load(path)
    assert back["epoch"] in epochs
    assert torch.equal(back["flat"], torch.full((16_000_000,), float(back["epoch"])))


@pytest.mark.parametrize(("stop", "epoch"), [("written", 2), ("synced", 2), ("renamed", 3)])
def test_killed_at_a_step_of_a_save(
    tmp_path: Path, kill_while_saving: KillWhileSaving, stop: str, epoch: int
) -> None:
    path = tmp_path / "last.pt"
    kill_while_saving(stop, path, lambda line: line == "here\n")
    assert_complete(path, [epoch])
    assert files(tmp_path) == ["last.pt", "last.pt.tmp"][: 1 if stop == "renamed" else 2]
    # What the kill has left disturbs nobody, and the next save clears it away.
    save(path, NEW)
    assert_same(load(path), NEW)
    assert files(tmp_path) == ["last.pt"]


def test_killed_in_the_middle_of_writing(
    tmp_path: Path, kill_while_saving: KillWhileSaving
) -> None:
    path, temporary = tmp_path / "last.pt", tmp_path / "last.pt.tmp"

    def size() -> int:
        return temporary.stat().st_size if temporary.exists() else 0

    def partly_written(line: str) -> bool:
        if line != "saved 1\n":
            return False
        end = time.monotonic() + 30
        while time.monotonic() < end:
            # The process may rename the file between two looks at it.
            with suppress(FileNotFoundError):
                if 0 < size() < 64_000_000:
                    return True
        pytest.fail("in 30 s no look at the temporary file saw it partly written")

    left: list[int] = []
    for _ in range(4):
        kill_while_saving("nowhere", path, partly_written)
        assert_complete(path, range(1, 10_000))
        left.append(size())
    assert any(0 < length < 64_000_000 for length in left)


# Reading


class Malicious:
    """An object whose pickle, when loaded, makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("where", ["value", "whole", "bare pickle", "old torch format"])
def test_a_malicious_file_executes_nothing(tmp_path: Path, where: str) -> None:
    path, marker = tmp_path / "last.pt", tmp_path / "executed"
    evil = Malicious(marker)
    if where == "value":
        torch.save({"format": FORMAT, "epoch": evil}, path)
    elif where == "whole":
        torch.save(evil, path)
    elif where == "bare pickle":
        path.write_bytes(pickle.dumps({"format": FORMAT, "epoch": evil}))
    else:
        torch.save({"format": FORMAT, "epoch": evil}, path, _use_new_zipfile_serialization=False)
    message = refusal(path)
    assert not marker.exists()
    assert ("might execute code" in message) == (where in ("value", "whole"))

    # The attack is a real one: a careless reader falls for it.
    if where == "bare pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(tmp_path: Path, fraction: float) -> None:
    path = tmp_path / "last.pt"
    save(path, {"epoch": 1, "flat": torch.arange(1000.0)})
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    assert "is truncated or damaged, or no checkpoint at all" in refusal(path)


def test_a_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    payload = {"epoch": 1, "model": {"0.weight": torch.arange(64.0)}}
    save(path, payload)
    content = path.read_bytes()
    noticed = 0
    for position in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            back = load(path)
        except UsageError:
            noticed += 1
        else:  # It lay in the padding, or in a date.
            assert_same(back, payload)
    assert noticed > 50


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    weight = torch.full((1000,), 1 / 3)
    save(path, {"flat": weight})
    content = bytearray(path.read_bytes())
    position = content.index(weight.numpy().tobytes())
    content[position + 2000] ^= 1
    path.write_bytes(content)
    # torch itself takes it.
    assert not torch.equal(torch.load(path, weights_only=True)["flat"], weight)
    assert "damaged" in refusal(path)


def test_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_text("epoch 1\n")
    assert "no checkpoint at all" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert "no checkpoint at all" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [{"0.weight": torch.zeros(3)}, {"format": torch.zeros(3, 3)}, torch.zeros(3), ["format"]],
)
def test_a_file_of_torch_but_not_ours(tmp_path: Path, content: object) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    assert refusal(path) == f"{path} is no checkpoint of manualbp: it does not say its format"


def test_another_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"format": "manualbp checkpoint 1"}, path)
    assert refusal(path) == (
        f"{path} has the format 'manualbp checkpoint 1', "
        "and this program reads 'manualbp checkpoint 2'"
    )


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.pt").endswith("none.pt: No such file or directory")
    assert refusal(tmp_path).endswith(": Is a directory")


# Random generators


def test_generators_go_on_where_they_stood(tmp_path: Path) -> None:
    data, dropout = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    generators = {"data": data, "dropout": dropout}
    torch.randn(3, generator=data)
    torch.rand(5, generator=dropout)
    save(tmp_path / "last.pt", {"random": random_state(generators)})
    expected = torch.randn(9, generator=data), torch.rand(9, generator=dropout)

    fresh = {"dropout": torch.Generator(), "data": torch.Generator()}
    restore_random_state(fresh, load(tmp_path / "last.pt")["random"])
    assert torch.equal(torch.randn(9, generator=fresh["data"]), expected[0])
    assert torch.equal(torch.rand(9, generator=fresh["dropout"]), expected[1])


def test_a_captured_state_does_not_move_with_the_generator() -> None:
    generator = torch.Generator().manual_seed(1)
    state = random_state({"data": generator})
    first = torch.rand(3, generator=generator)
    restore_random_state({"data": generator}, state)
    assert torch.equal(torch.rand(3, generator=generator), first)


def test_generators_of_other_names_are_refused() -> None:
    state = random_state({"data": torch.Generator(), "dropout": torch.Generator()})
    with pytest.raises(UsageError, match="has the random generators data, dropout; this run has d"):
        restore_random_state({"data": torch.Generator()}, state)


@pytest.mark.parametrize("state", [torch.zeros(16, dtype=torch.uint8), torch.zeros(5056)])
def test_a_state_of_another_device_is_refused(state: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="'data' does not fit one on cpu; resume on the kind of"):
        restore_random_state({"data": torch.Generator()}, {"data": state})
