"""The docker target's decisions, against a daemon that is a dictionary."""

from __future__ import annotations

import contextlib
import io
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import docker.errors
import pytest
import requests

from elsapg.errors import DeploymentError, MissingError, UnhealthyError
from elsapg.targets.docker import containers, resources
from elsapg.targets.docker import daemon as d

MIB = 1024 * 1024


# An update ends when the unit is back in its place, also one that follows a killed one.
BACK = "handover --wait-healthy pg-1"


@dataclass
class FakeContainer:
    """Remembers what was done to it, in the order of the whole daemon."""

    owner: FakeDocker
    name: str
    arguments: dict[str, Any]
    status: str = "created"
    files: dict[str, str] = field(default_factory=dict)
    fails_to_start: str | None = None
    exit_code: int = 0
    exec_code: int = 0
    slow_to_end: int = 0
    said: str = ""
    output: bytes | str | Exception = (
        b"\1\0\0\0\0\0\0\5what \1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\7it said"
    )

    @property
    def id(self) -> str:
        return f"id-{self.name}"

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.arguments["labels"])

    @property
    def attrs(self) -> dict[str, Any]:
        memory = self.arguments.get("mem_limit")
        return {
            "HostConfig": {
                "Memory": int(memory.removesuffix("m")) * MIB if memory else 0,
                "CpuQuota": self.arguments.get("cpu_quota", 0),
            }
        }

    def _did(self, what: str) -> None:
        self.owner.log.append(f"{what} {self.name.rpartition('elsapg-test-')[2]}")

    def put_archive(self, path: str, data: bytes) -> bool:
        assert path == "/etc/elsapg"
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for entry in tar:
                assert (entry.uid, entry.gid) == (0, 999)
                if entry.isfile():
                    self.files[entry.name] = tar.extractfile(entry).read().decode()  # type: ignore[union-attr]
        self._did("push")
        return True

    def start(self) -> None:
        if self.fails_to_start:
            response = requests.Response()
            response.status_code = 500
            raise docker.errors.APIError("failed", response, self.fails_to_start)
        self.status = "running"
        self._did("start")

    def stop(self, timeout: int) -> None:
        self.status = "exited"
        self._did(f"stop({timeout})")

    def restart(self, timeout: int) -> None:
        self._did("restart")

    def update(self, **limits: Any) -> None:
        self.arguments |= limits
        self._did("update")

    def remove(self, force: bool = False) -> None:
        del self.owner.made[self.name]
        self._did("remove")

    # The low-level API of `exec`, of which the container stands for its own client.
    @property
    def client(self) -> Any:
        return self

    @property
    def api(self) -> Any:
        return self

    def exec_create(self, container: str, command: list[str], user: str = "") -> dict[str, str]:
        assert container == self.id
        self._did(" ".join(command))
        return {"Id": "run"}

    base_url, api_version, timeout = "http+docker://localhost", "1.41", 60

    def post(self, url: str, **sent: Any) -> Any:
        assert url == "http+docker://localhost/v1.41/exec/run/start"
        assert sent == {"json": {"Detach": False, "Tty": False}, "timeout": 60}
        if isinstance(self.output, Exception):
            raise self.output
        answer = requests.Response()
        answer.status_code, answer.url = (200 if isinstance(self.output, bytes) else 409), url
        answer._content = self.output if isinstance(self.output, bytes) else self.output.encode()
        return answer

    def exec_inspect(self, run: str) -> dict[str, Any]:
        if self.slow_to_end:
            self.slow_to_end -= 1
            return {"ExitCode": None}
        return {"ExitCode": self.exec_code}

    def wait(self, timeout: int) -> dict[str, int]:
        return {"StatusCode": self.exit_code}

    def logs(self, **_: Any) -> bytes:
        lines = "\n".join(f"line {n}" for n in range(30))
        return f"{lines}\n{self.said}".encode()


@dataclass
class FakeVolume:
    owner: FakeDocker
    name: str
    labels: dict[str, str]

    @property
    def attrs(self) -> dict[str, Any]:
        return {"Labels": self.labels}

    def remove(self, force: bool = False) -> None:
        del self.owner.stored[self.name]


