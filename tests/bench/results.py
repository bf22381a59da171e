"""Figures of all rounds, their medians and ratios, and the bars that TaskLib has to clear."""

# ruff: noqa: RUF001

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

Figures = dict[str, float]

MINE = "tasklib"


@dataclass
class Results:
    """Figures by workload, peer and round, with what they were measured on."""

    machine: dict[str, str] = field(default_factory=dict[str, str])
    settings: dict[str, str] = field(default_factory=dict[str, str])
    rounds: dict[str, dict[str, dict[str, Figures]]] = field(
        default_factory=dict[str, dict[str, dict[str, Figures]]]
    )

    def add(self, workload: str, peer: str, number: int, figures: Figures) -> None:
        """Keep the figures of one round."""
        self.rounds.setdefault(workload, {}).setdefault(peer, {})[str(number)] = figures

    def peers(self, workload: str) -> list[str]:
        """Return who has figures."""
        return list(self.rounds.get(workload, {}))

    def values(self, workload: str, peer: str, figure: str) -> dict[str, float]:
        """Return a figure of each round."""
        rows = self.rounds.get(workload, {}).get(peer, {})
        return {number: row[figure] for number, row in rows.items() if figure in row}

    def median(self, workload: str, peer: str, figure: str) -> float | None:
        """Return the median over the rounds; None when there is none."""
        values = self.values(workload, peer, figure).values()
        return statistics.median(values) if values else None

    def ratio(self, workload: str, figure: str, peer: str) -> float | None:
        """Return the median of TaskLib's figure as a multiple of a peer's in the same round."""
        mine, theirs = (self.values(workload, name, figure) for name in (MINE, peer))
        ratios = [mine[number] / theirs[number] for number in mine.keys() & theirs.keys()]
        return statistics.median(ratios) if ratios else None

    def others(self) -> float:
        """Return how many cores unrelated processes kept busy, over all measurements."""
        rows = (
            row
            for peers in self.rounds.values()
            for each in peers.values()
            for row in each.values()
        )
        return statistics.median(
            [row["other_cores"] for row in rows if "other_cores" in row] or [0]
        )

    def save(self, path: Path) -> None:
        """Write everything to a file."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Bar:
    """One thing that has to hold.

    Attributes:
        what: For people.
        workload: Where the figure comes from.
        figure: Its name.
        peer: Whose figure TaskLib's is divided by; None takes TaskLib's own.
        limit: The bar.
        is_least: Whether the value must be at least the limit, or at most.
    """

    what: str
    workload: str
    figure: str
    peer: str | None
    limit: float
    is_least: bool = True

    def value(self, results: Results) -> float | None:
        """Return what was measured."""
        if self.peer:
            return results.ratio(self.workload, self.figure, self.peer)
        return results.median(self.workload, MINE, self.figure)

    def row(self, results: Results) -> tuple[str, str, str, str]:
        """Return what, the bar, what was measured, and the verdict."""
        measured = self.value(results)
        bar = f"{'≥' if self.is_least else '≤'} {self.limit:g}"
        if measured is None:
            return self.what, bar, "–", "not measured"
        holds = measured >= self.limit if self.is_least else measured <= self.limit
        return self.what, bar, f"{measured:.3g}", "holds" if holds else "**missed**"


BARS = [
    Bar("drain, one process: × graphile-worker", "drain1", "rate", "graphile", 1.3),
    Bar("drain, one process: × pgqueuer", "drain1", "rate", "pgqueuer", 2.5),
    Bar("drain, one process: × Celery with Redis", "drain1", "rate", "celery", 30),
    Bar("drain, two processes: × graphile-worker", "drain2", "rate", "graphile", 1.3),
    Bar(
        "CPU per task: × graphile-worker",
        "drain1",
        "cpu_us",
        "graphile",
        0.8,
        False,
    ),
    Bar("latency p50: × graphile-worker", "latency", "p50_ms", "graphile", 0.8, False),
    Bar("latency p50: × pgqueuer", "latency", "p50_ms", "pgqueuer", 0.8, False),
    Bar("latency p99: × graphile-worker", "latency", "p99_ms", "graphile", 1, False),
    Bar("latency p99: × pgqueuer", "latency", "p99_ms", "pgqueuer", 1, False),
    Bar("snapshot held, last ÷ first tenth", "held", "growth", None, 1.15, False),
    Bar("snapshot held, ten a fetch, last ÷ first tenth", "held10", "growth", None, 1.15, False),
    Bar("enqueue one by one: × pgqueuer", "one", "rate", "pgqueuer", 1),
    Bar("16 clients, workers busy: notify on ÷ off", "clients", "busy_ratio", None, 0.9),
    Bar("16 clients, workers idle and wake: notify on ÷ off", "clients", "idle_ratio", None, 0.9),
    Bar("idle worker, queries a second", "idle", "queries_s", None, 0.2, False),
    Bar("memory of a draining worker (PSS), MiB", "drain1", "pss_mib", None, 90, False),
]
