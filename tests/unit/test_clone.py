"""A clone's settings: whatever the source writes to, the clone writes elsewhere; and on kubernetes
what it runs, what is left to do, and that nothing of it reaches the source's archive.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from elsapg import stackfile
from elsapg.cli import main
from elsapg.definition import topology as t
from elsapg.definition.files import SOURCE_FILES
from elsapg.errors import UnhealthyError, UsageError
from elsapg.runner.target import Target
from elsapg.services import clone, kept_secrets, rescue, restore, secrets, source
from elsapg.services.clone import _own_archive
from elsapg.services.deployment import Deployment
from elsapg.services.lifecycle import Lifecycle, our_program
from elsapg.services.places import Places
from elsapg.targets.hosts import Completed
from elsapg.targets.kubernetes.hosts import KubernetesHosts
from tests.unit import kubernetes_policy as policy
from tests.unit.kubernetes_stacks import LEAST, OTHERS, merged, objects_of, project
from tests.unit.test_secrets_apply import ACCESS, SECRET, FakeCluster

MARK = Target("name", "before-release")
FREE = {
    f"/{name}{more}" for name in ("second", "of-first", "of-by-hand") for more in ("", "-daily")
}


@pytest.fixture(autouse=True)
def plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every target can be had, and of every name the bucket has something but of `second`."""

    def run(_hosts: Any, node: str, *words: str) -> Completed:
        assert (node, words[0], words[-1]) == ("pg-1", "pgbackrest", "repo-ls")
        taken = {".": {}, "backup": {}}
        free = words[2].partition("=")[2] in FREE
        return Completed(0, json.dumps({".": {}} if free else taken))

    monkeypatch.setattr(restore.Restore, "plan", lambda *_: {"timeline": 3})
    monkeypatch.setattr(Deployment, "any_node", lambda _: "pg-1")
    monkeypatch.setattr(KubernetesHosts, "run", run)


def cloned(folder: Path, values: Mapping[str, Any]) -> Path:
    """A project with stack `first` and its clone `second`."""
    root = project(folder, {"first": values})
    clone.write(Deployment(root, "first"), MARK, None, "second")
    return root


def test_a_clone_writes_to_places_of_its_own() -> None:
    source = {
        "bucket": "b",
        "prefix": "/wal",
        "dump_prefix": "/daily",
        "second": {"bucket": "other", "prefix": "/wal", "endpoint": "s3.x"},
    }
    assert _own_archive(source, "next") == {
        "bucket": "b",
        "prefix": "/next",
        "dump_prefix": "/next-daily",
        "second": {"bucket": "other", "prefix": "/next", "endpoint": "s3.x"},
    }
    assert "second" not in _own_archive({}, "next")


@pytest.mark.parametrize(
    ("archive", "name"),
    [
        ({}, "wal"),
        ({}, "daily"),
        ({"dump_prefix": "/look-daily"}, "look"),
        ({"prefix": "/teams/elsa"}, "teams"),
        ({"second": {"bucket": "other", "prefix": "/look/wal"}}, "look"),
    ],
)
def test_a_name_that_is_a_place_of_the_source_is_refused(
    tmp_path: Path, archive: dict[str, Any], name: str
) -> None:
    root = project(tmp_path, {"first": merged(LEAST, {"archive": archive})})
    with pytest.raises(UsageError, match=f"--as {name}: its backups would go to .*another name"):
        clone.write(Deployment(root, "first"), MARK, None, name)
    assert not stackfile.stack_file(root, name).exists()


# -- on kubernetes -----------------------------------------------------------------------------


@pytest.mark.parametrize("full", ["/second", "/second-daily", "2:/second"])
def test_a_name_of_which_the_bucket_has_something_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    def run(_hosts: Any, _node: str, *words: str) -> Completed:
        number, place = (word.partition("=")[2] for word in words[1:3])
        there = f"2:{place}" if number == "2" else place
        return Completed(0, '{".": {}, "x": {}}' if there == full else '{".": {}}')

    monkeypatch.setattr(KubernetesHosts, "run", run)
    root = project(tmp_path, {"first": OTHERS})
    with pytest.raises(UsageError, match=r"--as second: /second\S* in the bucket holds something"):
        clone.write(Deployment(root, "first"), MARK, None, "second")
    assert not stackfile.stack_file(root, "second").exists()
    monkeypatch.setattr(KubernetesHosts, "run", lambda *_: Completed(49, "ERROR: [049]: no S3"))
    with pytest.raises(UnhealthyError, match=r"cannot list /second: ERROR: \[049\]: no S3"):
        clone.write(Deployment(root, "first"), MARK, None, "second")


