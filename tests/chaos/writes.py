"""continuous_writes: commits without pause through every pool, then looks for each in the database.

Writers reconnect at once and write the same row again until it is acknowledged. A row that was
never acknowledged may be there (its commit was done, the answer was lost); a row that was must be.

A cancelled wait for the standby makes PostgreSQL acknowledge with a WARNING: such rows are
promised by one server only, so they are counted apart.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from elsapg.services.deployment import Deployment

DATABASE = "elsa_workflows"
TABLE = "elsa_workflows.chaos_writes"
WRITERS = 8
PAUSE_S = 0.01
# As an application's pool waits before it connects again; a tight loop would only burn the CPU
# that the failover needs.
RECONNECT_S = 0.1

_DDL = f"""
DROP TABLE IF EXISTS {TABLE};
CREATE TABLE {TABLE} (
    writer int NOT NULL,
    seq bigint NOT NULL,
    attempts int NOT NULL DEFAULT 1,
    PRIMARY KEY (writer, seq)
)
"""
# Not DO NOTHING: a retry that finds its row must wait for the standby too, and only a write does.
_INSERT = (
    f"INSERT INTO {TABLE} AS t (writer, seq) VALUES (%s, %s) "
    "ON CONFLICT (writer, seq) DO UPDATE SET attempts = t.attempts + 1"
)


@dataclass(frozen=True)
class Gap:
    """The longest time in which nobody's commit was acknowledged."""

    seconds: float
    began_at: float  # seconds since the writers started


