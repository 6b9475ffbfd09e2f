"""Every object that a stack renders keeps the rules; and each rule sees what breaks it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit import kubernetes_policy as policy
from tests.unit.kubernetes_stacks import STACKS, Manifest, rendered

EVERY = [(stack, name) for stack in STACKS for name in rendered(stack)]


@pytest.mark.parametrize("rule", policy.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("stack", STACKS)
def test_every_object_keeps_the_rules(stack: str, rule: Callable[[Manifest], Any]) -> None:
    found = {name: list(rule(manifest)) for name, manifest in rendered(stack).items()}
    assert not {name: findings for name, findings in found.items() if findings}


@pytest.mark.parametrize("stack", STACKS)
def test_the_objects_fit_together(stack: str) -> None:
    assert not list(policy.together(rendered(stack).values()))


@pytest.mark.parametrize("stack", STACKS)
def test_all_kinds_are_known_or_custom_ones_that_we_mean(stack: str) -> None:
    for manifest in rendered(stack).values():
        group = manifest["apiVersion"].rpartition("/")[0]
        core = "." not in group or group.endswith(".k8s.io")
        assert core or manifest["kind"] in policy.CUSTOM[manifest["apiVersion"]]


# -- each rule sees what breaks it -------------------------------------------------------------


def broken(change: Callable[[Manifest, Manifest], None], kind: str = "StatefulSet") -> Manifest:
    """One object, changed by `change(manifest, first container)`."""
    [found] = [m for m in rendered("least").values() if m["kind"] == kind][:1]
    manifest = copy.deepcopy(found)
    template = manifest.get("spec", {}).get("template", {})
    change(manifest, (template.get("spec", {}).get("containers") or [{}])[0])
    return manifest


def pod(manifest: Manifest) -> Manifest:
    spec: Manifest = manifest["spec"]["template"]["spec"]
    return spec


def remove(path: str) -> Callable[[Manifest, Manifest], None]:
    """Without the value at `path`, in the container or else in the pod."""

    def change(manifest: Manifest, container: Manifest) -> None:
        *parents, last = path.split(".")
        place = container if parents[:1] != ["pod"] else pod(manifest)
        for key in [p for p in parents if p != "pod"]:
            place = place[key]
        del place[last]

    return change


def put(**values: Any) -> Callable[[Manifest, Manifest], None]:
    return lambda _manifest, container: container.update(values)


def put_pod(**values: Any) -> Callable[[Manifest, Manifest], None]:
    return lambda manifest, _container: pod(manifest).update(values)


def put_env(variable: Manifest) -> Callable[[Manifest, Manifest], None]:
    return lambda _manifest, container: container["env"].append(variable)


def data(text: str) -> Manifest:
    return broken(lambda m, _: m["data"].update({"x.conf": text}), "ConfigMap")


RED: list[tuple[Any, Manifest]] = [
    (policy.schema, broken(lambda m, _: m["spec"].update(replicas="two"))),
    (policy.schema, broken(put(readinesProbe={}))),
    (policy.schema, broken(remove("name"))),
    (policy.identity, broken(lambda m, _: m["metadata"].pop("labels"))),
    (policy.identity, broken(lambda m, _: m["metadata"].pop("namespace"))),
    (policy.identity, broken(lambda m, _: m["metadata"].update(name="under_score"))),
    (policy.images, broken(put(image="registry.example.com/elsapg-postgres:latest"))),
    (policy.images, broken(put(image="registry.example.com/elsapg-postgres"))),
    (policy.limits, broken(remove("resources.limits.memory"))),
    (policy.limits, broken(remove("resources.limits.cpu"))),
    (policy.limits, broken(remove("resources.requests.cpu"))),
    (policy.limits, broken(lambda _, c: c["resources"]["requests"].update(memory="1Mi"))),
    (policy.restricted, broken(remove("securityContext.allowPrivilegeEscalation"))),
    (policy.restricted, broken(remove("securityContext.capabilities"))),
    (policy.restricted, broken(remove("securityContext.readOnlyRootFilesystem"))),
    (policy.restricted, broken(remove("pod.securityContext.runAsNonRoot"))),
    (policy.restricted, broken(remove("pod.securityContext.seccompProfile"))),
    (policy.restricted, broken(remove("pod.securityContext.fsGroupChangePolicy"))),
    (policy.restricted, broken(put_pod(hostNetwork=True))),
    (policy.restricted, broken(lambda m, _: pod(m)["volumes"].append(
        {"name": "host", "hostPath": {"path": "/"}}))),
    (policy.restricted, broken(lambda _, c: c["ports"][0].update(hostPort=1))),
    (policy.tokens, broken(remove("pod.automountServiceAccountToken"))),
    (policy.tokens, broken(put_pod(serviceAccountName="default"))),
    (policy.tokens, broken(lambda m, c: pod(m)["containers"][1]["volumeMounts"].append(
        c["volumeMounts"][-1]))),
    (policy.tokens, broken(
        lambda m, _: m.update(automountServiceAccountToken=True), "ServiceAccount")),
    (policy.mounts, broken(lambda _, c: c["volumeMounts"][0].pop("readOnly"))),
    (policy.mounts, broken(lambda _, c: c["volumeMounts"][0].update(subPath="x"))),
    (policy.mounts, broken(lambda _, c: c["volumeMounts"][0].update(name="nothing"))),
    (policy.mounts, broken(lambda _, c: c["volumeMounts"][1].update(mountPath="/etc/elsapg"))),
    (policy.secrecy, data("repo1-cipher-pass=Zm9vYmFyYmF6cXV1eDEyMzQ")),
    (policy.secrecy, data("repo1-s3-key=AKIAIOSFODNN7EXAMPLE")),
    (policy.secrecy, data("-----BEGIN PRIVATE KEY-----\nMIGH\n")),
    (policy.secrecy, data("LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCk1JR0hBZ0VBTUJNRw==")),
    (policy.secrecy, data("postgresql://elsa:hunter2hunter2@primary/elsa")),
    (policy.secrecy, data('{"password": "Zm9vYmFyYmF6cXV1eDEyMzQ"}')),
    (policy.secrecy, broken(put_env(
        {"name": "P", "valueFrom": {"secretKeyRef": {"name": "roles", "key": "x"}}}))),
    (policy.secrecy, broken(put(envFrom=[{"secretRef": {"name": "roles"}}]))),
    (policy.secrecy, broken(lambda m, _: m.update(kind="Secret"), "ConfigMap")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "manifest"), RED, ids=[f"{rule.__name__}-{i}" for i, (rule, _) in enumerate(RED)]
)
def test_a_rule_sees_what_breaks_it(rule: Callable[[Manifest], Any], manifest: Manifest) -> None:
    assert list(rule(manifest))


def test_every_rule_has_been_seen_red() -> None:
    assert {rule for rule, _ in RED} == set(policy.RULES)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("ServiceAccount", lambda m: m["metadata"].update(name="other")),
        ("ConfigMap", lambda m: m.update(data={})),
        ("Service", lambda m: m["spec"].update(selector={"app.kubernetes.io/name": "other"})),
        ("PodDisruptionBudget", lambda m: m["spec"].update(selector={"matchLabels": {"a": "b"}})),
        ("NetworkPolicy", lambda m: m["spec"].update(ingress=[{}], podSelector={})),
        ("Namespace", lambda m: m["metadata"].update(labels={})),
    ],
)
def test_objects_that_do_not_fit_are_seen(kind: str, change: Callable[[Manifest], None]) -> None:
    manifests = copy.deepcopy(list(rendered("least").values()))
    for manifest in manifests:
        if manifest["kind"] == kind:
            change(manifest)
    assert list(policy.together(manifests))
