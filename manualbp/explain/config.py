"""The options of `manualbp explain` and `manualbp errata`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class ExplainConfig:
    """Walk through a derivation with its numbers, each line checked while it prints.

    With no topic: a list of all topics. With --net: a network of your own.
    """

    topics: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[TOPIC ...]", help_behavior_hint=""),
    ] = ()
    """What to explain, such as worked-example, softmax or xor."""
    list: bool = False
    """List all topics with their titles."""
    all: bool = False
    """Explain all topics."""
    check: bool = False
    """Print a line for each topic, and in full only what is wrong; then the exit code is 1."""
    seed: int = 0
    """Seed of the numbers that a topic draws."""
    json: bool = False
    """Print the same as data: a JSON list of pages on standard output."""
    save: Path | None = None
    """Directory for the pictures: as TOPIC/NAME.png, and for TensorBoard."""
    net: str | None = None
    """Explain a network with these widths, inputs first, such as 3-4-2."""
    activation: str = "sigmoid"
    """Activation function of the hidden layers of --net."""
    loss: str = "half-squared-error"
    """Loss of --net: half-squared-error, mse, cross-entropy or bce."""
    values: Path | None = None
    """JSON or CSV file with inputs, targets and weights for --net; drawn from the seed without."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class ErrataConfig:
    """Where the five documents are wrong, each with a number that proves it.

    The same as `manualbp explain errata`.
    """

    json: bool = False
    """Print the same as data, as JSON on standard output."""
    debug: bool = False
    """Show the traceback of an error."""