def test_its_file_and_its_images(tmp_path: Path) -> None:
    root = cloned(tmp_path, OTHERS)
    found, theirs = (stackfile.read(root, name) for name in ("second", "first"))
    assert found.recovery is not None
    assert found.recovery.model_dump() == {
        "source": "first", "to": "before-release", "timeline": 3,
    }  # fmt: skip
    assert (found.archive.prefix, found.archive.dump_prefix) == ("/second", "/second-daily")
    assert not found.jobs.active
    assert t.namespace("second", found) == "elsapg-second" != t.namespace("first", theirs)
    own, k = found.kubernetes, theirs.kubernetes
    # What only one may be, or by which the world reaches the first.
    assert not own.secret_prefix and not own.pool_names and own.cert_manager_issuer is None
    assert own.pool_service_type == "ClusterIP" and not own.pool_service_annotations
    assert (own.registry, own.secret_store, own.s3_ports) == (
        k.registry,
        k.secret_store,
        k.s3_ports,
    )
    assert found.archive.key_ids == theirs.archive.key_ids
    images = [root / "stacks" / f"images.{name}.yaml" for name in ("first", "second")]
    assert yaml.safe_load(images[0].read_text()) == yaml.safe_load(images[1].read_text())
    text = stackfile.stack_file(root, "second").read_text(encoding="utf-8")
    assert "elsapg:docker" not in text
    with pytest.raises(UsageError, match="`elsapg secrets apply --stack second`"):
        clone.write(Deployment(root, "first"), MARK, None, "second")


def test_what_runs_keeps_the_rules_and_reaches_no_archive_but_its_own(tmp_path: Path) -> None:
    root = cloned(tmp_path, LEAST)
    document = yaml.safe_load(stackfile.stack_file(root, "second").read_text(encoding="utf-8"))
    values = {k.removeprefix("elsapg:"): v for k, v in document["config"].items()}
    objects = objects_of(values, root)
    shown = {key: m for key, m in objects.items() if m["kind"] != "Secret"}
    assert not [(n, list(r(m))) for n, m in shown.items() for r in policy.RULES if list(r(m))]
    for (kind, name), manifest in shown.items():
        # Only the nodes get what opens the source, and nothing that they run names it: neither
        # what archives nor what takes backups.
        text = json.dumps(manifest)
        assert ("source.conf" in text) == ((kind, name) == ("StatefulSet", "pg")), name
        # Of where the first one's archive is nothing is known.
        assert "/wal/" not in text and "repo1-path=/wal" not in text, name
    pod = objects["StatefulSet", "pg"]["spec"]["template"]["spec"]
    sources = [s for v in pod["volumes"] for s in v.get("projected", {}).get("sources", [])]
    mounted = [s["secret"] for s in sources if "secret" in s]
    [opens] = [s for s in mounted if s["name"] == "source"]
    assert opens["optional"] is True
    assert not [s["name"] for s in mounted if s is not opens and "optional" in s]
    # pgBackRest reads its own file, and what is in pgbackrest.d: neither is one of these.
    assert {i["path"] for i in opens["items"]} == set(SOURCE_FILES)
    variables = {e["name"] for c in pod["containers"] for e in c.get("env", [])}
    assert not [name for name in variables if name.startswith("PGBACKREST")]


def test_without_the_order_the_nodes_are_those_of_any_stack(tmp_path: Path) -> None:
    order = {"recovery": {"source": "first", "to": "latest"}}
    plain, made = (objects_of(merged(LEAST, c), tmp_path) for c in ({}, order))
    different = [key for key in plain if plain[key] != made[key] and key[0] != "Secret"]
    assert plain.keys() == made.keys()
    assert sorted(different) == [("ConfigMap", "pg"), ("StatefulSet", "pg")]


