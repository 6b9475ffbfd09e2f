"""Fetches a backup into a data directory and recovers it to a target, with nobody looking in.

The server that replays the WAL is private: a socket in a folder of its own and no network, no
extension is loaded (pg_cron would run its jobs), and Patroni does not reach it. At the target it
stops and is looked at, and only then promoted. `elsapg.runner.restore` drives this in a node.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from elsapg.errors import DeploymentError
from elsapg.runner.archive import SEGMENT_BYTES, Plan
from elsapg.runner.pgbackrest import Repository, explain

Say = Callable[[str], None]

# pg_wal leads here where WAL has a volume of its own, which is there if its mount is.
WAL = Path("/var/lib/postgresql-wal/wal")
# What a standby must have at least as much of as the primary had when the WAL was written.
_AT_LEAST = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_xacts",
    "max_locks_per_xact",
)
_PARAMETER = {"max_prepared_xacts": "max_prepared_transactions",
              "max_locks_per_xact": "max_locks_per_transaction"}  # fmt: skip
_TOO_EARLY = "recovery ended before configured recovery target was reached"
_PARAMETERS_TOO_SMALL = "insufficient parameter settings"
START_TIMEOUT_S = 60.0
PROMOTE_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 300.0


class RecoveryError(DeploymentError):
    """A restore cannot go on; nothing is lost in the archive, and it can be run again."""


class StoppedError(RecoveryError):
    """Whoever drove the restore is gone."""


@dataclass(frozen=True)
class Reached:
    """Where recovery ended. `last_commit`: ISO time of the last transaction replayed, or None."""

    lsn: str
    last_commit: str | None
    next_xid: int
    timeline: int


def fetch(
    repository: Repository,
    plan: Plan,
    data: Path,
    work: Path,
    say: Say,
    stopped: Callable[[], bool],
) -> None:
    """Bring `data` to what the plan's backup holds; what is there already is kept (delta).

    Raises RecoveryError with pgBackRest's words, StoppedError when `stopped` says so.
    """
    work.mkdir(mode=0o700, exist_ok=True)
    log = work / "fetch.log"
    # The line is named so that pgBackRest takes a backup of an old one.
    words = repository.command(
        "--delta", "--type=default", f"--target-timeline={plan.timeline}", f"--set={plan.backup}",
        f"--pg1-path={data}", "--log-level-console=info", *_links(), "restore",
    )  # fmt: skip
    with (
        log.open("wb") as output,
        subprocess.Popen(
            words, stdout=output, stderr=output, env=repository.environment()
        ) as process,
    ):
        try:
            while process.poll() is None:
                if stopped():
                    raise StoppedError("stopped while the backup was being fetched")
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
    text = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        full = f"; the disk of {data} is full: make room on it, then run this again"
        told = explain(("restore",), process.returncode, text)
        raise RecoveryError(told + (full if _full(data) else ""))
    for name in ("postgresql.conf", "postgresql.auto.conf"):
        _without_recovery_settings(data / name)
    sizes = [line.partition("INFO: ")[2] for line in text.splitlines() if "restore size" in line]
    say(f"backup {plan.backup} fetched: {(sizes or ['done'])[-1]}")


def _links() -> list[str]:
    """Without it pgBackRest makes a folder of what is a link, and WAL moves in with the data."""
    return [f"--link-map=pg_wal={WAL}"] if WAL.parent.is_dir() else []


def _full(data: Path) -> bool:
    """Whether there is no room for another segment. What tools say of a full disk is less sure."""
    disks = (data, *([WAL.parent] if WAL.parent.is_dir() else []))
    return any(shutil.disk_usage(disk).free < SEGMENT_BYTES for disk in disks)


def _without_recovery_settings(path: Path) -> None:
    """pgBackRest's would outlive this recovery, and win over Patroni's when this node is a standby;
    those of a backup from a standby, though empty, count as a second target.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if not re.match(r"# Recovery settings|re(store|covery)_", line)]
    if kept != lines:
        path.write_text("".join(kept), encoding="utf-8")


