"""S3 inside the test cluster: versitygw as a pod, with keys and a certificate of its own."""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

import yaml

from elsapg.services.machine import VERSITYGW, build
from elsapg.services.places import Places
from elsapg.targets.docker import daemon as d
from tests.kubernetes.binaries import static_image
from tests.kubernetes.certificates import Authority
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.system import apply

NAMESPACE = "elsapg-test-s3"
PORT = 9000
BUCKET = "elsa-backups"
HOST = f"s3.{NAMESPACE}.svc.cluster.local"


@dataclass(frozen=True)
class S3:
    """What a stack needs to know of it. `ca`: PEM."""

    endpoint: str
    ca: str
    access_key: str
    secret_key: str


def start(cluster: Cluster, root: Path) -> S3:
    """Bring it up, or find it: a stack that was kept goes on with its bucket."""
    found = cluster.try_kubectl("-n", NAMESPACE, "get", "secret", "s3", "-o", "json")
    if found.code == 0:
        kept = json.loads(found.stdout)["data"]
        data = {key: base64.b64decode(value).decode() for key, value in kept.items()}
    else:
        data = _deploy(cluster, root)
    wait = ("rollout", "status", "deployment/s3", "--timeout=300s")
    cluster.kubectl("-n", NAMESPACE, *wait, timeout=310)
    return S3(f"{HOST}:{PORT}", data["ca.crt"], data["access-key"], data["secret-key"])


def _deploy(cluster: Cluster, root: Path) -> dict[str, str]:
    authority = Authority()
    pair = authority.issue("s3", hosts=(HOST,))
    data = {
        "access-key": secrets.token_hex(10),
        "secret-key": secrets.token_hex(20),
        "tls.crt": pair.certificate,
        "tls.key": pair.key,
        "ca.crt": authority.certificate,
    }
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s3", "namespace": NAMESPACE},
        "stringData": data,
    }
    text = (Path(__file__).parent / "s3.yaml").read_text(encoding="utf-8")
    apply(cluster, text.replace("IMAGE", _push(cluster, root)) + "---\n" + yaml.safe_dump(secret))
    return data


def _push(cluster: Cluster, root: Path) -> str:
    places = Places(root)
    build(places, VERSITYGW, print)
    repository = f"{cluster.registry}/elsapg-test-s3"
    image = f"{repository}:{VERSITYGW.version(places)}"
    client = d.client()
    try:
        client.images.load(static_image(places.bin / VERSITYGW.name, image))
        for line in client.images.push(image, stream=True, decode=True):
            assert "error" not in line, line["error"]
    finally:
        client.close()
    return image
