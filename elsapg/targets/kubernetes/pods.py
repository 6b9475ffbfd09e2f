"""Pods out of units and files: one way to be unprivileged, to get files, and to be limited.

Everything satisfies the Pod Security Standard `restricted`. Files come into `/etc/elsapg` by one
projected volume per container's kind, never by subPath: only so does the kubelet bring changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from elsapg.definition import topology as t
from elsapg.definition.files import File
from elsapg.definition.secrets import (
    CLIENTS,
    NODES_PAIR,
    PASSWORD_ROLES,
    POOLERS_PAIR,
    KeyPair,
    Secrets,
)
from elsapg.targets.kubernetes.foundation import RUNNER
from elsapg.targets.kubernetes.objects import Manifest, Place, selector

CONFIG_VOLUME = "config"
_HOSTNAME = "kubernetes.io/hostname"
_ZONE = "topology.kubernetes.io/zone"

POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": t.UID,
    "runAsGroup": t.UID,
    "fsGroup": t.UID,
    # Else each mount would give the group rights in the data directory: PostgreSQL refuses that.
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}

# For what is the same whatever the secrets are: plain files, and which secret holds which file.
NO_SECRETS = Secrets(
    ca="",
    key_pairs=dict.fromkeys((*CLIENTS, NODES_PAIR, POOLERS_PAIR), KeyPair("", "")),
    passwords=dict.fromkeys(PASSWORD_ROLES, ""),
    s3_access_key="",
    s3_secret_key="",
    repository_cipher="",
)


def config_map(place: Place, name: str, component: str, files: Iterable[File]) -> Manifest:
    """The plain ones of `files`."""
    data = {file.path: file.content for file in files if not file.secret}
    return place.manifest("v1", "ConfigMap", name, component, data=data)


def secret_key(file: File) -> str:
    """Under which key a file's content stands in its Secret."""
    assert file.kept_in is not None
    if not file.kept_in.startswith("tls-"):
        return file.path.rpartition("/")[2]
    if file.path.endswith("/ca.crt"):
        return "ca.crt"
    return "tls.key" if file.path.endswith(".key") else "tls.crt"


def config_volume(files: Sequence[File], config_map: str, name: str = CONFIG_VOLUME) -> Manifest:
    """`/etc/elsapg`: root's, readable by the one group, writable by no process."""
    plain = [f.path for f in files if not f.secret]
    sources: list[Manifest] = []
    if plain:
        items = [{"key": path, "path": path} for path in plain]
        sources.append({"configMap": {"name": config_map, "items": items}})
    for secret in sorted({f.kept_in for f in files if f.kept_in}):
        held = [f for f in files if f.kept_in == secret]
        items = [{"key": secret_key(f), "path": f.path} for f in held]
        may_be_absent = {"optional": True} if all(f.optional for f in held) else {}
        sources.append({"secret": {"name": secret, "items": items, **may_be_absent}})
    return {"name": name, "projected": {"defaultMode": 0o440, "sources": sources}}


def mount(volume: str, path: str, read_only: bool = False) -> Manifest:
    return {"name": volume, "mountPath": path, **({"readOnly": True} if read_only else {})}


def empty(name: str, **more: Any) -> Manifest:
    return {"name": name, "emptyDir": more}


def claim(place: Place, size: str) -> Manifest:
    """A volume of the stack's storage class."""
    chosen = place.settings.kubernetes.storage_class
    return {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": size}},
        **({"storageClassName": chosen} if chosen else {}),
    }


def scratch(container: str, paths: Iterable[str]) -> dict[str, str]:
    """The writable folders of one container: volume to path."""
    return {f"{container}{path.replace('/', '-')}": path for path in paths}


_ACCOUNT_VOLUME = "service-account"
_ACCOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
TOKEN_MOUNT = mount(_ACCOUNT_VOLUME, _ACCOUNT_PATH, read_only=True)


def token() -> Manifest:
    """What the kubelet would mount into every container of the pod: for one that needs it."""
    namespace = {
        "path": "namespace",
        "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
    }
    return {
        "name": _ACCOUNT_VOLUME,
        "projected": {
            "defaultMode": 0o440,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {
                    "configMap": {
                        "name": "kube-root-ca.crt",
                        "items": [{"key": "ca.crt", "path": "ca.crt"}],
                    }
                },
                {"downwardAPI": {"items": [namespace]}},
            ],
        },
    }


def environment(
    plain: Mapping[str, str], fields: Mapping[str, str] | None = None
) -> list[Manifest]:
    """Variables; `fields` are taken from the pod (the downward API). Never a secret."""
    taken = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in (fields or {}).items()
    ]
    # References such as $(NAME) must come after what they name.
    return [*taken, *({"name": name, "value": value} for name, value in plain.items())]


def resources(memory_mb: int, cpu_request: float, cpu_limit: float) -> Manifest:
    """Memory is never overcommitted: the out-of-memory killer would take a primary."""
    memory = f"{memory_mb}Mi"
    return {
        "requests": {"cpu": _cpu(cpu_request), "memory": memory},
        "limits": {"cpu": _cpu(cpu_limit), "memory": memory},
    }


def _cpu(cores: float) -> str:
    return f"{round(cores * 1000)}m"


def container(
    name: str, image: str, mounts: Iterable[Manifest], resources: Manifest, **more: Any
) -> Manifest:
    made = {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "resources": resources,
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": list(mounts),
        **more,
    }
    return {key: value for key, value in made.items() if value != []}


def reloading(unit: t.Unit) -> list[str]:
    """The unit's command, told when the kubelet has brought new files."""
    if unit.reload_signal is None:
        return list(unit.command)
    return ["reload-on-change", unit.reload_signal.removeprefix("SIG"), "--", *unit.command]


def pod(
    place: Place,
    component: str,
    account: str,
    containers: Sequence[Manifest],
    volumes: Sequence[Manifest],
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    **more: Any,
) -> Manifest:
    """A pod template."""
    k = place.settings.kubernetes
    spec: Manifest = {
        "serviceAccountName": account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        **({"imagePullSecrets": [{"name": n} for n in k.pull_secrets]} if k.pull_secrets else {}),
        # What runs and ends displaces nobody.
        **(
            {"priorityClassName": k.priority_class}
            if k.priority_class and component != RUNNER
            else {}
        ),
        **more,
        "containers": list(containers),
        "volumes": list(volumes),
    }
    metadata: Manifest = {"labels": {**place.labels(component), **(labels or {})}}
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"metadata": metadata, "spec": spec}


def spread(component: str, apart: str | None = None) -> Manifest:
    """Over zones and machines as evenly as may be; `apart`: how strictly on machines of their own
    (`required`, `preferred`)."""
    chosen = {"matchLabels": selector(component)}
    found: Manifest = {
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": chosen,
            }
            for key in (_ZONE, _HOSTNAME)
        ]
    }
    term = {"topologyKey": _HOSTNAME, "labelSelector": chosen}
    if apart == "required":
        rule: Manifest = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    elif apart == "preferred":
        weighted = [{"weight": 100, "podAffinityTerm": term}]
        rule = {"preferredDuringSchedulingIgnoredDuringExecution": weighted}
    else:
        return found
    return {"affinity": {"podAntiAffinity": rule}, **found}
