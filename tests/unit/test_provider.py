"""Stacks whose database is elsewhere: nothing is deployed, nothing is taken away, all is said."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from elsapg.cli import main
from elsapg.errors import UsageError
from elsapg.services.deployment import Deployment
from elsapg.services.lifecycle import Lifecycle
from elsapg.services.places import Places

DATABASES = {
    "sqlite": "{provider: sqlite, file: elsa.db}",
    "sqlserver": "{provider: sqlserver, host: sql.example, user: elsa}",
}


@pytest.fixture(params=DATABASES)
def provider(request: pytest.FixtureRequest, project: Path) -> str:
    """The stack `local` set to another database; no Pulumi and no Docker is in sight."""
    text = f"config:\n  elsapg:database: {DATABASES[request.param]}\n"
    (project / "stacks" / "Pulumi.local.yaml").write_text(text)
    return str(request.param)


def lifecycle(root: Path) -> tuple[Lifecycle, io.StringIO]:
    output = io.StringIO()

    def never(*_: object) -> None:
        raise AssertionError("the program ran")

    return Lifecycle(root, "local", Console(file=output, width=400), never), output


@pytest.mark.parametrize(
    ("operation", "verb"),
    [("up", "deploy"), ("preview", "preview"), ("refresh", "refresh"), ("destroy", "remove")],
)
def test_there_is_nothing_to_do_and_no_engine_is_needed(
    project: Path, provider: str, operation: str, verb: str
) -> None:
    life, output = lifecycle(project)
    # Nor a terminal to ask on: nothing changes.
    getattr(life, operation)(**({"yes": True} if operation == "destroy" else {}))
    assert f"uses {provider}" in output.getvalue()
    assert f"nothing to {verb}" in output.getvalue()
    assert "elsapg appsettings --stack local" in output.getvalue()
    assert not Places(project).workspace("local").exists()


def deployed(monkeypatch: pytest.MonkeyPatch, root: Path, resources: list[dict[str, Any]]) -> None:
    """The stack has this state."""

    @contextlib.contextmanager
    def session(*_: object) -> Iterator[Any]:
        yield SimpleNamespace(
            known=lambda: True, open=lambda: None, resources=lambda _stack: resources
        )

    Places(root).workspace("local").mkdir(parents=True)
    monkeypatch.setattr(Lifecycle, "_session", session)


@pytest.mark.parametrize("protect", [True, False])
@pytest.mark.parametrize("operation", ["up", "preview", "refresh"])
def test_a_changed_line_does_not_take_a_postgresql_away(
    project: Path, provider: str, monkeypatch: pytest.MonkeyPatch, operation: str, protect: bool
) -> None:
    volume = {"type": "elsapg:docker:Volume", "inputs": {"data": True}, "protect": protect}
    container = {"type": "elsapg:docker:Container", "inputs": {}}
    deployed(monkeypatch, project, [volume, container, container])
    life, _ = lifecycle(project)
    with pytest.raises(UsageError) as caught:
        getattr(life, operation)()
    for said in (
        f"set to {provider}",
        "3 resources",
        "1 of which hold data",
        "nothing was changed",
        "provider postgresql",
        "elsapg destroy --stack local --purge",
    ):
        assert said in str(caught.value)


def test_once_it_is_gone_the_stack_may_switch(
    project: Path, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed(monkeypatch, project, [])
    life, output = lifecycle(project)
    life.up()
    assert f"uses {provider}" in output.getvalue()


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "--json"],
        ["switchover"],
        ["backup", "now"],
        ["backup", "list"],
        ["uri", "elsa_app"],
        ["psql", "elsa_app"],
        ["verify"],
    ],
    ids=" ".join,
)
def test_commands_on_a_running_database_say_that_there_is_none(
    project: Path, provider: str, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(words) == UsageError.exit_code
    output = capsys.readouterr()
    assert output.out == ""
    assert f"stack 'local' uses {provider} (elsapg:database)" in output.err
    assert "elsapg appsettings --stack local" in output.err
    with pytest.raises(UsageError):
        Deployment(project, "local")


def test_appsettings_need_nothing_deployed(
    provider: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ELSAPG_DATABASE_PASSWORD", "from outside")
    assert main(["appsettings", "--environment", "development"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["DatabaseProvider"].lower() == provider
    assert "DefaultConnection" in document["ConnectionStrings"]


@pytest.mark.usefixtures("project")
def test_an_unknown_environment_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["appsettings", "--environment", "staging"]) == UsageError.exit_code
    assert "one of production, development" in capsys.readouterr().err
