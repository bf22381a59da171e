"""The peers, from their registries, in a folder that git ignores."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".bench"
PROGRAMS = Path(__file__).with_name("programs")

PYTHON = CACHE / "venv" / "bin" / "python"
NODE = CACHE / "node" / "node_modules" / "node" / "bin" / "node"


def python_packages() -> None:
    """Make the virtual environment of the peers that are written in Python."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["bench"]
    if not _is_new(CACHE / "venv", wanted):
        return
    _say("installing peers from PyPI")
    subprocess.run([sys.executable, "-m", "venv", "--clear", CACHE / "venv"], check=True)
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", *wanted], check=True)
    _stamp(CACHE / "venv", wanted)


def node_packages() -> None:
    """Install the peers that are written for Node, and the Node that they run on."""
    if shutil.which("npm") is None:
        raise SystemExit("bench: npm is missing, and graphile-worker comes from there")
    home = CACHE / "node"
    wanted = json.loads((PROGRAMS / "package.json").read_text())["dependencies"]
    home.mkdir(parents=True, exist_ok=True)
    # Modules of Node find packages only in folders above them.
    for name in ("package.json", "graphile.mjs"):
        shutil.copy(PROGRAMS / name, home)
    if not _is_new(home, wanted):
        return
    _say("installing peers from npm")
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=home, check=True)
    _stamp(home, wanted)


def redis_server() -> str:
    """Return the program of the Redis server."""
    if found := shutil.which("redis-server"):
        return found
    raise SystemExit(
        "bench: redis-server is missing, and Celery needs it; install it "
        "(Debian: apt-get install redis-server), or leave Celery out with --peers"
    )


def make_cache() -> None:
    """Make the folder, which git ignores by what is in it."""
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")


def _digest(wanted: object) -> str:
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()


def _is_new(folder: Path, wanted: object) -> bool:
    stamp = folder / ".installed"
    return not stamp.exists() or stamp.read_text() != _digest(wanted)


def _stamp(folder: Path, wanted: object) -> None:
    (folder / ".installed").write_text(_digest(wanted))


def _say(what: str) -> None:
    print(f"bench: {what} (once)", file=sys.stderr, flush=True)
