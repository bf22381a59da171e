"""Workers: processes that claim tasks, run them and say how they ended.

One event loop claims, starts and finishes; async tasks run on it, sync tasks in threads. A process
of its own renews the leases, so that nothing that a task does can lose them.

    loop           TaskWorker: what users see of it; signals: SIGTERM and SIGINT
    shift          one run of it: decides when to claim, start, finish, stop
    fetch, pace    claim, and when to look again and how much to take; board: what is held
    finish         outcomes on their way to the database; outcome: what is said of an end
    link           the connection of these, which comes back by itself
    execute        starts runs: coroutines, threads, children; timeouts of the first two
    context        one attempt (Run), and what its code sees of it; hooks: what goes around it
    transactional  tasks whose own transaction completes them; sessions: their connections
    children       which child process runs what; process: one of them, seen from the worker
    child          the program of a child process; wire: what both say; locate: how it finds tasks
    keeper         the worker's side of its keeper; keeping: the program of that process
    limits, types  --max-tasks and --max-memory; what the database is told of worker and tasks
"""

from tasklib.worker.context import CurrentTask, current_task
from tasklib.worker.finish import WorkerStats
from tasklib.worker.loop import TaskWorker

__all__ = ["CurrentTask", "TaskWorker", "WorkerStats", "current_task"]
