"""The batches of an epoch, on the CPU as they lie, and for a GPU copied ahead of the updates."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from manualbp.training import feed
from manualbp.training.data import Split, in_order
from manualbp.training.feed import Feed

SPLIT = Split(torch.arange(20.0).view(10, 2), torch.arange(10))
ORDER = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def begun(size: int, device: torch.device) -> Feed:
    """Return a feed of the examples in that order, after an epoch in another one."""
    epoch = Feed(SPLIT, size, device)
    epoch.begin(ORDER.flip(0))
    epoch.begin(ORDER)
    return epoch


@pytest.mark.parametrize(("size", "number"), [(4, 3), (5, 2), (0, 1), (1, 10), (99, 1)])
def test_an_epoch_has_every_row_once_and_can_begin_anywhere(size: int, number: int) -> None:
    epoch = begun(size, CPU)
    assert len(epoch) == number
    whole = list(epoch.batches())
    assert len(whole) == number
    assert torch.equal(torch.cat([batch.t for batch in whole]), ORDER)
    assert torch.equal(torch.cat([batch.x for batch in whole]), SPLIT.x[ORDER])
    assert torch.equal(epoch.targets(), ORDER)
    for start in range(number + 1):
        rest = list(epoch.batches(start))
        assert len(rest) == number - start
        for batch, expected in zip(rest, whole[start:], strict=True):
            assert torch.equal(batch.x, expected.x)
            assert torch.equal(batch.t, expected.t)


def test_on_the_cpu_the_rows_of_all_epochs_lie_in_the_same_memory() -> None:
    epoch = Feed(SPLIT, 3, CPU)
    places: set[int] = set()
    for order in (ORDER, ORDER.flip(0)):
        epoch.begin(order)
        places |= {batch.x.untyped_storage().data_ptr() for batch in epoch.batches()}
    assert len(places) == 1
    assert places != {SPLIT.x.untyped_storage().data_ptr()}


class Stream:
    """Does what it is given to do when another one waits for it, as late as it may."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.work: list[Callable[[], object]] = []

    def wait_stream(self, other: Stream) -> None:
        self.log.append("waited")
        for work in other.work:
            work()
        other.work.clear()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let copies to a GPU that is not there come about in a stream of their own."""
    happened: list[str] = []
    updating = Stream(happened)
    current = [updating]

    @contextmanager
    def stream(other: Stream) -> Generator[None]:
        current.append(other)
        yield
        current.pop()

    def to(self: Split, device: torch.device) -> Split:
        assert device == GPU
        assert current[-1] is not updating
        happened.append(f"copying {self.t.tolist()}")
        copy = Split(torch.full_like(self.x, torch.nan), torch.full_like(self.t, -1))
        current[-1].work += [lambda: copy.x.copy_(self.x), lambda: copy.t.copy_(self.t)]
        return copy

    def gathered(split: Split, order: Tensor, *, pin_memory: bool) -> Split:
        assert pin_memory
        assert current[-1] is updating  # the host's own work, in no stream
        return in_order(split, order)

    def record_stream(self: Tensor, by: Stream) -> None:
        assert by is updating
        happened.append(f"{'x' if self.ndim > 1 else 't'} in use")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(happened))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: updating)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(Split, "to", to)
    monkeypatch.setattr(Tensor, "record_stream", record_stream)
    monkeypatch.setattr(feed, "in_order", gathered)
    return happened


def logged(batches: Iterator[Split], log: list[str]) -> list[Split]:
    """Return copies of the batches as they are when they come."""
    found: list[Split] = []
    for batch in batches:
        log.append(f"update {batch.t.tolist()}")
        found.append(Split(batch.x.clone(), batch.t.clone()))
    return found


@pytest.mark.parametrize("piece", [1, 24 * 4, 24 * 5, 24 * 8, 10**6])
@pytest.mark.parametrize("size", [0, 1, 2, 4, 10])
@pytest.mark.parametrize("start", [0, 1])
def test_a_gpu_gets_the_batches_of_the_cpu(
    start: int, size: int, piece: int, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "PIECE", piece)
    found = logged(begun(size, GPU).batches(start), log)
    rows = ORDER[start * (size or 10) :]
    assert [len(batch) for batch in found] == [len(b) for b in rows.split(size or 10) if len(b)]
    assert torch.equal(torch.cat([rows[:0], *(batch.t for batch in found)]), rows)
    assert torch.equal(torch.cat([SPLIT.x[:0], *(batch.x for batch in found)]), SPLIT.x[rows])


def test_the_next_piece_is_copied_while_the_updates_of_this_one_are_made(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = 2 * (2 * 4 + 8)  # bytes of two rows
    monkeypatch.setattr(feed, "PIECE", 2 * batch)
    logged(begun(2, GPU).batches(), log)
    assert log == [
        "copying [3, 1, 4, 0]",
        "waited",
        "copying [5, 9, 2, 6]",
        *("x in use", "t in use"),
        *("update [3, 1]", "update [4, 0]"),
        "waited",
        "copying [8, 7]",
        *("x in use", "t in use"),
        *("update [5, 9]", "update [2, 6]"),
        "waited",
        *("x in use", "t in use"),
        "update [8, 7]",
    ]


def test_all_epochs_are_copied_by_one_stream(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch keeps the memory of a stream for it: with one for each epoch it would keep them all."""
    made: list[Stream] = []

    def stream(device: torch.device) -> Stream:
        made.append(Stream(log))
        return made[-1]

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    fed = begun(2, GPU)
    for _ in range(3):
        logged(fed.batches(), log)
        fed.begin(ORDER)
    assert len(made) == 1


def test_a_small_epoch_is_one_copy(log: list[str]) -> None:
    logged(begun(1, GPU).batches(), log)
    assert sum(line.startswith("copying") for line in log) == 1


def test_pinned_memory_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: (pinned.append(self), self)[1])
    in_order(SPLIT, ORDER)
    assert not pinned
    rows = in_order(SPLIT, ORDER, pin_memory=True)
    assert pinned[0] is rows.x
    assert pinned[1] is rows.t


@pytest.mark.cuda
def test_on_a_gpu_the_batches_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PIECE", 2**16)
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randn(20_000, 50, generator=generator), torch.arange(20_000))
    order = torch.randperm(20_000, generator=generator)
    for start in (0, 7):
        feeds = [Feed(split, 64, device) for device in (torch.empty(0, device="cuda").device, CPU)]
        for each in feeds:
            each.begin(order)
            assert torch.equal(each.targets().cpu(), order)
        for a, b in zip(*(each.batches(start) for each in feeds), strict=True):
            assert a.x.is_cuda
            assert torch.equal(a.x.cpu(), b.x)
            assert torch.equal(a.t.cpu(), b.t)