class FakeNetwork:
    def __init__(self, owner: FakeDocker, name: str, labels: dict[str, str]) -> None:
        self.owner, self.name, self.attrs, self.id = owner, name, {"Labels": labels}, f"id-{name}"

    def disconnect(self, container: FakeContainer, **_: Any) -> None:
        container.arguments["attached"] = None

    def connect(self, container: FakeContainer, aliases: Any = None) -> None:
        container.arguments["attached"] = aliases or []

    def remove(self) -> None:
        if any(c.arguments.get("network") == self.name for c in self.owner.made.values()):
            raise docker.errors.APIError("in use", requests.Response(), "active endpoints")
        del self.owner.nets[self.name]


class FakeDocker:
    """`docker.DockerClient`, as far as the target uses it."""

    def __init__(self) -> None:
        self.made: dict[str, FakeContainer] = {}
        self.stored: dict[str, FakeVolume] = {}
        self.nets: dict[str, FakeNetwork] = {}
        self.log: list[str] = []
        self.next: dict[str, Any] = {}
        self.containers = self.networks = self.volumes = self

    # containers, volumes and networks share these names, so ask what the name is of
    def get(self, name: str) -> Any:
        for store in (self.made, self.stored, self.nets):
            if name in store:
                return store[name]
        raise docker.errors.NotFound("no such thing")

    def create(self, name: str, driver: str = "", labels: Any = None, **arguments: Any) -> Any:
        if driver:
            self.nets[name] = FakeNetwork(self, name, labels)
            return self.nets[name]
        if "image" not in arguments:
            self.stored[name] = FakeVolume(self, name, labels)
            return self.stored[name]
        made = FakeContainer(self, name, {"labels": labels, **arguments}, **self.next)
        self.made[name] = made
        made._did("create")
        return made

    def list(
        self,
        names: Any = None,
        all: bool = False,
        filters: Any = None,
        ignore_removed: bool = False,
    ) -> list[Any]:
        if names is not None:
            return [n for name, n in self.nets.items() if f"^{name}$" in names]
        wanted = dict(
            part.split("=", 1) if "=" in part else (part, None)
            for part in (
                filters["label"] if isinstance(filters["label"], list) else [filters["label"]]
            )
        )
        store: dict[str, Any] = self.made if all else self.stored
        return [x for x in store.values() if all_match(x.labels, wanted)]

    def close(self) -> None:
        pass


def all_match(labels: dict[str, str], wanted: dict[str, Any]) -> bool:
    return all(k in labels and v in (None, labels[k]) for k, v in wanted.items())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDocker:
    made = FakeDocker()
    made.create("elsapg-test-network", driver="bridge", labels={d.STACK_LABEL: "test"})

    @contextlib.contextmanager
    def daemon(timeout: int = 600) -> Iterator[FakeDocker]:
        try:
            yield made
        except docker.errors.APIError as error:
            raise DeploymentError(d.explain(error)) from None

    monkeypatch.setattr(d, "daemon", daemon)
    return made


def file(path: str, content: str = "x") -> dict[str, Any]:
    return {"path": path, "content": content, "mode": 0o640}


def props(**changed: Any) -> dict[str, Any]:
    return {
        "stack": "test",
        "unit": "pg-1",
        "image": "sha256:1",
        "command": [],
        "env": {},
        "network": "elsapg-test-network",
        "network_id": "id",
        "aliases": ["pg-1"],
        "mounts": [{"volume": "elsapg-test-pg-1", "path": "/var/lib", "read_only": False}],
        "tmpfs": ["/tmp"],
        "ports": [{"container": 5432, "host": 5555, "address": "127.0.0.1"}],
        "memory_mb": 256,
        "cpus": None,
        "shm_mb": 64,
        "stop_timeout": 60,
        "stop_signal": "SIGTERM",
        "before_stop": ["handover"],
        "after_start": ["handover", "--wait-healthy"],
        "reload_signal": "SIGHUP",
        "files": [file("a.yml"), file("tls/ca.crt")],
        **changed,
    }


CONTAINER = resources._ContainerProvider()


