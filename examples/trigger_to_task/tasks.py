"""The task that the trigger enqueues: `tasklib worker tasks`."""

import os

import psycopg

import tasklib


@tasklib.task
def count_words(document_id: int) -> int:
    """Count the words of a document; running twice writes the same number."""
    with psycopg.connect(os.environ["TASKLIB_DATABASE_URL"]) as connection:
        row = connection.execute(
            "select body from document where id = %s", [document_id]
        ).fetchone()
        if row is None:
            raise tasklib.Cancel("the document was deleted meanwhile")
        words = len(row[0].split())
        connection.execute("update document set words = %s where id = %s", [words, document_id])
    return words
