"""Fenced snippets of a Markdown page, in order.

What a comment right above a fence says about it:

    <!-- raises TL004 -->       this SQL ends with that SQLSTATE
    <!-- second terminal -->    this command goes on until the page ends
    <!-- not run: reason -->    neither run nor checked; readers of the source see why

A ``text`` fence right below a snippet is its output; ``…`` in it stands for anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

RUN = ("python", "sql", "console")
PARSED = ("yaml", "json", "toml", "ini", "dockerfile", "text")

_FENCE = re.compile(r"^(`{3,})(\S*)\s*$")
_MARKER = re.compile(r"^<!-- *(raises|second terminal|not run:) *(.*?) *-->$")


@dataclass(frozen=True)
class Snippet:
    """One fence."""

    line: int
    language: str
    text: str
    marker: str = ""
    argument: str = ""
    output: str | None = None


def pages() -> list[Path]:
    """Return every page that people read."""
    found = [ROOT / "README.md", ROOT / "sql/README.md", *ROOT.glob("docs/**/*.md")]
    return sorted(page for page in [*found, *ROOT.glob("examples/*/README.md")] if page.exists())


def parse(text: str) -> list[Snippet]:
    """Return the snippets of a page; outputs are joined with what they belong to."""
    found: list[Snippet] = []
    follows = False
    for snippet, is_next in _fences(text):
        if snippet.language == "text" and is_next and follows and found:
            last = found.pop()
            found.append(
                Snippet(
                    last.line, last.language, last.text, last.marker, last.argument, snippet.text
                )
            )
            follows = False
            continue
        found.append(snippet)
        follows = snippet.language in ("python", "sql") and snippet.marker != "not run:"
    return found


def _fences(text: str) -> Iterator[tuple[Snippet, bool]]:
    """Yield fences, and whether nothing but empty lines lies between it and the one before."""
    lines = text.splitlines()
    marker, argument, is_next, at = "", "", False, 0
    while at < len(lines):
        line = lines[at]
        if fence := _FENCE.match(line):
            end = at + 1
            while lines[end] != fence[1]:
                end += 1
            body = "\n".join(lines[at + 1 : end]) + "\n"
            yield Snippet(at + 1, fence[2], body, marker, argument), is_next
            marker, argument, is_next, at = "", "", True, end + 1
            continue
        if said := _MARKER.match(line.strip()):
            marker, argument = said[1], said[2]
        elif line.strip():
            marker, argument, is_next = "", "", False
        at += 1


def missing(expected: str, output: str) -> str | None:
    """Return the first line of what a page shows that the output does not have in this order."""
    lines = iter(" ".join(line.split()) for line in output.splitlines())
    for line in expected.splitlines():
        wanted = " ".join(line.split())
        pattern = ".*".join(map(re.escape, wanted.split("…")))
        if wanted.strip("… ") and not any(re.fullmatch(pattern, each) for each in lines):
            return line
    return None