def on_the_wire(value: Any) -> Any:
    """As Pulumi gives it back: every number is a float."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return float(value)
    if isinstance(value, list):
        return [on_the_wire(v) for v in value]
    if isinstance(value, dict):
        return {k: on_the_wire(v) for k, v in value.items()}
    return value


def create(fake: FakeDocker, **changed: Any) -> dict[str, Any]:
    outs = dict(CONTAINER.create(on_the_wire(props(**changed))).outs or {})
    fake.log.clear()
    return outs


def update(outs: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return dict(CONTAINER.update("x", on_the_wire(outs), on_the_wire(props(**changed))).outs or {})


# -- diff ----------------------------------------------------------------------------------


def test_the_same_is_no_change_whatever_the_wire_makes_of_numbers(fake: FakeDocker) -> None:
    outs = create(fake)
    for old in (outs, on_the_wire(outs)):
        for new in (props(), on_the_wire(props())):
            assert CONTAINER.diff("x", old, new).changes is False
    assert containers.spec(props()) == containers.spec(on_the_wire(props()))
    assert containers.inputs(on_the_wire(props(cpus=1.5)))["cpus"] == 1.5


@pytest.mark.parametrize(
    "changed",
    [
        {"image": "sha256:2"},
        {"files": [file("a.yml", "y"), file("tls/ca.crt")]},
        {"memory_mb": 512},
        {"cpus": 1.5},
        {"ports": []},
        {"network_id": "another"},
        {"env": {"A": "b"}},
    ],
)
def test_whatever_differs_is_a_change_in_place_of_the_resource(
    fake: FakeDocker, changed: dict[str, Any]
) -> None:
    found = CONTAINER.diff("x", create(fake), props(**changed))
    assert found.changes is True
    # The container may be replaced; the resource never is, for then it would be stopped
    # before, or made twice after, without any care for who leads.
    assert not found.replaces


def test_what_refresh_found_is_a_change(fake: FakeDocker) -> None:
    outs = create(fake)
    fake.made["elsapg-test-pg-1"].status = "exited"
    read = CONTAINER.read("elsapg-test-pg-1", outs)
    assert read.outs is not None
    assert read.outs["running"] is False
    assert CONTAINER.diff("x", read.outs, props()).changes is True
    fake.made.clear()
    assert CONTAINER.read("elsapg-test-pg-1", outs).id == ""


def test_a_container_of_another_spec_is_a_change(fake: FakeDocker) -> None:
    outs = create(fake)
    fake.made["elsapg-test-pg-1"].arguments["labels"] |= {d.SPEC_LABEL: "other"}
    read = CONTAINER.read("elsapg-test-pg-1", outs)
    assert read.outs is not None
    assert CONTAINER.diff("x", read.outs, props()).changes is True


def test_another_unit_is_another_resource(fake: FakeDocker) -> None:
    assert CONTAINER.diff("x", create(fake), props(unit="pg-2")).replaces == ["unit"]


# -- converge ------------------------------------------------------------------------------


def test_a_new_one_is_made_with_all_its_care(fake: FakeDocker) -> None:
    create_log = fake.log
    CONTAINER.create(on_the_wire(props()))
    assert create_log == ["create pg-1", "push pg-1", "start pg-1"]
    made = fake.made["elsapg-test-pg-1"]
    assert made.arguments["read_only"] is True
    assert made.arguments["cap_drop"] == ["ALL"]
    assert made.arguments["security_opt"] == ["no-new-privileges"]
    assert made.arguments["user"] == "999:999"
    assert made.arguments["mem_limit"] == made.arguments["memswap_limit"] == "256m"
    assert made.arguments["shm_size"] == "64m"
    assert made.arguments["ports"] == {"5432/tcp": ("127.0.0.1", 5555)}
    assert made.arguments["attached"] == ["pg-1"]
    assert made.files == {"a.yml": "x", "tls/ca.crt": "x"}
    config = fake.stored["elsapg-test-pg-1-config"]
    assert config.labels == {d.STACK_LABEL: "test", d.UNIT_LABEL: "pg-1"}


def test_one_that_is_there_is_adopted(fake: FakeDocker) -> None:
    """Its `create` was killed after the container had started."""
    create(fake)
    CONTAINER.create(on_the_wire(props()))
    # Nobody knows which files the killed run wrote.
    assert fake.log == ["push pg-1", "sh -c kill -s HUP 1 pg-1"]


def test_one_that_never_started_is_made_anew(fake: FakeDocker) -> None:
    """Its `create` was killed in between: it may be in no network, or without its aliases."""
    create(fake)
    fake.made["elsapg-test-pg-1"].status = "created"
    fake.made["elsapg-test-pg-1"].arguments["attached"] = None
    CONTAINER.create(on_the_wire(props()))
    assert fake.log[-3:] == ["create pg-1", "push pg-1", "start pg-1"]
    assert fake.made["elsapg-test-pg-1"].arguments["attached"] == ["pg-1"]


def test_one_that_was_stopped_is_started_again(fake: FakeDocker) -> None:
    outs = create(fake)
    fake.made["elsapg-test-pg-1"].status = "exited"
    after = update({**outs, "running": False})
    assert fake.log == ["push pg-1", "start pg-1", BACK]
    assert CONTAINER.diff("x", after, props()).changes is False


def test_changed_files_are_reloaded(fake: FakeDocker) -> None:
    outs = create(fake)
    update(outs, files=[file("a.yml", "new"), file("tls/ca.crt")])
    assert fake.log == ["push pg-1", "sh -c kill -s HUP 1 pg-1"]
    assert fake.made["elsapg-test-pg-1"].files["a.yml"] == "new"


def test_who_cannot_reload_is_restarted(fake: FakeDocker) -> None:
    outs = create(fake, reload_signal=None)
    update(outs, reload_signal=None, files=[file("a.yml", "new")])
    assert fake.log == ["push pg-1", "rm -f /etc/elsapg/tls/ca.crt pg-1", "restart pg-1"]


def test_a_file_that_is_no_longer_there_is_removed(fake: FakeDocker) -> None:
    outs = create(fake)
    update(outs, files=[file("a.yml")])
    assert fake.log == [
        "push pg-1",
        "rm -f /etc/elsapg/tls/ca.crt pg-1",
        "sh -c kill -s HUP 1 pg-1",
    ]


@pytest.mark.parametrize("changed", [{"memory_mb": 512}, {"cpus": 2.0}])
def test_limits_change_in_place(fake: FakeDocker, changed: dict[str, Any]) -> None:
    outs = create(fake)
    after = update(outs, **changed)
    assert fake.log == ["update pg-1", BACK]
    assert CONTAINER.diff("x", after, props(**changed)).changes is False
    host = fake.made["elsapg-test-pg-1"].attrs["HostConfig"]
    assert host["Memory"] == changed.get("memory_mb", 256) * MIB
    assert host["CpuQuota"] == changed.get("cpus", 0) * 100_000


def test_a_limit_that_is_no_longer_set_is_lifted(fake: FakeDocker) -> None:
    outs = create(fake, cpus=1.5)
    update(outs)
    assert fake.log == ["update pg-1", BACK]
    # 0 means "as it is" to the daemon.
    assert fake.made["elsapg-test-pg-1"].attrs["HostConfig"]["CpuQuota"] == -1
    fake.log.clear()
    update({**outs, "cpus": None}, stop_timeout=61)
    assert fake.log == [BACK]


def test_less_memory_takes_a_new_container(fake: FakeDocker) -> None:
    """The buffers of the running PostgreSQL would not fit into the new limit."""
    outs = create(fake, memory_mb=512)
    update(outs, memory_mb=256)
    assert [line.split()[0] for line in fake.log][:3] == ["handover", "stop(60)", "remove"]
    assert fake.made["elsapg-test-pg-1"].attrs["HostConfig"]["Memory"] == 256 * MIB


@pytest.mark.parametrize("changed", [{"stop_timeout": 90}, {"before_stop": []}])
def test_what_only_we_look_at_touches_nothing(fake: FakeDocker, changed: dict[str, Any]) -> None:
    outs = create(fake)
    after = update(outs, **changed)
    assert fake.log == [BACK]
    assert CONTAINER.diff("x", after, props(**changed)).changes is False


@pytest.mark.parametrize(
    "changed", [{"image": "sha256:2"}, {"env": {"A": "b"}}, {"shm_mb": 128}, {"ports": []}]
)
def test_the_rest_replaces_after_a_handover_and_waits(
    fake: FakeDocker, changed: dict[str, Any]
) -> None:
    outs = create(fake)
    update(outs, **changed)
    assert fake.log == [
        "handover pg-1",
        "stop(60) pg-1",
        "remove pg-1",
        "create pg-1",
        "push pg-1",
        "start pg-1",
        "handover --wait-healthy pg-1",
    ]


def test_a_replaced_unit_that_is_not_back_stops_the_update(fake: FakeDocker) -> None:
    outs = create(fake)
    fake.next = {"exec_code": 1}
    with pytest.raises(DeploymentError, match="was changed but is not back: what it said"):
        update(outs, image="sha256:2")


def test_a_handover_that_fails_does_not_prevent_the_stop(fake: FakeDocker) -> None:
    outs = create(fake, after_start=[])
    fake.made["elsapg-test-pg-1"].exec_code = 1
    update(outs, image="sha256:2", after_start=[])
    assert "start pg-1" in fake.log


def test_a_creation_waits_for_nobody(fake: FakeDocker) -> None:
    """Four provider calls run at once: its peers may not exist yet."""
    create(fake, image="sha256:0")
    CONTAINER.create(on_the_wire(props()))
    assert not [line for line in fake.log if "handover" in line]


def test_a_stranger_is_refused(fake: FakeDocker) -> None:
    for label in ({}, {d.STACK_LABEL: "other"}):
        fake.made["elsapg-test-pg-1"] = FakeContainer(
            fake, "elsapg-test-pg-1", {"labels": label}, "running"
        )
        for call in (
            lambda: CONTAINER.create(props()),
            lambda: CONTAINER.update("x", props(), props(image="y")),
            lambda: CONTAINER.delete("x", props()),
        ):
            with pytest.raises(DeploymentError, match="exists and is not of stack 'test'"):
                call()
        assert fake.log == []


def test_delete_takes_the_configuration_with_it(fake: FakeDocker) -> None:
    outs = create(fake)
    CONTAINER.delete("x", outs)
    assert (fake.made, fake.stored) == ({}, {})
    CONTAINER.delete("x", outs)


def test_a_port_that_is_taken_leaves_no_half_made_container(fake: FakeDocker) -> None:
    fake.next = {
        "fails_to_start": "driver failed programming external connectivity on endpoint x: Bind "
        "for 127.0.0.1:5555 failed: port is already allocated"
    }
    with pytest.raises(DeploymentError, match=r"port 5555 of 127.0.0.1 .* docker\.pool_port"):
        CONTAINER.create(props())
    assert fake.made == {}
    assert fake.stored == {}


# -- network, volume -----------------------------------------------------------------------

NETWORK = resources._NetworkProvider()
VOLUME = resources._VolumeProvider()
NET = {"stack": "test", "name": "elsapg-test-network"}
VOL = {"stack": "test", "name": "elsapg-test-pg-1", "data": True}


def test_a_network_is_adopted_or_made(fake: FakeDocker) -> None:
    assert (NETWORK.create(NET).outs or {})["network_id"] == "id-elsapg-test-network"
    fake.nets.clear()
    assert (NETWORK.create(NET).outs or {})["network_id"] == "id-elsapg-test-network"
    fake.nets["elsapg-test-network"].attrs = {"Labels": None}
    with pytest.raises(DeploymentError, match="network elsapg-test-network exists"):
        NETWORK.create(NET)
    fake.nets.clear()
    assert NETWORK.read("elsapg-test-network", NET).id == ""


def test_a_network_takes_what_a_killed_up_left_with_it(fake: FakeDocker) -> None:
    """Containers that the state knows are gone by then; these it never heard of."""
    create(fake)
    fake.create("elsapg-test-pg-1", labels={d.STACK_LABEL: "test", d.DATA_LABEL: "true"})
    NETWORK.delete("elsapg-test-network", NET)
    assert (fake.nets, fake.made) == ({}, {})
    assert set(fake.stored) == {"elsapg-test-pg-1"}, "data stays, configurations go"
    NETWORK.delete("elsapg-test-network", NET)


def test_a_volume_is_adopted_or_made(fake: FakeDocker) -> None:
    VOLUME.create(VOL)
    assert fake.stored["elsapg-test-pg-1"].labels == {d.STACK_LABEL: "test", d.DATA_LABEL: "true"}
    VOLUME.create(VOL)
    fake.stored["elsapg-test-pg-1"].labels = {d.STACK_LABEL: "other"}
    with pytest.raises(DeploymentError, match="volume elsapg-test-pg-1 exists"):
        VOLUME.create(VOL)
    fake.stored.clear()
    assert VOLUME.read("elsapg-test-pg-1", VOL).id == ""
    VOLUME.delete("elsapg-test-pg-1", VOL)


# -- tasks ---------------------------------------------------------------------------------

TASK = resources._TaskProvider()


def task(**changed: Any) -> dict[str, Any]:
    return {
        "stack": "test",
        "unit": "configure",
        "image": "sha256:1",
        "command": ["configure"],
        "network": "elsapg-test-network",
        "network_id": "id",
        "timeout_s": 300,
        "tmpfs": ["/tmp"],
        "files": [file("runner.json")],
        **changed,
    }


def test_a_task_runs_and_leaves_nothing(fake: FakeDocker) -> None:
    outs = TASK.create(on_the_wire(task())).outs or {}
    assert outs["log"].endswith("line 29")
    assert (fake.made, fake.stored) == ({}, {})
    assert TASK.diff("x", on_the_wire(outs), task()).changes is False
    assert TASK.diff("x", outs, task(image="sha256:2")).changes is True
    assert TASK.diff("x", outs, task(files=[file("runner.json", "y")])).changes is True


def test_a_task_is_not_restarted_by_the_daemon(fake: FakeDocker) -> None:
    seen = []
    original = FakeContainer.start
    fake.next = {}

    def start(self: FakeContainer) -> None:
        seen.append(self.arguments["restart_policy"])
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeContainer, "start", start)
        TASK.create(task())
    assert seen == [{"Name": "no"}]


def test_a_task_that_fails_says_its_last_lines_and_leaves_nothing(fake: FakeDocker) -> None:
    fake.next = {"exit_code": 3}
    with pytest.raises(DeploymentError) as caught:
        TASK.create(task())
    assert str(caught.value).startswith("configure failed (3): line 15\n")
    assert (fake.made, fake.stored) == ({}, {})


@pytest.mark.parametrize(
    "said",
    [
        "configure: pg-1 refuses\nbecause of this",
        "configure: primary:5432 as postgres\nerror: pg-1 refuses\nbecause of this",
    ],
)
def test_a_task_that_says_why_is_quoted(fake: FakeDocker, said: str) -> None:
    """`up` shows a failure's first lines only."""
    fake.next = {"exit_code": 1, "said": said}
    with pytest.raises(DeploymentError) as caught:
        TASK.create(task())
    assert str(caught.value) == "configure failed (1): pg-1 refuses\nbecause of this"


