"""The Secrets of a stack on kubernetes that is made of another one: what it shares with that one,
what opens its backups, and that this goes again.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from elsapg import pki
from elsapg.errors import MissingError, NotDeployedError, UsageError
from elsapg.services import secrets as service
from tests.unit.kubernetes_stacks import LEAST, merged, project
from tests.unit.test_secrets_apply import ACCESS, SECRET, FakeCluster

CLONE: dict[str, Any] = merged(
    LEAST, {"archive": {"prefix": "/second"}, "recovery": {"source": "least", "to": "latest"}}
)
EXTERNAL = {"secrets": "external", "secret_store": "SecretStore/x"}


def gone(*_: str, stdin: str | None = None) -> str:
    raise MissingError("the cluster does not answer")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return project(tmp_path, {"least": LEAST, "second": CLONE})


@pytest.fixture
def first(root: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """The source, with its Secrets."""
    monkeypatch.setenv("ELSAPG_S3_ACCESS_KEY", ACCESS)
    monkeypatch.setenv("ELSAPG_S3_SECRET_KEY", SECRET)
    made = FakeCluster()
    service.apply(root, "least", cluster=made)
    made.arguments.clear()
    made.writes.clear()
    monkeypatch.delenv("ELSAPG_S3_ACCESS_KEY")
    monkeypatch.delenv("ELSAPG_S3_SECRET_KEY")
    return made


def apply(root: Path, second: FakeCluster, first: Any) -> service.Applied:
    return service.apply(root, "second", cluster=second, theirs=first)


def conf(cluster: FakeCluster, secret: str, key: str) -> dict[str, str]:
    lines = cluster.data(secret)[key].splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_what_a_clone_shares_with_its_source(root: Path, first: FakeCluster) -> None:
    second = FakeCluster()
    done = apply(root, second, first)
    assert "source" in done.made
    assert second.data("encryption-keys") == first.data("encryption-keys")
    theirs, own = (conf(c, "repository", "secrets.conf") for c in (first, second))
    # The bucket is the same one; nobody had to say its keys again.
    assert own["repo1-s3-key"] == ACCESS and own["repo1-s3-key-secret"] == SECRET
    assert own["repo1-cipher-pass"] != theirs["repo1-cipher-pass"]
    passwords = [json.loads(c.data("roles")["roles.json"]) for c in (first, second)]
    assert not set(passwords[0].values()) & set(passwords[1].values())
    assert first.data("ca-key") != second.data("ca-key")
    opens = conf(second, "source", "source.conf")
    assert opens.items() >= {**theirs, "repo1-path": "/wal", "pg1-path": opens["pg1-path"]}.items()
    assert set(second.secrets["source"]["data"]) == {"source.conf"}
    assert second.secrets["source"]["metadata"]["namespace"] == "elsapg-second"
    assert "annotations" not in second.secrets["source"]["metadata"]
    # Where it is there the keys are: whoever is killed in between does not lose them.
    written = [name for _, name in second.writes]
    assert written.index("encryption-keys") < written.index("source")
    # Of the source everything is only read.
    assert first.writes == []
    told = " ".join([*first.arguments, *second.arguments])
    for cluster in (first, second):
        for name in cluster.secrets:
            assert not [v for v in cluster.data(name).values() if v in told]

    second.writes.clear()
    assert not apply(root, second, first).made and second.writes == []


def test_it_goes_again_when_the_order_is_gone(root: Path, first: FakeCluster) -> None:
    second = FakeCluster()
    apply(root, second, first)
    kept = set(second.secrets) - {"source"}
    second.writes.clear()
    ended = {key: value for key, value in CLONE.items() if key != "recovery"}
    project(root, {"second": ended})
    done = service.apply(root, "second", cluster=second, theirs=gone)
    assert done.removed == ["source"]
    assert second.writes == [("delete", "source")]
    assert set(second.secrets) == kept
    assert service.apply(root, "second", cluster=second).removed == []


def test_a_source_that_is_gone(
    root: Path, first: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first nothing is made without it; afterwards nobody needs it, and certificates are due."""
    second = FakeCluster()
    for missing, error, says in (
        (
            FakeCluster(),
            NotDeployedError,
            r"namespace elsapg-least has no Secret repository.*least",
        ),
        (gone, MissingError, "does not answer"),
    ):
        with pytest.raises(error, match=says):
            apply(root, second, missing)
        assert second.writes == [] and not second.namespaces
    apply(root, second, first)
    second.writes.clear()
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=340)
    monkeypatch.setattr(pki, "_now", lambda: later)
    done = apply(root, second, gone)
    assert "source" in done.kept and "tls-pg" in done.changed


