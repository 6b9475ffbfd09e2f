"""What a Kubernetes cluster must have so that a stack can be placed in it, and looked after."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from elsapg import process
from elsapg.definition import topology as t
from elsapg.errors import ElsapgError, UsageError
from elsapg.services.check import Check
from elsapg.settings import Settings
from elsapg.targets.kubernetes import images
from elsapg.targets.kubernetes.kubectl import Kubectl

# From here on it is general that StatefulSets count from 1, and that a disruption budget lets go of
# what is broken anyway (docs/kubernetes.md).
MINIMUM = (1, 31)
PLUGIN = "pulumi-resource-kubernetes"
# What the commands do there, as `kubectl auth can-i` names it, and who needs it.
RIGHTS = (
    (("list", "pods"), "status"),
    (("create", "pods/exec"), "status, switchover, verify"),
    (("create", "pods/portforward"), "psql, migrate, keys, verify"),
    (("get", "pods/log"), "backup, verify"),
    (("create", "jobs.batch"), "backup now"),
    (("get", "secrets"), "uri, psql, migrate, secrets apply"),
)
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


def examine(root: Path, stack: str, settings: Settings) -> list[Check]:
    """Everything that a stack needs of its cluster, each found or with its way out."""
    kubectl = Kubectl(stack, t.namespace(stack, settings), settings.kubernetes.context)
    checks = [_images(root, stack, settings), _plugin(), _client()]
    if not checks[-1].ok:
        return checks
    server = _server(kubectl)
    checks.append(server)
    if server.ok:
        looks: tuple[Callable[[Kubectl, Settings], Iterable[Check]], ...] = (
            _namespace, _rights, _storage, _machines, _kinds, _priority, _metrics,
        )  # fmt: skip
        with ThreadPoolExecutor(len(looks)) as pool:
            for found in pool.map(lambda look: list(look(kubectl, settings)), looks):
                checks += found
    return checks


def _images(root: Path, stack: str, settings: Settings) -> Check:
    try:
        found = images.read(root, stack, settings)
    except UsageError as error:
        return Check("images", False, "not known", str(error))
    return Check("images", True, f"{len(found)} by digest, from {settings.kubernetes.registry}")


def _plugin() -> Check:
    found = process.find(PLUGIN)
    missing = "not found: `elsapg up` needs it (`elsapg render` does not)"
    return Check("kubernetes plugin", True, str(found or missing))


def _client() -> Check:
    found = process.find("kubectl")
    return Check(
        "kubectl",
        found is not None,
        str(found or "not found"),
        "install it; it may be one minor version older or newer than the cluster",
    )


def _server(kubectl: Kubectl) -> Check:
    try:
        version = kubectl.json("version")["serverVersion"]
    except ElsapgError as error:
        return Check("cluster", False, "does not answer", str(error))
    number = tuple(int(re.sub(r"\D", "", version[key]) or 0) for key in ("major", "minor"))
    return Check(
        "cluster",
        number >= MINIMUM,
        f"Kubernetes {version['gitVersion']}",
        f"it must be Kubernetes {'.'.join(map(str, MINIMUM))} or newer",
    )


def _may(kubectl: Kubectl, verb: str, what: str) -> bool:
    done = kubectl.ask("auth", "can-i", verb, what)
    return done.stdout.strip().startswith("yes")


def _namespace(kubectl: Kubectl, _settings: Settings) -> Iterator[Check]:
    name = kubectl.namespace
    if kubectl.ask("get", "namespace", name, "--output=name").code == 0:
        yield Check("namespace", True, name)
    else:
        yield Check(
            "namespace",
            _may(kubectl, "create", "namespaces"),
            f"{name} is not there yet",
            f"you may not make it: have somebody make {name}, and let you work in it",
        )


def _rights(kubectl: Kubectl, _settings: Settings) -> Iterator[Check]:
    lacking = [f"{' '.join(r)} ({why})" for r, why in RIGHTS if not _may(kubectl, *r)]
    yield Check(
        "rights",
        not lacking,
        f"you may not {', '.join(lacking)}" if lacking else "as the commands need them",
        f"ask for them in namespace {kubectl.namespace}",
    )


def _listed(kubectl: Kubectl, kind: str) -> list[dict[str, Any]] | None:
    """Objects of the cluster; None if we may not look, which is not ours to complain of."""
    try:
        found: list[dict[str, Any]] = kubectl.json("get", kind)["items"]
    except ElsapgError:
        return None
    return found


_UNSEEN = "unknown: you may not look"


def _storage(kubectl: Kubectl, settings: Settings) -> Iterator[Check]:
    classes = _listed(kubectl, "storageclasses")
    wanted = settings.kubernetes.storage_class
    if classes is None:
        yield Check("storage class", True, _UNSEEN)
        return
    found = [
        c
        for c in classes
        if c["metadata"]["name"] == wanted
        or (wanted is None and c["metadata"].get("annotations", {}).get(_DEFAULT_CLASS) == "true")
    ]
    names = ", ".join(sorted(c["metadata"]["name"] for c in classes)) or "none"
    if not found:
        told = f"no class {wanted}" if wanted else "no default"
        yield Check(
            "storage class", False, told,
            f"set elsapg:kubernetes.storage_class to one that is there ({names})",
        )  # fmt: skip
        return
    grows = "" if found[0].get("allowVolumeExpansion") else ", whose volumes cannot grow"
    yield Check("storage class", True, found[0]["metadata"]["name"] + grows)


def _machines(kubectl: Kubectl, settings: Settings) -> Iterator[Check]:
    nodes = _listed(kubectl, "nodes")
    wanted = len(t.node_names(settings))
    if nodes is None:
        yield Check("machines", True, _UNSEEN)
        return
    usable = [node for node in nodes if _usable(node)]
    strict = settings.kubernetes.anti_affinity == "required"
    yield Check(
        "machines",
        len(usable) >= (wanted if strict else 1),
        f"{len(usable)} that take pods, for {wanted} nodes",
        "add machines, or set elsapg:kubernetes.anti_affinity to preferred (or postgres.replicas "
        "to fewer): a machine's failure then takes more than one node",
    )


def _usable(node: dict[str, Any]) -> bool:
    closed = any(
        taint["effect"] in ("NoSchedule", "NoExecute") for taint in node["spec"].get("taints", [])
    )
    ready = {c["type"]: c["status"] for c in node["status"].get("conditions", [])}.get("Ready")
    return not closed and not node["spec"].get("unschedulable") and ready == "True"


def _kinds(kubectl: Kubectl, settings: Settings) -> Iterator[Check]:
    """Kinds of others that the stack's file asks for."""
    k = settings.kubernetes
    for wanted, name, kind, key in (
        (k.cert_manager, "cert-manager", "certificates.cert-manager.io", "cert_manager"),
        (k.secrets == "external", "External Secrets", "externalsecrets.external-secrets.io",
         "secrets"),
        (k.monitoring, "Prometheus operator", "podmonitors.monitoring.coreos.com", "monitoring"),
    ):  # fmt: skip
        if not wanted:
            continue
        group = kind.partition(".")[2]
        done = kubectl.ask("api-resources", f"--api-group={group}", "--output=name")
        there = kind in done.stdout.split()
        yield Check(
            name,
            there,
            group if there else f"the cluster has no {kind}",
            f"install {name} there, or change elsapg:kubernetes.{key}",
        )


def _priority(kubectl: Kubectl, settings: Settings) -> Iterator[Check]:
    wanted = settings.kubernetes.priority_class
    classes = _listed(kubectl, "priorityclasses") if wanted else None
    if classes is not None:
        names = sorted(c["metadata"]["name"] for c in classes)
        yield Check(
            "priority class",
            wanted in names,
            str(wanted),
            f"set elsapg:kubernetes.priority_class to one that is there ({', '.join(names)})",
        )


def _metrics(kubectl: Kubectl, _settings: Settings) -> Iterator[Check]:
    done = kubectl.ask("api-resources", "--api-group=metrics.k8s.io", "--output=name")
    there = "pods" in done.stdout
    yield Check(
        "metrics", True, "kubectl top works" if there else "none: `kubectl top` says nothing"
    )
