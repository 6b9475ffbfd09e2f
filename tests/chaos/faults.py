"""Faults on the containers of one stack, and the wait until it has healed.

Nothing here but the stack's own containers is touched, and every wait is for a condition.
SIGKILL to a container's first process comes from outside its PID namespace: inside, the kernel
drops it, and Docker's own `kill` counts as a stop by hand, after which nothing restarts it.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import docker
from docker.models.containers import Container

from elsapg.definition import topology as t
from elsapg.errors import ElsapgError
from elsapg.services.deployment import Deployment
from elsapg.targets.docker import daemon as d

HEAL_TIMEOUT_S = 300.0

_CURL = ("curl", "-sS", "--max-time", "3", "--cacert", f"{t.CONFIG_DIR}/tls/ca.crt")


def wait_for(condition: Callable[[], Any], what: str, timeout: float, pause: float = 0.25) -> Any:
    """Poll until `condition` is true; an ElsapgError counts as not yet. Raises TimeoutError."""
    deadline = time.monotonic() + timeout
    last = ""
    while True:
        try:
            value = condition()
            if value:
                return value
            last = ""
        except ElsapgError as error:
            last = f" ({error})"
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what}: not within {timeout:.0f} s{last}")
        time.sleep(pause)


def last_archived(deployment: Deployment, node: str) -> str:
    """The last segment that a node's archiver has pushed; "-" if none."""
    sql = "SELECT coalesce(last_archived_wal, '-') FROM pg_stat_archiver"
    return deployment.query(node, sql)[0][0][:24]


def archive_all(deployment: Deployment, timeout: float = 180) -> str:
    """Wait until what there is now is in the archive; its last segment. Raises TimeoutError."""
    primary = deployment.primary()
    # Without anything to write, nothing is switched.
    switch = (
        "SELECT pg_walfile_name(pg_switch_wal()) "
        "FROM pg_logical_emit_message(false, 'elsapg', 'archive_all')"
    )
    [[segment]] = deployment.query(primary, switch)
    wait_for(
        lambda: last_archived(deployment, primary) >= segment, f"{segment} is archived", timeout
    )
    return segment


def frozen(container: Container) -> bool:
    """Pause a container; False if that has to be asked for again, and nothing is paused.

    cgroup v1 freezes no process that waits for its disk: runc tries for some 10 ms, thaws what
    it had, and leaves the next try to its caller (runc 4388, moby 48205).
    """
    try:
        container.pause()
    except docker.errors.APIError as error:
        if "unable to freeze" not in str(error):
            raise
        return False
    return True


@dataclass(frozen=True)
class Healthy:
    """Who does what in a healthy cluster."""

    leader: str
    sync_standby: str
    timeline: int


