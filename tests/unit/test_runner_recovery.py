"""The private server of a restore, where parameters were larger between backup and target."""

from __future__ import annotations

from pathlib import Path

import pytest

from elsapg.runner import recovery
from elsapg.runner.archive import Plan
from elsapg.runner.pgbackrest import Repository
from elsapg.runner.recovery import PrivateServer, Reached, RecoveryError

WARNED = "WARNING:  hot standby is not possible because of insufficient parameter settings\n"
END = Reached("0/5000000", None, 9, 2)


class Process:
    """A server that runs."""

    def poll(self) -> None:
        return None


class Server(PrivateServer):
    """PostgreSQL's part is played: what it notes in the control file, and when it pauses."""

    control: dict[str, str]

    def start(self, plan: Plan, *, with_target: bool = True) -> None:
        self.starts = [*getattr(self, "starts", []), with_target]
        self._started_with = self._floor()
        self.log.write_text("LOG:  redo starts\n", encoding="utf-8")
        self._process = Process()  # type: ignore[assignment]

    def _look(self) -> tuple[Reached, bool, bool]:
        enough = self._started_with["max_connections"] >= 120
        if not enough:
            self.control["max_connections setting"] = "120"
            self.log.write_text(WARNED, encoding="utf-8")
        return END, not enough or self.starts[-1], not enough or self.starts[-1]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server(tmp_path, tmp_path, Repository())
    found.control = {"max_connections setting": "100"}
    monkeypatch.setattr(recovery, "controldata", lambda _data: found.control)
    monkeypatch.setattr(recovery, "stop", lambda _data: None)
    return found


@pytest.mark.parametrize(("kind", "with_target"), [("name", True), ("latest", False)])
def test_it_goes_on_with_what_the_database_once_had(
    server: Server, kind: str, with_target: bool
) -> None:
    plan, told = Plan(kind, "x", 2, "backup", ""), list[str]()
    server.start(plan, with_target=with_target)
    assert server.wait(plan, told.append, lambda: False) == END
    assert told[0] == "the database once had max_connections 120: going on with that"
    assert server.starts == [with_target, with_target]


def test_it_does_not_try_for_ever(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the control file says nothing of it."""
    monkeypatch.setattr(recovery, "controldata", lambda _data: {"max_connections setting": "100"})
    plan = Plan("latest", "", 2, "backup", "")
    server.start(plan, with_target=False)
    with pytest.raises(RecoveryError, match=r"raise them by .patronictl"):
        server.wait(plan, lambda _: None, lambda: False)
