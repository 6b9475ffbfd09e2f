"""Pools held from afar: over real sockets and certificates, and never at the price of a stop."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from elsapg.pki import make_ca, make_certificate
from elsapg.runner import gates, handover
from elsapg.runner.gates import Pair, holding
from elsapg.runner.patroni import PatroniError, _member

CA = make_ca("elsapg test", 10)
STRANGER = make_ca("elsapg test", 10)


def write_pair(
    folder: Path, name: str, names: list[str], ca: dict[str, str] = CA, client: bool = False
) -> None:
    pair = make_certificate(name, names, 5, ca["certificate"], ca["private_key"], client)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ca.crt").write_text(CA["certificate"])
    (folder / "server.crt").write_text(pair["certificate"])
    (folder / "server.key").write_text(pair["private_key"])


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node's tls folder: its certificate is a client's as well."""
    write_pair(tmp_path / "node", "pg", ["pg-1", "pg-2"], client=True)
    return tmp_path / "node"


class FakeGate:
    """One pod's gate. `answers`: what it says to each word; None says nothing."""

    def __init__(self, tls: Path, greeting: str = "ready", **answers: str | None) -> None:
        self.answers = {"pause": "paused", "resume": "resumed", **answers}
        self.greeting = greeting
        self.heard: list[str] = []
        self.closed = threading.Event()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(tls / "server.crt", tls / "server.key")
        self._context.load_verify_locations(tls / "ca.crt")
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            raw, _ = self._listener.accept()
            try:
                with self._context.wrap_socket(raw, server_side=True) as peer:
                    peer.sendall(f"{self.greeting}\n".encode())
                    for line in peer.makefile("r"):
                        self.heard.append(line.strip())
                        answer = self.answers[line.strip()]
                        if answer is not None:
                            peer.sendall(f"{answer}\n".encode())
            finally:
                self.closed.set()

    def close(self) -> None:
        self._listener.close()


MakeGate = Callable[..., FakeGate]


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeGate]:
    """Makes gates; the name `pgbouncer-pods` then leads to all of them."""
    made: list[FakeGate] = []
    write_pair(tmp_path / "pooler", "pgbouncer", ["pgbouncer", "pgbouncer-1"])

    def make(tls: Path | None = None, **options: Any) -> FakeGate:
        made.append(FakeGate(tls or tmp_path / "pooler", **options))
        return made[-1]

    real = socket.getaddrinfo

    def resolve(host: str, port: int, *rest: Any, **options: Any) -> Any:
        if host != "pgbouncer-pods":
            return real(host, port, *rest, **options)
        assert port == 6500
        return [(2, 1, 6, "", ("127.0.0.1", g.port)) for g in made]

    monkeypatch.setattr(gates.socket, "getaddrinfo", resolve)
    yield make
    for one in made:
        one.close()


WHERE = "pgbouncer-pods:6500"


def test_every_pool_is_held_and_resumes(gate: MakeGate, node: Path) -> None:
    made = [gate(), gate(), gate()]
    with holding(WHERE, Pair.of_node(node)) as held:
        assert held == [g.name for g in made]
        assert [g.heard for g in made] == [["pause"]] * 3
    assert [g.heard for g in made] == [["pause", "resume"]] * 3
    assert all(g.closed.wait(5) for g in made)


def test_what_goes_wrong_in_between_still_ends_every_connection(gate: MakeGate, node: Path) -> None:
    one = gate()
    with pytest.raises(TimeoutError), holding(WHERE, Pair.of_node(node)):
        raise TimeoutError("pg-2 did not take over")
    # The end of the connection is what resumes the pool.
    assert one.closed.wait(5)
    assert one.heard == ["pause"]


def test_a_pool_that_refuses_is_left_out(gate: MakeGate, node: Path) -> None:
    told: list[str] = []
    good, busy = gate(), gate(pause="refused: running transactions did not end within 4 s")
    with holding(WHERE, Pair.of_node(node), told.append) as held:
        assert held == [good.name]
    assert told == [
        f"gate {busy.name} does not pause: refused: running transactions did not end within 4 s"
    ]
    assert busy.heard == ["pause"]
    assert busy.closed.wait(5)


