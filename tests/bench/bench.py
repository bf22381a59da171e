"""TaskLib and its peers side by side, alternating, on a private and durable server."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import install
import machine
import page
from peers import CONCURRENCY, Peer, all_peers
from results import Results
from server import SETTINGS, Server, serve
from workers import Failure
from workloads import ONCE, QUICK, WORKLOADS, Figures, Scale

QUICK_PEERS = ["tasklib", "mintable"]


def set_up(server: Server, peer: Peer) -> None:
    """Install a peer and make the database that its runs are copied from."""
    if peer.installs:
        peer.installs()
    template = f"peer_{peer.name}"
    server.create(template)
    peer.set_up(server.url(template))


def measure(server: Server, peer: Peer, name: str, scale: Scale, number: int) -> Figures | None:
    """Measure once; a failure is told, and the others go on."""
    try:
        return WORKLOADS[name](server, peer, scale, number)
    except (Failure, RuntimeError) as error:
        print(f"  {peer.name:16} failed: {error}", flush=True)
        return None


def takes_part(peer: Peer, name: str) -> bool:
    """Tell whether a workload is for a peer."""
    if name == "held10" and peer.narrow is None:
        return False
    return not peer.only or name in peer.only


def run(options: argparse.Namespace, server: Server, scale: Scale) -> Results:
    """Go through all rounds; within each, the peers follow each other workload by workload."""
    known = all_peers(options.concurrency)
    peers = [known[name] for name in options.peers]
    for peer in peers:
        set_up(server, peer)
    results = Results(described(server), {peer.name: peer.settings for peer in peers})
    for number in range(1, options.rounds + 1):
        for name in options.only:
            if name in ONCE and number > 1:
                continue
            print(f"round {number}/{options.rounds} {name}", flush=True)
            for peer in (peer for peer in peers if takes_part(peer, name)):
                if figures := measure(server, peer, name, scale, number):
                    results.add(name, peer.name, number, figures)
                    print(f"  {peer.name:16} {page.line(figures)}", flush=True)
        results.save(install.CACHE / "results.json")
    return results


def described(server: Server) -> dict[str, str]:
    """Describe what is measured on."""
    shown = [f"{name} {server.setting(name)}" for name in ("shared_buffers", *SETTINGS)]
    return {
        "measured": time.strftime("%Y-%m-%d"),
        **machine.description(),
        "PostgreSQL": f"{server.setting('server_version')}, {', '.join(shown)}",
        "fdatasync of 8 kB": f"{machine.fdatasync_ms(server.folder):.2f} ms",
        "versions": page.versions(),
    }


def chosen(known: list[str], default: list[str]) -> object:
    """Return an argparse type: names out of these, with commas between them."""

    def names(text: str) -> list[str]:
        words = text.split(",")
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
        return words

    return {"type": names, "default": default, "metavar": "NAMES"}


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    peers, workloads = list(all_peers()), list(WORKLOADS)
    parser.add_argument(
        "--only", **chosen(workloads, workloads), help=f"workloads: {', '.join(workloads)}"
    )
    parser.add_argument("--peers", **chosen(peers, []), help=f"queues: {', '.join(peers)}")
    parser.add_argument("--rounds", type=int, help="alternations (default 3)")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    parser.add_argument(
        "--concurrency", type=int, default=CONCURRENCY, help="of TaskLib's worker (default 100)"
    )
    parser.add_argument("--tasks", type=int, help="tasks a drain (default 20000)")
    parser.add_argument("--write", action="store_true", help="write docs/, also after a part of it")
    parser.add_argument("--render", type=Path, help="write docs/ from a results.json; measure not")
    options = parser.parse_args()
    options.is_complete = not options.quick and not options.peers and options.only == workloads
    options.peers = options.peers or (QUICK_PEERS if options.quick else peers)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def main() -> None:
    """Measure, print, and write the page when everything was measured."""
    options = arguments()
    if options.render:
        page.write(Results.read(options.render))
        return
    # So that workers and servers end, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    install.make_cache()
    scale = QUICK if options.quick else Scale()
    if options.tasks:
        scale = replace(scale, tasks=options.tasks)
    buffers = "128MB" if options.quick else "1GB"
    with serve(install.CACHE / f"server-{os.getpid()}", buffers) as server:
        results = run(options, server, scale)
    print(page.text(results))
    if options.write or options.is_complete:
        page.write(results)


if __name__ == "__main__":
    sys.exit(main())
