"""render, secrets apply, images push: what a stack on kubernetes needs beside `up`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from elsapg.cli.options import Stack

Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write into.")]
Revision = Annotated[
    str,
    typer.Option(
        "--revision",
        metavar="TEXT",
        help="Another one, say today's date, rebuilds with the newest packages.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this group's commands to `app`."""
    app.command()(render)
    secrets = typer.Typer(no_args_is_help=True, help="The Secrets of a stack on kubernetes.")
    secrets.command("apply")(secrets_apply)
    secrets.callback()(_group)
    app.add_typer(secrets, name="secrets")
    images = typer.Typer(no_args_is_help=True, help="The images of a stack on kubernetes.")
    images.command("push")(images_push)
    images.callback()(_group)
    app.add_typer(images, name="images")


def _group() -> None:
    # With a callback a group of one command stays a group.
    """Commands of this group."""


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


def secrets_apply(
    stack: Stack,
    new_s3_keys: Annotated[
        bool, typer.Option("--new-s3-keys", help="Replace S3's keys, which have ended or will.")
    ] = False,
) -> None:
    """Make the Secrets that a stack lacks, straight in its cluster; renew certificates.

    Needs kubectl, and the right to create Secrets in the namespace. S3's keys are taken from
    ELSAPG_S3_ACCESS_KEY and ELSAPG_S3_SECRET_KEY (or the files that ELSAPG_S3_ACCESS_KEY_FILE and
    ELSAPG_S3_SECRET_KEY_FILE name), or asked for. Nothing that is there is overwritten, but by
    --new-s3-keys. For a stack that is made of another one (elsapg:recovery) it also makes what
    opens that one's backups.

    Example, also nightly, for the certificates:

        elsapg secrets apply -s production
    """
    from elsapg.services import clone  # noqa: PLC0415
    from elsapg.services import secrets as service  # noqa: PLC0415
    from elsapg.services.places import find_root  # noqa: PLC0415

    root = find_root()
    done = vars(service.apply(root, stack, _ask(), new_s3_keys=new_s3_keys))
    for verb, names in done.items():
        for name in names:
            print(f"{verb:<8} {name}")
    if not any(done.values()):
        print("no Secret is this command's to make: the stack's file says who makes them")
    if left := clone.steps(root, stack):
        print(f"\n{left}")


def _ask() -> Callable[[str], str] | None:
    if not sys.stdin.isatty():
        return None
    return lambda name: str(typer.prompt(name, hide_input=True, default="", show_default=False))


def images_push(stack: Stack, revision: Revision = "") -> None:
    """Build the images, push them to `kubernetes.registry`, and write down their digests.

    Writes stacks/images.<stack>.yaml, which belongs into Git. Needs Docker here, and a login to
    the registry if it wants one.

    Example:

        elsapg images push -s staging
    """
    from elsapg.services import images as service  # noqa: PLC0415
    from elsapg.services.places import find_root  # noqa: PLC0415

    path = service.push(find_root(), stack, revision, print)
    print(f"written  {path}")
