"""A planned switchover that no client notices but by a short wait.

PAUSE every pool, let Patroni switch over, wait until the stable address takes writes, RESUME.
Everything that must be quick runs already inside the containers and waits for a word on its
standard input. When this process dies, those inputs end: the pools resume by themselves
(`images/bin/pool-gate`), and have a deadline besides.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from elsapg.errors import UnhealthyError, UsageError
from elsapg.services.deployment import Deployment

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


class _Peer:
    """A process inside a container that answers line by line."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self._process = process
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())
        self._lines.put(None)

    def say(self, word: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()

    def expect(self, word: str, timeout: float) -> str:
        """The rest of the next line, which must begin with `word`. Raises UnhealthyError."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise UnhealthyError(f"{self.name} did not answer within {timeout:.0f} s") from None
        first, _, rest = (line or "error it ended").partition(" ")
        if first != word:
            raise UnhealthyError(f"{self.name}: {rest if first == 'error' else line}")
        return rest

    def close(self) -> None:
        """End its input and wait for it: a gate resumes its pool before it ends."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()


@contextlib.contextmanager
def _peers(
    deployment: Deployment, old: str, wanted: str | None
) -> Iterator[tuple[list[_Peer], _Peer]]:
    """The gates of all pools and the handover on the primary, started but not yet told to act."""
    opened: list[_Peer] = []
    try:
        for pooler in deployment.poolers:
            command = ("pool-gate", str(POOLS_RESUME_AFTER_S))
            opened.append(_Peer(pooler, deployment.hosts.converse(pooler, *command)))
        candidate = ("--candidate", wanted) if wanted else ()
        command = ("handover", "--driven", *candidate)
        handover = _Peer(old, deployment.hosts.converse(old, *command))
        opened.append(handover)
        yield opened[:-1], handover
    finally:
        for peer in opened:
            peer.close()


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
    with _peers(deployment, old, candidate) as (gates, handover):
        for gate in gates:
            gate.expect("ready", timeout=10)
        # It may have to wait for a standby to become synchronous, and for a checkpoint.
        new = handover.expect("ready", timeout=90)
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
