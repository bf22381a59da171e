"""Workers that are told to stop at any moment, while producers and other workers go on."""

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from uuid import UUID

from processes import Start, wait_for_line, wait_until

from tasklib import SyncTaskQueue

STOPS = max(8, int(50 * float(os.environ.get("TASKLIB_TEST_SCALE", "1"))))


def test_nothing_is_lost_doubled_or_charged(
    queue: SyncTaskQueue, start: Start, tmp_path: Path, conn
) -> None:
    ledger = tmp_path / "ledger"
    ledger.touch()
    chance = random.Random(0)
    ids: list[UUID] = []
    is_over = threading.Event()

    def produce() -> None:
        while not is_over.wait(0.05):
            tasks = [
                (
                    chance.choice(["app.note", "app.note_in_thread"]),
                    {"path": str(ledger), "seconds": chance.uniform(0, 0.02)},
                )
                for _ in range(30)
            ]
            ids.extend(queue.enqueue_many(tasks))

    producer = threading.Thread(target=produce)
    producer.start()
    # One comes before the other goes, as when a new release is rolled out.
    worker = start()
    wait_for_line(worker, "takes tasks")
    for number in range(STOPS):
        other = start()
        wait_for_line(other, "takes tasks")
        time.sleep(chance.uniform(0, 1.0))
        worker.send_signal(signal.SIGTERM if number % 2 else signal.SIGINT)
        assert worker.wait(60) == 0
        worker = other
    is_over.set()
    producer.join()

    def left() -> int:
        return conn.execute(
            "select ready + running + waiting + parked from tasklib.queue_stats "
            "where queue = 'default' union all select 0 limit 1"
        ).fetchone()[0]

    wait_until(lambda: left() == 0, 120)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0

    ended = Counter(ledger.read_text().split())
    assert ended == Counter(str(task_id) for task_id in ids)
    states = conn.execute(
        "select state, retry_count, count(*)::int from tasklib.tasks group by 1, 2"
    ).fetchall()
    assert states == [("completed", 0, len(ids))]
