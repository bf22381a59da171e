"""Every snippet of the documentation runs; every link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from psycopg.conninfo import conninfo_to_dict

from .snippets import ROOT, RUN, pages, parse

RUNNER = Path(__file__).with_name("run_page.py")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def url(conninfo: str) -> str:
    """Return a connection string as a URL, which is what people have."""
    parts = conninfo_to_dict(conninfo)
    user = ":".join(quote(str(parts[key]), safe="") for key in ("user", "password") if key in parts)
    address = urlencode({key: parts[key] for key in ("host", "port") if key in parts})
    return f"postgresql://{user}@/{parts['dbname']}?{address}"


def environment(database: str) -> dict[str, str]:
    """Return what a reader's shell has."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TASKLIB_DATABASE_URL": url(database),
        "TASKLIB_TEST_DATABASE_URL": url(database),
        "TASKLIB_EMBEDDED": "never",
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_COLOR": "1",
    }


@pytest.mark.parametrize(
    "page",
    [page for page in pages() if any(each.language in RUN for each in parse(page.read_text()))],
    ids=named,
)
def test_the_snippets_of_a_page_run(page: Path, database: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, RUNNER, page],
        cwd=tmp_path,
        env=environment(database),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ran.returncode == 0, ran.stderr[-6000:]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*pages(), ROOT / "CHANGELOG.md"], ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{named(page)} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{named(page)} links to {target}"


def test_every_page_can_be_reached_from_the_index() -> None:
    index = ROOT / "docs/index.md"
    linked = {
        (index.parent / target.partition("#")[0]).resolve()
        for target in re.findall(r"\]\(([^)\s]+)\)", index.read_text())
    }
    assert (
        not {named(page) for page in pages()}
        - {named(index), "README.md"}
        - {named(page) for page in linked if page.is_relative_to(ROOT)}
    )


def test_what_is_not_run_says_why() -> None:
    skipped = [
        (named(page), snippet.line)
        for page in pages()
        for snippet in parse(page.read_text())
        if snippet.marker == "not run:" and len(snippet.argument) < 10
    ]
    assert not skipped
