"""A stack that comes out of a repository: its own after everything else is lost (`up
--from-backup`), or another stack's (`clone`).

`up` runs with the order to recover, and once more without it, so that nothing of it stays in the
stack. A note beside the stack's workspace says that it is under way, until it has ended: the same
command goes on with it, and a plain `up` does not make an empty database meanwhile.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elsapg import stackfile
from elsapg.definition import topology as t
from elsapg.definition.secrets import Recovery, Source
from elsapg.errors import NotDeployedError, UnhealthyError, UsageError
from elsapg.runner import target as targets
from elsapg.services import workspace
from elsapg.services.deployment import Deployment
from elsapg.services.lifecycle import Lifecycle, our_program
from elsapg.services.places import Places, write_private
from elsapg.services.restore import catch_up
from elsapg.services.source import open_source
from elsapg.settings import Settings
from elsapg.targets.docker.daemon import physical_name
from elsapg.targets.kubernetes.secret_objects import ENCRYPTION_KEYS, REPOSITORY

Say = Callable[[str], None]
SECRETS = ("s3_access_key", "s3_secret_key", "repository_cipher")
# Where those, and the keys of encrypted JSON, are on kubernetes.
KEPT = (REPOSITORY, ENCRYPTION_KEYS)


@dataclass(frozen=True)
class Order:
    """What a stack is to be recovered to; `source`: the stack whose backups it comes from."""

    to: str = targets.LATEST
    timeline: int | None = None
    backup: str | None = None
    source: str | None = None


# -- what is kept outside ----------------------------------------------------------------------


def escrow(deployment: Deployment) -> str:
    """What must be kept outside, as JSON: with it and S3 the stack comes back. All of it secret."""
    if deployment.pods is not None:
        line = deployment.pods.kubectl.line("get", "secret", *KEPT, "-o", "yaml")
        raise UsageError(
            f"stack {deployment.stack!r} is on kubernetes: what must be kept outside are its "
            f"Secrets {' and '.join(KEPT)} (`{line}`), or what your secret store has for them"
        )
    found = deployment.outputs
    if "repository" not in found:
        raise NotDeployedError(
            f"stack {deployment.stack!r} was deployed before it told its keys: "
            f"`elsapg up --stack {deployment.stack}` first"
        )
    archive = deployment.settings.archive
    return json.dumps(
        {
            "stack": deployment.stack,
            "bucket": archive.bucket,
            "prefix": archive.prefix,
            **{name: found["repository"][name] for name in SECRETS},
            "encryption_keys": dict(found["encryption_keys"]["keys"]),
        },
        indent=2,
    )


def read_escrow(file: str, stack: str) -> dict[str, Any]:
    """What `elsapg keys repository` printed, from a file or "-". Raises UsageError."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        found = json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--keys {file}: {error}") from None
    except ValueError:
        found = None
    whole = isinstance(found, dict) and all(
        isinstance(found.get(name), str) and found[name] for name in SECRETS
    )
    if not whole:
        raise UsageError(
            f"--keys {file}: not what `elsapg keys repository` printed: JSON with "
            f"{', '.join(SECRETS)}"
        )
    if found.get("stack") not in (None, stack):
        raise UsageError(
            f"--keys {file}: these are the keys of stack {found['stack']!r}, not of {stack!r}"
        )
    return dict(found)


# -- the note ------------------------------------------------------------------------------------


