"""Figures for people: lines on the terminal, tables and a plot in docs/."""

# ruff: noqa: RUF001

from __future__ import annotations

import json
import re
import subprocess
import textwrap
from collections.abc import Iterable, Sequence

import install
import plot
from results import BARS, MINE, Results

PAGE = install.ROOT / "docs" / "benchmarks.md"
PLOT = PAGE.with_suffix(".svg")
BEGIN, END = "<!-- measured: written by make bench -->", "<!-- end of measured -->"

BUSY_CORES = 0.3

TITLES = {
    "one": "Enqueue one by one",
    "bulk": "Enqueue 1,000 a call",
    "clients": "Enqueue one by one from 16 clients at once",
    "drain1": "Drain, one worker process",
    "drain2": "Drain, two worker processes",
    "latency": "Latency on an idle worker, one task each 20 ms",
    "held": "A stream while another transaction holds a snapshot",
    "held10": "The same with ten tasks a fetch",
    "idle": "One idle worker",
}
# What of each figure people see, in this order; the ratio stands beside the first.
COLUMNS = {
    "rate": "tasks/s",
    "idle_on": "workers idle and wake, tasks/s",
    "idle_off": "… notification off",
    "busy_on": "workers busy, tasks/s",
    "busy_off": "… notification off",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "p99_ms": "p99 ms",
    "growth": "last ÷ first tenth",
    "first_us": "server µs/task, first tenth",
    "last_us": "last tenth",
    "queries_s": "queries/s",
    "worker_ms_s": "worker CPU ms/s",
    "cpu_us": "CPU µs/task",
    "server_us": "server",
    "worker_us": "worker",
    "pss_mib": "PSS MiB",
    "tasks": "tasks",
    "other_cores": "others' cores",
}


def line(figures: dict[str, float]) -> str:
    """Write figures on one line."""
    return "  ".join(f"{name} {number:.4g}" for name, number in figures.items())


def number(value: float | None) -> str:
    """Write a number with three digits that say something."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.2f}" if abs(value) < 1 else f"{value:.3g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table, aligned for the terminal too."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in lines) for column in range(len(head))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in lines]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def text(results: Results) -> str:
    """Return everything that was measured as Markdown."""
    parts = ["## Goals", noise(results), bars(results)]
    parts += [f"## {TITLES[name]}\n\n{workload(results, name)}" for name in results.rounds]
    facts = "\n".join(map(_fact, results.machine.items()))
    settings = table(("queue", "settings"), results.settings.items())
    rounds = max(
        (len(rows) for peers in results.rounds.values() for rows in peers.values()), default=0
    )
    facts += f"\n- rounds: {rounds}"
    parts += ["## Machine and versions", facts, "## Settings", settings]
    return "\n\n".join(part for part in parts if part) + "\n"


def noise(results: Results) -> str:
    """Return a warning when the machine was busy with other things."""
    cores = results.others()
    if cores < BUSY_CORES:
        return ""
    return (
        f"**Provisional**: other processes kept {cores:.1f} cores of this machine busy meanwhile.\n"
        "Rates and latencies are worth little; ratios and CPU say something."
    )


def _fact(fact: tuple[str, str]) -> str:
    return textwrap.fill(f"- {fact[0]}: {fact[1]}", 100, subsequent_indent="  ")


def bars(results: Results) -> str:
    """Return what TaskLib has to reach, and whether it does."""
    rows = [bar.row(results) for bar in BARS if results.peers(bar.workload)]
    return table(("bar", "at", "measured", ""), rows)


def workload(results: Results, name: str) -> str:
    """Return the medians of a workload, with the range of the first figure and its ratio."""
    peers = results.peers(name)
    figures = [
        figure for figure in COLUMNS if any(results.values(name, peer, figure) for peer in peers)
    ]
    head = ["queue", *(COLUMNS[figure] for figure in figures)]
    head[2:2] = ["lowest–highest", "TaskLib ÷ it"]
    rows: list[list[str]] = []
    for peer in peers:
        cells = [number(results.median(name, peer, figure)) for figure in figures]
        cells[1:1] = [_range(results, name, peer, figures[0]), _ratio(results, name, peer, figures)]
        rows.append([peer, *cells])
    return table(head, rows)


def _range(results: Results, name: str, peer: str, figure: str) -> str:
    values = results.values(name, peer, figure).values()
    return f"{number(min(values))}–{number(max(values))}" if len(values) > 1 else "one run"


def _ratio(results: Results, name: str, peer: str, figures: list[str]) -> str:
    return "" if peer == MINE else number(results.ratio(name, figures[0], peer))


def versions() -> str:
    """Return the versions of everything that takes part."""
    found = [f"TaskLib {_said('git', 'describe', '--always', '--dirty')}"]
    if install.PYTHON.exists():
        names = ["pgqueuer", "asyncpg", "uvloop", "procrastinate", "psycopg", "celery", "redis"]
        code = (
            "import sys; from importlib.metadata import version; "
            "print(', '.join(f'{name} {version(name)}' for name in sys.argv[1:]))"
        )
        found.append(_said(str(install.PYTHON), "-c", code, *names))
    if install.NODE.exists():
        wanted = json.loads((install.PROGRAMS / "package.json").read_text())["dependencies"]
        found.append(", ".join(f"{name} {number}" for name, number in wanted.items()))
    if redis := re.search(r"v=(\S+)", _said("redis-server", "--version")):
        found.append(f"Redis {redis[1]}")
    return ", ".join(found)


def _said(*command: str) -> str:
    try:
        ran = subprocess.run(command, cwd=install.ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return ran.stdout.strip()


def write(results: Results) -> None:
    """Put the figures into the page, between its marks, and draw the plot."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    image = f"![Drain, latency and CPU of each queue]({PLOT.name})"
    PAGE.write_text(f"{before}{BEGIN}\n\n{image}\n\n{text(results)}\n{END}{after}")
    PLOT.write_text(plot.draw(results))
    print(f"wrote {PAGE.relative_to(install.ROOT)} and {PLOT.relative_to(install.ROOT)}")