class PrivateServer:
    """PostgreSQL on `data`, for recovery alone. `work`: a folder for its log and what WAL says.

    `minimum`: parameters of the running cluster that must not be smaller here. `settings`: what is
    set beside, or instead of, what recovery needs.
    """

    def __init__(
        self,
        data: Path,
        work: Path,
        repository: Repository,
        *,
        minimum: Mapping[str, Any] | None = None,
        archive: bool = True,
        sockets: Path = Path("/tmp/elsapg-recovery"),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.data = data
        self.work = work
        self._repository = repository
        self._minimum = dict(minimum or {})
        self._archive = archive
        self._sockets = sockets
        self._settings = dict(settings or {})
        self._started_with: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.work / "recovery.log"

    @property
    def problem(self) -> Path:
        return self.work / "problem"

    def start(self, plan: Plan, *, with_target: bool = True) -> None:
        """Start recovery along the plan; without its target, to the end of its line."""
        self.work.mkdir(mode=0o700, exist_ok=True)
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        self.problem.unlink(missing_ok=True)
        last = "".join(f"{line} {name}\n" for line, name in plan.last.items())
        (self.work / "last").write_text(last, encoding="utf-8")
        hba = self._sockets / "pg_hba.conf"
        hba.write_text("local all postgres peer\n", encoding="utf-8")
        (self.data / "standby.signal").unlink(missing_ok=True)
        (self.data / "recovery.signal").touch(mode=0o600)
        self._started_with = self._floor()
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._sockets),
            "hba_file": str(hba),
            "ssl": "off",
            "logging_collector": "off",
            "log_destination": "stderr",
            "shared_preload_libraries": "",
            "archive_mode": "on" if self._archive else "off",
            "hot_standby": "on",
            "synchronous_standby_names": "",
            "primary_conninfo": "",
            "primary_slot_name": "",
            "restore_command": self._restore_command(),
            **self._started_with,
            **_recovery_settings(plan, with_target),
            **self._settings,
        }
        words = ["postgres", "-D", str(self.data)]
        for name, value in settings.items():
            words += ["-c", f"{name}={value}"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _restore_command(self) -> str:
        more = f" --config={self._repository.config}" if self._repository.config else ""
        return f'wal-get %f "%p" {self.work}{more}'

    def _floor(self) -> dict[str, int]:
        """At least what the backup's server and the present cluster have."""
        control = controldata(self.data)
        floor = {}
        for name in _AT_LEAST:
            parameter = _PARAMETER.get(name, name)
            values = (control.get(f"{name} setting", 0), self._minimum.get(parameter, 0))
            floor[parameter] = max(int(value) for value in values)
        return floor

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=str(self._sockets), user="postgres", dbname=database, autocommit=True
        )

    def wait(self, plan: Plan, say: Say, stopped: Callable[[], bool]) -> Reached:
        """Wait until the target is reached; returns where that is.

        Raises RecoveryError: a segment missing or damaged, a target that is not there.
        """
        with_target = plan.kind != "latest"
        told = 0.0
        while True:
            if stopped():
                raise StoppedError("stopped during recovery")
            assert self._process is not None
            if self._process.poll() is not None:
                text = self.log.read_text(encoding="utf-8", errors="replace")
                # Nothing was committed after the target: all of the line is what was asked for.
                if with_target and plan.to_the_end and _TOO_EARLY in text and not self._problem():
                    with_target = False
                    self.start(plan, with_target=False)
                    continue
                raise RecoveryError(self._why(text, plan))
            try:
                reached, paused, recovering = self._look()
            except psycopg.OperationalError:
                reached = None
            if reached is not None:
                if paused and _PARAMETERS_TOO_SMALL in self.log.read_text(errors="replace"):
                    self._start_larger(plan, with_target, say)
                    continue
                if not recovering or (with_target and paused):
                    return reached
                if time.monotonic() - told > 5:
                    told = time.monotonic()
                    say(f"replayed up to {reached.lsn} ({reached.last_commit or 'no commit yet'})")
            time.sleep(0.1)

    def _start_larger(self, plan: Plan, with_target: bool, say: Say) -> None:
        """Go on with parameters that the database had between the backup and the target: since
        recovery came there, the control file has them."""
        had, needed = self._started_with, self._floor()
        more = {name: value for name, value in needed.items() if value > had.get(name, 0)}
        if not more:
            raise RecoveryError(
                f"recovery needs larger parameters than it was given ({self.log} says which): "
                "raise them by `patronictl -c /etc/elsapg/patroni.yml edit-config` in a node, and "
                "run the restore again"
            )
        told = ", ".join(f"{name} {value}" for name, value in more.items())
        say(f"the database once had {told}: going on with that")
        stop(self.data)
        self.start(plan, with_target=with_target)

    def _look(self) -> tuple[Reached, bool, bool]:
        with self.connect() as db:
            row = db.execute(
                "SELECT pg_is_in_recovery(),"
                " CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END,"
                " coalesce(pg_last_wal_replay_lsn(), pg_current_wal_lsn()),"
                " to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC',"
                ' \'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\'),'
                " pg_snapshot_xmax(pg_current_snapshot())::text,"
                " (SELECT timeline_id FROM pg_control_checkpoint())"
            ).fetchone()
        assert row is not None
        recovering, pause, lsn, commit, xid, timeline = row
        return Reached(str(lsn), commit, int(xid), int(timeline)), pause == "paused", recovering

    def _problem(self) -> str:
        try:
            return self.problem.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return ""

    def _why(self, text: str, plan: Plan) -> str:
        problem = self._problem()
        if _full(self.data):
            return (
                f"the disk of {self.data} was full during recovery to {plan.value or 'the end'}. "
                "Nothing was promoted; make room on it, then run this again"
            )
        if problem:
            return (
                f"recovery to {plan.value or 'the end'} stopped: {problem}. Nothing was promoted; "
                "mend the archive, or choose a target before that segment"
            )
        if _TOO_EARLY in text:
            return (
                f"the WAL of timeline {plan.timeline} ends before {plan.kind} {plan.value}: it is "
                "not on that line. Nothing was promoted; choose another target"
            )
        fatal = [line for line in text.splitlines() if re.search("FATAL|PANIC", line)]
        told = " ".join((fatal or text.splitlines())[-2:])[-500:]
        return f"PostgreSQL ended during recovery: {told}"

    def promote(self) -> int:
        """Begin a new line here, and stop cleanly. Returns its number."""
        line = self.open()
        stop(self.data)
        return line

    def open(self) -> int:
        """Begin a new line here: it takes writes. Returns its number."""
        with self.connect() as db:
            recovering = db.execute("SELECT pg_is_in_recovery()").fetchone()
            if recovering == (True,):
                db.execute("SELECT pg_promote(true, %s)", (int(PROMOTE_TIMEOUT_S),))
            # So that the control file tells the new line, whatever comes next.
            db.execute("CHECKPOINT")
            row = db.execute("SELECT timeline_id FROM pg_control_checkpoint()").fetchone()
        assert row is not None
        return int(row[0])


