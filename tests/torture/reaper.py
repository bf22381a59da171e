"""``reaper.py RUN``: when whoever holds our standard input is gone, kill all that the run left."""

import os
import signal
import sys

from fleet import find

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setsid()
    sys.stdin.read()
    # Twice: a process may be started while the others are killed.
    for _ in range(2):
        for found in find(sys.argv[1]):
            os.kill(found.pid, signal.SIGKILL)
