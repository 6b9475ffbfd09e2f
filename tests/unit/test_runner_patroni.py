"""The runner's view of Patroni: members, refusals, and what it says when nobody answers."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from elsapg.pki import make_ca, make_certificate
from elsapg.runner.handover import _candidate
from elsapg.runner.patroni import Member, Patroni, PatroniError, leader, wait_until


def member(name: str, role: str, state: str = "streaming", **more: Any) -> Member:
    values = {"lag": 0, "timeline": 1, "pending_restart": False, **more}
    return Member(name=name, role=role, state=state, **values)


LEADER = member("pg-1", "leader", "running")
SYNC = member("pg-2", "sync_standby")
OTHER = member("pg-3", "replica")


@pytest.mark.parametrize(
    ("who", "healthy"),
    [
        (LEADER, True),
        (member("pg-1", "leader", "starting"), False),
        (SYNC, True),
        # Patroni says "running" of a standby that does not stream.
        (member("pg-2", "replica", "running"), False),
    ],
)
def test_health(who: Member, healthy: bool) -> None:
    assert who.healthy is healthy


def test_the_leader_is_one_that_runs() -> None:
    assert leader([SYNC, LEADER]) is LEADER
    assert leader([member("pg-1", "leader", "stopped"), SYNC]) is None
    assert leader([]) is None


def test_the_candidate_is_the_synchronous_standby() -> None:
    assert _candidate([LEADER, OTHER, SYNC], None) is SYNC
    assert _candidate([LEADER, OTHER, SYNC], "pg-2") is SYNC


@pytest.mark.parametrize(
    ("members", "wanted", "says"),
    [
        ([LEADER, OTHER], None, r"no synchronous standby .* pg-3 \(replica, streaming\)"),
        ([LEADER], None, "standbys: none"),
        ([LEADER, member("pg-2", "sync_standby", "starting")], None, "no synchronous standby"),
        ([LEADER, SYNC], "pg-1", "pg-1 is no standby"),
        ([LEADER, member("pg-2", "replica", "stopped")], "pg-2", "pg-2 is stopped, not streaming"),
    ],
)
def test_nobody_who_could_lose_commits_is_a_candidate(
    members: list[Member], wanted: str | None, says: str
) -> None:
    with pytest.raises(PatroniError, match=says):
        _candidate(members, wanted)


def test_waiting_ends_and_says_for_what() -> None:
    with pytest.raises(TimeoutError, match="nothing came after 0 s"):
        wait_until(lambda: False, 0, "nothing came", pause=0)

    def refused() -> bool:
        raise PatroniError("pg-1: refused")

    with pytest.raises(TimeoutError, match=r"state 7 after 0 s \(pg-1: refused\)"):
        wait_until(refused, 0, lambda: "state 7", pause=0)
    answers = iter([0, "", "there"])
    assert wait_until(lambda: next(answers), 5, "x", pause=0) == "there"


# -- over TLS ------------------------------------------------------------------------------


class Answers(BaseHTTPRequestHandler):
    """Answers `path` as `table` says, and remembers what was asked."""

    table: ClassVar[dict[str, tuple[int, str]]] = {}
    asked: ClassVar[list[tuple[str, str, str]]] = []

    def _any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.asked.append((self.command, self.path, self.rfile.read(length).decode()))
        status, text = self.table.get(self.path, (404, "no such path"))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = do_PATCH = _any

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    ca = make_ca("elsapg test", 10)
    pair = make_certificate(
        "localhost", ["localhost"], 5, ca["certificate"], ca["private_key"], True
    )
    (folder / "ca.crt").write_text(ca["certificate"])
    (folder / "other.crt").write_text(make_ca("elsapg test", 10)["certificate"])
    (folder / "crt").write_text(pair["certificate"])
    (folder / "key").write_text(pair["private_key"])
    return folder


@pytest.fixture(scope="module")
def server(tls: Path) -> Iterator[int]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tls / "ca.crt"))
    context.load_cert_chain(tls / "crt", tls / "key")
    context.verify_mode = ssl.CERT_REQUIRED
    httpd = HTTPServer(("127.0.0.1", 0), Answers)
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield httpd.server_address[1]
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def patroni(tls: Path, server: int) -> Patroni:
    Answers.asked.clear()
    Answers.table = {}
    paths = (str(tls / name) for name in ("ca.crt", "crt", "key"))
    return Patroni(["localhost"], server, *paths)


def test_members_are_read_whatever_the_version_says(patroni: Patroni) -> None:
    raw = [
        {"name": "pg-1", "role": "leader", "state": "running", "timeline": 3},
        {
            "name": "pg-2",
            "role": "sync_standby",
            "state": "streaming",
            "lag": 12,
            "pending_restart": True,
        },
        {"name": "pg-3", "role": "replica", "state": "starting", "lag": "unknown"},
    ]
    Answers.table["/cluster"] = (200, json.dumps({"members": raw, "scope": "elsa"}))
    first, second, third = patroni.members()
    assert (first.leads, first.timeline, first.lag) == (True, 3, None)
    assert (second.lag, second.pending_restart) == (12, True)
    assert (third.lag, third.timeline) == (None, None)


def test_an_answer_is_read_whatever_its_status(patroni: Patroni) -> None:
    """A standby answers 503 to GET /, with a body that says what it is."""
    Answers.table["/"] = (503, json.dumps({"role": "replica"}))
    assert patroni.get("localhost", "/") == {"role": "replica"}
    Answers.table["/text"] = (500, "oops")
    with pytest.raises(PatroniError, match="localhost: GET /text answered 500: oops"):
        patroni.get("localhost", "/text")


def test_a_refusal_comes_with_its_words(patroni: Patroni) -> None:
    Answers.table["/switchover"] = (412, "no good candidate")
    body = {"leader": "pg-1", "candidate": "pg-2"}
    assert patroni.call("localhost", "POST", "/switchover", body) == (412, "no good candidate")
    assert Answers.asked == [("POST", "/switchover", json.dumps(body))]


def test_a_poke_is_a_patch_of_nothing(patroni: Patroni) -> None:
    patroni.poke()
    assert Answers.asked == [("PATCH", "/config", "{}")]


def test_the_next_member_is_asked(patroni: Patroni) -> None:
    Answers.table["/config"] = (200, "{}")
    patroni.nodes = ["nobody.invalid", "localhost"]
    assert patroni.from_any("/config") == {}
    assert patroni.only("localhost").nodes == ["localhost"]
    assert patroni.nodes == ["nobody.invalid", "localhost"]


def test_nobody_answers(patroni: Patroni, tls: Path) -> None:
    patroni.nodes = ["nobody.invalid", "nowhere.invalid"]
    with pytest.raises(
        PatroniError,
        match=r"nobody.invalid: Patroni does not answer GET /cluster: .*; nowhere.invalid: ",
    ):
        patroni.members()
    patroni.poke()  # asks for nothing in return


def test_a_stranger_is_not_believed(tls: Path, server: int) -> None:
    paths = (str(tls / name) for name in ("other.crt", "crt", "key"))
    with pytest.raises(PatroniError, match="certificate verify failed"):
        Patroni(["localhost"], server, *paths).get("localhost", "/cluster")


def test_a_proxy_of_the_environment_is_not_asked(
    tls: Path, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    Answers.table = {"/config": (200, "{}")}
    paths = (str(tls / name) for name in ("ca.crt", "crt", "key"))
    assert Patroni(["localhost"], server, *paths).get("localhost", "/config") == {}
