"""A report in 80 columns for people; `Report.as_json` is the same for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from textwrap import wrap

from rich.console import Console
from rich.text import Text

from manualbp.checks.doctor.contracts import Outcome
from manualbp.checks.doctor.examination import Report, Row, argument_words

WIDTH = 80
FOR_TENSORS = 24
STYLES = {
    "PASS": "green",
    "FAIL": "bold red",
    "WARNING": "yellow",
    "INCONCLUSIVE": "yellow",
    "SKIPPED": "dim",
}

LEGEND = """\
error: against the true gradient; rounding: what rounding of the same
arithmetic costs. Both are max|a-b| / max|b| over a tensor."""


def print_report(console: Console, report: Report, inputs: str) -> None:
    """Print everything: what is wrong first."""
    for line in report_lines(report, inputs):
        console.print(line, soft_wrap=True)  # they are folded already


def print_reports(console: Console, reports: Sequence[Report]) -> None:
    """Print a line for each report, and below it what is wrong; then what it all comes to."""
    for report in reports:
        count = f"{len(report.rows)} gradients, {len(report.outcomes)} contracts"
        line = Text(f"{report.name:<44.44}  {count:<26}  ")
        console.print(line + Text(report.verdict, STYLES[report.verdict]), soft_wrap=True)
        if report.verdict == "FAIL":
            for line in _findings(report):
                console.print(line, soft_wrap=True)
    failing = sum(report.verdict == "FAIL" for report in reports)
    if failing:
        words = Text(f"{failing} of {len(reports)} cases fail.", STYLES["FAIL"])
    else:
        words = Text(f"All {len(reports)} cases pass.", STYLES["PASS"])
    console.print(words, soft_wrap=True)


def report_lines(report: Report, inputs: str = "") -> Iterator[Text]:
    """Yield the lines of a report: what is wrong comes first."""
    yield Text(f"{report.name}  ", "bold") + Text(report.verdict, STYLES[report.verdict])
    if report.verdict == "FAIL":
        yield from _findings(report)
        yield Text()
    origin = f" ({inputs})" if inputs else ""
    yield from _folded("inputs", f"{argument_words(report.arguments)}{origin}, seed {report.seed}")
    yield from _folded("truth", report.truth)
    yield from _folded("device", f"{report.device}, TF32 off")
    for note in report.notes:
        yield from _folded("note", note)
    for warning in report.warnings:
        yield from _folded("warning", warning, STYLES["WARNING"])
    yield Text()
    yield from _table(report.rows)
    yield from _contracts(report.outcomes)
    yield Text()
    yield from (Text(line, "dim") for line in LEGEND.splitlines())
    yield summary(report)


def summary(report: Report) -> Text:
    """Return one line that says what a report comes to."""
    rows = sum(row.verdict == "FAIL" for row in report.rows)
    contracts = sum(outcome.verdict == "FAIL" for outcome in report.outcomes)
    unclear = sum(row.verdict == "INCONCLUSIVE" for row in report.rows)
    if rows or contracts:
        words = (
            f"FAIL: {rows} of {len(report.rows)} gradients and {contracts} of "
            f"{len(report.outcomes)} contracts."
        )
    elif report.verdict == "PASS":
        judged = [outcome for outcome in report.outcomes if outcome.verdict == "PASS"]
        words = f"PASS: {len(report.rows) - unclear} gradients, {len(judged)} contracts."
        words += f" Inconclusive: {unclear} gradients." if unclear else ""
        words += f" Warnings: {len(report.warnings)}." if report.warnings else ""
    else:
        words = "INCONCLUSIVE: no gradient could be judged."
    return Text(words, STYLES[report.verdict])


def _findings(report: Report) -> Iterator[Text]:
    """Yield the causes with their evidence, then what was seen."""
    for diagnosis in report.diagnoses:
        yield from _paragraph(diagnosis.words, "  ", STYLES["FAIL"])
        yield from _paragraph(f"evidence: {diagnosis.evidence}", "    ")
    widest = report.rows[0].dtype if report.rows else ""
    for row in report.rows:
        if row.verdict == "FAIL" and (row.dtype == widest or not _fails(report.rows, row, widest)):
            yield from _paragraph(f"{row.dtype}: {row.words}", "  ")
    for outcome in report.outcomes:
        if outcome.verdict == "FAIL":
            for words in outcome.words:
                yield from _paragraph(f"{outcome.contract}: {words}", "  ")
    if report.smallest is not None:
        shapes = argument_words(report.smallest)
        yield from _paragraph(f"smallest inputs that still fail: {shapes}", "  ")


def _fails(rows: Sequence[Row], like: Row, dtype: str) -> bool:
    """Tell whether the same gradient fails in another dtype too, where it says the same."""
    return any(
        row.tensor == like.tensor and row.dtype == dtype and row.verdict == "FAIL" for row in rows
    )


def _table(rows: Sequence[Row]) -> Iterator[Text]:
    if not rows:
        return
    names = max(len("gradient"), *(len(row.tensor) for row in rows))
    names = min(names, FOR_TENSORS)
    head = f"{'gradient':<{names}}  {'dtype':<8}  {'shape':<12}  {'error':>8}  {'rounding':>8}"
    yield Text(f"{head}  verdict", "bold")
    for _, group in groupby(rows, lambda row: row.dtype):
        for row in group:
            shape = "×".join(map(str, row.shape)) or "scalar"
            numbers = "  ".join(f"{_number(n):>8}" for n in (row.error, row.rounding))
            name = row.tensor if len(row.tensor) <= names else f"{row.tensor[: names - 1]}…"
            line = Text(f"{name:<{names}}  {row.dtype:<8}  {shape:<12.12}  {numbers}  ")
            yield line + Text(row.verdict, STYLES[row.verdict])
            if row.verdict == "INCONCLUSIVE":
                yield from _paragraph(row.words, "    ")


def _number(number: float) -> str:
    if number != number:
        return "-"
    return "0" if number == 0 else f"{number:.1e}"


def _contracts(outcomes: Sequence[Outcome]) -> Iterator[Text]:
    if not outcomes:
        return
    yield Text()
    yield Text("contracts", "bold")
    for verdict in ("FAIL", "WARNING", "PASS"):
        names = [outcome.contract for outcome in outcomes if outcome.verdict == verdict]
        if names:
            lines = wrap(", ".join(names), WIDTH - 14)
            for number, line in enumerate(lines):
                label = verdict if number == 0 else ""
                yield Text(f"{label:<12}  ", STYLES[verdict]) + Text(line)
    for outcome in outcomes:
        if outcome.verdict in ("SKIPPED", "PASS") and outcome.words:
            label = "SKIPPED" if outcome.verdict == "SKIPPED" else "note"
            lines = wrap(f"{outcome.contract}: {outcome.words[0]}", WIDTH - 14)
            for number, line in enumerate(lines):
                yield Text(f"{label if number == 0 else '':<12}  {line}", "dim")


def _folded(label: str, words: str, style: str = "") -> Iterator[Text]:
    for number, line in enumerate(wrap(words, WIDTH - 10)):
        yield Text(f"{label if number == 0 else '':<8}  {line}", style)


def _paragraph(words: str, indent: str, style: str = "") -> Iterator[Text]:
    for line in wrap(words, WIDTH, initial_indent=indent, subsequent_indent=indent + "  "):
        yield Text(line, style)
