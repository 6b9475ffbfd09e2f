"""Dumps, restore drills and checks of the repository of a running stack, on demand.

What they do is in `elsapg.runner`; it keeps the record, and judges what is late or failed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from elsapg.definition import topology as t
from elsapg.definition.files import schedule_config
from elsapg.errors import UnhealthyError, UsageError
from elsapg.services.deployment import Deployment

_HEALTH = ("python3", "-m", "elsapg.runner.health")


@dataclass(frozen=True)
class Dump:
    """One dump. Sizes in bytes: of the databases, and of what lies in S3."""

    label: str
    finished: str
    source: str
    databases: tuple[str, ...]
    database_bytes: int
    bytes: int


@dataclass(frozen=True)
class Recorded:
    """How a job last ended. `job` is dump, drill or check."""

    job: str
    started: float
    finished: float
    ok: bool
    message: str
    report: dict[str, Any]


@dataclass(frozen=True)
class Trouble:
    """Something wrong, in words. `job` is dump, drill or check, or what else it is about."""

    job: str
    text: str


@dataclass(frozen=True)
class Overview:
    """What was done for recovery, and what of it is wrong."""

    dumps: tuple[Dump, ...]
    ended: tuple[Recorded, ...]
    problems: tuple[Trouble, ...]


def overview(deployment: Deployment) -> Overview:
    """Look at the dumps in S3 and at the record, from the node that leads, or one that is left."""
    try:
        node = deployment.primary()
    except UnhealthyError:
        node = deployment.any_node()
    told = json.dumps(schedule_config(deployment.settings))
    done = deployment.hosts.run(node, *_HEALTH, told, timeout=120)
    try:
        return parse(done.json())
    except ValueError:
        raise UnhealthyError(
            f"{node} does not say how dumps, drills and checks are: "
            f"{' '.join(done.output.split())[:600]}"
        ) from None


def parse(told: dict[str, Any]) -> Overview:
    """The runner's account."""
    ended = [
        Recorded(job, e["started"], e["finished"], e["ok"], e["message"], e["report"] or {})
        for job, e in ((job, runs.get("ended")) for job, runs in sorted(told["runs"].items()))
        if e
    ]
    return Overview(
        dumps=tuple(_dump(raw) for raw in told["dumps"]),
        ended=tuple(ended),
        problems=tuple(Trouble(**p) for p in told["problems"]),
    )


def _dump(raw: dict[str, Any]) -> Dump:
    return Dump(
        label=raw["label"],
        finished=raw["finished"],
        source=f"{raw['source']} ({raw['role']})",
        databases=tuple(raw["databases"]),
        database_bytes=sum(d["database_bytes"] for d in raw["databases"].values()),
        bytes=raw["bytes"],
    )


def dump(deployment: Deployment, *, plain: bool, accept_smaller: bool) -> Dump:
    """Make a dump now. Raises UnhealthyError with what kept it from being made."""
    flags = [
        *(["--plain"] if plain else []),
        *(["--accept-smaller"] if accept_smaller else []),
    ]
    return _dump(_last_line(deployment.runner("dump", *flags, timeout=t.LONG_S)))


def _last_line(output: str) -> dict[str, Any]:
    """The result; lines before it are the runner's log."""
    return dict(json.loads(output.strip().splitlines()[-1]))


def dumps_as_json(found: Overview) -> str:
    return json.dumps([asdict(one) for one in found.dumps], indent=2)


def restore(deployment: Deployment, label: str, database: str, name: str) -> str:
    """Restore one database of a dump as a new database of the stack; what it came to."""
    if label == "latest":
        found = overview(deployment).dumps
        if not found:
            raise UsageError("there is no dump yet: `elsapg dump now` makes one")
        label = found[-1].label
    archive = deployment.settings.archive
    done = deployment.hosts.run(
        deployment.primary(),
        *("python3", "-m", "elsapg.runner.undump", label, database, name),
        *("--prefix", archive.dump_prefix, "--jobs", str(archive.dump_jobs)),
        timeout=t.LONG_S,
    )
    told = done.output.strip()
    if done.code == UsageError.exit_code:
        raise UsageError(told)
    if done.code:
        raise UnhealthyError(told[:800] or f"the restore ended with {done.code}")
    return told.splitlines()[-1]


def run(deployment: Deployment, job: str) -> dict[str, Any]:
    """Run a drill or a check of the repository now; its report. Raises UnhealthyError."""
    return _last_line(deployment.runner(job, timeout=t.LONG_S))
