"""testinfra's hosts, for containers: a command that was never started is tried again."""

from __future__ import annotations

from typing import Any

import testinfra  # type: ignore[import-untyped]

from elsapg.targets.hosts import NEVER_STARTED, started


def get(spec: str, **options: str) -> Any:
    """As `testinfra.get_host`: what is read once of a unit is what all of its checks judge."""
    host = testinfra.get_host(spec, **options)
    run = host.backend.run

    def tried(*words: str, **more: Any) -> Any:
        return started(
            lambda: run(*words, **more),
            lambda done: bool(done.rc and NEVER_STARTED.search(done.stdout + done.stderr)),
        )

    host.backend.run = tried
    return host
