"""A second stack from the first one's backups: its file, and the check that it can be."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from elsapg import stackfile
from elsapg.errors import UsageError
from elsapg.runner.target import Target
from elsapg.services.deployment import Deployment
from elsapg.services.places import write_private
from elsapg.services.ports import free_in_a_row
from elsapg.services.restore import Request, Restore

_HEADER = """\
# A clone of stack {source}, as it was at {to}. Its backups go to {prefix}; its jobs are off
# (elsapg:jobs) until they are wanted. `elsapg:recovery` says where its data came from, and is read
# only while it has none.
"""
# As many PgBouncers as a stack may have, and the two direct ports.
_PORTS = 10


def write(source: Deployment, target: Target, timeline: int | None, name: str) -> Path:
    """Write the clone's stack file. Raises UsageError if it exists, or the target cannot be had."""
    source.refuse_pods("a clone")
    path = stackfile.stack_file(source.root, name)
    if path.exists():
        raise UsageError(
            f"stack {name!r} is there already ({path}): choose another name, or finish an "
            f"interrupted clone with `elsapg up --stack {name}`"
        )
    plan = Restore(source).plan(Request(target, timeline), None)
    document = _document(source, name, target, int(plan["timeline"]))
    header = _HEADER.format(source=source.stack, to=target, prefix=f"/{name}")
    write_private(path, header + yaml.safe_dump(document, sort_keys=False), mode=0o644)
    # Everything that a user's edit could have broken is told now.
    stackfile.read(source.root, name)
    return path


def _document(source: Deployment, name: str, target: Target, timeline: int) -> dict[str, Any]:
    text = stackfile.stack_file(source.root, source.stack).read_text(encoding="utf-8")
    document = copy.deepcopy(yaml.safe_load(text) or {})
    # How the source's state is encrypted is the source's affair.
    document = {"config": dict(document.get("config") or {})}
    config: dict[str, Any] = document["config"]
    config["elsapg:archive"] = _own_archive(config.get("elsapg:archive") or {}, name)
    config["elsapg:jobs"] = {**config.get("elsapg:jobs", {}), "active": False}
    config["elsapg:recovery"] = {
        "source": source.stack,
        "to": str(target),
        "timeline": timeline,
    }
    docker = {**config.get("elsapg:docker", {})}
    first = free_in_a_row(_PORTS, source.settings.docker.pool_port + _PORTS)
    docker["pool_port"] = first
    if source.settings.docker.direct_port is not None:
        docker["direct_port"] = first + _PORTS - 2
    config["elsapg:docker"] = docker
    return document


def _own_archive(archive: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The source's settings, with places of the clone's own for all that is written."""
    own = {**archive, "prefix": f"/{name}", "dump_prefix": f"/{name}-daily"}
    if archive.get("second"):
        own["second"] = {**archive["second"], "prefix": f"/{name}"}
    return own
