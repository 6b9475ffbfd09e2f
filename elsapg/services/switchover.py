"""A planned switchover that no client notices but by a short wait.

PAUSE every pool, let Patroni switch over, wait until the stable address takes writes, RESUME.
Everything that must be quick runs already inside the containers and waits for a word on its
standard input. When this process dies, those inputs end: the pools resume by themselves
(`images/bin/pool-gate`), and have a deadline besides.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from elsapg.errors import UnhealthyError, UsageError
from elsapg.services.deployment import Deployment
from elsapg.services.peer import Peer

# Longer than any good switchover (2 s) and PAUSE's own patience (4 s), shorter than the
# patience of an application.
POOLS_RESUME_AFTER_S = 20
SWITCHOVER_TIMEOUT_S = 45


@dataclass(frozen=True)
class Switched:
    """What happened. `stall_seconds`: how long the pools were paused."""

    old: str
    new: str
    stall_seconds: float


@contextlib.contextmanager
def _peers(
    deployment: Deployment, old: str, wanted: str | None
) -> Iterator[tuple[list[Peer], Peer]]:
    """The gates of all pools and the handover on the primary, started but not yet told to act."""
    opened: list[Peer] = []
    try:
        for pooler in deployment.pools():
            command = ("pool-gate", str(POOLS_RESUME_AFTER_S))
            opened.append(Peer(pooler, partial(deployment.hosts.converse, pooler, *command)))
        candidate = ("--candidate", wanted) if wanted else ()
        command = ("handover", "--driven", *candidate)
        handover = Peer(old, partial(deployment.hosts.converse, old, *command))
        opened.append(handover)
        yield opened[:-1], handover
    finally:
        for peer in opened:
            peer.close()


def _ready(gate: Peer, *, may_go: bool) -> bool:
    """False for a pool that was leaving, and has gone. Raises UnhealthyError for any other."""
    try:
        gate.begun("ready", timeout=30)
    except UnhealthyError:
        if may_go:
            return False
        raise
    return True


def switchover(
    deployment: Deployment, candidate: str | None = None, say: Callable[[str], None] = print
) -> Switched:
    """Make `candidate` (or the synchronous standby) the primary.

    Raises UsageError for a candidate that is no node, UnhealthyError when it cannot be done;
    the pools are running again in every case.
    """
    if candidate is not None and candidate not in deployment.nodes:
        raise UsageError(
            f"--to {candidate}: no node of stack {deployment.stack!r}; "
            f"nodes: {', '.join(deployment.nodes)}"
        )
    old = deployment.primary()
    if candidate == old:
        raise UsageError(f"--to {candidate}: it is the primary already; nothing was done")
    with _peers(deployment, old, candidate) as (opened, handover):
        stays = set(deployment.poolers)
        gates = [gate for gate in opened if _ready(gate, may_go=gate.name not in stays)]
        # It may have to wait for a standby to become synchronous, and for a checkpoint.
        new = handover.begun("ready", timeout=90)
        say(f"switching over from {old} to {new}")
        paused_at = time.monotonic()
        for gate in gates:
            gate.say("pause")
        for gate in gates:
            gate.expect("paused", timeout=10)
        handover.say("go")
        handover.expect("done", timeout=SWITCHOVER_TIMEOUT_S)
        for gate in gates:
            gate.say("resume")
        for gate in gates:
            gate.expect("resumed", timeout=10)
        stall = time.monotonic() - paused_at
    return Switched(old, new, stall)