@dataclass(frozen=True)
class Report:
    """What the writers saw, and what the database kept."""

    seconds: float
    acknowledged: int
    gap: Gap
    errors: int
    error_kinds: dict[str, int]
    # Commits acknowledged with a WARNING: the wait for the standby was cancelled.
    warned: int
    # Writers that were still waiting for an answer when time was up; 0 is normal.
    stuck: int
    # Acknowledged, and not in the database: must be 0.
    lost: int
    lost_rows: list[tuple[int, int]]
    # Of the warned commits: these may be lost (DESIGN: a hole in RPO 0).
    warned_lost: int
    # In the database, and never acknowledged: allowed.
    unacknowledged: int
    read_from: str

    def summary(self) -> str:
        """One line for a person."""
        return (
            f"{self.acknowledged} commits in {self.seconds:.0f} s, longest gap "
            f"{self.gap.seconds:.2f} s (from {self.gap.began_at:.1f} s), {self.errors} errors, "
            f"{self.lost} lost, {self.warned} warned, {self.unacknowledged} unacknowledged; "
            f"read from {self.read_from}; errors: {self.error_kinds}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass
class _Log:
    """One writer's own record; nobody else writes it."""

    acknowledged: list[tuple[int, float]] = field(default_factory=list)
    warned: list[int] = field(default_factory=list)
    errors: list[tuple[float, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Access:
    """How a client reaches a stack's pools: by password over TLS, verifying the server."""

    pools: tuple[tuple[str, int], ...]
    passwords: dict[str, str] = field(repr=False)
    ca_file: str
    # Where all of them are, if the certificate's name is not one that this machine finds.
    address: str | None = None

    def connect(
        self, role: str, database: str = DATABASE, pool: int = 0, **options: Any
    ) -> psycopg.Connection[Any]:
        """A connection in autocommit through one of the pools."""
        host, port = self.pools[pool % len(self.pools)]
        return psycopg.connect(
            host=host,
            hostaddr=self.address,
            port=port,
            user=role,
            password=self.passwords[role],
            dbname=database,
            sslmode="verify-full",
            sslrootcert=self.ca_file,
            connect_timeout=5,
            # A pooler whose network is gone must not hold a writer for a quarter of an hour.
            tcp_user_timeout=5000,
            keepalives_idle=2,
            keepalives_interval=1,
            keepalives_count=3,
            application_name="continuous_writes",
            autocommit=True,
            **options,
        )


@contextlib.contextmanager
def access(
    deployment: Deployment,
    pools: Sequence[Mapping[str, Any]] | None = None,
    address: str | None = None,
) -> Iterator[Access]:
    """The stack's doors, or `pools` at `address`; its CA lies in a file while this lasts."""
    outputs = deployment.outputs
    with tempfile.TemporaryDirectory(prefix="elsapg-ca-") as folder:
        ca = Path(folder) / "ca.crt"
        ca.write_text(outputs["ca"], encoding="utf-8")
        doors = pools or outputs["pools"]
        addresses = tuple((str(p["host"]), int(p["port"])) for p in doors)
        yield Access(addresses, dict(outputs["passwords"]), str(ca), address)


class ContinuousWrites:
    """Writers in threads of their own. `start`, then anything, then `stop`, then `check`."""

    def __init__(
        self,
        deployment: Deployment,
        doors: Access,
        *,
        role: str = "elsa_app",
        writers: int = WRITERS,
        pause: float = PAUSE_S,
        lifetime: float = math.inf,
    ) -> None:
        """`lifetime`: after so many seconds a writer connects anew, as an application's own pool
        may."""
        self._deployment = deployment
        self._doors = doors
        self._role = role
        self._pause = pause
        self._lifetime = lifetime
        self._logs = [_Log() for _ in range(writers)]
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._connections: dict[int, psycopg.Connection[Any]] = {}
        self._started = 0.0
        self._stopped = 0.0
        self._stuck = 0

    # -- running -----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the table, through the session door, as migrations do."""
        self._as_migrator(_DDL)

    def drop(self) -> None:
        """Remove the table again."""
        self._as_migrator(f"DROP TABLE IF EXISTS {TABLE}")

    def _as_migrator(self, sql: str) -> None:
        """PgBouncer may have no connection to the server yet, and gives it a second to come."""
        deadline = time.monotonic() + 60
        while True:
            try:
                with self._doors.connect("elsa_migrator", f"{DATABASE}_session") as db:
                    db.execute(sql)
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
            else:
                return

    def start(self) -> None:
        """Start the writers; returns when each has had its first row acknowledged."""
        self._started = time.monotonic()
        for number in range(len(self._logs)):
            thread = threading.Thread(target=self._write, args=(number,), daemon=True)
            self._threads.append(thread)
            thread.start()
        deadline = self._started + 90
        while not all(log.acknowledged for log in self._logs):
            if time.monotonic() > deadline:
                kinds = Counter(kind for log in self._logs for _, kind in log.errors)
                raise TimeoutError(f"not every writer could write within 90 s: {dict(kinds)}")
            time.sleep(0.02)
        # What a first connection met was before anything was done to the stack.
        for log in self._logs:
            log.errors.clear()

    def _write(self, number: int) -> None:
        log = self._logs[number]
        seq = 1
        connection: psycopg.Connection[Any] | None = None
        connected = 0.0
        warned: list[str] = []

        def notice(diagnostic: psycopg.errors.Diagnostic) -> None:
            text = diagnostic.message_primary or ""
            if "wait for synchronous replication" in text:
                warned.append(text)

        while not self._stop.is_set():
            if connection is not None and time.monotonic() > connected + self._lifetime:
                connection.close()
                connection = None
            try:
                if connection is None:
                    connected = time.monotonic()
                    connection = self._doors.connect(self._role, pool=number)
                    connection.add_notice_handler(notice)
                    self._connections[number] = connection
                warned.clear()
                connection.execute(_INSERT, (number, seq))
            except psycopg.Error as error:
                log.errors.append((time.monotonic(), _kind(error)))
                # PgBouncer may keep the client; a client that saw an error mistrusts it anyway.
                if connection is not None:
                    connection.close()
                    connection = None
                self._stop.wait(RECONNECT_S)
                continue
            log.acknowledged.append((seq, time.monotonic()))
            if warned:
                log.warned.append(seq)
            seq += 1
            self._stop.wait(self._pause)
        if connection is not None:
            connection.close()

    @property
    def acknowledged(self) -> int:
        """Commits acknowledged so far."""
        return sum(len(log.acknowledged) for log in self._logs)

    def errors_by_pool(self) -> list[int]:
        """How many errors the writers at each pool have seen so far."""
        found = [0] * len(self._doors.pools)
        for number, log in enumerate(self._logs):
            found[number % len(found)] += len(log.errors)
        return found

    def wait_for_progress(self, rows: int = 100, timeout: float = 120) -> None:
        """Wait until every writer together have `rows` more acknowledged."""
        wanted = self.acknowledged + rows
        deadline = time.monotonic() + timeout
        while self.acknowledged < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"fewer than {rows} commits within {timeout:.0f} s")
            time.sleep(0.05)

    def wait_for_everyone(self, timeout: float = 120) -> None:
        """Wait until each single writer has had one more row acknowledged."""
        before = [len(log.acknowledged) for log in self._logs]
        deadline = time.monotonic() + timeout
        while any(len(log.acknowledged) <= n for log, n in zip(self._logs, before, strict=True)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"a writer had no commit within {timeout:.0f} s")
            time.sleep(0.05)

    def stop(self) -> None:
        """Let every writer end its row. Never cancels: that would acknowledge without a standby."""
        self._stopped = time.monotonic()
        self._stop.set()
        deadline = self._stopped + 30
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._stuck = sum(thread.is_alive() for thread in self._threads)

    # -- checking ----------------------------------------------------------------------------

    def longest_gap(self) -> Gap:
        """Over all writers; the time from the last commit to the stop counts too."""
        times = sorted(at for log in self._logs for _, at in log.acknowledged)
        times = [at for at in times if at <= self._stopped]
        times.append(self._stopped)
        if len(times) < 2:
            return Gap(self._stopped - self._started, 0.0)
        widest, at = max((b - a, a) for a, b in itertools.pairwise(times))
        return Gap(widest, at - self._started)

    def check(self) -> Report:
        """Read the table back from the node that leads now, and compare."""
        node = self._deployment.primary()
        rows = self._deployment.query(node, f"SELECT writer, seq FROM {TABLE}", DATABASE)
        found = {(int(writer), int(seq)) for writer, seq in rows}
        promised = {(n, seq) for n, log in enumerate(self._logs) for seq, _ in log.acknowledged}
        warned = {(n, seq) for n, log in enumerate(self._logs) for seq in log.warned}
        missing = promised - found
        lost = sorted(missing - warned)
        kinds = Counter(kind for log in self._logs for _, kind in log.errors)
        return Report(
            seconds=round(self._stopped - self._started, 3),
            acknowledged=len(promised),
            gap=self.longest_gap(),
            errors=sum(kinds.values()),
            error_kinds=dict(kinds.most_common()),
            warned=len(warned),
            stuck=self._stuck,
            lost=len(lost),
            lost_rows=lost[:20],
            warned_lost=len(missing & warned),
            unacknowledged=len(found - promised),
            read_from=node,
        )


def _kind(error: psycopg.Error) -> str:
    """An error's first words, without the addresses and numbers that make each differ."""
    text = " ".join(str(error).split())
    for mark in ("FATAL: ", "ERROR: ", "failed: "):
        text = text.rpartition(mark)[2] or text
    name = error.sqlstate or type(error).__name__
    return f"{name}: {text[:70]}"


@contextlib.contextmanager
def continuous_writes(
    deployment: Deployment, doors: Access, **options: Any
) -> Iterator[ContinuousWrites]:
    """Writers that run inside the block and have stopped after it; then `check()` and `drop()`.

    After a failure the table stays, for whoever looks into it; the next writers replace it.
    """
    writes = ContinuousWrites(deployment, doors, **options)
    writes.prepare()
    try:
        writes.start()
        yield writes
    finally:
        writes.stop()