def test_who_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulumi, where it runs the source from here and holds the secrets; else whoever applies."""
    root = project(tmp_path, {"first": LEAST, "by-hand": merged(
        LEAST, {"kubernetes": {"secrets": "cluster"}})})  # fmt: skip
    monkeypatch.setattr(rescue, "_known", lambda *_: False)
    assert not clone.by_up(Deployment(root, "first"))
    for name in ("first", "by-hand"):
        Places(root).workspace(name).mkdir(parents=True)
    assert clone.by_up(Deployment(root, "first"))
    assert not clone.by_up(Deployment(root, "by-hand"))
    for name, wanted in (("first", True), ("by-hand", False)):
        clone.write(Deployment(root, name), MARK, None, f"of-{name}")
        order = rescue.of_file(root, f"of-{name}", stackfile.read(root, f"of-{name}"))
        assert (order is not None and order.source == name) is wanted
    with pytest.raises(UsageError, match="`elsapg up --stack of-first`"):
        clone.write(Deployment(root, "first"), MARK, None, "of-first")


def test_by_pulumi_it_comes_up_with_the_order_and_once_more_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the source's keys are in its state, and what opens the source is in it no more."""
    root = cloned(tmp_path, LEAST)
    first, runs = FakeCluster(), []
    monkeypatch.setenv("ELSAPG_S3_ACCESS_KEY", ACCESS)
    monkeypatch.setenv("ELSAPG_S3_SECRET_KEY", SECRET)
    secrets.apply(root, "first", cluster=first)
    monkeypatch.setattr(source, "kubectl", lambda _: first)
    monkeypatch.setattr(rescue, "_known", lambda *_: False)
    monkeypatch.setattr(rescue, "_recovered", lambda *_: {"backup": "b"})
    monkeypatch.setattr(Deployment, "primary", lambda _: "pg-1")
    life = Lifecycle(root, "second", Console(quiet=True))
    monkeypatch.setattr(life, "up", lambda **_: runs.append(life.program))
    order = rescue.of_file(root, "second", stackfile.read(root, "second"))
    assert order == rescue.Order("before-release", 3, None, "first")
    assert rescue.recover(life, order, None, yes=True, say=lambda _: None) == {"backup": "b"}
    given, plain = runs
    assert isinstance(given, functools.partial) and plain is our_program
    recovery, keys = given.keywords["recovery"], given.keywords["keys"]
    assert (recovery.to, recovery.timeline, recovery.source_stack) == ("before-release", 3, "first")
    assert (recovery.source.prefix, recovery.source.access_key) == ("/wal", ACCESS)
    assert keys == {
        "encryption_keys": first.data("encryption-keys"),
        "s3_access_key": ACCESS,
        "s3_secret_key": SECRET,
    }
    assert rescue.pending(root, "second") is None


def test_what_is_left_to_do(tmp_path: Path) -> None:
    values = merged(OTHERS, {
        "kubernetes": {"context": "east", "pull_secrets": ["pull"], "secret_prefix": "teams/a/"},
        "archive": {"credentials": "web-id"},
    })  # fmt: skip
    root = cloned(tmp_path, values)
    (root / "stacks" / "images.second.yaml").unlink()
    told = clone.steps(root, "second")
    for says in (
        "copy teams/a/encryption-key-k1 to elsapg/second/encryption-key-k1",
        "copy teams/a/encryption-key-k2 to elsapg/second/encryption-key-k2",
        "let ServiceAccounts pg and runner of elsapg-second into the bucket",
        "in elsapg-second, make Secret pull",
        "elsapg images push --stack second",
        "kubectl --context east apply --server-side -f DIR",
        "take elsapg:recovery out of stacks/Pulumi.second.yaml",
    ):
        assert says in told
    assert clone.steps(root, "first") == ""


def test_the_command_makes_the_secrets_and_says_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project(tmp_path, {"first": LEAST})
    monkeypatch.setenv("ELSAPG_ROOT", str(root))
    monkeypatch.setenv("ELSAPG_S3_ACCESS_KEY", ACCESS)
    monkeypatch.setenv("ELSAPG_S3_SECRET_KEY", SECRET)
    clusters = {"first": FakeCluster(), "second": FakeCluster()}
    for module in (kept_secrets, secrets, source):
        monkeypatch.setattr(module, "kubectl", lambda place: clusters[place.stack])
    assert main(["secrets", "apply", "--stack", "first"]) == 0
    assert "recovery" not in capsys.readouterr().out
    words = ["clone", "--stack", "first", "--to", "before-release", "--as", "second"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "made     source" in told
    assert "elsapg render --stack second --out DIR" in told
    keys = [c.data("encryption-keys") for c in clusters.values()]
    assert keys[0] == keys[1]
    for cluster in clusters.values():
        for name in cluster.secrets:
            assert not [v for v in cluster.data(name).values() if v in told]
    # Run again it says how to go on; and that does.
    assert main(words) == 2
    assert "elsapg secrets apply --stack second" in capsys.readouterr().err
    assert main(["secrets", "apply", "--stack", "second"]) == 0
    assert "elsapg render --stack second --out DIR" in capsys.readouterr().out