def test_a_gate_that_says_nothing_holds_up_nobody(
    gate: MakeGate, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "PAUSE_S", 2)
    good, mute = gate(), gate(pause=None)
    start = time.monotonic()
    with holding(WHERE, Pair.of_node(node)) as held:
        assert held == [good.name]
        assert time.monotonic() - start < 10
    assert mute.closed.wait(5)


def test_a_gate_that_opens_late_is_closed_again(
    gate: MakeGate, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "OPEN_S", 0.3)
    late = gate()
    real = gates.Gate

    class Slow(real):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            time.sleep(0.8)
            super().__init__(*arguments, timeout=5)

    monkeypatch.setattr(gates, "Gate", Slow)
    with holding(WHERE, Pair.of_node(node)) as held:
        assert held == []
    assert late.closed.wait(5)
    assert late.heard == []


def test_names_that_do_not_resolve_are_told(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(gates.socket, "getaddrinfo", unknown)
    told: list[str] = []
    with holding(WHERE, Pair.of_node(node), told.append) as held:
        assert held == []
    assert "pgbouncer-pods:6500" in told[0]
    assert "Name or service not known" in told[0]


def test_a_resolver_that_never_answers_holds_up_nobody(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "OPEN_S", 0.2)
    answered = threading.Event()
    monkeypatch.setattr(gates.socket, "getaddrinfo", lambda *_, **__: answered.wait(5) and [])
    start = time.monotonic()
    with holding(WHERE, Pair.of_node(node)) as held:
        assert held == []
    assert time.monotonic() - start < 2
    answered.set()


@pytest.mark.parametrize("what", ["the stranger's CA", "another name"])
def test_only_a_pooler_of_this_stack_is_spoken_to(
    gate: MakeGate, node: Path, tmp_path: Path, what: str
) -> None:
    if what == "another name":
        write_pair(tmp_path / "other", "s3", ["s3"])
    else:
        write_pair(tmp_path / "other", "pgbouncer", ["pgbouncer"], ca=STRANGER)
    told: list[str] = []
    other = gate(tls=tmp_path / "other")
    with holding(WHERE, Pair.of_node(node), told.append) as held:
        assert held == []
    assert "certificate verify failed" in told[0]
    assert other.heard == []


def test_a_node_without_its_certificate_still_stops(gate: MakeGate, tmp_path: Path) -> None:
    told: list[str] = []
    with holding(WHERE, Pair.of_node(tmp_path / "nothing"), told.append) as held:
        assert held == []
    assert told[0].startswith("no pool is held")


# -- the preStop hook ----------------------------------------------------------------------


class FakePatroni:
    """What `before_stop` asks of Patroni."""

    def __init__(self, *members: dict[str, Any], synchronous: bool = True) -> None:
        self._rounds = [list(members)]
        self._synchronous = synchronous

    def then(self, *members: dict[str, Any]) -> FakePatroni:
        self._rounds.append(list(members))
        return self

    def members(self) -> list[Any]:
        found = self._rounds.pop(0) if len(self._rounds) > 1 else self._rounds[0]
        return [_member(m) for m in found]

    def from_any(self, path: str) -> Any:
        assert path == "/config"
        return {"synchronous_mode": self._synchronous}


LEADS = {"name": "pg-1", "role": "leader", "state": "running"}
SYNC = {"name": "pg-2", "role": "sync_standby", "state": "streaming"}
PLAIN = {"name": "pg-2", "role": "replica", "state": "streaming"}


@pytest.fixture
def switched(monkeypatch: pytest.MonkeyPatch, node: Path) -> list[tuple[str, str]]:
    """The switchovers that were asked for; the checkpoint is somebody else's test."""
    asked: list[tuple[str, str]] = []

    def switch(_patroni: Any, old: str, new: str, _timeout: float) -> float:
        asked.append((old, new))
        return 1.0

    monkeypatch.setattr(handover, "switchover", switch)
    monkeypatch.setattr(handover, "checkpoint", lambda *_: None)
    monkeypatch.setattr(handover, "CONFIG", node.parent)
    (node.parent / "tls").symlink_to(node)
    return asked


def stop(patroni: FakePatroni, me: str = "pg-1", where: str | None = WHERE) -> int:
    return handover.before_stop(patroni, me, where)  # type: ignore[arg-type]


def test_a_primary_holds_the_pools_while_it_hands_over(
    gate: MakeGate,
    switched: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two = gate(), gate()
    seen: list[list[str]] = []
    before = handover.switchover

    def watching(*arguments: Any) -> float:
        seen.extend([list(one.heard), list(two.heard)])
        return before(*arguments)

    monkeypatch.setattr(handover, "switchover", watching)
    assert stop(FakePatroni(LEADS, SYNC)) == 0
    assert switched == [("pg-1", "pg-2")]
    assert seen == [["pause"], ["pause"]]
    assert one.heard == two.heard == ["pause", "resume"]
    assert capsys.readouterr().out == "handed over to pg-2 in 1.0 s, 2 pools held\n"


def test_a_standby_holds_nobody(gate: MakeGate, switched: list[tuple[str, str]]) -> None:
    one = gate()
    assert stop(FakePatroni(LEADS, SYNC), me="pg-2") == 0
    assert (switched, one.heard) == ([], [])


def test_a_standby_that_has_just_come_back_is_waited_for(
    gate: MakeGate, switched: list[tuple[str, str]]
) -> None:
    gate()
    assert stop(FakePatroni(LEADS, PLAIN).then(LEADS, PLAIN).then(LEADS, SYNC)) == 0
    assert switched == [("pg-1", "pg-2")]


@pytest.mark.parametrize(
    "patroni", [FakePatroni(LEADS), FakePatroni(LEADS, PLAIN, synchronous=False)]
)
def test_nobody_is_waited_for_who_will_not_come(
    gate: MakeGate,
    switched: list[tuple[str, str]],
    patroni: FakePatroni,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = gate()
    start = time.monotonic()
    assert stop(patroni) == 0
    assert time.monotonic() - start < 2
    assert (switched, one.heard) == ([], [])
    assert "not handed over: no synchronous standby" in capsys.readouterr().out


def test_a_refused_switchover_resumes_the_pools(
    gate: MakeGate,
    switched: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: Any) -> float:
        raise PatroniError("Patroni refused the switchover: 412")

    monkeypatch.setattr(handover, "switchover", refuse)
    one = gate()
    assert stop(FakePatroni(LEADS, SYNC)) == 0
    assert one.closed.wait(5)
    assert "not handed over: Patroni refused" in capsys.readouterr().out


def test_without_gates_it_is_as_ever(
    gate: MakeGate, switched: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    one = gate()
    assert stop(FakePatroni(LEADS, SYNC), where=None) == 0
    assert (switched, one.heard) == ([("pg-1", "pg-2")], [])
    assert capsys.readouterr().out == "handed over to pg-2 in 1.0 s\n"


def test_a_checkpoint_has_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Database:
        def __enter__(self) -> Database:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def execute(self, sql: str) -> None:
            asked.append(sql)
            raise psycopg.errors.QueryCanceled("canceling statement due to statement timeout")

    def connect(conninfo: str, **options: Any) -> Database:
        asked.append(options["options"])
        return Database()

    monkeypatch.setattr(handover.psycopg, "connect", connect)
    handover.checkpoint(handover.HERE, 30)
    assert asked == ["-c statement_timeout=30s", "CHECKPOINT"]


def test_a_pods_name_comes_from_its_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(handover, "CONFIG", tmp_path)
    (tmp_path / "patroni.yml").write_text("scope: elsa\nname: pg-7\n")
    assert handover.node_name() == "pg-7"
    monkeypatch.setenv("PATRONI_NAME", "pg-2")
    assert handover.node_name() == "pg-2"
