"""The application that the demo runs: `tasklib worker tasklib.cli.demo.tasks -q tasklib_demo`.

Nothing in here knows about the demo's workers, or that one of them is killed.
"""

import os
from collections import Counter
from functools import cache
from pathlib import PurePath

from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from tasklib import Snooze, task

from .files import read_content

QUEUE = "tasklib_demo"


@cache
def database() -> ConnectionPool:
    """Open this process's connections for the tasks' own tables."""
    return ConnectionPool(os.environ["TASKLIB_DATABASE_URL"], min_size=1, max_size=4, open=True)


@task(name="demo.index_document", queue=QUEUE, max_retries=2, backoff={"base_seconds": 0.3})
def index_document(document_id: int, path: str) -> int:
    """Hash a file and count its words. A task may run twice, so it writes what it found, not +1."""
    content = read_content(path)
    with database().connection() as connection:
        connection.execute(
            """
            insert into tasklib_demo.document_index (document_id, sha256, bytes, words, indexed_by)
            values (%s, %s, %s, %s, %s)
            on conflict (document_id) do update
            set sha256 = excluded.sha256,
                bytes = excluded.bytes,
                words = excluded.words,
                indexed_by = excluded.indexed_by,
                runs = document_index.runs + 1
            """,
            (document_id, content.sha256, content.bytes, content.words, os.getpid()),
        )
    return content.words


@task(name="demo.count_kinds", queue=QUEUE, priority=100)
def count_kinds() -> dict[str, int]:
    """Count the documents by the endings of their names. Its priority puts it before all others."""
    paths = [path for (path,) in _query("select path from tasklib_demo.document")]
    kinds = Counter(PurePath(str(path)).suffix or "(none)" for path in paths)
    return dict(kinds.most_common(5))


@task(name="demo.summarize", queue=QUEUE)
async def summarize(documents: int) -> dict[str, int]:
    """Add up what was found; as long as documents are missing, come back a little later."""
    ((found, total_bytes, total_words),) = _query(
        "select count(*), sum(bytes)::bigint, sum(words)::bigint from tasklib_demo.document_index"
    )
    if found < documents:
        raise Snooze(0.3)
    return {"documents": found, "bytes": total_bytes, "words": total_words}


def _query(sql: str) -> list[TupleRow]:
    with database().connection() as connection:
        return connection.execute(sql).fetchall()  # pyright: ignore
