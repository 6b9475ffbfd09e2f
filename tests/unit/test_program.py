"""The Pulumi program against mocks: which resources, how protected, in which order, how secret."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
import pytest
from google.protobuf import json_format
from pulumi.runtime import mocks, rpc, stack
from pulumi.runtime.proto import resource_pb2
from pulumi.runtime.sync_await import _sync_await

from elsapg import stackfile
from elsapg.definition import topology as t
from elsapg.definition.secrets import PASSWORD_ROLES, Recovery, Source, certificate_names
from elsapg.errors import MissingError, UsageError
from elsapg.program import Escrow, Rescue, program
from elsapg.settings import Settings
from elsapg.targets.docker import daemon
from tests.unit.kubernetes_stacks import LEAST, merged, project

SECRET = "1b47061264138c4ac30d75fd1eb44270"  # Pulumi's mark of a secret on the wire
SIGNATURE = "4dabf18193072939515e22adb298388d"
STACK = "name-of-the-stack"


@dataclass
class Registered:
    """What the engine is asked to register. `wire`: inputs with their secrets marked."""

    type: str
    name: str
    protect: bool
    ignore_changes: list[str]
    depends_on: set[str]
    wire: dict[str, Any]
    secret_outputs: set[str]

    @property
    def key(self) -> str:
        """An image and a container may have one name; `Image:s3` and `s3` tell them apart."""
        return f"Image:{self.name}" if self.type.endswith(":Image") else self.name

    @property
    def inputs(self) -> dict[str, Any]:
        plain = bare(self.wire)
        assert isinstance(plain, dict)
        return plain

    @property
    def clear(self) -> str:
        """Everything that is not marked as secret."""
        return json.dumps(without_secrets(self.wire))


def key_of(urn: str) -> str:
    *_, type_, name = urn.split("::")
    return f"Image:{name}" if type_.endswith(":Image") else name


def is_secret(value: Any) -> bool:
    return isinstance(value, dict) and value.get(SIGNATURE) == SECRET


def without_secrets(value: Any) -> Any:
    if is_secret(value):
        return "***"
    if isinstance(value, dict):
        return {k: without_secrets(v) for k, v in value.items()}
    return [without_secrets(v) for v in value] if isinstance(value, list) else value


def bare(value: Any) -> Any:
    if is_secret(value):
        return bare(value["value"])
    if isinstance(value, dict):
        return {k: bare(v) for k, v in value.items()}
    return [bare(v) for v in value] if isinstance(value, list) else value


class Made(mocks.Mocks):
    """Outputs as the providers would give them, every secret recognizable."""

    def call(self, args: mocks.MockCallArgs) -> dict[str, Any]:
        raise AssertionError(args.token)

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        raise AssertionError(args.name)

    @staticmethod
    def outputs(type_: str, name: str, inputs: dict[str, Any]) -> dict[str, Any]:
        if type_.endswith("Stash"):
            return {"output": f"STASHED-{name}", "input": f"STASHED-{name}"}
        if "pki" in type_:
            return {
                "certificate": f"CERTIFICATE-{name}",
                "private_key": f"PRIVATE-KEY-{name}",
                "not_after": "2030-01-01T00:00:00+00:00",
            }
        if type_.endswith(":Image"):
            return {"image_id": f"sha256:{name}", "tag": name}
        return {"network_id": "id"} if type_.endswith(":Network") else {}


class Monitor(mocks.MockMonitor):
    """Like the engine, it keeps secrets secret and adds those that the resource names."""

    def __init__(self) -> None:
        super().__init__(Made())
        self.seen: list[Registered] = []
        self.exports: dict[str, Any] = {}

    def RegisterResource(self, request: Any) -> Any:
        if request.type == "pulumi:pulumi:Stack":
            return super().RegisterResource(request)
        urn = self.make_urn(request.parent, request.type, request.name)
        wire = json_format.MessageToDict(request.object)
        self.seen.append(
            Registered(
                type=request.type,
                name=request.name,
                protect=request.protect,
                ignore_changes=list(request.ignoreChanges),
                depends_on={key_of(urn) for urn in request.dependencies},
                wire=wire,
                secret_outputs=set(request.additionalSecretOutputs),
            )
        )
        outputs = {**wire, **Made.outputs(request.type, request.name, bare(wire))}
        marked = set(request.additionalSecretOutputs)
        if request.type.endswith("Stash") and is_secret(wire["input"]):
            marked |= {"input", "output"}
        for name in marked & outputs.keys():
            outputs[name] = {SIGNATURE: SECRET, "value": bare(outputs[name])}
        response = resource_pb2.RegisterResourceResponse(urn=urn, id=request.name)
        json_format.ParseDict(outputs, response.object)
        return response

    def RegisterResourceOutputs(self, request: Any) -> Any:
        self.exports |= json_format.MessageToDict(request.outputs)
        return super().RegisterResourceOutputs(request)


@dataclass
class Run:
    resources: dict[str, Registered] = field(default_factory=dict)
    exports: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> dict[str, Registered]:
        return {n: r for n, r in self.resources.items() if r.type.endswith(f":{kind}")}


@pytest.fixture(scope="module", autouse=True)
def docker_answers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daemon, "check", lambda: None)
        yield


def run(
    settings: Settings,
    name: str = STACK,
    root: Path = Path("/nowhere"),
    rescue: Rescue | None = None,
) -> Run:
    monitor = Monitor()
    mocks.set_mocks(Made(), project="elsapg", stack=name, monitor=monitor)
    # A new root, for outputs are collected on it.
    pulumi.runtime.settings.set_root_resource(None)  # type: ignore[arg-type]
    _sync_await(
        stack.run_in_stack(lambda: program(name, settings, root, rescue))  # type: ignore[arg-type]
    )
    assert len({r.key for r in monitor.seen}) == len(monitor.seen), "a logical name twice"
    return Run({r.key: r for r in monitor.seen}, monitor.exports)


@pytest.fixture(scope="module")
def local() -> Run:
    return run(stackfile.load({}, "test"))


def test_what_is_registered(local: Run) -> None:
    settings = stackfile.load({}, "test")
    assert set(local.of("Container")) == {u.name for u in t.units(settings)}
    assert set(local.of("Task")) == {task.name for task in t.tasks(settings)}
    assert set(local.of("Certificate")) == {
        f"certificate-{name}" for name in certificate_names(settings)
    }
    images = {"etcd", "s3", "postgres", "haproxy", "pgbouncer", "runner"}
    assert {image.name for image in local.of("Image").values()} == images
    assert set(local.of("Volume")) == {
        f"volume-{name}"
        for name in (
            *("pg-1", "pg-2", "pg-1-run", "pg-2-run"),
            *("etcd-1", "s3", "s3-versions", "runner-scratch"),
        )
    }
    assert set(local.of("Network")) == {"network"}
    assert set(local.of("CertificateAuthority")) == {"ca"}
    stashes = {f"password-{role}" for role in PASSWORD_ROLES}
    stashes |= {"s3-access-key", "s3-secret-key", "repository-cipher", "encryption-key-k1"}
    assert set(local.of("Stash")) == stashes


def test_logical_names_are_free_of_the_stacks(local: Run) -> None:
    assert not [name for name in local.resources if STACK in name]


def test_physical_names_carry_it(local: Run) -> None:
    names = [
        r.inputs["name"] for r in (*local.of("Volume").values(), *local.of("Network").values())
    ]
    assert all(name.startswith(f"elsapg-{STACK}-") for name in names)
    assert all(r.inputs["stack"] == STACK for r in local.of("Container").values())


KEPT = {*("volume-pg-1", "volume-pg-2", "volume-etcd-1", "volume-s3", "volume-s3-versions", "ca")}


def test_data_and_secrets_are_protected(local: Run) -> None:
    kept = KEPT | set(local.of("Stash"))
    assert {n for n, r in local.resources.items() if r.protect} == kept


def test_a_stack_may_choose_not_to_be_protected() -> None:
    found = run(stackfile.load({"protect": False}, "test"))
    assert not [n for n, r in found.resources.items() if r.protect]


def test_a_generated_secret_is_made_once(local: Run) -> None:
    for name, stash in local.of("Stash").items():
        assert stash.ignore_changes == ["input"], name
        assert is_secret(stash.wire["input"]), name
        assert len(stash.inputs["input"]) >= 20, name
    values = [stash.inputs["input"] for stash in local.of("Stash").values()]
    assert len(set(values)) == len(values)


def test_no_secret_leaves_in_clear(local: Run) -> None:
    generated = [stash.inputs["input"] for stash in local.of("Stash").values()]
    for name, resource in local.resources.items():
        for marker in ("STASHED-", "PRIVATE-KEY-", *generated):
            assert marker not in resource.clear, f"{marker[:12]} in {name}"
    assert "STASHED-" not in json.dumps(without_secrets(local.exports))
    assert "PRIVATE-KEY-" not in json.dumps(local.exports)


def test_the_secrets_do_reach_their_places(local: Run) -> None:
    """Else the test above would prove nothing."""
    assert "STASHED-password-elsa_app" in json.dumps(local.resources["bootstrap"].inputs)
    assert "PRIVATE-KEY-certificate-backup" in json.dumps(local.resources["runner"].inputs)
    assert "STASHED-s3-secret-key" in json.dumps(local.resources["s3"].inputs)
    for resource in (*local.of("Container").values(), *local.of("Task").values()):
        assert is_secret(resource.wire["files"]), resource.name
        assert "files" in resource.secret_outputs, resource.name


def test_keys_are_secret_outputs(local: Run) -> None:
    assert local.resources["ca"].secret_outputs == {"private_key"}
    for name, certificate in local.of("Certificate").items():
        assert certificate.secret_outputs == {"private_key", "ca_private_key"}, name
        assert is_secret(certificate.wire["ca_private_key"]), name


def test_outputs(local: Run) -> None:
    assert bare(local.exports["passwords"]) == {
        role: f"STASHED-password-{role}" for role in PASSWORD_ROLES
    }
    assert is_secret(local.exports["passwords"])
    assert bare(local.exports["encryption_keys"]) == {
        "current": "k1",
        "keys": {"k1": "STASHED-encryption-key-k1"},
    }
    assert is_secret(local.exports["encryption_keys"])
    assert local.exports["ca"] == "CERTIFICATE-ca"
    assert local.exports["pools"] == [
        {"host": "127.0.0.1", "port": 6432},
        {"host": "127.0.0.1", "port": 6433},
    ]
    assert local.exports.get("direct_port") is None


def test_each_encryption_key_is_32_bytes_and_the_last_one_current(local: Run) -> None:
    found = run(stackfile.load({"encryption": {"key_ids": ["k1", "2026"]}}, "test"))
    for name in ("k1", "2026"):
        made = found.resources[f"encryption-key-{name}"].inputs["input"]
        assert len(base64.b64decode(made, validate=True)) == 32
    assert bare(found.exports["encryption_keys"])["current"] == "2026"
    # A further key changes nothing that runs.
    for kind in ("Container", "Task"):
        assert {n: r.inputs for n, r in found.of(kind).items()} == {
            n: r.inputs for n, r in local.of(kind).items()
        }
        for resource in found.of(kind).values():
            assert "encryption-key" not in json.dumps(resource.inputs)


def waits_for(found: Run, name: str) -> set[str]:
    """All that must be there before `name` is made or changed."""
    reached: set[str] = set()
    left = [name]
    while left:
        for other in found.resources[left.pop()].depends_on - reached:
            reached.add(other)
            left.append(other)
    return reached


def test_order(local: Run) -> None:
    # One node, one pooler at a time: an update that replaces them waits until each is back.
    assert {"pg-1", "etcd-1", "s3"} <= waits_for(local, "pg-2")
    assert "pgbouncer-1" in waits_for(local, "pgbouncer-2")
    assert "pg-1" in waits_for(local, "pg-1-agent")
    assert "pg-2" not in waits_for(local, "pg-1")
    assert set(local.of("Container")) <= waits_for(local, "configure")
    assert "configure" in waits_for(local, "bootstrap")
    assert "bootstrap" in waits_for(local, "first-backup")
    for name, unit in local.of("Container").items():
        assert "network" in waits_for(local, name), name
        volumes = {m["volume"] for m in unit.inputs["mounts"]}
        for volume in volumes:
            assert volume.replace(f"elsapg-{STACK}-", "volume-") in waits_for(local, name)


def test_the_network_goes_before_the_volumes(local: Run) -> None:
    """With it goes what a killed `up` made and nobody recorded; that holds on to volumes."""
    assert set(local.of("Volume")) <= waits_for(local, "network")


def test_no_unit_waits_for_a_peer_to_be_healthy(local: Run) -> None:
    """At most four provider calls run at once: poolers must not wait for nodes, nor HAProxy."""
    for name in ("haproxy", "pgbouncer-1", "pgbouncer-2", "runner"):
        assert not {"pg-1", "pg-2"} & waits_for(local, name)


def test_tasks_run_again_when_their_image_or_files_change(local: Run) -> None:
    for task in local.of("Task").values():
        assert {"image", "files", "command", "timeout_s"} <= task.inputs.keys()


@pytest.mark.parametrize("target", ["docker", "kubernetes"])
@pytest.mark.parametrize(
    "database",
    [{"provider": "sqlite"}, {"provider": "sqlserver", "host": "sql.example", "user": "elsa"}],
)
def test_another_database_is_refused_for_nothing_registered_means_all_removed(
    target: str, database: dict[str, str]
) -> None:
    monitor = Monitor()
    mocks.set_mocks(Made(), project="elsapg", stack=STACK, monitor=monitor)
    settings = Settings.model_validate({"target": target, "database": database})
    with pytest.raises(
        UsageError, match=rf"uses {database['provider']} .*nothing is there to deploy"
    ):
        program(STACK, settings, Path("/nowhere"))
    assert monitor.seen == []


def test_docker_down_is_told_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def down() -> None:
        raise MissingError("Docker does not answer")

    monkeypatch.setattr(daemon, "check", down)
    monitor = Monitor()
    mocks.set_mocks(Made(), project="elsapg", stack=STACK, monitor=monitor)
    with pytest.raises(MissingError):
        program(STACK, Settings(), Path("/nowhere"))
    assert monitor.seen == []
    # A preview wants no daemon.
    mocks.set_mocks(Made(), project="elsapg", stack=STACK, preview=True, monitor=Monitor())
    program(STACK, Settings(), Path("/nowhere"))


def test_wire_helpers_see_secrets() -> None:
    secret = {SIGNATURE: SECRET, "value": "x"}
    assert without_secrets({"a": [secret]}) == {"a": ["***"]}
    assert bare({"a": [secret]}) == {"a": ["x"]}
    assert rpc._special_secret_sig == SECRET
    assert rpc._special_sig_key == SIGNATURE


def test_a_new_repository_key_leaves_the_old_one() -> None:
    found = run(stackfile.load({"archive": {"key_ids": ["k1", "k2"]}}, "test"))
    assert {"repository-cipher", "repository-cipher-k2"} <= set(found.of("Stash"))


# -- out of a repository ---------------------------------------------------------------------

SOURCE = Source("elsapg-first-s3", 9000, "path", "b", "r", "/wal", "A", "S", "C", "CA")


def test_from_a_backup_the_kept_keys_are_taken_and_the_repository_looked_at_first() -> None:
    escrow = Escrow("access", "secret", "cipher", {"k1": "ring"})
    found = run(stackfile.load({}, "test"), rescue=Rescue(Recovery("latest"), escrow))
    stashes = found.of("Stash")
    for name, value in {
        "s3-access-key": "access",
        "s3-secret-key": "secret",
        "repository-cipher": "cipher",
        "encryption-key-k1": "ring",
    }.items():
        assert stashes[name].inputs["input"] == value
        assert value not in stashes[name].clear
        # They win over those of an attempt with the wrong ones.
        assert stashes[name].ignore_changes == []
    assert stashes["password-elsa_app"].ignore_changes == ["input"]
    for node in ("pg-1", "pg-2"):
        assert "recovery-check" in found.resources[node].depends_on
        assert "recovery.json" in {f["path"] for f in found.resources[node].inputs["files"]}
    assert "recovery-check" in found.resources["runner"].depends_on
    assert "s3" in found.resources["recovery-check"].depends_on
    assert found.of("Link") == {}


def test_a_clone_is_linked_to_its_source_while_it_is_made() -> None:
    order = Recovery("latest", source=SOURCE, source_stack="first")
    found = run(stackfile.load({}, "test"), rescue=Rescue(order))
    [link] = found.of("Link").values()
    assert link.inputs["container"] == "elsapg-first-s3"
    assert link.name in found.resources["recovery-check"].depends_on
    assert "source.conf" in {f["path"] for f in found.resources["pg-1"].inputs["files"]}
    assert "source.conf" not in found.resources["pg-1"].clear
    assert "source.conf" not in {f["path"] for f in found.resources["pg-1-agent"].inputs["files"]}


def test_on_kubernetes_a_clone_takes_the_keys_over_and_opens_its_source_by_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is made; the second `up` gives no order, and that Secret goes."""
    monkeypatch.delenv("ELSAPG_S3_ACCESS_KEY", raising=False)
    monkeypatch.delenv("ELSAPG_S3_SECRET_KEY", raising=False)
    values = merged(LEAST, {"recovery": {"source": "first", "to": "latest"}})
    root, settings = project(tmp_path, {"second": values}), stackfile.load(values, "test")
    escrow = Escrow("access", "secret", None, {"k1": "ring"})
    order = Recovery("latest", source=SOURCE, source_stack="first")
    found = run(settings, "second", root, Rescue(order, escrow))
    stashes = found.of("Stash")
    taken = {"s3-access-key": "access", "s3-secret-key": "secret", "encryption-key-k1": "ring"}
    for name, value in taken.items():
        assert stashes[name].inputs["input"] == value
        assert value not in stashes[name].clear
    for name in ("repository-cipher", "password-elsa_app"):
        assert stashes[name].ignore_changes == ["input"], name
    secret = found.resources["secret-source"]
    assert secret.inputs["metadata"]["namespace"] == "elsapg-second"
    assert secret.inputs["stringData"]["source-ca.crt"] == "CA"
    assert "repo1-s3-key=A\n" in secret.inputs["stringData"]["source.conf"]
    assert "repo1-s3-key" not in secret.clear
    # It can go: neither protected, nor kept by a tool of GitOps.
    assert not secret.protect and "annotations" not in secret.inputs["metadata"]
    assert "secret-source" in found.resources["nodes"].depends_on

    monkeypatch.setenv("ELSAPG_S3_ACCESS_KEY", "own")
    monkeypatch.setenv("ELSAPG_S3_SECRET_KEY", "own-secret")
    plain = run(settings, "second", root)
    assert "secret-source" not in plain.resources
    pods = [r.resources["statefulset-pg"].inputs for r in (plain, found)]
    assert pods[0] == pods[1], "pods are replaced"
    assert plain.of("Stash")["encryption-key-k1"].ignore_changes == ["input"]
    given = run(settings, "second", root, Rescue(order, escrow)).of("Stash")["s3-access-key"]
    assert given.inputs["input"] == "own"


def test_nothing_of_it_stays(local: Run) -> None:
    assert "recovery-check" not in local.resources
    assert local.of("Link") == {}
    assert is_secret(local.exports["repository"])
