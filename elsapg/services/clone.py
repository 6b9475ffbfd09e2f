"""A second stack from the first one's backups: its file, and the check that it can be.

On docker `up` does the rest, and on kubernetes where Pulumi deployed the source from here; any
other clone on kubernetes is applied as its source is, and `steps` says how.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from elsapg import stackfile
from elsapg.errors import UnhealthyError, UsageError
from elsapg.runner.target import Target
from elsapg.services.deployment import Deployment
from elsapg.services.places import Places, write_private
from elsapg.services.ports import free_in_a_row
from elsapg.services.restore import Request, Restore
from elsapg.services.secrets import keys_to_copy
from elsapg.settings import ArchiveSettings
from elsapg.targets.kubernetes.images import digests_file
from elsapg.targets.kubernetes.objects import Place

_HEADER = """\
# A clone of stack {source}, as it was at {to}. Its backups go to {prefix}; its jobs are off
# (elsapg:jobs) until they are wanted. `elsapg:recovery` says where its data came from, and is read
# only while it has none.
"""
# As many PgBouncers as a stack may have, and the two direct ports.
_PORTS = 10
# What the source alone may be: its namespace, its values in a store, an issuer in its namespace;
# and the names and addresses by which the world reaches it.
_OWN = (
    "namespace",
    "secret_prefix",
    "cert_manager_issuer",
    "pool_names",
    "pool_service_type",
    "pool_service_annotations",
)


def write(source: Deployment, target: Target, timeline: int | None, name: str) -> Path:
    """Write the clone's stack file. Raises UsageError if it exists, or the target cannot be had."""
    path = stackfile.stack_file(source.root, name)
    if path.exists():
        on = "up" if by_up(source) else "secrets apply"
        raise UsageError(
            f"stack {name!r} is there already ({path}): choose another name, or finish an "
            f"interrupted clone with `elsapg {on} --stack {name}`"
        )
    _refuse_places_of(source.settings.archive, name)
    if source.pods is not None:
        _refuse_used_places(source, name)
    plan = Restore(source).plan(Request(target, timeline), None)
    document = _document(source, name, target, int(plan["timeline"]))
    header = _HEADER.format(source=source.stack, to=target, prefix=f"/{name}")
    _copy_digests(source, name)
    write_private(path, header + yaml.safe_dump(document, sort_keys=False), mode=0o644)
    # Everything that a user's edit could have broken is told now.
    stackfile.read(source.root, name)
    return path


def by_up(source: Deployment) -> bool:
    """Whether `elsapg up` makes a clone of it."""
    if source.pods is None:
        return True
    here = Places(source.root).workspace(source.stack).exists()
    return here and source.settings.kubernetes.secrets == "pulumi"


def steps(root: Path, stack: str) -> str:
    """What is left to do for a stack on kubernetes that is made of another one, once it has its
    Secrets, and how it ends; empty for any other stack."""
    place = Place(stack, stackfile.read(root, stack), {})
    recovery, context = place.settings.recovery, place.settings.kubernetes.context
    if recovery is None or recovery.source is None:
        return ""
    kubectl = f"kubectl --context {context}" if context else "kubectl"
    apply = (
        f"  elsapg render --stack {stack} --out DIR",
        f"  {kubectl} apply --server-side -f DIR      # or whatever applies it",
    )
    return "\n".join(
        (
            f"stack {stack!r} comes out of the backups of {recovery.source!r} when it is applied:",
            *_beforehand(root, place, recovery.source),
            *apply,
            f"  elsapg verify --stack {stack}",
            f"once it has its data, take elsapg:recovery out of stacks/Pulumi.{stack}.yaml:",
            f"  elsapg secrets apply --stack {stack}      # removes Secret source",
            *apply,
        )
    )


def _beforehand(root: Path, place: Place, source: str) -> list[str]:
    """What no command of ours does, and what the source lacked."""
    k, lines = place.settings.kubernetes, []
    if k.secrets == "external":
        lines += [
            f"  in the store, copy {theirs} to {own}: its rows are not read without"
            for theirs, own in keys_to_copy(place, stackfile.read(root, source))
        ]
        lines.append("  in the store, give it all other values of its own (docs/kubernetes.md)")
    if place.settings.archive.credentials == "web-id":
        lines.append(f"  let ServiceAccounts pg and runner of {place.namespace} into the bucket")
    if k.pull_secrets:
        lines.append(f"  in {place.namespace}, make Secret {', '.join(k.pull_secrets)}")
    if not digests_file(root, place.stack).exists():
        lines.append(f"  elsapg images push --stack {place.stack}")
    return lines


def _refuse_places_of(archive: ArchiveSettings, name: str) -> None:
    """Raise UsageError where a clone of this name would write into its source's archive."""
    second = (archive.second.prefix,) if archive.second else ()
    for theirs in (archive.prefix, archive.dump_prefix, *second):
        for own in (f"/{name}", f"/{name}-daily"):
            if f"{theirs}/".startswith(f"{own}/"):
                raise UsageError(
                    f"--as {name}: its backups would go to {own} in the bucket, and its source has "
                    f"{theirs}: choose another name"
                )


def _refuse_used_places(source: Deployment, name: str) -> None:
    """Raise UsageError where the source's bucket has something of this name: on kubernetes it is
    the clone's bucket as well, and an earlier clone's key opens what is there."""
    places = [(1, f"/{name}"), (1, f"/{name}-daily")]
    if source.settings.archive.second is not None:
        places.append((2, f"/{name}"))
    node = source.any_node()
    for number, place in places:
        done = source.hosts.run(
            node, "pgbackrest", f"--repo={number}", f"--repo{number}-path={place}",
            "--output=json", "--log-level-console=off", "repo-ls",
        )  # fmt: skip
        try:
            found = done.json()
        except ValueError:
            told = " ".join(done.output.split())[:300]
            raise UnhealthyError(f"pgBackRest on {node} cannot list {place}: {told}") from None
        if found.keys() - {"."}:
            raise UsageError(
                f"--as {name}: {place} in the bucket holds something, as an earlier clone of this "
                "name leaves it: choose another name, or remove that"
            )


def _copy_digests(source: Deployment, name: str) -> None:
    """The images of one registry are the same for every stack."""
    theirs, own = (digests_file(source.root, stack) for stack in (source.stack, name))
    if source.pods is None or own.exists() or not theirs.exists():
        return
    lines = theirs.read_text(encoding="utf-8").splitlines(keepends=True)
    header = f"# Which images stack {name!r} runs: those of {source.stack!r}, as it was cloned.\n"
    text = header + "".join(line for line in lines if not line.startswith("#"))
    write_private(own, text, mode=0o644)


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
    if source.pods is not None:
        theirs = config.get("elsapg:kubernetes", {})
        config["elsapg:kubernetes"] = {k: v for k, v in theirs.items() if k not in _OWN}
        return document
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