def test_a_new_key_of_s3_reaches_a_clone_that_has_no_data_yet(
    root: Path, first: FakeCluster
) -> None:
    second = FakeCluster()
    apply(root, second, first)
    text = first.data("repository")["secrets.conf"]
    first.put("repository", {"secrets.conf": text.replace(SECRET, "ROTATED")})
    assert apply(root, second, first).changed == ["source"]
    assert conf(second, "source", "source.conf")["repo1-s3-key-secret"] == "ROTATED"


@pytest.mark.parametrize("by", ["cluster", "external"])
def test_other_keys_than_the_sources_are_told(root: Path, first: FakeCluster, by: str) -> None:
    """Its rows would be unreadable, and nobody would see it before somebody reads them."""
    change = EXTERNAL if by == "external" else {"secrets": "cluster"}
    project(root, {"second": merged(CLONE, {"kubernetes": change})})
    second = FakeCluster()
    second.put("encryption-keys", {"k1": "another"})
    way_out = {
        "cluster": "delete that Secret",
        "external": "store elsapg/least/encryption-key-k1 to elsapg/second/encryption-key-k1",
    }
    with pytest.raises(UsageError, match=way_out[by]):
        apply(root, second, first)
    assert second.writes == []


def test_a_store_has_the_values_and_this_what_opens_the_source(
    root: Path, first: FakeCluster
) -> None:
    both = {**EXTERNAL, "cert_manager": True}
    project(root, {"second": merged(CLONE, {"kubernetes": both})})
    second = FakeCluster()
    assert apply(root, second, first).made == ["source"]
    assert second.namespaces


def test_by_the_pods_identity_no_key_is_written(root: Path, first: FakeCluster) -> None:
    ca = "-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n"
    web_id = {"archive": {"credentials": "web-id", "ca": ca}}
    project(root, {"least": merged(LEAST, web_id), "second": merged(CLONE, web_id)})
    second = FakeCluster()
    apply(root, second, first)
    opens = conf(second, "source", "source.conf")
    assert opens["repo1-s3-key-type"] == "web-id"
    assert not {"repo1-s3-key", "repo1-s3-key-secret"} & opens.keys()
    assert opens["repo1-storage-ca-file"] == "/etc/elsapg/source-ca.crt"
    assert second.data("source")["source-ca.crt"] == ca


def test_another_bucket_has_keys_of_its_own(root: Path, first: FakeCluster) -> None:
    project(root, {"second": merged(CLONE, {"archive": {"bucket": "elsewhere"}})})
    with pytest.raises(UsageError, match="ELSAPG_S3_ACCESS_KEY_FILE"):
        apply(root, FakeCluster(), first)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("second", "is 'second' itself: leave it out"),
        ("local", "which is for docker"),
        ("nowhere", "no stack 'nowhere'"),
    ],
)
def test_what_cannot_be_a_source(root: Path, source: str, says: str) -> None:
    change = {"recovery": {"source": source}}
    project(root, {"second": merged(CLONE, change), "local": {"target": "docker"}})
    with pytest.raises(UsageError, match=says):
        apply(root, FakeCluster(), FakeCluster())


def test_a_source_without_a_cipher_is_told(root: Path, first: FakeCluster) -> None:
    first.put("repository", {"secrets.conf": "[global]\nrepo1-s3-key=x\n"})
    with pytest.raises(UsageError, match="no repo1-cipher-pass"):
        apply(root, FakeCluster(), first)
