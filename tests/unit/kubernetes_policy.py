"""What must hold of every object, said once: each rule yields what breaks it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import kubernetes_validate

from tests.unit.kubernetes_stacks import Manifest, containers, pod_specs

# The oldest one that has everything we use, and the one that the tests run.
RELEASES = ("1.31", "1.34")
CUSTOM = {
    "cert-manager.io/v1": {"Certificate", "Issuer"},
    "external-secrets.io/v1": {"ExternalSecret"},
    "monitoring.coreos.com/v1": {"PodMonitor", "PrometheusRule"},
}
Finding = str


def schema(manifest: Manifest) -> Iterator[Finding]:
    """Valid by Kubernetes' own schema, unknown keys refused."""
    if manifest["kind"] in CUSTOM.get(manifest["apiVersion"], ()):
        return
    for release in RELEASES:
        try:
            kubernetes_validate.validate(manifest, release, strict=True)
        except (
            kubernetes_validate.ValidationError,
            kubernetes_validate.InvalidSchemaError,
            kubernetes_validate.SchemaNotFoundError,
        ) as error:
            yield f"{release}: {getattr(error, 'message', error)}"


def identity(manifest: Manifest) -> Iterator[Finding]:
    """Labels on everything, a namespace on all but itself, names that DNS takes."""
    metadata = manifest["metadata"]
    wanted = {
        "app.kubernetes.io/name",
        "app.kubernetes.io/instance",
        "app.kubernetes.io/managed-by",
    }
    if missing := wanted - metadata.get("labels", {}).keys():
        yield f"no label {', '.join(sorted(missing))}"
    if manifest["kind"] != "Namespace" and "namespace" not in metadata:
        yield "no namespace"
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", metadata["name"]):
        yield f"name {metadata['name']!r}"


def images(manifest: Manifest) -> Iterator[Finding]:
    """By digest: what runs is decided in Git, not by whoever pushes a tag."""
    for container in containers(manifest):
        if not re.fullmatch(r"[a-z0-9.:/_-]+@sha256:[0-9a-f]{64}", container["image"]):
            yield f"image {container['image']}"


def limits(manifest: Manifest) -> Iterator[Finding]:
    for container in containers(manifest):
        for group in ("requests", "limits"):
            for resource in ("cpu", "memory"):
                if not container.get("resources", {}).get(group, {}).get(resource):
                    yield f"{container['name']} has no {group}.{resource}"
        given = container.get("resources", {})
        if given.get("requests", {}).get("memory") != given.get("limits", {}).get("memory"):
            yield f"{container['name']} overcommits memory"


def restricted(manifest: Manifest) -> Iterator[Finding]:
    """The Pod Security Standard `restricted`, and a root that nobody can write."""
    for spec in pod_specs(manifest):
        yield from _restricted_pod(spec)
    for container in containers(manifest):
        context = container.get("securityContext", {})
        wanted = {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        if context != wanted:
            yield f"{container['name']} is not confined: {context}"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{container['name']} takes a port of the machine"


def _restricted_pod(spec: Manifest) -> Iterator[Finding]:
    pod = spec.get("securityContext", {})
    wanted = {
        "runAsNonRoot": True,
        "runAsUser": 999,
        "seccompProfile": {"type": "RuntimeDefault"},
        # Each mount would change the data directory's mode.
        "fsGroupChangePolicy": "OnRootMismatch",
    }
    yield from (key for key, value in wanted.items() if pod.get(key) != value)
    shared = ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")
    yield from (key for key in shared if spec.get(key))
    for volume in spec.get("volumes", []):
        if odd := volume.keys() - {"name", "projected", "emptyDir", "ephemeral"}:
            yield f"volume {volume['name']} is {', '.join(odd)}"


def tokens(manifest: Manifest) -> Iterator[Finding]:
    """No token is mounted by itself; Patroni gets one, and the task that waits for its pods."""
    if manifest["kind"] == "ServiceAccount":
        if manifest.get("automountServiceAccountToken") is not False:
            yield "automounts a token"
        return
    for spec in pod_specs(manifest):
        if spec.get("automountServiceAccountToken") is not False:
            yield "automounts a token"
        if spec.get("serviceAccountName") in (None, "default"):
            yield "has no account of its own"
        with_token = {
            v["name"]
            for v in spec.get("volumes", [])
            for source in v.get("projected", {}).get("sources", [])
            if "serviceAccountToken" in source
        }
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            mounted = {m["name"] for m in container.get("volumeMounts", [])} & with_token
            if mounted and container["name"] not in ("postgres", "configure"):
                yield f"{container['name']} gets a token"


def mounts(manifest: Manifest) -> Iterator[Finding]:
    """Configuration is read-only and follows changes; what is mounted exists."""
    claims = {
        t["metadata"]["name"] for t in manifest.get("spec", {}).get("volumeClaimTemplates", [])
    }
    for spec in pod_specs(manifest):
        volumes = {v["name"] for v in spec.get("volumes", [])} | claims
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            paths = [m["mountPath"] for m in container["volumeMounts"]]
            if len(paths) != len(set(paths)):
                yield f"{container['name']} mounts two volumes at one path"
            for mount in container["volumeMounts"]:
                if mount["name"] not in volumes:
                    yield f"{container['name']} mounts {mount['name']}, which is no volume"
                if "subPath" in mount:
                    yield f"{container['name']} has {mount['mountPath']} by subPath"
                if mount["mountPath"] == "/etc/elsapg" and not mount.get("readOnly"):
                    yield f"{container['name']} can write its configuration"


# What a secret looks like: a private key, a URL with a password, a long token after a telling name.
_TELLING = re.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|://[^/\s:@]+:[^/\s:@{]+@"
    r"|(?:password|passwd|secret|cipher-pass|key-secret|repo1-s3-key|token)[\"']?\s*[:=]\s*"
    r"[\"']?(?!\{\{)[A-Za-z0-9+/_=-]{12,})"
)


