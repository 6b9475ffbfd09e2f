"""The steps of a restore inside a node: one at a time, and no standby is begun anew for nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from elsapg.runner import restore
from elsapg.runner.patroni import Member
from elsapg.runner.recovery import RecoveryError, StoppedError

HERE: Any = SimpleNamespace(gone=lambda: False, say=lambda _: None)


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "LOCK", tmp_path / "lock")


@pytest.fixture
def journal(tmp_path: Path) -> restore.Journal:
    return restore.Journal(tmp_path / "journal")


def test_a_step_whose_driver_was_killed_is_waited_for() -> None:
    first = restore._alone(HERE)
    first.__enter__()
    end = threading.Timer(0.5, first.__exit__, (None, None, None))
    end.start()
    with restore._alone(HERE):
        assert not end.is_alive() or end.finished.wait(1)


def test_one_that_goes_on_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "PREDECESSOR_S", 0.3)
    with (
        restore._alone(HERE),
        pytest.raises(RecoveryError, match="another restore works on this node"),
        restore._alone(HERE),
    ):
        pass


def test_one_whose_own_driver_has_gone_does_nothing_later() -> None:
    gone: Any = SimpleNamespace(gone=lambda: True)
    with restore._alone(HERE), pytest.raises(StoppedError), restore._alone(gone):
        pass


class FakePatroni:
    """pg-1 leads line 3; pg-2 is in a state, and what it is asked is kept."""

    def __init__(self, state: str) -> None:
        self.state = state
        self.asked: list[str] = []

    def members(self) -> list[Member]:
        return [member("pg-1", "leader", "running"), member("pg-2", "replica", self.state)]

    def call(self, name: str, _method: str, path: str, *_: Any, **_options: Any) -> tuple[int, str]:
        self.asked.append(f"{name}{path}")
        return 200, ""


def member(name: str, role: str, state: str) -> Member:
    return Member(name, role, state, 0, 2 if role == "replica" else 3, False)


def rebuild(patroni: FakePatroni, journal: restore.Journal) -> None:
    node: Any = restore.Node.__new__(restore.Node)
    node.driver = HERE
    node.me, node.journal, node.patroni = "pg-1", journal, patroni
    assert node.reinit({"nodes": ["pg-2"]}) == {"late": ["pg-2"]}


def test_a_copy_that_was_asked_for_goes_on(journal: restore.Journal) -> None:
    """The next command, and the second look of the same one, ask nobody again who copies."""
    journal.write(stage="open", after={"timeline": 3})
    patroni = FakePatroni("running")
    rebuild(patroni, journal)
    assert patroni.asked == ["pg-2/reinitialize"]
    patroni.state = "creating replica"
    rebuild(patroni, journal)
    assert patroni.asked == ["pg-2/reinitialize"]
    # It came to nothing.
    patroni.state = "stopped"
    rebuild(patroni, journal)
    assert patroni.asked == ["pg-2/reinitialize"] * 2


def test_a_copy_of_an_older_line_begins_anew(journal: restore.Journal) -> None:
    journal.write(after={"timeline": 3}, asked={"line": 2, "nodes": ["pg-2"]})
    patroni = FakePatroni("creating replica")
    rebuild(patroni, journal)
    assert patroni.asked == ["pg-2/reinitialize"]