def pending(root: Path, stack: str) -> Order | None:
    """The recovery that was begun and has not ended."""
    try:
        return Order(**json.loads(Places(root).recovery(stack).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def of_file(root: Path, stack: str, settings: Settings) -> Order | None:
    """What the stack's file wants, of a stack that is not there yet.

    On kubernetes the nodes read that by themselves, whoever applies them; but where Pulumi holds
    the secrets, those of another stack come into its state by `up`.
    """
    recovery = settings.recovery
    if recovery is None or _known(root, stack):
        return None
    by_pulumi = recovery.source is not None and settings.kubernetes.secrets == "pulumi"
    if settings.target == "kubernetes" and not by_pulumi:
        return None
    return Order(to=recovery.to, timeline=recovery.timeline, source=recovery.source)


# -- doing ---------------------------------------------------------------------------------------


def recover(
    lifecycle: Lifecycle, order: Order, keys: Mapping[str, Any] | None, *, yes: bool, say: Say
) -> dict[str, Any]:
    """Bring the stack up with the data of a repository. Returns where it came to.

    Raises UsageError if it has data, or nothing opens the repository.
    """
    root, stack = lifecycle.root, lifecycle.stack
    begun = pending(root, stack)
    known = _known(root, stack)
    if begun is None:
        _refuse_data(root, stack, order)
    if begun is not None and begun != order:
        if _has_nodes(root, stack):
            raise UsageError(
                f"stack {stack!r} is on its way to {begun.to}: run that again to its end; from "
                "there `elsapg restore` goes to another moment"
            )
        # Refused before anything was made of it.
        begun = None
    if not known and keys is None and order.source is None:
        raise UsageError(
            f"nothing here knows the keys of stack {stack!r}: add --keys FILE with what `elsapg "
            "keys repository` printed when all was well"
        )
    source = None
    if order.source is not None:
        say(f"reading the backups of stack {order.source!r}")
        source, theirs = _source(root, stack, order.source)
        keys = keys or theirs
    recovery = Recovery(order.to, order.timeline, order.backup, source, order.source)
    if order.source is None and keys is not None:
        # They win over those that an attempt with the wrong ones has left in the state.
        lifecycle.unprotect()
    note = Places(root).recovery(stack)
    if begun is None:
        write_private(note, json.dumps(asdict(order)))
    lifecycle.program = functools.partial(_program, recovery=recovery, keys=keys)
    # What is lost is what the state still believes in.
    lifecycle.up(yes=yes, refresh=True)
    # The order, and whatever opens another stack's repository, goes out of it again.
    lifecycle.program = our_program
    lifecycle.up(yes=True)
    deployment = Deployment(root, stack)
    # Clocks of one machine; on kubernetes the nodes have their own.
    found = _recovered(deployment, 0 if deployment.pods else int(note.stat().st_mtime))
    if found is None:
        note.unlink()
        raise UnhealthyError(
            f"stack {stack!r} runs with the data that it had, and nothing was recovered: "
            f"--from-backup is for a stack whose data is lost; `elsapg restore --stack {stack}` "
            "goes back in place"
        )
    catch_up(deployment, deployment.primary())
    note.unlink(missing_ok=True)
    return found


def _has_nodes(root: Path, stack: str) -> bool:
    deployment = Deployment(root, stack)
    try:
        return any(node in deployment.hosts.states() for node in deployment.nodes)
    except NotDeployedError:
        return False


def _program(
    stack: str,
    settings: Settings,
    root: Path,
    *,
    recovery: Recovery,
    keys: Mapping[str, Any] | None,
) -> None:
    from elsapg.program import Escrow, Rescue, program  # noqa: PLC0415

    kept = Escrow(**{k: v for k, v in keys.items() if k in _ESCROWED}) if keys else None
    program(stack, settings, root, Rescue(recovery, kept))


_ESCROWED = (*SECRETS, "encryption_keys")


def _known(root: Path, stack: str) -> bool:
    """Whether a state has this stack's secrets."""
    try:
        return bool(workspace.outputs(stack, root))
    except NotDeployedError:
        return False


def _refuse_data(root: Path, stack: str, order: Order) -> None:
    deployment = Deployment(root, stack)
    if deployment.pods is not None:
        if order.source is not None:
            # A node that has data reads no order.
            return
        raise UsageError(
            f"--from-backup is for docker, and stack {stack!r} is on kubernetes: put its Secrets "
            f"{' and '.join(KEPT)} back, write `elsapg:recovery: {{to: latest}}` into its file, "
            "and apply it (docs/recovery.md)"
        )
    for node, state in deployment.hosts.states().items():
        if node in deployment.nodes and state.state == "running":
            raise UsageError(
                f"{node} of stack {stack!r} runs: to go back in place use `elsapg restore`; "
                "--from-backup is for a stack whose data is lost"
            )


def _source(root: Path, clone: str, stack: str) -> tuple[Source, dict[str, Any]]:
    """How a clone reads another stack's repository; and of the source's secrets those that are the
    clone's as well. Raises NotDeployedError, UsageError.
    """
    deployment, settings = Deployment(root, stack), stackfile.read(root, clone)
    if settings.target == "kubernetes":
        opened = open_source(root, clone, stack)
        return opened.source, {"encryption_keys": opened.keys, **opened.s3_keys(settings)}
    found, archive = deployment.outputs, deployment.settings.archive
    if "repository" not in found:
        raise NotDeployedError(
            f"stack {stack!r} was deployed before it could be cloned: "
            f"`elsapg up --stack {stack}` first"
        )
    keys = found["repository"]
    source = Source(
        host=physical_name(stack, t.S3_HOST),
        port=t.S3_PORT,
        uri_style="path",
        bucket=archive.bucket,
        region=archive.region,
        prefix=archive.prefix,
        access_key=keys["s3_access_key"],
        secret_key=keys["s3_secret_key"],
        cipher=keys["repository_cipher"],
        ca=found["ca"],
    )
    # Without those keys its rows could not be read.
    return source, {"encryption_keys": dict(found["encryption_keys"]["keys"])}


def _recovered(deployment: Deployment, since: int) -> dict[str, Any] | None:
    """Where the first node came out, as it noted `since` then (seconds); None if none has."""
    script = "cd /var/lib/postgresql; stat -c %Y $0 2>/dev/null && cat $0 || true"
    for node in deployment.nodes:
        done = deployment.hosts.run(node, "sh", "-c", script, "elsapg-recovered.json")
        written, _, text = done.output.partition("\n")
        if text.strip() and int(written) >= since:
            return dict(json.loads(text))
    return None