def secrecy(manifest: Manifest) -> Iterator[Finding]:
    """No secret in clear text anywhere, nor in environment or arguments by reference."""
    if manifest["kind"] == "Secret":
        yield "is a Secret with its values"
    text = json.dumps(manifest)
    for found in _TELLING.finditer(text.encode().decode("unicode_escape")):
        yield f"looks like a secret: {found[0][:24]}…"
    for word in re.findall(r"[A-Za-z0-9+/]{24,}={0,2}", text):
        try:
            if b"PRIVATE KEY" in base64.b64decode(word + "=" * (-len(word) % 4)):
                yield "a private key in base64"
        except ValueError:
            continue
    for container in containers(manifest):
        if container.get("envFrom"):
            yield f"{container['name']} takes its environment from elsewhere"
        for variable in container.get("env", []):
            if "secretKeyRef" in variable.get("valueFrom", {}):
                yield f"{container['name']} has a secret in {variable['name']}"


RULES: tuple[Callable[[Manifest], Iterable[Finding]], ...] = (
    schema, identity, images, limits, restricted, tokens, mounts, secrecy,
)  # fmt: skip


def together(manifests: Iterable[Manifest]) -> Iterator[Finding]:
    """What must hold between objects: what one names, another is."""
    everything = list(manifests)
    of: dict[str, dict[str, Any]] = {}
    for manifest in everything:
        of.setdefault(manifest["kind"], {})[manifest["metadata"]["name"]] = manifest
        for spec in pod_specs(manifest):
            yield from _named(spec, everything)
        if manifest["kind"] in ("Service", "PodDisruptionBudget"):
            chosen = manifest["spec"]["selector"]
            chosen = chosen.get("matchLabels", chosen)
            # Patroni and the StatefulSet put these on; nobody declares them.
            static = {k: v for k, v in chosen.items() if k not in _BY_OTHERS}
            if not any(static.items() <= labels.items() for labels in _pod_labels(everything)):
                yield f"{manifest['kind']} {manifest['metadata']['name']} selects no pod"
    denied = of.get("NetworkPolicy", {}).get("deny-all", {}).get("spec")
    if denied != {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}:
        yield "nothing denies what is not allowed"
    [namespace] = of["Namespace"].values()
    if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace does not enforce Pod Security"


def _named(spec: Manifest, everything: list[Manifest]) -> Iterator[Finding]:
    """The account and the ConfigMaps that a pod names."""
    there = {(m["kind"], m["metadata"]["name"]): m for m in everything}
    if ("ServiceAccount", spec["serviceAccountName"]) not in there:
        yield f"no ServiceAccount {spec['serviceAccountName']}"
    for volume in spec["volumes"]:
        for source in volume.get("projected", {}).get("sources", []):
            wanted = source.get("configMap")
            if wanted and wanted["name"] != "kube-root-ca.crt":
                data = there.get(("ConfigMap", wanted["name"]), {}).get("data", {})
                missing = [item["key"] for item in wanted["items"] if item["key"] not in data]
                yield from (f"no {key} in ConfigMap {wanted['name']}" for key in missing)


_BY_OTHERS = ("role", "statefulset.kubernetes.io/pod-name")


def _pod_labels(manifests: Iterable[Manifest]) -> Iterator[dict[str, str]]:
    for manifest in manifests:
        if manifest["kind"] in ("StatefulSet", "Deployment"):
            yield manifest["spec"]["template"]["metadata"]["labels"]
