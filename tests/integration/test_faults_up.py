"""What can go wrong in an `up`: each is told in a sentence, and the next `up` finishes the work.

One small stack of its own, in this order: refused before anything is made, then failed and
killed half-way again and again, then finished, then purged.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from elsapg.definition import topology as t
from elsapg.services.places import Places
from elsapg.targets.docker import daemon as d
from tests.integration.target_stack import Target, eventually

pytestmark = pytest.mark.docker

STACK = "test-faults"
PORT = 7852
SETTINGS = {
    "target": "docker",
    "postgres": {"memory_mb": 768},
    "docker": {"pool_port": PORT},
}
# Seconds after the start of each `up`. What one run has made stays, so that the moments fall
# into images and network, volumes, first containers, nodes, poolers, and the tasks.
# Each `up` goes on where the last one was killed, so the later ones have less and less to do.
MOMENTS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.0, 3.5, 3.5, 4.0, 4.5)


@pytest.fixture(scope="module")
def faulty() -> Iterator[Target]:
    made = Target(STACK)
    made.write(SETTINGS)
    try:
        yield made
    finally:
        made.write(SETTINGS)
        made.run("destroy", "--purge", "--confirm", STACK)
        made.path.unlink()


def told(output: str, *words: str) -> None:
    """A failure that a person can use: what and what to do, no traceback, no essay."""
    for word in words:
        assert word in output, output
    message = output[output.index("elsapg: ") :]
    assert len(message.splitlines()) <= 6, message
    assert "Traceback" not in output
    assert "grpc" not in output.lower()


# -- refused before anything is made -------------------------------------------------------


@pytest.mark.parametrize("name", ["Bad", "a_b", "../x", "9a", "x" * 31, "a b", "", "a;b"])
def test_an_odd_stack_name_is_refused(name: str) -> None:
    output = Target(name).run("up", "--yes", code=2)
    assert f"stack name {name!r} cannot name containers" in output
    assert len(output.splitlines()) == 1


def test_docker_down_is_told(faulty: Target, tmp_path: Path) -> None:
    dead = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(dead))
    for host in (f"unix://{dead}", f"unix://{tmp_path}/nothing.sock"):
        output = faulty.run("up", "--yes", env={"DOCKER_HOST": host}, code=4)
        told(output, "Docker does not answer", "`elsapg setup`")
        assert len(output.splitlines()) <= 2, output
    assert faulty.containers() == {}


def test_a_strangers_container_is_not_touched(faulty: Target) -> None:
    name = d.physical_name(STACK, "etcd-1")
    image = next(i for i in faulty.docker.images.list("elsapg/etcd") if i.tags)
    stranger = faulty.docker.containers.create(image.id, name=name, command=["true"])
    try:
        output = faulty.up(code=6)
        told(output, f"container {name} exists and is not of stack '{STACK}'", "rename it")
        stranger.reload()
    finally:
        stranger.remove(force=True)


def test_a_taken_port_is_named_with_its_key(faulty: Target) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", PORT + 1))
        listener.listen()
        output = faulty.up(code=6)
    told(output, f"port {PORT + 1} of 127.0.0.1 is already taken", "docker.pool_port")
    assert "pgbouncer-2" not in faulty.containers()


# -- stopped half-way ----------------------------------------------------------------------


class Relay:
    """Stands between `up` and the daemon, and can go away like one."""

    def __init__(self, path: Path) -> None:
        self.url = f"unix://{path}"
        self._ends: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self.requests = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect("/var/run/docker.sock")
            except OSError:
                return
            self._ends += [client, server]
            self.requests += 1
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()

    @staticmethod
    def _pump(client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        with contextlib.suppress(OSError, ValueError):
            while True:
                for end in select.select(list(other), [], [])[0]:
                    data = end.recv(65536)
                    if data:
                        other[end].sendall(data)
                    else:
                        other[end].shutdown(socket.SHUT_WR)
                        del other[end]
                        if not other:
                            return

    def go_away(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_a_daemon_that_goes_away_is_told(faulty: Target, tmp_path: Path) -> None:
    relay = Relay(tmp_path / "relay.sock")
    child = faulty.start("up", "--yes", env={"DOCKER_HOST": relay.url})
    eventually(lambda: relay.requests > 12, pause=0.05)
    relay.go_away()
    output, _ = child.communicate(timeout=120)
    faulty.said.append(output)
    assert child.returncode == 6, output
    told(output, "Docker does not answer", "run the same command again")


def test_the_second_of_two_ups_is_told(faulty: Target) -> None:
    lock = Places(faulty.root).lock(STACK)
    lock.unlink(missing_ok=True)
    first = faulty.start("up", "--yes")
    eventually(lambda: lock.read_text() != "", pause=0.05)
    output = faulty.up(code=5)
    assert f"is being worked on by 'elsapg up' (pid {first.pid}, since " in output
    assert len(output.splitlines()) == 1
    kill(first.pid, engine_too=True)
    first.communicate(timeout=60)


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if path.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(path.parent.name))
    return found


def kill(pid: int, engine_too: bool) -> None:
    """SIGKILL; the providers are left alone: they must see by themselves that all is over."""
    engines = children(pid) if engine_too else []
    for victim in (pid, *engines):
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def test_an_up_killed_at_ten_moments_is_finished_by_the_next(faulty: Target) -> None:
    for number, moment in enumerate(MOMENTS):
        child = faulty.start("up", "--yes")
        time.sleep(moment)
        alive = child.poll() is None
        kill(child.pid, engine_too=number % 2 == 0)
        output, _ = child.communicate(timeout=60)
        if not alive:
            # A quick machine: it has nothing left to be killed at.
            assert child.returncode == 0, output
            assert number >= 6, f"done after {number} kills: {output}"
            break
        # Only this stack's units and tasks, and each at most once.
        known = {u.name for u in t.units(faulty.deployment.settings)}
        known |= {task.name for task in t.tasks(faulty.deployment.settings)}
        assert set(faulty.containers()) <= known
    output = faulty.up()
    assert "warning" not in output
    faulty.wait_healthy()

    units = t.units(faulty.deployment.settings)
    assert set(faulty.containers()) == {u.name for u in units}
    for unit in units:
        [network] = faulty.container(unit.name).attrs["NetworkSettings"]["Networks"].values()
        assert set(unit.aliases) <= set(network["Aliases"]), unit.name
    volumes = {m.volume for u in units for m in u.mounts} | {f"{u.name}-config" for u in units}
    assert faulty.volumes() == {d.physical_name(STACK, name) for name in volumes}
    assert len(faulty.networks()) == 1
    faulty.unchanged()
    with faulty.client() as db:
        assert db.execute("SELECT 1").fetchone() == (1,)


# -- on what runs --------------------------------------------------------------------------


def test_a_wrong_passphrase_is_told(faulty: Target) -> None:
    before = faulty.process_starts()
    env = {"PULUMI_CONFIG_PASSPHRASE": "not-this-one"}
    for words in (("up", "--yes"), ("destroy", "--yes"), ("uri", "elsa_app")):
        output = faulty.run(*words, env=env, code=6)
        told(output, "the passphrase does not open the state", "PULUMI_CONFIG_PASSPHRASE")
        assert "not-this-one" not in output
    assert faulty.process_starts() == before


def test_a_bad_setting_is_told_and_nothing_changes(faulty: Target) -> None:
    before = faulty.process_starts()
    faulty.change("pooler", max_db_connections=50)
    try:
        output = faulty.up(code=3)
    finally:
        faulty.write(SETTINGS)
    told(output, "elsapg:pooler.max_db_connections = 50", "lower it to ")
    assert faulty.process_starts() == before


def test_a_purge_wants_the_name_and_leaves_nothing(faulty: Target) -> None:
    before = faulty.ids()
    assert f"add --confirm {STACK}" in faulty.run("destroy", "--purge", code=2)
    faulty.run("destroy", "--purge", "--confirm", "other", code=2)
    assert faulty.ids() == before
    faulty.run("destroy", "--purge", "--confirm", STACK)
    assert (faulty.containers(), faulty.volumes(), faulty.networks()) == ({}, set(), set())
    # Also not the engine's copies of old states: they hold the secrets, if encrypted.
    state = Places(faulty.root).state
    assert not [p.name for p in state.rglob(f"{STACK}*") if p.is_file()]


def test_a_killed_up_can_be_purged(faulty: Target) -> None:
    """Also what was made but not yet in the state goes."""
    child = faulty.start("up", "--yes")
    eventually(lambda: len(faulty.containers()) >= 2, pause=0.05)
    kill(child.pid, engine_too=True)
    child.communicate(timeout=60)
    faulty.run("destroy", "--purge", "--confirm", STACK)
    assert (faulty.containers(), faulty.volumes(), faulty.networks()) == ({}, set(), set())
