"""Holds every pool from afar, for a node that is about to leave or restart: kubernetes only.

Each PgBouncer pod has a gate (`images/bin/gate`), a TLS port behind which a `pool-gate` pauses that
pod's PgBouncer. Whoever holds the connection holds the pool: when it ends, the pool resumes.

Nothing here may keep a stop waiting. Every step is bounded as a whole, and a gate that does not
answer in time is left out: its clients then meet the switchover as they would meet a failover.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

# HOST:PORT that leads to every gate; unset where there are none.
GATES = "ELSAPG_GATES"
# As long as pool-gate holds a pool.
HELD_S = 20.0
# What the poolers' certificate names, whatever address a pod has.
SERVER_NAME = "pgbouncer"
OPEN_S = 5.0
# PAUSE's own patience is 4 s (pool-gate).
PAUSE_S = 5.0
# A gate waits up to 5 s for its own node to know the new primary.
RESUME_S = 8.0

Address = tuple[str, int]
Say = Callable[[str], None]
_A = TypeVar("_A")
_B = TypeVar("_B")


class GateError(Exception):
    """One gate did not do what it was asked; the message says which and why."""


@dataclass(frozen=True)
class Pair:
    """Files of a client certificate, its key, and the CA that it trusts."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def of_node(cls, tls: Path) -> Pair:
        """A node's own, in its folder of certificates."""
        return cls(tls / "ca.crt", tls / "server.crt", tls / "server.key")


class Gate:
    """A connection to one pod's `pool-gate`, which speaks line by line."""

    def __init__(self, address: Address, context: ssl.SSLContext, timeout: float = OPEN_S) -> None:
        self.name = f"{address[0]}:{address[1]}"
        raw = socket.create_connection(address, timeout=timeout)
        try:
            self._connection = context.wrap_socket(raw, server_hostname=SERVER_NAME)
        except BaseException:
            raw.close()
            raise
        self._lines = self._connection.makefile("r", encoding="utf-8", errors="replace")

    def expect(self, word: str, timeout: float) -> None:
        """Read one line, which must be `word`. Raises GateError."""
        self._connection.settimeout(timeout)
        line = self._lines.readline().strip()
        if line != word:
            raise GateError(line or "it closed the connection")

    def ask(self, question: str, answer: str, timeout: float) -> None:
        """Say `question` and expect `answer`."""
        self._connection.settimeout(timeout)
        self._connection.sendall(f"{question}\n".encode())
        self.expect(answer, timeout)

    def close(self) -> None:
        """End the connection: a pool that is still held resumes."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def tls_context(pair: Pair) -> ssl.SSLContext:
    """TLS 1.3 with that certificate, trusting the stack's CA only."""
    context = ssl.create_default_context(cafile=str(pair.ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(pair.certificate, pair.key)
    return context


@contextlib.contextmanager
def holding(where: str, pair: Pair, say: Say = lambda _: None) -> Iterator[list[str]]:
    """Pause every pool whose gate `where` (HOST:PORT) leads to; resume them all at the end.

    Yields the addresses of those that are held: none, if none can be reached. Raises nothing of
    its own.
    """
    opened: list[Gate] = []
    try:
        context = tls_context(pair)
        found = _each([where], resolve, "resolve", OPEN_S, say)
        opened = _each(
            found[0] if found else [],
            lambda a: open_gate(a, context),
            "open",
            OPEN_S,
            say,
            late=Gate.close,
        )
    except OSError as error:
        say(f"no pool is held: certificate {pair.certificate} cannot be used: {error}")
    try:
        # One that is late is held all the same, and its connection ends with the others.
        held = _each(opened, _pause, "pause", PAUSE_S, say)
        yield [gate.name for gate in held]
        _each(held, _resume, "resume", RESUME_S, say)
    finally:
        for gate in opened:
            gate.close()


def resolve(where: str) -> list[Address]:
    """Every address that HOST:PORT stands for."""
    host, _, port = where.rpartition(":")
    found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    return list(dict.fromkeys((str(address[0]), int(address[1])) for *_, address in found))


def open_gate(address: Address, context: ssl.SSLContext) -> Gate:
    """A gate that is ready to be told to pause. Raises OSError, GateError."""
    gate = Gate(address, context)
    try:
        gate.expect("ready", OPEN_S)
    except BaseException:
        gate.close()
        raise
    return gate


def _pause(gate: Gate) -> Gate:
    gate.ask("pause", "paused", PAUSE_S)
    return gate


def _resume(gate: Gate) -> Gate:
    gate.ask("resume", "resumed", RESUME_S)
    return gate


def _each(
    things: Sequence[_A],
    act: Callable[[_A], _B],
    doing: str,
    patience: float,
    say: Say,
    late: Callable[[_B], None] = lambda _: None,
) -> list[_B]:
    """What `act` makes of each of `things`, all at once, within `patience` seconds altogether.

    What fails is told and left out; so is what is not done in time, of which `late` takes care.
    """
    done: dict[int, _B] = {}
    over = threading.Event()
    turn = threading.Lock()

    def run(number: int, thing: _A) -> None:
        name = thing.name if isinstance(thing, Gate) else str(thing)
        try:
            result = act(thing)
        except (OSError, ValueError, GateError) as error:
            say(f"gate {name} does not {doing}: {' '.join(str(error).split())}")
            return
        with turn:
            if not over.is_set():
                done[number] = result
                return
        late(result)

    # Daemons: a name server that does not answer cannot be interrupted, and must not be waited for.
    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(things)]
    deadline = time.monotonic() + patience
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    with turn:
        over.set()
        return [done[number] for number in sorted(done)]
