"""How a first node comes to its data: whose backups, and what it never does without them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from elsapg.errors import DeploymentError
from elsapg.runner import found, kube
from elsapg.runner.pgbackrest import Repository

CLONE = {"to": "latest", "timeline": 1, "backup": None, "source": "first"}


@pytest.fixture(autouse=True)
def in_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "namespace").write_text("elsapg-second", encoding="utf-8")
    monkeypatch.setattr(kube, "ACCOUNT", tmp_path)


def test_its_own_backups_need_no_other_way_in(tmp_path: Path) -> None:
    """Not even where another one lies about."""
    (tmp_path / "source.conf").touch()
    own = {"to": "latest", "timeline": None, "backup": None}
    assert found.source(own, tmp_path / "source.conf") == Repository()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, path in (
        ("DATA", "data"), ("WORK", "work"), ("BEGUN", "begun"), ("NOTE", "note")
    ):  # fmt: skip
        monkeypatch.setattr(found, name, tmp_path / path)
    monkeypatch.setattr(found.recovery, "WAL", tmp_path / "wal")
    return tmp_path


@pytest.fixture
def withdrawn(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    calls: list[bool] = []
    monkeypatch.setattr(found, "_withdraw", lambda: calls.append(True))
    return calls


def test_what_a_killed_attempt_has_left_is_no_database(
    node: Path, withdrawn: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patroni must not open it, nor wait for whoever makes the cluster: that was this node."""

    def killed(_repository: Any, _plan: Any, data: Path, *_: Any) -> None:
        (data / "global").mkdir()
        raise KeyboardInterrupt

    _order(monkeypatch)
    monkeypatch.setattr(found.recovery, "fetch", killed)
    with pytest.raises(KeyboardInterrupt):
        found.main([])
    (node / "wal" / "archive_status").mkdir(parents=True)
    assert found.main(["again"]) == 0
    assert withdrawn == [True]
    # As a standby, which this node may become now, wants it.
    assert not (node / "data").exists() and not (node / "wal").exists()
    assert found.main(["again"]) == 0
    assert withdrawn == [True]


def test_what_was_there_before_an_attempt_stays(
    node: Path, withdrawn: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a lost database the WAL may be left, with commits that nobody else has."""

    def away(_repository: Repository) -> Any:
        raise DeploymentError("S3 does not answer")

    _order(monkeypatch)
    monkeypatch.setattr(found, "patient_info", away)
    (node / "wal").mkdir()
    assert found.main([]) == 1
    assert found.main(["again"]) == 0
    assert withdrawn and (node / "wal").exists()


def test_other_data_is_left_alone(node: Path, withdrawn: list[bool]) -> None:
    (node / "data").mkdir()
    assert found.main(["again"]) == 0
    assert not withdrawn and (node / "data").exists()


def _order(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"to": "latest", "timeline": None, "backup": None}
    monkeypatch.setattr(found, "order", lambda: own)
    monkeypatch.setattr(found, "patient_info", lambda _: {})
    monkeypatch.setattr(found, "plan", lambda *_: SimpleNamespace(value="", backup="B"))


@pytest.mark.parametrize(
    ("initialize", "other", "taken_back"),
    [
        ("", "waiting", True),
        ("", "running custom bootstrap script", False),
        ("7123", "running", False),
        (None, "waiting", False),
    ],
)
def test_only_its_own_word_is_taken_back(
    monkeypatch: pytest.MonkeyPatch, initialize: str | None, other: str, taken_back: bool
) -> None:
    """And asked again where the DCS has not done it: without, all nodes would wait for ever."""
    answers = [False, True]

    class Dcs:
        def get_cluster(self) -> Any:
            states = {"pg-1": "running custom bootstrap script", "pg-2": other}
            members = [SimpleNamespace(name=n, data={"state": s}) for n, s in states.items()]
            return SimpleNamespace(initialize=initialize, members=members)

        def cancel_initialization(self) -> bool:
            return answers.pop(0)

    def config(_file: str, validator: Any) -> dict[str, Any]:
        del validator
        return {"name": "pg-1"}

    for name, content in (
        ("config", {"Config": config}),
        ("dcs", {"get_dcs": lambda _: Dcs()}),
        ("exceptions", {"DCSError": OSError}),
    ):
        monkeypatch.setitem(sys.modules, f"patroni.{name}", SimpleNamespace(**content))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    found._withdraw()
    assert answers == ([] if taken_back else [False, True])


def test_another_stacks_backups_are_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "source.conf"

    def come() -> None:
        time.sleep(0.2)
        config.touch()

    thread = threading.Thread(target=come)
    thread.start()
    assert found.source(CLONE, config, 30) == Repository(config=config)
    thread.join()
    assert "waiting, for this stack is made of the backups of stack 'first'" in (
        capsys.readouterr().out
    )


def test_without_them_it_says_which_secret_and_makes_nothing(
    tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*words: Any, **_: Any) -> Any:
        raise AssertionError(words)

    (tmp_path / "recovery.json").write_text(json.dumps(CLONE), encoding="utf-8")
    monkeypatch.setattr(found, "order", lambda: CLONE)
    monkeypatch.setattr(found, "DATA", tmp_path / "data")
    monkeypatch.setattr(subprocess, "run", never)
    closed = tmp_path / "source.conf"
    look = found.source
    monkeypatch.setattr(found, "source", lambda wanted: look(wanted, closed, 0))
    assert found.main([]) == 1
    told = capsys.readouterr().out
    assert "error: this stack is made of the backups of stack 'first'" in told
    assert "Secret source of namespace elsapg-second (`elsapg secrets apply`" in told
    assert not (tmp_path / "data").exists()


def test_a_lost_clone_is_not_made_anew_over_its_own_backups(
    tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its new line would have the number of one that its archive knows."""
    monkeypatch.setattr(found, "source", lambda _: Repository(config=tmp_path / "source.conf"))
    monkeypatch.setattr(found, "DATA", tmp_path / "data")

    def held(repository: Repository) -> dict[str, Any]:
        assert repository.config is None
        return {"backup": [{"label": "20260131-120000F"}]}

    monkeypatch.setattr(found, "patient_info", held)
    # As Patroni starts it: none of Patroni's own variables is left.
    monkeypatch.delenv("PATRONI_KUBERNETES_NAMESPACE", raising=False)
    with pytest.raises(DeploymentError, match=r"1 backups of its own.*\{to: latest\}"):
        found.recover(CLONE)
    assert not (tmp_path / "data").exists()
