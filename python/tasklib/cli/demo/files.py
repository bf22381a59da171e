"""The input of the demo: which files, and what is truly in them."""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tasklib.embedded import project_root

ENOUGH = 100
LARGEST = 4 * 1024 * 1024

# Folders that change while the demo runs, or that hold no documents.
SKIPPED = {"__pycache__", "node_modules"}


@dataclass(frozen=True, slots=True)
class Content:
    """What a task finds in a file, and what the check must find again."""

    sha256: str
    bytes: int
    words: int


def read_content(path: str) -> Content:
    """Hash a file and count its words."""
    data = Path(path).read_bytes()
    return Content(hashlib.sha256(data).hexdigest(), len(data), len(data.split()))


def default_folder() -> Path:
    """Choose a folder that has enough files to make the demo worth watching."""
    candidates = [Path("/usr/share/doc"), project_root(), Path(sysconfig.get_path("stdlib"))]
    for folder in candidates:
        if len(find_files(folder, limit=ENOUGH)) == ENOUGH:
            return folder
    return candidates[-1]


def find_files(folder: Path, *, limit: int) -> list[str]:
    """List up to ``limit`` readable files below a folder, in a stable order."""
    return list(islice(_walk(folder), limit))


def _walk(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if name not in SKIPPED and not name.startswith(".")
        )
        for name in sorted(names):
            path = os.path.join(parent, name)
            if _is_document(path):
                yield path


def _is_document(path: str) -> bool:
    # A path that is not UTF-8 cannot stand in a JSON document.
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    regular = os.path.isfile(path) and not os.path.islink(path)
    return regular and os.access(path, os.R_OK) and os.path.getsize(path) <= LARGEST