def _recovery_settings(plan: Plan, with_target: bool) -> dict[str, str]:
    line = "current" if plan.no_history else str(plan.timeline)
    settings = {"recovery_target_timeline": line}
    if not with_target or plan.kind == "latest":
        return settings
    settings[f"recovery_target_{plan.kind}"] = plan.value
    settings["recovery_target_action"] = "pause"
    # A time: what was committed up to it. An LSN: what ends there, not what begins there.
    settings["recovery_target_inclusive"] = "off" if plan.kind == "lsn" else "on"
    return settings


def controldata(data: Path) -> dict[str, Any]:
    """What pg_controldata says, by its own words; {} if there is no control file."""
    done = subprocess.run(
        ["pg_controldata", "-D", str(data)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    found = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(":")
        found[key.strip()] = value.strip()
    return found


def running(data: Path) -> int | None:
    """The process id of the postmaster on `data`, if one runs."""
    try:
        first = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0]
        name = Path(f"/proc/{int(first)}/comm").read_text(encoding="utf-8").strip()
    except (OSError, ValueError, IndexError):
        return None
    return int(first) if name == "postgres" else None


def stop(data: Path, timeout: float = STOP_TIMEOUT_S) -> None:
    """Stop the server on `data`, if one runs: cleanly, and by force when its time is over."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        pid = running(data)
        if pid is None:
            # Left by a server that was killed; pgBackRest takes it for a running one.
            (data / "postmaster.pid").unlink(missing_ok=True)
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and running(data) is not None:
            time.sleep(0.05)
    if running(data) is not None:
        raise RecoveryError(f"the server on {data} does not stop")


def push_waiting(repository: Repository, data: Path) -> int:
    """Archive the finished segments that a stopped server could not. Returns how many.

    Raises RepositoryError when one cannot be: it would be lost.
    """
    status = data / "pg_wal" / "archive_status"
    waiting = sorted(status.glob("*.ready")) if status.is_dir() else []
    for ready in waiting:
        segment = data / "pg_wal" / ready.stem
        if segment.exists():
            repository.run("--no-archive-async", f"--pg1-path={data}", "archive-push", str(segment))
        ready.rename(ready.with_suffix(".done"))
    return len(waiting)
