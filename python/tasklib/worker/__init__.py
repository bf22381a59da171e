"""Workers: processes that claim tasks, run them and say how they ended.

One event loop claims, starts and finishes; async tasks run on it, sync tasks in threads. One
thread with a connection of its own sends heartbeats, so that a busy loop does not lose its tasks.
"""

from tasklib.worker.context import CurrentTask, current_task
from tasklib.worker.finish import WorkerStats
from tasklib.worker.loop import TaskWorker

__all__ = ["CurrentTask", "TaskWorker", "WorkerStats", "current_task"]
