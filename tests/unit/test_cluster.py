"""`elsapg doctor` on a cluster: what is missing, and what to do about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from elsapg.services import cluster, machine
from elsapg.services.check import Check
from tests.unit import kubernetes_stacks as stacks
from tests.unit.fake_kubectl import FakeKubectl, listed


def machine_(name: str, ready: str = "True", **spec: Any) -> dict[str, Any]:
    status = {"conditions": [{"type": "Ready", "status": ready}]}
    return {"metadata": {"name": name}, "spec": spec, "status": status}


def class_(name: str, default: bool = True, grows: bool = True) -> dict[str, Any]:
    noted = {"storageclass.kubernetes.io/is-default-class": "true"} if default else {}
    return {
        "metadata": {"name": name, "annotations": noted},
        "allowVolumeExpansion": grows,
    }


@pytest.fixture
def good(kubectl: FakeKubectl) -> FakeKubectl:
    kubectl.on(
        "version", {"serverVersion": {"major": "1", "minor": "34+", "gitVersion": "v1.34.4"}}
    )
    kubectl.on("get namespace", "namespace/elsapg-test")
    kubectl.on("auth can-i", "yes\n")
    kubectl.on("get storageclasses", listed(class_("fast"), class_("slow", default=False)))
    kubectl.on("get nodes", listed(machine_("a"), machine_("b"), machine_("c")))
    kubectl.on("get priorityclasses", listed({"metadata": {"name": "high"}}))
    kubectl.on("api-resources --api-group=metrics", "nodes.metrics.k8s.io\npods.metrics.k8s.io\n")
    return kubectl


def examine(root: Path, **kubernetes: Any) -> dict[str, Check]:
    project = stacks.project(root / "project", {"test": stacks.LEAST})
    settings = stacks.settings({"kubernetes": kubernetes})
    return {check.name: check for check in cluster.examine(project, "test", settings)}


def lacking(found: dict[str, Check]) -> set[str]:
    for check in found.values():
        assert check.ok or check.way_out
    return {name for name, check in found.items() if not check.ok}


def test_a_good_cluster(good: FakeKubectl, tmp_path: Path) -> None:
    found = examine(tmp_path)
    assert lacking(found) == set()
    assert found["cluster"].found == "Kubernetes v1.34.4"
    assert found["storage class"].found == "fast"
    assert found["machines"].found.startswith("3 that take pods")


def test_an_account_that_sees_little_is_no_fault_of_the_cluster(
    good: FakeKubectl, tmp_path: Path
) -> None:
    good.on("get (nodes|storageclasses)", "", "Error from server (Forbidden): is forbidden", code=1)
    found = examine(tmp_path)
    assert lacking(found) == set()
    assert found["machines"].found == found["storage class"].found == "unknown: you may not look"


def no_answer(k: FakeKubectl) -> None:
    k.on("version", "", "Unable to connect to the server: dial tcp: i/o timeout", code=1)


def too_old(k: FakeKubectl) -> None:
    k.on("version", {"serverVersion": {"major": "1", "minor": "24", "gitVersion": "v1.24.1"}})


def no_namespace(k: FakeKubectl) -> None:
    k.on("get namespace", "", 'namespaces "elsapg-test" not found', code=1)
    k.on("can-i create namespaces", "no\n", code=1)


def no_exec(k: FakeKubectl) -> None:
    k.on("can-i create pods/exec", "no\n", code=1)


def no_default_class(k: FakeKubectl) -> None:
    k.on("get storageclasses", listed(class_("slow", default=False)))


def too_few(k: FakeKubectl) -> None:
    k.on(
        "get nodes",
        listed(
            machine_("a"),
            machine_("b", ready="False"),
            machine_("c", unschedulable=True),
            machine_("d", taints=[{"key": "x", "effect": "NoSchedule"}]),
        ),
    )


@pytest.mark.parametrize(
    ("wrong", "name", "found", "way_out"),
    [
        (no_answer, "cluster", "does not answer", "i/o timeout"),
        (too_old, "cluster", "v1.24.1", "1.31 or newer"),
        (no_namespace, "namespace", "elsapg-test is not there yet", "have somebody make"),
        (no_exec, "rights", r"may not create pods/exec \(status, switchover", "namespace elsapg-t"),
        (no_default_class, "storage class", "no default", r"storage_class .*\(slow\)"),
        (too_few, "machines", "1 that take pods, for 2 nodes", "anti_affinity to preferred"),
    ],
    ids=lambda v: v.__name__ if callable(v) else "",
)
def test_what_a_cluster_lacks(
    good: FakeKubectl, tmp_path: Path, wrong: Any, name: str, found: str, way_out: str
) -> None:
    wrong(good)
    checks = examine(tmp_path)
    assert lacking(checks) == {name}
    assert re.search(found, checks[name].found)
    assert re.search(way_out, checks[name].way_out)


def test_a_namespace_that_may_be_made(good: FakeKubectl, tmp_path: Path) -> None:
    good.on("get namespace", "", 'namespaces "elsapg-test" not found', code=1)
    assert lacking(examine(tmp_path)) == set()


@pytest.mark.parametrize(
    ("kubernetes", "name"),
    [
        ({"cert_manager": True}, "cert-manager"),
        ({"monitoring": True}, "Prometheus operator"),
        ({"secrets": "external", "secret_store": "SecretStore/vault"}, "External Secrets"),
        ({"storage_class": "none-such"}, "storage class"),
        ({"priority_class": "none-such"}, "priority class"),
    ],
)
def test_what_the_stack_asks_for_must_be_there(
    good: FakeKubectl, tmp_path: Path, kubernetes: dict[str, Any], name: str
) -> None:
    good.on("api-resources", "")
    assert lacking(examine(tmp_path, **kubernetes)) == {name}


def test_a_volume_that_cannot_grow_is_told(good: FakeKubectl, tmp_path: Path) -> None:
    good.on("get storageclasses", listed(class_("fast", grows=False)))
    assert "cannot grow" in examine(tmp_path)["storage class"].found


def test_images_that_nobody_has_pushed(good: FakeKubectl, tmp_path: Path) -> None:
    settings = stacks.settings()
    checks = cluster.examine(tmp_path, "test", settings)
    [images] = [c for c in checks if not c.ok]
    assert images.name == "images"
    assert "elsapg images push --stack test" in images.way_out


def test_without_kubectl_nothing_else_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = examine(tmp_path)
    assert lacking(found) == {"kubectl"}
    assert "cluster" not in found


def test_doctor_looks_at_the_cluster(
    good: FakeKubectl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = stacks.project(tmp_path / "project", {"test": stacks.LEAST})
    names = {check.name for check in machine.examine(project, "test")}
    assert {"kubectl", "cluster", "rights", "images"} <= names
    assert "docker" not in names


@pytest.mark.parametrize(("secrets", "needed"), [("pulumi", True), ("cluster", False)])
def test_pulumi_need_not_be_where_manifests_are_rendered(
    good: FakeKubectl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secrets: str, needed: bool
) -> None:
    stack = stacks.merged(stacks.LEAST, {"kubernetes": {"secrets": secrets}})
    project = stacks.project(tmp_path / "project", {"test": stack})
    monkeypatch.setenv("PATH", f"{good.folder / 'bin'}:/usr/bin:/bin")
    [pulumi] = [c for c in machine.examine(project, "test") if c.name == "pulumi"]
    assert pulumi.ok is not needed
