"""The nodes' clocks, and whether they agree: by a time people say where to restore to, and each
node has been or will be the primary that stamps it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from elsapg.errors import ElsapgError, UnhealthyError
from elsapg.runner.archive import CLOCKS_APART_S
from elsapg.services.deployment import Deployment


@dataclass(frozen=True)
class Apart:
    """Two nodes whose clocks differ, at least by so many seconds."""

    fast: str
    slow: str
    seconds: float

    def __str__(self) -> str:
        return f"the clock of {self.fast} is {self.seconds:.0f} s ahead of that of {self.slow}"


def apart(deployment: Deployment, nodes: Iterable[str]) -> Apart | None:
    """The two that differ most, if by more than CLOCKS_APART_S; a node that does not answer is
    for others to tell of."""
    with ThreadPoolExecutor(8) as pool:
        asked = {node: pool.submit(_ahead, deployment, node) for node in nodes}
    seen = {}
    for node, future in asked.items():
        try:
            seen[node] = future.result()
        except ElsapgError:
            continue
    if not seen:
        return None
    fast = max(seen, key=lambda node: seen[node][0])
    slow = min(seen, key=lambda node: seen[node][1])
    seconds = seen[fast][0] - seen[slow][1]
    return Apart(fast, slow, seconds) if seconds > CLOCKS_APART_S else None


def _ahead(deployment: Deployment, node: str) -> tuple[float, float]:
    """By how many seconds a node's clock is ahead of this machine's: at least, and at most."""
    began = time.time()
    done = deployment.hosts.run(node, "date", "+%s.%N")
    ended = time.time()
    try:
        clock = float(done.output)
    except ValueError:
        raise UnhealthyError(f"{node} does not tell the time: {done.output[:200]}") from None
    return clock - ended, clock - began
