"""`elsapg secrets apply` against a cluster that is a dictionary: what is there stays as it is."""

from __future__ import annotations

import base64
import copy
import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from elsapg import pki, stackfile
from elsapg.cli import main
from elsapg.definition.secrets import PASSWORD_ROLES
from elsapg.errors import NotDeployedError, UsageError
from elsapg.services import secrets as service
from elsapg.targets.kubernetes.secret_objects import Place, needed
from tests.unit.kubernetes_stacks import LEAST, merged, project, rendered, settings

NAMESPACE = "elsapg-least"
ACCESS, SECRET = "ACCESS-KEY", "SECRET-KEY-OF-S3"


@dataclass
class FakeCluster:
    """Does what kubectl does with Secrets, and remembers every argument that it got."""

    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)
    namespaces: dict[str, Any] = field(default_factory=dict)
    claims: set[str] = field(default_factory=set)
    arguments: list[str] = field(default_factory=list)
    writes: list[tuple[str, str]] = field(default_factory=list)
    version: int = 0

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        self.arguments += arguments
        match arguments:
            case ("get", "secret", *rest):
                assert "--ignore-not-found" in rest
                found = [s for name, s in self.secrets.items() if name in rest]
                if len(found) == 1:
                    return json.dumps(found[0])
                return json.dumps({"items": found}) if found else ""
            case ("get", "namespace", name, *_):
                return f"namespace/{name}\n" if name in self.namespaces else ""
            case ("get", "persistentvolumeclaim", name, *_):
                return f"persistentvolumeclaim/{name}\n" if name in self.claims else ""
            case ("apply", "--server-side", "-f", "-"):
                document = json.loads(stdin or "")
                assert document["kind"] == "Namespace"
                self.namespaces[document["metadata"]["name"]] = document
            case (("create" | "replace") as verb, "-f", "-"):
                self._write(verb, json.loads(stdin or ""))
            case ("delete", "secret", name, "--ignore-not-found"):
                self.secrets.pop(name, None)
                self.writes.append(("delete", name))
            case _:
                raise AssertionError(arguments)
        return ""

    def _write(self, verb: str, document: dict[str, Any]) -> None:
        name = document["metadata"]["name"]
        assert document["metadata"]["namespace"] in self.namespaces
        old = self.secrets.get(name)
        if verb == "create":
            assert old is None, f"{name} exists"
        else:
            assert old is not None
            # Somebody else's change in between must not be lost.
            assert document["metadata"]["resourceVersion"] == old["metadata"]["resourceVersion"]
        self.version += 1
        text = document.pop("stringData")
        document["data"] = {k: base64.b64encode(v.encode()).decode() for k, v in text.items()}
        document["metadata"]["resourceVersion"] = str(self.version)
        self.secrets[name] = document
        self.writes.append((verb, name))

    def data(self, name: str) -> dict[str, str]:
        return {k: base64.b64decode(v).decode() for k, v in self.secrets[name]["data"].items()}

    def put(self, name: str, data: Mapping[str, str]) -> None:
        coded = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
        old = self.secrets.get(name) or {"metadata": {"name": name, "resourceVersion": "0"}}
        self.secrets[name] = {**old, "data": coded}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return project(tmp_path, {"least": LEAST})


