"""render, secrets apply, images push: what a stack on kubernetes needs beside `up`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elsapg.cli.options import Stack

Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write into.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands to `app`."""
    app.command()(render)


def render(stack: Stack, out: Out) -> None:
    """Write the Kubernetes manifests of a stack, one file per object. Needs no cluster.

    Secrets are not among them: what must be there is listed. Applied by `kubectl apply
    --server-side -f DIR`, Argo CD or Flux: docs/gitops.md.

    Example:

        elsapg render -s production --out gitops/production
    """
    from elsapg.services import render as service  # noqa: PLC0415
    from elsapg.services.places import find_root  # noqa: PLC0415

    done = service.write(find_root(), stack, out)
    for file in done.changed:
        print(f"written  {out / file}")
    for file in done.removed:
        print(f"removed  {out / file}")
    if not done.changed and not done.removed:
        print(f"{out} is as it should be")
    if done.missing:
        print("\nSecrets that are not rendered, and must be in the namespace:")
        for name, kind in done.missing.items():
            print(f"  {name:<22} {kind}")
        print(f"`elsapg secrets apply --stack {stack}` makes those that are missing there.")
