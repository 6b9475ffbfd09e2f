"""The one module that knows the backup tool: stanza, backups, their list, their schedule.

pgBackRest finds the primary and a standby to copy from by itself, through the nodes' agents.
"""

from __future__ import annotations

import datetime
import json
import signal
import subprocess
import threading
from types import FrameType
from typing import Any, Literal

from croniter import croniter

from elsapg.runner.config import Config

Kind = Literal["full", "diff", "incr"]

RETRY_AFTER_S = 600


class BackupError(Exception):
    """pgBackRest failed; the message is its own."""


def say(text: str) -> None:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    print(f"{now} {text}", flush=True)


def pgbackrest(config: Config, *arguments: str) -> str:
    """Run pgBackRest for the stanza and return what it printed. Raises BackupError."""
    command = ["pgbackrest", f"--stanza={config.stanza}", *arguments]
    # It may quote what it could not read, and that is no text.
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode == 0:
        return done.stdout
    if "[029]" in done.stdout + done.stderr:
        raise BackupError(
            f"pgbackrest {arguments[-1]} cannot read what is in the repository: it was written "
            "with another cipher. It is another stack's, or an earlier one's of this name: name an "
            "empty place (elsapg:archive.bucket or archive.prefix), or give the old cipher back"
        )
    output = (done.stderr + done.stdout).strip().splitlines()
    errors = [line for line in output if "ERROR" in line] or output
    raise BackupError(
        f"pgbackrest {arguments[-1]} failed ({done.returncode}): {' '.join(errors)[:800]}"
    )


def info(config: Config) -> dict[str, Any]:
    """pgBackRest's own account of the stanza: backups, archive range, status."""
    stanzas = json.loads(pgbackrest(config, "--output=json", "info"))
    return dict(stanzas[0]) if stanzas else {}


def backup(config: Config, kind: Kind) -> str:
    """Take a backup of the kind and return its label."""
    pgbackrest(config, f"--type={kind}", "backup")
    return str(info(config)["backup"][-1]["label"])


def first(config: Config) -> int:
    """Make the stanza, see a WAL segment reach S3, and take a full backup if there is none."""
    pgbackrest(config, "stanza-create")
    pgbackrest(config, "check")
    backups = info(config).get("backup", [])
    if backups:
        say(f"{len(backups)} backups in the repository, the last one {backups[-1]['label']}")
    else:
        say(f"first full backup: {backup(config, 'full')}")
    return 0


def schedule(config: Config) -> int:
    """Take full and incremental backups at their times (UTC) until told to stop."""
    stop = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    say(f"schedules (UTC): {', '.join(f'{k} {v}' for k, v in config.schedules.items())}")
    missed = _missed(config)
    while not stop.is_set():
        now = datetime.datetime.now(datetime.UTC)
        kind, due = (missed, now) if missed else next_run(config.schedules, now)
        missed = None
        say(f"next backup: {kind} at {due:%Y-%m-%d %H:%M}Z")
        # In slices: the machine may sleep, and its clock may be set.
        while not stop.is_set() and datetime.datetime.now(datetime.UTC) < due:
            left = (due - datetime.datetime.now(datetime.UTC)).total_seconds()
            stop.wait(min(30, max(0, left)))
        for _attempt in range(3):
            if stop.is_set():
                break
            try:
                say(f"{kind} backup {backup(config, kind)} done")
                break
            except BackupError as error:
                say(f"{error}; next attempt in {RETRY_AFTER_S // 60} minutes")
                stop.wait(RETRY_AFTER_S)
    return 0


def _missed(config: Config) -> Kind | None:
    """The backup that was due while nobody ran: this process was being restarted, say."""
    try:
        found = info(config).get("backup", [])
    except BackupError:
        return None  # no stanza yet: the first backup is not ours to take
    return missed_run(config.schedules, found, datetime.datetime.now(datetime.UTC))


def missed_run(
    schedules: dict[str, str], backups: list[dict[str, Any]], now: datetime.datetime
) -> Kind | None:
    """What was due since the newest backup that would do for it; None before the first."""
    if not backups:
        return None
    for kind in sorted(schedules, key=lambda k: k != "full"):
        enough = [b for b in backups if kind != "full" or b["type"] == "full"]
        newest = max((int(b["timestamp"]["start"]) for b in enough), default=0)
        if newest < croniter(schedules[kind], now).get_prev(float):
            return kind  # type: ignore[return-value]
    return None


def next_run(schedules: dict[str, str], now: datetime.datetime) -> tuple[Kind, datetime.datetime]:
    """The next backup that is due after `now`; a full one wins where both are."""
    due = [
        (croniter(words, now).get_next(datetime.datetime), kind != "full", kind)
        for kind, words in schedules.items()
    ]
    when, _, kind = min(due)
    return kind, when  # type: ignore[return-value]
