"""testinfra's hosts, for containers: a command that was never started is tried again."""

from __future__ import annotations

import time
from typing import Any

import testinfra  # type: ignore[import-untyped]

from elsapg.targets.hosts import NEVER_STARTED, START_AGAIN_AFTER_S, STARTS


def get(spec: str, **options: str) -> Any:
    """As `testinfra.get_host`: what is read once of a unit is what all of its checks judge."""
    host = testinfra.get_host(spec, **options)
    run = host.backend.run

    def tried(*words: str, **more: Any) -> Any:
        for _ in range(STARTS):
            done = run(*words, **more)
            if not done.rc or not NEVER_STARTED.search(done.stdout + done.stderr):
                break
            time.sleep(START_AGAIN_AFTER_S)
        return done

    host.backend.run = tried
    return host
