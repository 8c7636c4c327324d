"""What `manualbp bench` shows: tables that fit 80 columns, and a chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from platform import python_version
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from manualbp.checks.bench.measure import Result
from manualbp.checks.bench.variants import COMPILED_AUTOGRAD, EAGER_AUTOGRAD
from manualbp.training.logs import ExperimentLogs

LABELS = {
    "manual": "by hand, recorded",
    "manual_parts": "by hand, in parts",
    "manual_eager": "by hand, eager",
    "manual_compiled": "by hand, compiled",
    "autograd_default": "autograd",
    "autograd_foreach": "autograd, foreach",
    "autograd_fused": "autograd, fused",
    "compile": "autograd, compiled",
    "compile_step": "autograd, all compiled",
    "floor": "matrix products",
}
COLORS = {
    "manual": "C0",
    "manual_parts": "C0",
    "manual_eager": "C0",
    "manual_compiled": "C0",
    "floor": "0.6",
}
"""Of the bars by name; those of autograd are C1."""


def print_results(console: Console, results: Sequence[Result]) -> None:
    """Print a table for each workload, one of all, and what their columns mean."""
    for result in results:
        console.print(_variants(result))
        saved = [f"{result.saved_bytes[side]:,}" for side in ("manual", "autograd")]
        console.print(
            f"Saved for the backward pass: {saved[0]} bytes by hand, {saved[1]} by autograd.",
            style="dim",
        )
        for reason in dict.fromkeys(result.unavailable.values()):
            names = [LABELS[name] for name, r in result.unavailable.items() if r == reason]
            text = f"Not available: {'; '.join(names)}. {reason}"
            console.print(text, style="yellow", markup=False)
        if result.hindered:
            console.print(
                f"These times say nothing: autograd takes {result.slowed_down:.0f} times as long "
                f"with {result.threads} threads as with one. Something keeps them from running at "
                "the same time: another program, or a limit on the container. Try --threads 1.",
                style="yellow",
            )
        console.print()
    console.print(_summary(results))
    console.print(
        "Microseconds per step: medians, in the tables above with quartiles. Ratios are\n"
        "medians too, of the ratio in each round. Autograd is eager torch.nn with\n"
        "torch.optim at its best of default, foreach and fused; ratio is its time over\n"
        "that by hand, recorded and not compiled. Floor: how many times as long as its\n"
        "matrix products alone. Memory: what is alive between two steps plus the most\n"
        "that a step makes, in the last table by hand / by autograd; peak: the most that\n"
        "is alive at once. Where by hand is measured in parts of the batch too, the\n"
        "faster counts for time, and for memory the leaner that is no slower than\n"
        "autograd. Of several threads by hand uses one where a step is too small to be\n"
        "shared, as train does.\n"
        "Before the timing all variants agreed over 7 steps in float64, relative error\n"
        "at most 1e-9. Denormal numbers count as zero in all of them.",
        style="dim",
    )


def _variants(result: Result) -> Table:
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    title = (
        f"{result.workload}: {threads}, {result.dtype}, {result.device}, "
        f"torch {torch.__version__}, Python {python_version()}"
    )
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("variant", no_wrap=True, vertical="bottom")
    for name in ("median\nµs", "quartiles\nµs", "×\nby hand", "memory\nKB", "peak\nKB"):
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    found = result.microseconds_per_step
    for name, label in LABELS.items():
        if name in found:
            times = found[name]
            memory = result.memory_bytes.get(name)
            table.add_row(
                label,
                _short(times.median),
                f"{_short(times.q1)} - {_short(times.q3)}",
                f"{result.over(name, result.by_hand):.2f}",
                *(_short(n / 1000) for n in ([memory.total, memory.peak] if memory else [])),
            )
    return table


def _summary(results: Sequence[Result]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("workload", overflow="fold")
    for name in (
        "by hand",
        "autograd",
        "ratio",
        "by hand,\ncompiled",
        "autograd,\ncompiled",
        "× floor",
        "memory",
    ):
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    for result in results:
        best = cast(str, result.best(EAGER_AUTOGRAD))
        times = {name: _short(t.median) for name, t in result.microseconds_per_step.items()}
        table.add_row(
            result.workload,
            times[result.by_hand],
            f"{best.removeprefix('autograd_')} {times[best]}",
            f"[bold]{result.ratio:.2f}[/bold]",
            *(
                times[name] if name else "-"
                for name in (result.best(["manual_compiled"]), result.best(COMPILED_AUTOGRAD))
            ),
            f"{result.ratio_to_floor:.2f}",
            f"{result.memory_ratio:.2f}",
        )
    return table


def _short(number: float) -> str:
    return f"{number:,.1f}" if number < 1000 else f"{number:,.0f}"


def save_chart(directory: Path, results: Sequence[Result]) -> None:
    """Write bench.png and, with the same picture, an event file for TensorBoard."""
    with ExperimentLogs(directory) as logs:
        logs.picture("bench/microseconds_per_step", _draw(results), directory / "bench.png")


def _draw(results: Sequence[Result]) -> Figure:
    """Return a chart with a row of bars for each workload: medians, and lines between quartiles."""
    columns = min(len(results), 2)
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(5.2 * columns, 2.6 * rows), dpi=100, layout="constrained")
    for index, result in enumerate(results):
        axes = cast(Any, figure.add_subplot(rows, columns, index + 1))
        found = result.microseconds_per_step
        names = [name for name in LABELS if name in found]
        times = [found[name] for name in names]
        medians = [time.median for time in times]
        reach = [[t.median - t.q1 for t in times], [t.q3 - t.median for t in times]]
        colors = [COLORS.get(name, "C1") for name in names]
        axes.barh(range(len(names)), medians, xerr=reach, color=colors, ecolor="0.3")
        axes.set_yticks(range(len(names)), [LABELS[name] for name in names], fontsize=8)
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=8)
        axes.set_xlabel("µs per step", fontsize=8)
        title = f"{result.workload}: {result.ratio:.2f} × as fast by hand as by eager autograd"
        axes.set_title(title, fontsize=9, parse_math=False)
    return figure