class Subject:
    """A stack under test on any target: who is who, what can be done to it, when it is whole."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    def views(self) -> dict[str, list[dict[str, Any]]]:
        """The cluster as each node's Patroni sees it; a node that does not answer is left out."""
        seen = {}
        for node in self.deployment.nodes:
            with contextlib.suppress(ElsapgError, docker.errors.DockerException, ValueError):
                url = f"https://{node}:{t.PATRONI_PORT}/cluster"
                done = self.deployment.hosts.run(node, *_CURL, url, timeout=10)
                seen[node] = list(done.json().get("members", []))
        return seen

    def healthy(self) -> Healthy | None:
        """The cluster's state if it is whole: one leader that all nodes agree on, every other
        node streaming on its timeline, a synchronous standby that PostgreSQL waits for, and a
        leader that knows whom to ask when the DCS is away (it learns that a moment later)."""
        views = self.views()
        if set(views) != set(self.deployment.nodes):
            return None
        agreed: set[tuple[str, str, int]] = set()
        for members in views.values():
            leaders = [m for m in members if m["role"] == "leader" and m["state"] == "running"]
            streaming = [m for m in members if m["state"] == "streaming"]
            sync = [m for m in streaming if m["role"] == "sync_standby"]
            lines = {m.get("timeline") for m in members}
            whole = len(leaders) + len(streaming) == len(members) == len(self.deployment.nodes)
            if len(leaders) != 1 or not sync or not whole or len(lines) != 1:
                return None
            agreed.add((leaders[0]["name"], sync[0]["name"], int(leaders[0]["timeline"])))
        if len(agreed) != 1:
            return None
        state = Healthy(*agreed.pop())
        named = self.deployment.query(
            state.leader,
            "SELECT application_name FROM pg_stat_replication "
            "WHERE state = 'streaming' AND sync_state IN ('sync', 'quorum')",
        )
        asked = self.deployment.patroni("/failsafe", state.leader)
        whole = [state.sync_standby] in named and set(asked) == set(self.deployment.nodes)
        return state if whole else None

    def wait_healthy(self, timeout: float = HEAL_TIMEOUT_S) -> Healthy:
        """Wait until the cluster is whole again, without any help."""
        found = wait_for(self.healthy, "leader, streaming and a synchronous standby", timeout, 0.5)
        assert isinstance(found, Healthy)
        return found

    def wait_leader_other_than(self, old: str, timeout: float = 90) -> str:
        """Wait until another node leads and takes writes; returns its name."""

        def other() -> str | None:
            for node, members in self.views().items():
                for member in members:
                    if node != old and member["role"] == "leader" and member["name"] != old:
                        rows = self.deployment.query(
                            str(member["name"]), "SELECT pg_is_in_recovery()"
                        )
                        if rows == [["f"]]:
                            return str(member["name"])
            return None

        return str(wait_for(other, f"a leader other than {old}", timeout))

    def wait_not_synchronous(self, leader: str, timeout: float = 60) -> None:
        """Wait until the leader's commits no longer wait for the standby that went away."""
        sql = "SHOW synchronous_standby_names"
        wait_for(
            lambda: self.deployment.query(leader, sql) in ([], [[""]]),
            f"{leader} gives its standby up",
            timeout,
        )

    def kill_postmaster(self, node: str) -> None:
        """SIGKILL to the postmaster, and wait for its end; Patroni beside it lives."""
        script = (
            f"pid=$(head -n 1 {t.PGDATA}/postmaster.pid); kill -9 $pid || exit 1; "
            "while kill -0 $pid 2>/dev/null; do sleep 0.01; done"
        )
        done = self.deployment.hosts.run(node, "sh", "-c", script)
        assert done.code == 0, done.output

    def freeze_part(self, node: str, title: str) -> None:
        """SIGSTOP to a process of the server, by its title."""
        done = self.deployment.hosts.run(node, "pkill", "-STOP", "-f", f"^postgres: .*{title}")
        assert done.code == 0, done.output

    # -- elsapg itself -----------------------------------------------------------------------

    def elsapg(self, *words: str) -> subprocess.Popen[str]:
        """The CLI in a process of its own, on this stack."""
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "elsapg.cli", *words, "--stack", self.deployment.stack],
            cwd=self.deployment.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def switchover(self, timeout: float = 120) -> str:
        """`elsapg switchover`; returns what it printed. Raises AssertionError when it fails.

        A transaction may outlast the pools' patience, or a gate not start on a busy machine: then
        nothing was done, and it is said again.
        """
        output = ""
        for _ in range(3):
            process = self.elsapg("switchover")
            try:
                output, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            if process.returncode == 0:
                return output
            if not re.search("transactions did not end within|unable to start container", output):
                break
        raise AssertionError(f"elsapg switchover failed:\n{output}")

    def paused_pools(self) -> list[str]:
        """The PgBouncers that are paused now.

        `SHOW DATABASES` would not tell: its `paused` is about a single database's PAUSE.
        """
        return [
            pooler
            for pooler in self.deployment.poolers
            for row in self.deployment.pooler_console(pooler, "SHOW STATE")
            if row["key"] == "paused" and row["value"] != "no"
        ]


