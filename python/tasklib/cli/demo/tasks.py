"""The application that the demo runs: `tasklib worker tasklib.cli.demo.tasks -q tasklib_demo`.

Nothing in here knows about the demo's workers, or that one of them is killed.
"""

import os
import threading
from collections import Counter
from pathlib import PurePath

from psycopg import AsyncConnection, Connection, connect

from tasklib import Backoff, Snooze, task

from .files import read_content

QUEUE = "tasklib_demo"


# The default, 5 s, 10 s, 20 s, is better for the world and worse to watch.
SOON = Backoff(base_seconds=0.3)


_threads = threading.local()


def database() -> Connection:
    """Return this thread's connection for the tasks' own tables: the worker keeps its threads."""
    connection: Connection | None = getattr(_threads, "connection", None)
    if connection is None or connection.closed:
        connection = connect(os.environ["TASKLIB_DATABASE_URL"], autocommit=True)
        _threads.connection = connection
    return connection


@task(name="demo.index_document", queue=QUEUE, max_retries=2, backoff=SOON)
def index_document(document_id: int, path: str) -> int:
    """Hash a file and count its words. A task may run twice, so it writes what it found, not +1."""
    content = read_content(path)
    database().execute(
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


@task(name="demo.count_kinds", queue=QUEUE, priority=100, backoff=SOON)
def count_kinds() -> dict[str, int]:
    """Count the documents by the endings of their names. Its priority puts it before all others."""
    paths = database().execute("select path from tasklib_demo.document").fetchall()
    kinds = Counter(PurePath(path).suffix or "(none)" for (path,) in paths)
    return dict(kinds.most_common(5))


@task(name="demo.summarize", queue=QUEUE, backoff=SOON)
async def summarize(documents: int) -> dict[str, int]:
    """Add up what was found; as long as documents are missing, come back a little later."""
    async with await AsyncConnection.connect(os.environ["TASKLIB_DATABASE_URL"]) as connection:
        rows = await connection.execute(
            """
            select count(*), sum(bytes)::bigint, sum(words)::bigint
            from tasklib_demo.document_index
            """
        )
        ((found, total_bytes, total_words),) = await rows.fetchall()
    if found < documents:
        raise Snooze(0.3)
    return {"documents": found, "bytes": total_bytes, "words": total_words}