@pytest.fixture
def cluster(root: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """With everything made once."""
    monkeypatch.setenv("ELSAPG_S3_ACCESS_KEY", ACCESS)
    monkeypatch.setenv("ELSAPG_S3_SECRET_KEY", SECRET)
    made = FakeCluster()
    done = service.apply(root, "least", cluster=made)
    assert set(done.made) == {*every(root), "ca-key"}
    assert not done.changed and not done.kept
    made.writes.clear()
    monkeypatch.delenv("ELSAPG_S3_ACCESS_KEY")
    monkeypatch.delenv("ELSAPG_S3_SECRET_KEY", raising=False)
    return made


def every(root: Path) -> set[str]:
    return set(needed(Place("least", stackfile.read(root, "least"), {})))


def test_what_is_made_has_the_keys_that_the_pods_mount(root: Path, cluster: FakeCluster) -> None:
    def sources(value: Any) -> list[Any]:
        if isinstance(value, dict):
            inner = [s for v in value.values() for s in sources(v)]
            return [*inner, value["secret"]] if "items" in value.get("secret", {}) else inner
        return [s for v in value for s in sources(v)] if isinstance(value, list) else []

    mounted = [s for manifest in rendered("least").values() for s in sources(manifest)]
    assert len(mounted) > 8
    for source in mounted:
        for item in source["items"]:
            assert cluster.data(source["name"])[item["key"]], (source["name"], item)
    for name, secret in cluster.secrets.items():
        wanted = "kubernetes.io/tls" if name.startswith(("tls-", "ca-")) else "Opaque"
        assert secret["type"] == wanted, name


def test_values(cluster: FakeCluster) -> None:
    passwords = json.loads(cluster.data("roles")["roles.json"])
    assert set(passwords) == set(PASSWORD_ROLES)
    assert all(len(p) >= 24 for p in passwords.values())
    conf = cluster.data("repository")["secrets.conf"]
    assert f"repo1-s3-key={ACCESS}\n" in conf and f"repo1-s3-key-secret={SECRET}\n" in conf
    assert len(base64.b64decode(cluster.data("encryption-keys")["k1"])) == 32


def test_the_namespace_is_made_as_it_is_rendered(cluster: FakeCluster) -> None:
    assert cluster.namespaces[NAMESPACE] == rendered("least")[f"00-namespace-{NAMESPACE}.yaml"]


def test_no_secret_in_an_argument(cluster: FakeCluster) -> None:
    told = " ".join(cluster.arguments)
    for name in cluster.secrets:
        for value in cluster.data(name).values():
            assert value not in told
    assert ACCESS not in told and SECRET not in told


def test_again_writes_nothing(root: Path, cluster: FakeCluster) -> None:
    done = service.apply(root, "least", cluster=cluster)
    assert cluster.writes == []
    assert set(done.kept) == {*every(root), "ca-key"}


def test_a_value_that_is_there_is_never_overwritten(
    root: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where another one is given, or a person has changed it."""
    monkeypatch.setenv("ELSAPG_S3_ACCESS_KEY", "ANOTHER")
    roles = json.loads(cluster.data("roles")["roles.json"])
    cluster.put("roles", {"roles.json": json.dumps({**roles, "elsa_app": "by hand"}, indent=1)})
    before = {name: cluster.data(name) for name in cluster.secrets}
    service.apply(root, "least", cluster=cluster)
    after = {name: cluster.data(name) for name in cluster.secrets}
    assert json.loads(after["roles"]["roles.json"])["elsa_app"] == "by hand"
    assert {**after, "roles": {}} == {**before, "roles": {}}


def test_s3s_keys_are_replaced_when_asked_for(
    root: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(root, {"least": merged(LEAST, {"kubernetes": {"secrets": "cluster"}})})
    before = cluster.data("repository")
    monkeypatch.setenv("ELSAPG_S3_ACCESS_KEY", "ANOTHER")
    monkeypatch.delenv("ELSAPG_S3_SECRET_KEY", raising=False)
    with pytest.raises(UsageError, match="what the s3-secret-key is"):
        service.apply(root, "least", cluster=cluster, new_s3_keys=True)
    assert cluster.data("repository") == before
    monkeypatch.setenv("ELSAPG_S3_SECRET_KEY", "another-secret")
    done = service.apply(root, "least", cluster=cluster, new_s3_keys=True)
    assert done.changed == ["repository"]
    [(name, text)] = cluster.data("repository").items()
    old = before[name]
    assert text == old.replace(ACCESS, "ANOTHER").replace(SECRET, "another-secret") != old


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"kubernetes": {"secrets": "pulumi"}}, "`elsapg up --stack least` with ELSAPG_S3"),
        (
            {"kubernetes": {"secrets": "external", "secret_store": "SecretStore/vault"}},
            "the store that the ExternalSecret reads",
        ),
        ({"archive": {"credentials": "web-id"}}, "has none"),
    ],
)
def test_s3s_keys_are_replaced_by_whoever_makes_them(
    root: Path, cluster: FakeCluster, changed: dict[str, Any], told: str
) -> None:
    project(root, {"least": merged(LEAST, changed)})
    cluster.writes.clear()
    with pytest.raises(UsageError, match=told):
        service.apply(root, "least", cluster=cluster, new_s3_keys=True)
    assert cluster.writes == []


def test_what_is_missing_is_added_to_what_is_there(root: Path, cluster: FakeCluster) -> None:
    roles = json.loads(cluster.data("roles")["roles.json"])
    fewer = {k: v for k, v in roles.items() if k != "monitoring"}
    cluster.put("roles", {"roles.json": json.dumps(fewer)})
    del cluster.secrets["tls-rewind"]
    project(root, {"least": merged(LEAST, {"encryption": {"key_ids": ["k2"]}})})
    old = cluster.data("encryption-keys")["k1"]
    service.apply(root, "least", cluster=cluster)
    assert json.loads(cluster.data("roles")["roles.json"]).items() > fewer.items()
    assert cluster.data("encryption-keys")["k1"] == old  # what it has encrypted is still there
    assert len(cluster.data("encryption-keys")) == 2
    assert cluster.writes == [
        ("replace", "roles"), ("replace", "encryption-keys"), ("create", "tls-rewind"),
    ]  # fmt: skip


def test_keys_that_nobody_gave(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = FakeCluster()
    with pytest.raises(UsageError, match="ELSAPG_S3_ACCESS_KEY_FILE"):
        service.apply(root, "least", cluster=empty)
    assert empty.writes == []
    asked: list[str] = []

    def ask(name: str) -> str:
        asked.append(name)
        return f"TYPED-{name}"

    service.apply(root, "least", ask, empty)
    assert asked == ["s3-access-key", "s3-secret-key"]
    assert "repo1-s3-key=TYPED-s3-access-key\n" in empty.data("repository")["secrets.conf"]


def test_keys_from_files(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("ACCESS", "SECRET"):
        path = tmp_path / part
        path.write_text(f"OF-A-FILE-{part}\n", encoding="utf-8")
        monkeypatch.setenv(f"ELSAPG_S3_{part}_KEY_FILE", str(path))
    empty = FakeCluster()
    service.apply(root, "least", cluster=empty)
    assert "repo1-s3-key-secret=OF-A-FILE-SECRET\n" in empty.data("repository")["secrets.conf"]
    monkeypatch.setenv("ELSAPG_S3_SECRET_KEY_FILE", "/nowhere/at/all")
    with pytest.raises(UsageError, match="/nowhere/at/all"):
        service.apply(root, "least", cluster=FakeCluster())


def test_no_keys_where_the_pods_identity_opens_s3(root: Path) -> None:
    project(root, {"least": merged(LEAST, {"archive": {"credentials": "web-id"}})})
    empty = FakeCluster()
    service.apply(root, "least", cluster=empty)
    conf = empty.data("repository")["secrets.conf"]
    assert "repo1-s3-key" not in conf and "repo1-cipher-pass=" in conf


def test_a_lost_cipher_is_not_made_anew_over_data(
    root: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSAPG_S3_ACCESS_KEY", ACCESS)
    monkeypatch.setenv("ELSAPG_S3_SECRET_KEY", SECRET)
    old = cluster.data("repository")
    del cluster.secrets["repository"]
    cluster.claims.add("data-pg-1")
    with pytest.raises(UsageError, match="would not read its old backups"):
        service.apply(root, "least", cluster=cluster)
    assert cluster.writes == []
    cipher = old["secrets.conf"].partition("repo1-cipher-pass=")[2].strip()
    monkeypatch.setenv("ELSAPG_REPOSITORY_CIPHER", cipher)
    service.apply(root, "least", cluster=cluster)
    assert cluster.data("repository") == old


def test_lost_encryption_keys_are_not_made_anew_over_data(
    root: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSAPG_S3_ACCESS_KEY", ACCESS)
    monkeypatch.setenv("ELSAPG_S3_SECRET_KEY", SECRET)
    old = cluster.secrets.pop("encryption-keys")
    cluster.claims.add("data-pg-1")
    with pytest.raises(UsageError, match="would not open its encrypted JSON: put the Secret back"):
        service.apply(root, "least", cluster=cluster)
    assert cluster.writes == []
    # As the error says for a stack that has encrypted nothing.
    cluster.secrets["encryption-keys"] = {k: v for k, v in old.items() if k != "data"}
    service.apply(root, "least", cluster=cluster)
    assert set(cluster.data("encryption-keys")) == set(old["data"])


# -- certificates ------------------------------------------------------------------------------


def test_certificates_are_what_they_should_be(root: Path, cluster: FakeCluster) -> None:
    ca = cluster.data("ca-key")["tls.crt"]
    for name in cluster.secrets:
        if not name.startswith("tls-"):
            continue
        data = cluster.data(name)
        assert data["ca.crt"] == ca and "PRIVATE KEY" in data["tls.key"]
        assert pki.is_signed_by(data["tls.crt"], ca), name
    nodes = pki.describe(cluster.data("tls-pg")["tls.crt"])
    assert {"pg-1", "pg-2", "pg-1-agent", "primary", "replica"} <= set(nodes.names)
    assert nodes.client and nodes.server
    pool = pki.describe(cluster.data("tls-pgbouncer")["tls.crt"])
    assert {"pgbouncer", f"pgbouncer.{NAMESPACE}.svc.cluster.local"} <= set(pool.names)
    assert pool.server and not pool.client
    superuser = pki.describe(cluster.data("tls-postgres")["tls.crt"])
    assert (superuser.common_name, superuser.names) == ("postgres", ())
    assert superuser.client and not superuser.server
    # The CA's key is in its own Secret alone.
    key = cluster.data("ca-key")["tls.key"]
    assert not [n for n in cluster.secrets if n != "ca-key" and key in cluster.data(n).values()]


def test_a_certificate_is_renewed_within_its_window(
    root: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {n: cluster.data(n)["tls.key"] for n in cluster.secrets if n.startswith("tls-")}
    authority = cluster.data("ca-key")
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=340)
    monkeypatch.setattr(pki, "_now", lambda: later)
    done = service.apply(root, "least", cluster=cluster)
    assert set(done.changed) == keys.keys()
    assert cluster.data("ca-key") == authority
    for name, key in keys.items():
        data = cluster.data(name)
        assert data["tls.key"] != key
        assert not pki.describe(data["tls.crt"]).within_window(30)


def test_the_cas_renewal_keeps_its_key_and_what_it_has_signed(
    root: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = cluster.data("ca-key")
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3630)
    monkeypatch.setattr(pki, "_now", lambda: later)
    service.apply(root, "least", cluster=cluster)
    new = cluster.data("ca-key")
    assert new["tls.key"] == old["tls.key"] and new["tls.crt"] != old["tls.crt"]
    assert cluster.data("tls-pg")["ca.crt"] == new["tls.crt"]
    assert pki.is_signed_by(cluster.data("tls-pg")["tls.crt"], old["tls.crt"])


def test_one_more_node_is_a_new_certificate_for_the_nodes(root: Path, cluster: FakeCluster) -> None:
    project(root, {"least": merged(LEAST, {"postgres": {"replicas": 2}})})
    service.apply(root, "least", cluster=cluster)
    assert cluster.writes == [("replace", "tls-pg")]
    assert "pg-3" in pki.describe(cluster.data("tls-pg")["tls.crt"]).names


@pytest.mark.parametrize(
    "text", ["", "-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n"]
)
def test_an_unreadable_certificate_is_made_anew(
    root: Path, cluster: FakeCluster, text: str
) -> None:
    cluster.put("tls-rewind", {**cluster.data("tls-rewind"), "tls.crt": text})
    service.apply(root, "least", cluster=cluster)
    assert cluster.writes == [("replace", "tls-rewind")]


def test_certificates_of_somebody_else_are_left_alone(root: Path, cluster: FakeCluster) -> None:
    del cluster.secrets["ca-key"]
    done = service.apply(root, "least", cluster=cluster)
    assert cluster.writes == [] and "tls-pg" in done.kept


def test_two_cas_are_never_mixed(root: Path, cluster: FakeCluster) -> None:
    del cluster.secrets["ca-key"], cluster.secrets["tls-pg"]
    with pytest.raises(UsageError, match=r"its CA's key .* is not, and others are missing"):
        service.apply(root, "least", cluster=cluster)
    assert cluster.writes == []


def test_a_run_that_was_killed_is_finished_by_the_next_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSAPG_S3_ACCESS_KEY", ACCESS)
    monkeypatch.setenv("ELSAPG_S3_SECRET_KEY", SECRET)
    for stop in range(12):
        killed = FakeCluster()
        write = killed._write

        def limited(verb: str, document: Any, n: int = stop, w: Any = write,
                    c: FakeCluster = killed) -> None:  # fmt: skip
            if len(c.writes) == n:
                raise KeyboardInterrupt
            w(verb, document)

        killed._write = limited  # type: ignore[method-assign]
        try:
            service.apply(root, "least", cluster=killed)
        except KeyboardInterrupt:
            killed._write = write  # type: ignore[method-assign]
            before = copy.deepcopy(killed.secrets)
            service.apply(root, "least", cluster=killed)
            assert killed.secrets.items() >= before.items()
        assert killed.secrets.keys() == {*every(root), "ca-key"}


# -- other stacks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "made"),
    [
        ({"secrets": "external", "secret_store": "SecretStore/x"}, {"tls-pg", "ca-key"}),
        ({"cert_manager": True}, {"roles", "repository", "encryption-keys"}),
        ({"secrets": "external", "secret_store": "SecretStore/x", "cert_manager": True}, set()),
    ],
)
def test_what_others_make_is_theirs(
    root: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], made: set[str]
) -> None:
    monkeypatch.setenv("ELSAPG_S3_ACCESS_KEY", ACCESS)
    monkeypatch.setenv("ELSAPG_S3_SECRET_KEY", SECRET)
    project(root, {"least": merged(LEAST, {"kubernetes": change})})
    empty = FakeCluster()
    service.apply(root, "least", cluster=empty)
    names = {n if not n.startswith("tls-") else "tls-pg" for n in empty.secrets}
    assert names == made


def test_a_docker_stack_needs_none(tmp_path: Path) -> None:
    root = project(tmp_path, {"local": {"target": "docker"}})
    with pytest.raises(UsageError, match="`elsapg up` makes the secrets by itself"):
        service.apply(root, "local", cluster=FakeCluster())


# -- outputs -----------------------------------------------------------------------------------


def test_outputs_are_those_of_up(root: Path, cluster: FakeCluster) -> None:
    found = service.outputs_from_cluster("least", stackfile.read(root, "least"), cluster)
    assert found["passwords"] == json.loads(cluster.data("roles")["roles.json"])
    assert found["encryption_keys"] == {"current": "k1", "keys": cluster.data("encryption-keys")}
    assert found["ca"] == cluster.data("ca-key")["tls.crt"]
    assert found["pools"] == [{"host": f"pgbouncer.{NAMESPACE}.svc", "port": 6432}]


def test_outputs_of_a_stack_that_is_not_there(root: Path) -> None:
    with pytest.raises(NotDeployedError, match=r"has no Secret roles: .* `elsapg secrets apply"):
        service.outputs_from_cluster("least", stackfile.read(root, "least"), FakeCluster())


@pytest.mark.parametrize("text", ["", "[]", "not json"])
def test_a_broken_secret_is_named(root: Path, cluster: FakeCluster, text: str) -> None:
    cluster.put("roles", {"roles.json": text})
    with pytest.raises(UsageError, match=r"Secret roles has no roles\.json"):
        service.apply(root, "least", cluster=cluster)
    cluster.put("roles", {"roles.json": "{}"})
    cluster.put("repository", {"secrets.conf": text})
    with pytest.raises(UsageError, match=r"Secret repository has no secrets\.conf"):
        service.apply(root, "least", cluster=cluster)


def test_it_works_in_the_stacks_namespace_and_context(root: Path) -> None:
    found = settings({"kubernetes": {"context": "east", "namespace": "db"}})
    kubectl = service.kubectl(Place("least", found, {})).__self__  # type: ignore[attr-defined]
    assert (kubectl.stack, kubectl.namespace, kubectl.context) == ("least", "db", "east")


def test_the_command_prints_names_and_no_values(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ELSAPG_ROOT", str(root))
    monkeypatch.setenv("ELSAPG_S3_ACCESS_KEY", ACCESS)
    monkeypatch.setenv("ELSAPG_S3_SECRET_KEY", SECRET)
    made = FakeCluster()
    monkeypatch.setattr(service, "kubectl", lambda _place: made)
    assert main(["secrets", "apply", "--stack", "least"]) == 0
    told = capsys.readouterr().out
    assert "made     tls-pgbouncer-auth" in told
    for name in made.secrets:
        for value in made.data(name).values():
            assert value not in told
    assert main(["secrets", "apply", "--stack", "production"]) == 0
    assert "no Secret is this command's to make" in capsys.readouterr().out
