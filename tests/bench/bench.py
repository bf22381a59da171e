"""TaskLib and its peers side by side, alternating, on a private and durable server."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import install
import machine
import workloads
from peers import Peer, all_peers
from server import Server, serve
from workers import Failure

Figures = workloads.Figures


@dataclass
class Results:
    """Figures by workload and peer, one dict for each round."""

    rounds: dict[tuple[str, str], list[Figures]] = field(
        default_factory=lambda: defaultdict[tuple[str, str], list[Figures]](list)
    )

    def median(self, workload: str, peer: str, figure: str) -> float | None:
        """Return the median over the rounds; None when there is none."""
        values = [row[figure] for row in self.rounds[workload, peer] if figure in row]
        return statistics.median(values) if values else None


Workload = Callable[[Server, Peer], Figures]


def workload_table(tasks: int, pings: int) -> dict[str, Workload]:
    """Return every workload by its name."""
    return {
        "drain1": lambda server, peer: workloads.drain(server, peer, tasks, 1),
        "drain2": lambda server, peer: workloads.drain(server, peer, tasks, 2),
        "latency": lambda server, peer: workloads.latency(server, peer, pings),
    }


def measure(server: Server, peer: Peer, workload: Workload) -> Figures | None:
    """Measure once, with a look at how busy the machine was."""
    others = machine.Others([server.pid])
    try:
        figures = workload(server, peer)
    except (Failure, RuntimeError) as error:
        print(f"    failed: {error}", file=sys.stderr)
        return None
    return figures | {"other_cores": others.cores()}


def shown(figures: Figures) -> str:
    """Write figures on one line."""
    return "  ".join(f"{name} {number:.4g}" for name, number in figures.items())


def set_up(server: Server, peer: Peer) -> None:
    """Install a peer and make the database that its runs are copied from."""
    if peer.install:
        peer.install()
    template = f"peer_{peer.name}"
    server.create(template)
    if peer.name.startswith("tasklib"):
        from tasklib._migrate import migrate

        migrate(server.url(template))
    else:
        peer.ask(server.url(template), "setup")


def run(options: argparse.Namespace, server: Server) -> Results:
    """Go through all rounds."""
    known = all_peers(options.concurrency)
    peers = [known[name] for name in options.peers]
    for peer in peers:
        set_up(server, peer)
    results = Results()
    table = workload_table(options.tasks, options.pings)
    for number in range(1, options.rounds + 1):
        for name in options.only:
            print(f"round {number}/{options.rounds} {name}", flush=True)
            for peer in peers:
                if name in peer.skip:
                    continue
                if figures := measure(server, peer, table[name]):
                    results.rounds[name, peer.name].append(figures)
                    print(f"  {peer.name:16} {shown(figures)}", flush=True)
    return results


def report(results: Results) -> None:
    """Print medians with their ratio to TaskLib's."""
    print("\nmedians (and TaskLib's as a multiple of each peer's)")
    for workload, peer in results.rounds:
        parts: list[str] = []
        for figure in results.rounds[workload, peer][0]:
            median = results.median(workload, peer, figure)
            mine = results.median(workload, "tasklib", figure)
            ratio = f" ({mine / median:.2f})" if mine and median and peer != "tasklib" else ""
            parts.append(f"{figure} {median:.4g}{ratio}")
        print(f"{workload:8} {peer:16} {'  '.join(parts)}")


def words(text: str) -> list[str]:
    """Take a list apart."""
    return [word for word in text.split(",") if word]


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--only", type=words, default=["drain1", "drain2", "latency"])
    parser.add_argument("--peers", type=words, default=list(all_peers()))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--pings", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=100)
    options = parser.parse_args()
    install.make_cache()
    with serve(install.CACHE / "server", "512MB") as server:
        report(run(options, server))


if __name__ == "__main__":
    main()
