"""An epoch's batches, brought to where the updates are made before they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from math import ceil

import torch
from torch import Tensor

from manualbp.training.data import Split, batches, in_order

PIECE = 2**25
"""Bytes that are copied to a device at once: many small batches, so that the copy of one costs
nothing, and not so many that the first piece is long in coming."""


class Feed:
    """The rows of `split`, in another order each epoch, `size` at a time (0 is all), on `device`.

    Where the split lies on the device already, the CPU, the rows are gathered there at once, every
    epoch into the same memory, of which the batches are views. A GPU gets them in pieces: each is
    gathered in pinned memory, which a GPU reads by itself, and copied by a stream of its own while
    the updates of the piece before it are under way.
    """

    def __init__(self, split: Split, size: int, device: torch.device) -> None:
        self._split = split
        self._size = size or len(split)
        self._device = device
        self._order = torch.arange(len(split))
        self._rows: Split | None = None
        self._batches: Sequence[Split] = ()

    def __len__(self) -> int:
        """Return the number of batches; the last one may be smaller."""
        return ceil(len(self._split) / self._size)

    def begin(self, order: Tensor) -> None:
        """Begin an epoch: order (N,) int64 are the row numbers, on the split's device."""
        self._order = order
        if self._split.x.device != self._device:
            return
        if self._rows is None:
            self._rows = in_order(self._split, order)
            self._batches = list(batches(self._rows, self._size))
        else:
            torch.index_select(self._split.x, 0, order, out=self._rows.x)
            torch.index_select(self._split.t, 0, order, out=self._rows.t)

    def targets(self) -> Tensor:
        """Return the targets of all rows, in order."""
        if self._rows is not None:
            return self._rows.t
        return self._split.t.index_select(0, self._order).to(self._device)

    def batches(self, start: int = 0) -> Iterator[Split]:
        """Return the batches from number `start` on. The next `begin` may overwrite them."""
        if self._rows is not None:
            return iter(self._batches[start:])
        order = self._order[start * self._size :]
        if not len(order):
            return iter(())
        batch = self._split.x[: self._size].nbytes + self._split.t[: self._size].nbytes
        pieces = self._ahead(torch.split(order, self._size * max(PIECE // batch, 1)))
        return chain.from_iterable(batches(piece, self._size) for piece in pieces)

    @cached_property
    def _copying(self) -> torch.cuda.Stream:
        """Return one stream for all epochs, because torch keeps the memory of each stream apart."""
        return torch.cuda.Stream(self._device)

    def _ahead(self, pieces: Sequence[Tensor]) -> Iterator[Split]:
        """Yield the rows of each piece on the device, with the copy of the next one under way."""
        copying, updating = self._copying, torch.cuda.current_stream(self._device)

        def copied(order: Tensor) -> Split:
            rows = in_order(self._split, order, pin_memory=True)
            with torch.cuda.stream(copying):
                return rows.to(self._device)

        coming = copied(pieces[0])
        for following in [*pieces[1:], None]:
            piece = coming
            updating.wait_stream(copying)  # for this piece; the next is not asked for yet
            if following is not None:
                coming = copied(following)
            for tensor in (piece.x, piece.t):
                # Its memory belongs to the copying stream, which must not use it again before the
                # updates are done with it.
                tensor.record_stream(updating)
            yield piece
