"""keys show, keys rotate: the keys that encrypt JSON values."""

from __future__ import annotations

from typing import Annotated

import typer

from elsapg.cli.options import DEFAULT_STACK, Stack, deployment

Database = Annotated[str, typer.Option("--database", "-D", help="elsa_workflows or elsa_runtime.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands to `app`."""
    keys = typer.Typer(help="Show and rotate the encryption keys.", no_args_is_help=True)
    keys.command()(show)
    keys.command()(rotate)
    keys.command()(repository)
    app.add_typer(keys, name="keys")


def show(stack: Stack = DEFAULT_STACK) -> None:
    """Print the ring of keys: for a pipe into a secret store, not for a screen share.

    Example:

        elsapg keys show -s prod | vault kv put secret/elsa ring=-
    """
    from elsapg.services import keys  # noqa: PLC0415

    print(keys.ring(deployment(stack)).as_json())


def rotate(
    table: Annotated[str, typer.Argument(help="Such as elsa_workflows.workflow_instances.")],
    column: Annotated[str, typer.Argument(help="A jsonb column of it.")],
    stack: Stack = DEFAULT_STACK,
    database: Database = "elsa_workflows",
) -> None:
    """Bring a column's encrypted values, of all tenants, to the current key.

    First add a key to encryption.key_ids in the stack's file (the last one is current), run
    `elsapg up`, and give every application the new ring: docs/encryption.md. May be stopped and
    run again. Exit 7 if some values open with no key of the ring.

    Example:

        elsapg keys rotate elsa_workflows.workflow_instances workflow_state
    """
    from elsapg.services import keys  # noqa: PLC0415

    target = deployment(stack)
    done = keys.rotate(target, table, column, database)
    current = keys.ring(target).current
    print(f"{table}.{column}: {done.rewritten} rows rewritten, encrypted with {current!r} now")
    if done.unreadable:
        print(
            f"{done.unreadable} rows hold values that no key of the ring opens, or data that looks "
            "like such: they are unchanged; keep every older key until you know"
        )
        raise typer.Exit(7)


def repository(stack: Stack = DEFAULT_STACK) -> None:
    """Print what brings the stack back when all but S3 is lost: to be kept away from this machine.

    Example:

        elsapg keys repository -s prod | vault kv put secret/elsa-archive keys=-
    """
    from elsapg.services import rescue  # noqa: PLC0415

    print(rescue.escrow(deployment(stack)))
