"""What the operating system knows: CPU and memory of processes, and how busy all others were."""

from __future__ import annotations

import os
import platform
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


def tree(root: int) -> list[int]:
    """Return a process with all that descend from it."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in os.listdir(PROC):
        if entry.isdigit() and (fields := _stat(int(entry))):
            children[int(fields[1])].append(int(entry))
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU seconds of processes, with those of their children that ended.

    The scheduler's own count has nanoseconds, but knows only the first thread; so it stands in for
    the coarser one where there is one thread, as in every backend of PostgreSQL.
    """
    total = 0.0
    for pid in pids:
        if fields := _stat(pid):
            own = (int(fields[11]) + int(fields[12])) * TICK
            if fields[17] == "1":
                own = _scheduled(pid) or own
            total += own + (int(fields[13]) + int(fields[14])) * TICK
    return total


def pss_mib(pids: Iterable[int]) -> float:
    """Return the proportional set size of processes: what they would free by ending."""
    kib = 0
    for pid in pids:
        try:
            lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        kib += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return kib / 1024


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat behind the name: state, parent, and so on."""
    try:
        return (PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None


def _scheduled(pid: int) -> float:
    try:
        return int((PROC / str(pid) / "schedstat").read_text().split()[0]) / 1e9
    except OSError:
        return 0.0


@dataclass
class Others:
    """Measures how many cores were kept busy by processes that are none of ours."""

    roots: list[int]

    def __post_init__(self) -> None:
        self._before = self._read()

    def cores(self) -> float:
        """Return the busy cores of others since this was made."""
        moments, busy, ours = (
            after - before for after, before in zip(self._read(), self._before, strict=True)
        )
        return max(0.0, (busy - ours) / moments)

    def _read(self) -> tuple[float, float, float]:
        words = (PROC / "stat").read_text().split("\n", 1)[0].split()
        user, nice, system, _, _, _, _, steal = (int(word) * TICK for word in words[1:9])
        mine = {pid for root in (os.getpid(), *self.roots) for pid in tree(root)}
        return time.monotonic(), user + nice + system + steal, cpu_seconds(mine)


def fdatasync_ms(folder: Path, times: int = 100) -> float:
    """Return the median of what it takes to get one block of 8 kB to the disk."""
    path = folder / "fdatasync"
    durations: list[float] = []
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            file.seek(0)
            file.write(b"x" * 8192)
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            durations.append(time.perf_counter() - started)
    path.unlink()
    return sorted(durations)[times // 2] * 1000


def description() -> dict[str, str]:
    """Describe this machine in a few words."""
    info = (PROC / "cpuinfo").read_text()
    model = next((x.split(":")[1].strip() for x in info.splitlines() if "model name" in x), "?")
    memory = int((PROC / "meminfo").read_text().split()[1]) / 2**20
    return {
        "cores": f"{os.cpu_count()} ({model})",
        "memory": f"{memory:.0f} GiB",
        "system": f"{_system()}, Linux {platform.release()}",
        "Python": platform.python_version(),
    }


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.system()
