"""Builds the images of a stack on kubernetes, pushes them, and writes down their digests.

The same Dockerfile and contexts as for docker. The registry's own digest is what counts: it names
the content that every machine will run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker

from elsapg import stackfile
from elsapg.errors import DeploymentError, UsageError
from elsapg.services.places import write_private
from elsapg.settings import Settings
from elsapg.targets.docker import daemon as d
from elsapg.targets.docker.place import CONTEXTS
from elsapg.targets.docker.resources import context_digest, ensure_image
from elsapg.targets.kubernetes.images import IMAGES, digests_file, repository

_HEADER = """\
# Which images stack {stack!r} runs, in {registry}.
# Written by `elsapg images push --stack {stack}`; commit it: a rollback is a `git revert`.
"""


def push(root: Path, stack: str, revision: str, say: Callable[[str], None]) -> Path:
    """Build and push every image, and write their digests; returns that file."""
    settings = stackfile.read(root, stack)
    if settings.target != "kubernetes":
        raise UsageError(
            f"stack {stack!r} is for {settings.target} (elsapg:target), which takes its images "
            "from this machine: there is nothing to push"
        )
    digests = {}
    with d.daemon(timeout=3600) as client:
        for image in IMAGES:
            context = context_digest(("images/Dockerfile", *CONTEXTS[image]))
            tag = f"{context}-{revision}" if revision else context
            say(f"building {image}")
            built = ensure_image(client, image, tag, d.BASE_IMAGE, revision)
            name = repository(settings, image)
            built.tag(name, tag)
            say(f"pushing  {name}:{tag}")
            digests[image] = _push(client, name, tag, settings)
    path = digests_file(root, stack)
    header = _HEADER.format(stack=stack, registry=settings.kubernetes.registry)
    lines = "".join(f"{image}: {digests[image]}\n" for image in IMAGES)
    try:
        write_private(path, header + lines, mode=0o644)
    except OSError as error:
        raise DeploymentError(f"cannot write {path}: {error.strerror}") from None
    return path


def _push(client: docker.DockerClient, name: str, tag: str, settings: Settings) -> str:
    """Push one image; returns the digest that the registry gave it."""
    digest = ""
    events: Any = client.images.push(name, tag=tag, stream=True, decode=True)
    for event in events:
        if "error" in event:
            raise DeploymentError(
                f"{name}:{tag} cannot be pushed ({' '.join(str(event['error']).split())[:300]}): "
                f"log in with `docker login {str(settings.kubernetes.registry).partition('/')[0]}`,"
                " or put kubernetes.registry right"
            )
        aux = event.get("aux") or {}
        digest = aux.get("Digest", digest) if isinstance(aux, dict) else digest
    if not digest:
        raise DeploymentError(f"the registry gave no digest for {name}:{tag}; push again")
    return digest
