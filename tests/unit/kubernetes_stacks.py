"""Stacks on kubernetes for the tests: a project folder, what is rendered of it, its objects."""

from __future__ import annotations

import functools
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from elsapg import stackfile
from elsapg.services.render import Recorded, Rendered, record, render
from elsapg.settings import Settings
from elsapg.targets.kubernetes.images import IMAGES

ROOT = Path(__file__).resolve().parents[2]
Manifest = dict[str, Any]

LEAST: dict[str, Any] = {
    "target": "kubernetes",
    "archive": {"endpoint": "s3.example.com"},
    "kubernetes": {"registry": "registry.example.com/platform"},
}
# What the goldens do not have: every other way that an object can look.
OTHERS: dict[str, Any] = {
    "target": "kubernetes",
    "protect": False,
    "postgres": {"replicas": 1},
    "pooler": {"instances": 1},
    "archive": {
        "endpoint": "s3.storage.svc:8443",
        "ca": "-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n",
        "credentials": "keys",
        "key_ids": ["k1", "k2"],
        "second": {"bucket": "elsa-elsewhere", "endpoint": "s3.elsewhere.example:8444"},
    },
    "encryption": {"key_ids": ["k1", "k2"]},
    "kubernetes": {
        "registry": "127.0.0.1:5000",
        "namespace": "elsa-db",
        "secrets": "external",
        "secret_store": "SecretStore/vault",
        "pool_service_type": "LoadBalancer",
        "pool_service_annotations": {"example.com/internal": "true"},
        "pool_names": ["pool.example.com"],
        "pool_leave_s": 60,
        "application_cidrs": ["10.1.0.0/16"],
        "cert_manager": True,
        "cert_manager_issuer": "of-the-stack",
        "s3_ports": [7070],
        "scratch_volume_size": "20Gi",
    },
}


def merged(base: Mapping[str, Any], *changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with each change, groups key by key."""
    found = dict(base)
    for change in changes:
        for key, value in change.items():
            old = found.get(key)
            both = isinstance(old, dict) and isinstance(value, Mapping)
            found[key] = {**old, **value} if both else value  # type: ignore[dict-item]
    return found


def settings(*changes: Mapping[str, Any]) -> Settings:
    return stackfile.load(merged(LEAST, *changes), "test")


def digests(text: str = "") -> str:
    """The content of stacks/images.<stack>.yaml, of images that nobody has built."""
    lines = [f"{i}: sha256:{hashlib.sha256((i + text).encode()).hexdigest()}\n" for i in IMAGES]
    return "".join(lines)


def project(folder: Path, stacks: Mapping[str, Mapping[str, Any]]) -> Path:
    """A project folder with those stacks, and with our own ones for kubernetes."""
    (folder / "stacks").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "Pulumi.yaml", folder)
    for name, values in stacks.items():
        config = {f"elsapg:{key}": value for key, value in values.items()}
        path = folder / "stacks" / f"Pulumi.{name}.yaml"
        path.write_text(yaml.safe_dump({"config": config}), encoding="utf-8")
    for name in ("staging", "production"):
        shutil.copy(ROOT / "stacks" / f"Pulumi.{name}.yaml", folder / "stacks")
    for name in (*stacks, "staging", "production"):
        (folder / "stacks" / f"images.{name}.yaml").write_text(digests(), encoding="utf-8")
    return folder


STACKS = ("least", "others", "staging", "production")


@functools.cache
def shared_project() -> Path:
    """For tests that only read."""
    return project(Path(tempfile.mkdtemp()), {"least": LEAST, "others": OTHERS})


@functools.cache
def result(stack: str) -> Rendered:
    return render(shared_project(), stack)


@functools.cache
def rendered(stack: str) -> dict[str, Manifest]:
    """The objects of a stack, by file name."""
    return {name: yaml.safe_load(text) for name, text in result(stack).files.items()}


@functools.cache
def recorded(stack: str) -> tuple[Recorded, ...]:
    root = shared_project()
    return tuple(record(stack, stackfile.read(root, stack), root))


def objects_of(values: Mapping[str, Any], root: Path) -> dict[tuple[str, str], Manifest]:
    """The objects that a stack of these settings has, by kind and name; secrets included."""
    name = "some"
    project(root, {name: values})
    seen = record(name, stackfile.read(root, name), root)
    found = [r.manifest for r in seen if r.manifest is not None and ":providers:" not in r.type]
    return {(m["kind"], m["metadata"]["name"]): m for m in found}


def pod_specs(manifest: Manifest) -> Iterator[Manifest]:
    """The pod templates' specs in a manifest."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "CronJob":
        yield spec["jobTemplate"]["spec"]["template"]["spec"]
    elif manifest["kind"] in ("StatefulSet", "Deployment", "Job"):
        yield spec["template"]["spec"]


def containers(manifest: Manifest) -> Iterator[Manifest]:
    for spec in pod_specs(manifest):
        yield from spec.get("initContainers", [])
        yield from spec["containers"]