def test_a_commands_end_is_waited_for(fake: FakeDocker, monkeypatch: pytest.MonkeyPatch) -> None:
    create(fake)
    made: Any = fake.made["elsapg-test-pg-1"]
    made.exec_code, made.slow_to_end = 3, 2
    assert d.execute(made, ["true"]) == (3, "what it said")
    made.slow_to_end = 10**6
    monkeypatch.setattr(d, "EXIT_CODE_WITHIN_S", 0)
    assert d.execute(made, ["true"])[0] == d.EXIT_CODE_UNKNOWN


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (b"\1\0\0\0\0\0\0\5wha", "its output broke off"),
        (b"\1\0\0\0\0\0\0\5what \1\0\0", "its output broke off"),
        (
            requests.exceptions.ConnectionError("Read timed out."),
            "said nothing for 60 s",
        ),
    ],
    ids=["content", "header", "silence"],
)
def test_output_that_does_not_come_whole_is_no_output(
    fake: FakeDocker, output: Any, told: str
) -> None:
    create(fake)
    made: Any = fake.made["elsapg-test-pg-1"]
    made.output = output
    with pytest.raises(UnhealthyError) as caught:
        d.execute(made, ["psql", "-c", "SELECT 1"])
    assert str(caught.value).startswith("elsapg-test-pg-1: `psql -c 'SELECT 1'`")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("code", "why", "tries"),
    [
        (126, "waiting for init preliminary setup: read init-p", 3),
        (126, 'exec: "nosuch": executable file not found in $PATH', 1),
        (1, "as psql was told", 1),
    ],
)
def test_a_command_that_was_never_started_is_tried_again(
    fake: FakeDocker, code: int, why: str, tries: int
) -> None:
    create(fake)
    made: Any = fake.made["elsapg-test-pg-1"]
    said = f"OCI runtime exec failed: exec failed: unable to start container process: {why}"
    made.exec_code, made.output = code, struct.pack(">BxxxL", 1, len(said)) + said.encode()
    assert d.execute(made, ["psql"]) == (code, said)
    assert fake.log.count("psql pg-1") == tries


