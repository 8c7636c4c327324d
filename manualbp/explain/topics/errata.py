"""Where the five documents are wrong or ambiguous, on one page."""

from __future__ import annotations

from manualbp.explain.errata import errata
from manualbp.explain.page import Page
from manualbp.explain.registry import topic
from manualbp.lectures import documents


@topic("errata", "Where the five documents are wrong or ambiguous")
def write_errata(page: Page) -> None:
    """List all entries by document, each with what stands there, what is right, and its proof."""
    entries = errata()
    page.say(
        f"""{len(entries)} places, by document. For each: what stands there, what is right, and a
        number computed now that shows it. Most are slips of the pen in good lectures; a few
        would make a network learn the wrong thing. A place is named by the title of its slide, or
        by its equation; "l.40" is line 40 of the text of the document."""
    )
    page.table(
        ("document", "entries", "author, title"),
        [(name, sum(e.document == name for e in entries), t) for name, t in documents().items()],
    )
    for name, title in documents().items():
        page.heading(f"{name}: {title}")
        for entry in entries:
            if entry.document != name:
                continue
            page.heading(f"{entry.id}: {entry.place}")
            page.say(f"There stands: {entry.stands}")
            page.say(f"Right: {entry.right}")
            if entry.prove:
                entry.prove(page)
            else:
                page.say("(Words only: there is nothing to compute.)")
