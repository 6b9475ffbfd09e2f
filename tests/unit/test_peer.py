"""A process inside a unit that is driven by its input: begun again where it was never started."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from elsapg.errors import UnhealthyError
from elsapg.services import peer as module
from elsapg.services.peer import Peer
from elsapg.services.restore import run_step

RUNC = "exec failed: unable to start container process: waiting for init preliminary setup: read"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_AGAIN_AFTER_S", 0)


def starting(*scripts: str) -> Callable[..., subprocess.Popen[str]]:
    """Starts the first script, then the second one, and so on."""
    left = list(scripts)
    pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return lambda *_: subprocess.Popen(["sh", "-c", left.pop(0)], **pipe)


def test_one_that_was_never_started_is_begun_again() -> None:
    peer = Peer("pg-1", starting(f"echo '{RUNC}'", "echo ready pg-2; read -r word; echo $word"))
    try:
        assert peer.begun("ready", 10) == "pg-2"
        peer.say("go")
        assert peer.expect("go", 10) == ""
    finally:
        peer.close()


@pytest.mark.parametrize(("said", "starts"), [(RUNC, 3), ("error no standby", 1)])
def test_it_is_not_begun_for_ever(said: str, starts: int) -> None:
    peer = Peer("pg-1", starting(*[f"echo '{said}'"] * starts))
    with pytest.raises(UnhealthyError, match=said.removeprefix("error ")[:20]):
        peer.begun("ready", 10)
    peer.close()


def test_a_step_that_was_never_started_gets_its_order_again() -> None:
    hosts = SimpleNamespace(
        converse=starting(f"echo '{RUNC}'", 'read -r order; echo "done {\\"got\\": $order}"')
    )
    deployment: Any = SimpleNamespace(hosts=hosts)
    assert run_step(deployment, "pg-1", "look", {"a": 1}, print) == {"got": {"a": 1}}
