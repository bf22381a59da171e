"""The command `tasklib`: parses, prints and exits; everything else is in the packages below.

``main`` is loaded when it is first used: the supervisor of worker processes is in here, too, and
shall not carry what it does not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._main import main as main

__all__ = ["main"]


def __getattr__(name: str) -> Any:
    if name != "main":
        raise AttributeError(f"module 'tasklib.cli' has no attribute {name!r}")
    from ._main import main

    return main
