"""An epoch's batches, brought to where the updates are made before they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil

import torch
from torch import Tensor

from manualbp.training.data import Split, batches, in_order

PIECE = 2**25
"""Bytes that are copied to a device at once: many small batches, so that the copy of one costs
nothing, and not so many that the first piece is long in coming."""


@dataclass(frozen=True)
class Epoch:
    """The rows of `split` in this order, `size` at a time (0 is all at once), on `device`.

    Where the split lies on the device already, the CPU, the rows are gathered there at once. A GPU
    gets them in pieces: each is gathered in pinned memory, which a GPU reads by itself, and copied
    by a stream of its own while the updates of the piece before it are under way.
    """

    split: Split
    order: Tensor  # (N,) int64 row numbers, beside the split
    size: int
    device: torch.device

    def __len__(self) -> int:
        """Return the number of batches; the last one may be smaller."""
        return ceil(len(self.order) / (self.size or len(self.order)))

    def targets(self) -> Tensor:
        """Return the targets of all rows, in order."""
        return self.split.t.index_select(0, self.order).to(self.device)

    def batches(self, start: int = 0) -> Iterator[Split]:
        """Return the batches from number `start` on."""
        size = self.size or len(self.order)
        order = self.order[start * size :]
        if start == len(self):
            return iter(())
        if self.split.x.device == self.device:
            return batches(in_order(self.split, order), size)
        batch = self.split.x[:size].nbytes + self.split.t[:size].nbytes
        pieces = self._ahead(torch.split(order, size * max(PIECE // batch, 1)))
        return chain.from_iterable(batches(piece, size) for piece in pieces)

    def _ahead(self, pieces: Sequence[Tensor]) -> Iterator[Split]:
        """Yield the rows of each piece on the device, with the copy of the next one under way."""
        copying, updating = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)

        def copied(order: Tensor) -> Split:
            rows = in_order(self.split, order, pin_memory=True)
            with torch.cuda.stream(copying):
                return rows.to(self.device)

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