def test_a_command_that_cannot_start_says_why(fake: FakeDocker) -> None:
    create(fake)
    made: Any = fake.made["elsapg-test-pg-1"]
    made.output = "container elsapg-test-pg-1 is paused"
    with pytest.raises(docker.errors.APIError, match="is paused"):
        d.execute(made, ["true"])


def test_a_task_that_takes_too_long_ends(fake: FakeDocker, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(self: FakeContainer, timeout: int) -> dict[str, int]:
        raise requests.exceptions.ConnectionError("Read timed out.")

    monkeypatch.setattr(FakeContainer, "wait", wait)
    with pytest.raises(DeploymentError, match=r"configure failed \(124\)"):
        TASK.create(task())
    assert fake.made == {}


def test_a_killed_run_of_a_task_is_replaced(fake: FakeDocker) -> None:
    labels = {d.STACK_LABEL: "test", d.UNIT_LABEL: "configure"}
    fake.made["elsapg-test-configure"] = FakeContainer(
        fake, "elsapg-test-configure", {"labels": labels}, "running"
    )
    TASK.create(task())
    assert fake.log[:2] == ["remove configure", "create configure"]


# -- what the daemon says ------------------------------------------------------------------


def api_error(text: str) -> docker.errors.APIError:
    return docker.errors.APIError("500 Server Error", requests.Response(), text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "driver failed programming external connectivity on endpoint a (b): Bind for "
            "127.0.0.1:6432 failed: port is already allocated",
            "port 6432 of 127.0.0.1 is already taken",
        ),
        (
            "driver failed programming external connectivity on endpoint a (b): Error starting "
            "userland proxy: listen tcp4 127.0.0.1:6433: bind: address already in use",
            "port 6433 of 127.0.0.1 is already taken",
        ),
        (
            "failed to set up container networking: listen tcp 0.0.0.0:6433: bind: address "
            "already in use",
            "port 6433 of 0.0.0.0 is already taken",
        ),
        (
            "mkdir /var/lib/docker/overlay2/x: no space left on device",
            "Docker's disk is full",
        ),
        ("something else\nin two lines", "Docker: something else in two lines"),
    ],
)
def test_errors_are_one_sentence(text: str, says: str) -> None:
    told = d.explain(api_error(text))
    assert told.startswith(says)
    assert "\n" not in told


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Client:
        def close(self) -> None:
            pass

    monkeypatch.setattr(d, "_speaks", lambda _: "1.41")
    monkeypatch.setattr(docker, "from_env", lambda **_: Client())
    yield


