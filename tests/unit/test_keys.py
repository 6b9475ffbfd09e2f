"""The ring as it is handed out, and what `keys rotate` says."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from elsapg import stackfile
from elsapg.cli import main
from elsapg.definition.secrets import PASSWORD_ROLES
from elsapg.errors import NotDeployedError, UnhealthyError, UsageError
from elsapg.services import keys
from elsapg.services.keys import Ring, Rotated

KEYS = {"k1": "A" * 43 + "=", "k2": "B" * 43 + "="}
RING = Ring("k2", KEYS)


def deployed(tmp_path: Path, **outputs: Any) -> Any:
    return SimpleNamespace(
        root=tmp_path,
        stack="test",
        settings=stackfile.load({}, "test"),
        outputs={
            "passwords": {role: f"password of {role}" for role in PASSWORD_ROLES},
            "ca": "CA",
            "pools": [{"host": "127.0.0.1", "port": 6432.0}],
            **outputs,
        },
    )


def test_the_ring_is_what_the_database_takes(tmp_path: Path) -> None:
    found = keys.ring(deployed(tmp_path, encryption_keys={"current": "k2", "keys": KEYS}))
    assert found == RING
    assert json.loads(found.as_json()) == {"current": "k2", "keys": KEYS}
    assert "\n" not in found.as_json()


def test_a_stack_from_before_there_were_keys(tmp_path: Path) -> None:
    with pytest.raises(NotDeployedError, match="`elsapg up --stack test` makes them"):
        keys.ring(deployed(tmp_path))


class Session:
    """A connection that remembers what it was told, and answers or fails."""

    def __init__(self, answer: tuple[int, int] | Exception) -> None:
        self.answer = answer
        self.told: list[tuple[str, Any]] = []

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def execute(self, statement: str, parameters: Any = None) -> Any:
        self.told.append((statement, parameters))
        if isinstance(self.answer, Exception) and statement.startswith("CALL"):
            raise self.answer
        return SimpleNamespace(fetchone=lambda: self.answer)


@pytest.fixture
def stack(tmp_path: Path) -> Any:
    return deployed(tmp_path, encryption_keys={"current": "k2", "keys": KEYS})


def answer(monkeypatch: pytest.MonkeyPatch, session: Session) -> list[Any]:
    opened: list[Any] = []
    monkeypatch.setattr(keys, "_open", lambda where: opened.append(where) or session)
    return opened


def test_the_ring_is_a_bound_parameter_of_a_session(
    stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session((7, 0))
    opened = answer(monkeypatch, session)
    assert keys.rotate(stack, "s.t", "c", "elsa_runtime") == Rotated(7, 0)
    assert [(w.role, w.database) for w in opened] == [("elsa_host", "elsa_runtime_session")]
    # A pool's role has a timeout that one long call would run into.
    assert session.told[0] == ("SET statement_timeout = 0", None)
    statement, parameters = session.told[1]
    assert parameters == ("s.t", "c", RING.as_json())
    assert not any(key in statement for key in KEYS.values())


def test_a_broken_connection_says_to_run_it_again(
    stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, Session(psycopg.OperationalError("server closed\nthe connection")))
    with pytest.raises(UnhealthyError, match=r"s\.t\.c broke off, run it again: server closed the"):
        keys.rotate(stack, "s.t", "c", "elsa_workflows")


def test_an_unknown_database_is_refused(stack: Any) -> None:
    with pytest.raises(UsageError, match="there are elsa_workflows, elsa_runtime"):
        keys.rotate(stack, "s.t", "c", "postgres")


# -- the commands --------------------------------------------------------------------------


def test_show_prints_the_ring_and_nothing_else(
    stack: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("elsapg.cli.keys.deployment", lambda _: stack)
    assert main(["keys", "show"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"current": "k2", "keys": KEYS}
    assert captured.err == ""


@pytest.mark.parametrize(
    ("found", "code", "says"),
    [((7, 0), 0, "7 rows rewritten, encrypted with 'k2' now"), ((5, 2), 7, "2 rows hold values")],
)
def test_rotate_says_what_it_did(
    stack: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: tuple[int, int],
    code: int,
    says: str,
) -> None:
    monkeypatch.setattr("elsapg.cli.keys.deployment", lambda _: stack)
    answer(monkeypatch, Session(found))
    assert main(["keys", "rotate", "s.t", "c"]) == code
    captured = capsys.readouterr()
    assert says in captured.out
    assert not any(key in captured.out + captured.err for key in KEYS.values())


@pytest.mark.parametrize("words", [["show"], ["rotate", "s.t", "c"]])
def test_without_a_stack_the_commands_say_so(
    words: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", *words, "--stack", "missing"]) == 2
    assert "no stack 'missing'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["show", "rotate"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", command, "--help"]) == 0
    assert f"elsapg keys {command}" in capsys.readouterr().out
