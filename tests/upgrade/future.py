"""A made-up next version: this checkout with every kind of change that a release may make.

It protects the machinery of migrations, whatever the real ones happen to do.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

MIGRATION = """
alter table tasklib.task add column note text;
comment on column tasklib.task.note is 'For people.';
alter table tasklib.worker add column zone text not null default '';
comment on column tasklib.worker.zone is 'Where it is.';
alter table tasklib.ready add column hint int;
comment on column tasklib.ready.hint is 'Not used.';
create table tasklib.extra (id bigint not null, constraint extra_pkey primary key (id));
comment on table tasklib.extra is 'Not used.';
create index done_finished_idx on tasklib.done (finished_at) where state = 3;
comment on index tasklib.done_finished_idx is 'Not used.';
drop function if exists tasklib.enqueue(%s);
"""


def write_future(sql: Path, folder: Path) -> Path:
    """Write the files of a version that follows the one in ``sql``.

    Columns are added to busy tables, a table and an index are made, enqueue takes another argument,
    a view gets another column, and every helper has another name: all the old ones are left over.
    """
    shutil.copytree(sql, folder)
    shutil.rmtree(folder / "releases", ignore_errors=True)
    functions = [*(folder / "functions").glob("*.sql")]
    helpers = {
        name
        for path in functions
        for name in re.findall(r"function tasklib\.(_\w+)\(", path.read_text())
    }
    renamed = re.compile(rf"\b({'|'.join(sorted(helpers, key=len, reverse=True))})\b")
    for path in [*functions, folder / "grants.sql"]:
        path.write_text(renamed.sub(r"\1_next", path.read_text()))

    enqueue, grants = folder / "functions" / "enqueue.sql", folder / "grants.sql"
    found = re.search(r"function tasklib\.enqueue\(([^()]*)\) is", enqueue.read_text())
    assert found
    signature = found[1]
    types = " ".join(signature.split())
    _edit(enqueue, "\n)\n  returns uuid", ",\n  note text default null\n)\n  returns uuid")
    _edit(enqueue, f"tasklib.enqueue({signature})", f"tasklib.enqueue({types}, text)")
    _edit(grants, f"tasklib.enqueue({types})", f"tasklib.enqueue({types}, text)")
    last = "  worker.info\nfrom tasklib.worker\n"
    _edit(folder / "views.sql", last, last.replace("\n", ",\n  worker.zone\n", 1))
    (folder / "migrations" / "9001_future.sql").write_text(MIGRATION % types)
    return folder


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path.name} has no {old!r} any more"
    path.write_text(text.replace(old, new, 1))
