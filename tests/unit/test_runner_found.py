"""How a first node comes to its data: whose backups, and what it never does without them."""

from __future__ import annotations

import json
import subprocess
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
        ("DATA", "data"), ("WORK", "work"), ("BEGUN", "begun"), ("ASIDE", "aside"), ("NOTE", "note")
    ):  # fmt: skip
        monkeypatch.setattr(found, name, tmp_path / path)
    return tmp_path


@pytest.fixture
def withdrawn(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    calls: list[bool] = []
    monkeypatch.setattr(found, "_withdraw", lambda: calls.append(True))
    return calls


def test_what_a_killed_attempt_has_left_is_no_database(node: Path, withdrawn: list[bool]) -> None:
    """Patroni must not open it, nor wait for whoever makes the cluster: that was this node."""
    (node / "begun").touch()
    (node / "data" / "global").mkdir(parents=True)
    assert found.main(["again"]) == 0
    assert withdrawn and not (node / "data").exists() and (node / "aside" / "global").exists()
    # Killed again, before it went on: what lies aside is still what counts.
    (node / "begun").touch()
    assert found.main(["again"]) == 0
    assert (node / "aside" / "global").exists()


def test_other_data_is_left_alone(node: Path, withdrawn: list[bool]) -> None:
    (node / "data").mkdir()
    assert found.main(["again"]) == 0
    assert not withdrawn and (node / "data").exists()


def test_a_killed_attempt_is_gone_on_with(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By delta: what is fetched already is not fetched again."""
    (node / "aside" / "global").mkdir(parents=True)
    (node / "aside" / "postmaster.pid").write_text("999999999\n", encoding="utf-8")
    seen: list[set[str]] = []

    def fetch(_repository: Any, _plan: Any, data: Path, *_: Any) -> None:
        assert (node / "begun").exists()
        seen.append({p.name for p in data.iterdir()})
        raise DeploymentError("as far as this test goes")

    plan = SimpleNamespace(value="", backup="B")
    own = {"to": "latest", "timeline": None, "backup": None}
    monkeypatch.setattr(found, "order", lambda: own)
    monkeypatch.setattr(found, "patient_info", lambda _: {})
    monkeypatch.setattr(found, "plan", lambda *_: plan)
    monkeypatch.setattr(found.recovery, "fetch", fetch)
    assert found.main([]) == 1
    assert seen == [{"global"}]
    # An attempt that failed by itself is Patroni's to clear up.
    assert not (node / "begun").exists()


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
