"""The runner's answers about restores: what can be reached, how, and the marks people set.

A mark is a named restore point in the WAL; its place is written down as an annotation of the newest
backup, in the repository: no restore forgets it, and it goes when that backup expires, which is
when it can no longer be reached.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from elsapg.errors import UsageError
from elsapg.runner import found
from elsapg.runner.archive import MARK, Archive, iso
from elsapg.runner.pgbackrest import Repository
from elsapg.runner.target import Target, check_name, show_lsn


def points(repository: Repository) -> dict[str, Any]:
    """Windows by line, marks and backups, for people and scripts."""
    held = repository.archive()
    return {
        "windows": [asdict(window) for window in held.windows()],
        "marks": [
            {**asdict(mark), "lsn": show_lsn(mark.lsn), "reachable": _reachable(held, mark.name)}
            for mark in held.marks
        ],
        "backups": [
            {
                "label": b.label,
                "type": b.kind,
                "finished": iso(b.stopped),
                "timeline": b.timeline,
                "lsn": show_lsn(b.stop_lsn),
                "usable": not b.failed,
            }
            for b in held.backups
        ],
    }


def _reachable(held: Archive, name: str) -> bool:
    try:
        held.plan(Target("name", name))
    except UsageError:
        return False
    return True


def plan(repository: Repository, order: dict[str, Any]) -> dict[str, Any]:
    """`order`: target (kind, value), timeline, backup, now, fresh.

    Returns {"plan"} or {"refused"}.
    """
    try:
        found = repository.archive().plan(
            Target(**order["target"]),
            timeline=order.get("timeline"),
            label=order.get("backup"),
            now=order.get("now"),
            fresh=bool(order.get("fresh")),
        )
    except UsageError as error:
        return {"refused": str(error)}
    return {"plan": asdict(found)}


def mark(repository: Repository, name: str, timeline: int, lsn: str, time: str) -> dict[str, Any]:
    """Write a mark down, with the newest backup. Returns {"label"} or {"refused"}."""
    try:
        check_name(name)
        backups = repository.info().get("backup", [])
        if not backups:
            raise UsageError("there is no backup yet, so that no mark could be reached")
    except UsageError as error:
        return {"refused": str(error)}
    label = str(backups[-1]["label"])
    repository.run(
        f"--set={label}", f"--annotation={MARK}{name}={timeline} {lsn} {time}", "annotate"
    )
    return {"label": label}


def answer(command: str, words: list[str]) -> str:
    """One of the runner's commands, its answer as JSON."""
    repository = Repository()
    match command:
        case "recovery-check":
            return found.check()
        case "restore-points":
            return json.dumps(points(repository))
        case "restore-plan":
            return json.dumps(plan(repository, json.loads(words[0])))
        case _:
            name, timeline, lsn, time = words
            return json.dumps(mark(repository, name, int(timeline), lsn, time))
