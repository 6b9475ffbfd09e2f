"""How a first node comes to its data: whose backups, and what it never does without them."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    assert found.main() == 1
    told = capsys.readouterr().out
    assert "error: this stack is made of the backups of stack 'first'" in told
    assert "Secret source of namespace elsapg-second (`elsapg secrets apply`" in told
    assert not (tmp_path / "data").exists()


def test_a_lost_clone_is_not_made_anew_over_its_own_backups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
