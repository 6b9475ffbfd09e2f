"""Backups of a running stack, on demand; the tool itself is behind `elsapg.runner.backup`."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from elsapg.errors import ElsapgError
from elsapg.services.deployment import Deployment

Kind = Literal["full", "diff", "incr"]


@dataclass(frozen=True)
class Backup:
    """One backup. Sizes in bytes: of the database, and of what was added to the repository."""

    label: str
    kind: str
    started: str
    finished: str
    database_bytes: int
    repository_bytes: int
    failed: bool
    repository: int = 1


def backups(deployment: Deployment) -> list[Backup]:
    """All backups in the repository, oldest first."""
    return parse(deployment.backup_info())


def parse(info: dict[str, Any]) -> list[Backup]:
    """pgBackRest's `info` as backups."""
    return [
        Backup(
            label=raw["label"],
            kind=raw["type"],
            started=_utc(raw["timestamp"]["start"]),
            finished=_utc(raw["timestamp"]["stop"]),
            database_bytes=int(raw["info"]["size"]),
            repository_bytes=int(raw["info"]["repository"].get("delta", 0)),
            failed=bool(raw.get("error")),
            repository=int(raw.get("database", {}).get("repo-key", 1)),
        )
        for raw in info.get("backup", [])
    ]


def _utc(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


def now(deployment: Deployment, kind: Kind, *, expire: bool = True) -> str:
    """Take a backup and return its label; with `expire`, what is older than it has to be goes.

    Raises UnhealthyError with pgBackRest's words.
    """
    if expire:
        return deployment.runner("backup", kind).strip()
    try:
        return deployment.runner("backup", kind, "--no-expire").strip()
    except ElsapgError as error:
        if "unrecognized arguments" not in str(error):
            raise
        # The stack runs on images of a version that did not know this yet.
        return now(deployment, kind)


def as_json(found: list[Backup]) -> str:
    return json.dumps([asdict(backup) for backup in found], indent=2)