class Faults(Subject):
    """What can happen to a stack on one machine."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment)
        self._client = d.client(timeout=120)

    def close(self) -> None:
        """Let go of the Docker daemon."""
        self._client.close()

    def container(self, unit: str) -> Container:
        """The container of a unit, as it is now."""
        return self._client.containers.get(self.deployment.hosts.physical(unit))

    def kill_container(self, unit: str) -> None:
        """The machine under it is gone: the container is killed and stays down."""
        self.container(unit).kill()

    def start(self, unit: str) -> None:
        """The machine is back."""
        self.container(unit).start()

    def stop(self, unit: str, timeout: int = 10) -> None:
        """Stop it as an operator does; it stays down."""
        self.container(unit).stop(timeout=timeout)

    def crash(self, unit: str) -> None:
        """SIGKILL to the unit's process; Docker's restart policy brings it back."""
        self._signal(unit, "KILL")

    def freeze(self, node: str) -> None:
        """SIGSTOP to Patroni, and to it alone: PostgreSQL goes on without it."""
        self._signal_patroni(node, "STOP")

    def thaw(self, node: str) -> None:
        """SIGCONT to what `freeze` stopped."""
        self._signal_patroni(node, "CONT")

    def _signal_patroni(self, node: str, name: str) -> None:
        # Process 1 only reaps children; the one it forked is Patroni.
        script = (
            "for f in /proc/[0-9]*; do p=${f#/proc/}; [ $p = 1 ] || [ $p = $$ ] || "
            "case $(tr '\\0' ' ' < $f/cmdline 2>/dev/null) in "
            f"*python*patroni*{t.CONFIG_DIR}/patroni.yml*) kill -{name} $p && echo $p;; esac; done"
        )
        done = self.deployment.hosts.run(node, "sh", "-c", script)
        assert done.output.split(), f"no Patroni process in {node}"

    def _signal(self, unit: str, name: str) -> None:
        container = self.container(unit)
        self._client.containers.run(
            container.attrs["Image"],
            ["-c", f"kill -{name} {int(container.attrs['State']['Pid'])}"],
            entrypoint="sh",
            user="0:0",
            pid_mode="host",
            network_mode="none",
            cap_drop=["ALL"],
            cap_add=["KILL"],
            read_only=True,
            remove=True,
            labels={d.STACK_LABEL + ".fault": self.deployment.stack},
        )

    @contextlib.contextmanager
    def cut_off(self, unit: str) -> Iterator[None]:
        """No network for the unit inside the block; then the same one, by the same names."""
        container = self.container(unit)
        networks = container.attrs["NetworkSettings"]["Networks"]
        (name, attached), *rest = networks.items()
        assert not rest, f"{unit} is in more than one network: {sorted(networks)}"
        assert container.id is not None
        # Docker adds the short id to a container's aliases by itself.
        aliases = [a for a in attached["Aliases"] or [] if a != container.id[:12]]
        network = self._client.networks.get(name)
        network.disconnect(container, force=True)
        try:
            yield
        finally:
            network.connect(container, aliases=aliases)

    @contextlib.contextmanager
    def paused(self, unit: str) -> Iterator[None]:
        """Every process of the unit hangs inside the block: silent, and its sockets stay open."""
        container = self.container(unit)
        wait_for(lambda: frozen(container), f"{unit} hangs", 60)
        try:
            yield
        finally:
            container.unpause()

    @contextlib.contextmanager
    def down(self, unit: str) -> Iterator[None]:
        """The unit is stopped inside the block."""
        self.stop(unit)
        try:
            yield
        finally:
            self.start(unit)


@dataclass
class Reign:
    """A node seen taking writes at every look from `first` to `last` (the machine's clock)."""

    node: str
    first: float
    last: float


class LeaderWatch:
    """Looks at every node all the time, and says when two would take writes at once.

    It looks from inside each container, so that a node without network is seen too.
    """

    # One look per line of input; the end of the input ends it.
    _LOOP = (
        "while read -r _; do at=$(psql -XqAt -h /run/postgresql -U postgres -d postgres -c "
        "'SELECT extract(epoch FROM clock_timestamp()) WHERE NOT pg_is_in_recovery()' "
        '2>/dev/null); echo "${at:--}"; done'
    )

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._stop = threading.Event()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self.reigns: list[Reign] = []
        self._threads = [
            threading.Thread(target=self._watch, args=(node,), daemon=True)
            for node in deployment.nodes
        ]

    def __enter__(self) -> LeaderWatch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for process in list(self._processes.values()):
            process.kill()
        for thread in self._threads:
            thread.join(10)

    def _watch(self, node: str) -> None:
        while not self._stop.is_set():
            process = self._deployment.hosts.converse(node, "sh", "-c", self._LOOP)
            self._processes[node] = process
            with contextlib.suppress(OSError, ValueError):
                self._look(node, process)
            process.kill()
            process.wait()
            self._stop.wait(0.5)

    def _look(self, node: str, process: subprocess.Popen[str]) -> None:
        """Ask until the container, or this watch, ends. Only unbroken looks make a reign."""
        assert process.stdin is not None
        assert process.stdout is not None
        reign: Reign | None = None
        while not self._stop.wait(0.25):
            process.stdin.write("\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                return
            try:
                at = float(answer)
            except ValueError:
                reign = None
                continue
            if reign is None:
                reign = Reign(node, at, at)
                self.reigns.append(reign)
            reign.last = at

    def overlaps(self) -> list[tuple[Reign, Reign]]:
        """Pairs of reigns of different nodes that were seen at the same time."""
        reigns = list(self.reigns)
        return [
            (a, b)
            for i, a in enumerate(reigns)
            for b in reigns[i + 1 :]
            if a.node != b.node and max(a.first, b.first) <= min(a.last, b.last)
        ]