@pytest.mark.usefixtures("client")
def test_a_daemon_that_goes_away_in_the_middle() -> None:
    for error in (
        requests.exceptions.ConnectionError("Connection aborted"),
        requests.exceptions.ReadTimeout("Read timed out"),
    ):
        with pytest.raises(MissingError, match="Docker does not answer"), d.daemon():
            raise error
    with pytest.raises(DeploymentError, match="disk is full"), d.daemon():
        raise api_error("no space left on device")


def test_no_daemon_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(MissingError, match=r"`elsapg setup`, or set DOCKER_HOST"):
        d.check()


def test_what_the_daemon_speaks_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Client:
        api = type("Api", (), {"api_version": "1.41"})

        def __init__(self, timeout: int, version: str | None = None) -> None:
            asked.append(version)

        def close(self) -> None:
            pass

    monkeypatch.setenv("DOCKER_HOST", "unix:///somewhere/docker.sock")
    monkeypatch.setattr(docker, "from_env", Client)
    for _ in range(2):
        with d.daemon():
            pass
    assert asked == [None, "1.41", "1.41"]


# -- images --------------------------------------------------------------------------------

IMAGE = resources._ImageProvider()
IMG = {"target": "etcd", "context": "abc", "base": "debian:trixie-slim"}


class FakeImages:
    def __init__(self, here: set[str], fails: Exception | None = None) -> None:
        self.here, self.fails, self.built = here, fails, 0

    def get(self, name: str) -> Any:
        if name not in self.here:
            raise docker.errors.ImageNotFound("no")
        return type("Image", (), {"id": f"sha256:{name}"})

    def build(self, *, target: str, tag: str, **_: Any) -> Any:
        if self.fails:
            raise self.fails
        self.built += 1
        self.here.add(tag)
        return self.get(tag), []


