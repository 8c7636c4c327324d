"""Matplotlib figures for topics, made without pyplot."""

from __future__ import annotations

from typing import Any, cast

from matplotlib.figure import Figure as Picture


def chart(width: float = 7.0, height: float = 4.2) -> tuple[Picture, Any]:
    """Return a figure and its axes."""
    picture = Picture(figsize=(width, height), layout="constrained")
    return picture, cast(Any, picture.add_subplot())  # matplotlib leaves its arguments untyped


def charts(
    columns: int, width: float = 10.0, height: float = 4.2, rows: int = 1
) -> tuple[Picture, list[Any]]:
    """Return a figure and the axes of charts side by side, row after row."""
    picture = Picture(figsize=(width, height), layout="constrained")
    places = range(1, rows * columns + 1)
    return picture, [cast(Any, picture.add_subplot(rows, columns, i)) for i in places]
