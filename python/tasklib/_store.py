"""Open the configured database; a server of our own is migrated unasked."""

from __future__ import annotations

import threading

from tasklib._migrate import migrate
from tasklib.config import Config, Resolved, resolve

_migrated: set[str] = set()
_lock = threading.Lock()


def open_store(config: Config | None = None) -> Resolved:
    """Resolve the configuration, and bring an embedded server's tables up to date.

    A configured database is never migrated unasked: who deploys decides when.

    Args:
        config: None means ``Config()``, which reads the environment.
    """
    store = resolve(config)
    if store.is_embedded:
        with _lock:
            if store.conninfo not in _migrated:
                migrate(store.conninfo)
                _migrated.add(store.conninfo)
    return store