def with_images(monkeypatch: pytest.MonkeyPatch, images: FakeImages) -> None:
    made = type("Client", (), {"images": images, "close": lambda self: None})()
    monkeypatch.setattr(d, "_speaks", lambda _: "1.41")
    monkeypatch.setattr(docker, "from_env", lambda **_: made)


def test_an_image_is_built_once_per_content(monkeypatch: pytest.MonkeyPatch) -> None:
    images = FakeImages({"debian:trixie-slim"})
    with_images(monkeypatch, images)
    outs = IMAGE.create(IMG).outs or {}
    assert outs["tag"] == "elsapg/etcd:abc"
    IMAGE.create(IMG)
    assert images.built == 1
    assert IMAGE.diff("x", outs, IMG).changes is False
    assert IMAGE.diff("x", outs, {**IMG, "context": "def"}).changes is True
    IMAGE.update("x", outs, {**IMG, "context": "def"})
    assert images.built == 2
    images.here.clear()
    assert IMAGE.read("x", outs).id == ""


def test_without_a_base_image_setup_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_images(monkeypatch, FakeImages(set()))
    with pytest.raises(MissingError, match=r"base image debian:trixie-slim .* `elsapg setup`"):
        IMAGE.create(IMG)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            docker.errors.BuildError(
                "returned a non-zero code: 100",
                [{"stream": "Step 3\n"}, {"error": "E: Unable to locate package nope"}],  # type: ignore[list-item]
            ),
            r"image etcd does not build: returned a non-zero code: 100 .*package nope",
        ),
        (
            docker.errors.BuildError(
                "failed",
                [{"stream": "dpkg: error: write: no space left on device"}],  # type: ignore[list-item]
            ),
            "no disk space to build image etcd: free some",
        ),
        (
            docker.errors.BuildError(
                "The command returned 100",
                [{"stream": "E: You don't have enough free space: No space left on device"}],  # type: ignore[list-item]
            ),
            "no disk space to build image etcd: free some",
        ),
        (
            docker.errors.APIError("500", requests.Response(), "no space left on device"),
            "Docker's disk is full",
        ),
    ],
    ids=["a package is missing", "disk full", "disk full as libc says it", "disk full at once"],
)
def test_a_build_that_fails_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    with_images(monkeypatch, FakeImages({"debian:trixie-slim"}, error))
    with pytest.raises(DeploymentError, match=says) as caught:
        IMAGE.create(IMG)
    assert "\n" not in str(caught.value)


def test_a_digest_follows_content_and_names(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "ROOT", tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("1")
    first = resources.context_digest(("folder",))
    assert resources.context_digest(("folder",)) == first
    (tmp_path / "folder" / "__pycache__").mkdir()
    (tmp_path / "folder" / "__pycache__" / "a.pyc").write_text("1")
    assert resources.context_digest(("folder",)) == first
    (tmp_path / "folder" / "a").write_text("2")
    second = resources.context_digest(("folder",))
    (tmp_path / "folder" / "a").rename(tmp_path / "folder" / "b")
    third = resources.context_digest(("folder",))
    assert len({first, second, third}) == 3
