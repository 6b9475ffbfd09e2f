"""Objects for cert-manager, External Secrets, Prometheus' operator, Argo CD and Flux, as an API
server that knows their definitions takes them. None of those programs runs here.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from elsapg import process
from tests.kubernetes import definitions
from tests.kubernetes.cluster import Cluster
from tests.stacks import ROOT
from tests.unit.kubernetes_stacks import STACKS, rendered

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]

Manifest = dict[str, Any]
NAMESPACE = "elsapg-test-custom"
OURS = {
    *("cert-manager.io/v1", "external-secrets.io/v1", "monitoring.coreos.com/v1"),
    *("argoproj.io/v1alpha1", "source.toolkit.fluxcd.io/v1", "kustomize.toolkit.fluxcd.io/v1"),
}


@pytest.fixture(scope="module")
def knowing(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, with the definitions while these tests run. Only on one that is ours."""
    if not cluster.ours:
        pytest.skip("KUBECONFIG names a cluster whose definitions are not ours to change")
    text = "---\n".join(definitions.texts())
    apply = ("apply", "--server-side", "-f", "-")
    said = cluster.kubectl(*apply, stdin=text, timeout=120)
    names = [line.split()[0] for line in said.splitlines()]
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    cluster.kubectl(*apply, stdin=json.dumps(namespace))
    yield cluster
    cluster.kubectl("delete", "namespace", NAMESPACE, timeout=240)
    cluster.kubectl("delete", "--wait=false", *names)


def custom() -> list[Manifest]:
    """All that the stacks of the unit tests and the examples have of such objects."""
    found = [m for stack in STACKS for m in rendered(stack).values()]
    for path in sorted((ROOT / "gitops").glob("*/*.yaml")):
        found += yaml.safe_load_all(Path(path).read_text(encoding="utf-8"))
    return [m for m in found if m["apiVersion"] in OURS]


def try_(cluster: Cluster, manifest: Manifest) -> process.Completed:
    """What the API server says to it; it is not kept."""
    one = copy.deepcopy(manifest)
    one["metadata"]["namespace"] = NAMESPACE
    words = ("apply", "--server-side", "--dry-run=server", "-o", "json", "-f", "-")
    return cluster.try_kubectl(*words, stdin=json.dumps(one))


def test_every_one_is_taken(knowing: Cluster) -> None:
    manifests = custom()
    assert {m["apiVersion"] for m in manifests} == OURS
    refused = {}
    for manifest in manifests:
        done = try_(knowing, manifest)
        if done.code:
            refused[manifest["kind"], manifest["metadata"]["name"]] = done.stderr
    assert not refused, refused


def test_nothing_of_an_external_secret_is_filled_in(knowing: Cluster) -> None:
    """Argo CD would take what its definition has as defaults, in a list, for drift for ever."""
    ours = [m for m in custom() if m["kind"] == "ExternalSecret"]
    kept = [json.loads(try_(knowing, manifest).stdout)["spec"] for manifest in ours]
    assert ours and kept == [manifest["spec"] for manifest in ours]


@pytest.mark.parametrize("api", sorted(OURS))
def test_one_with_a_mistake_is_not(knowing: Cluster, api: str) -> None:
    """The server looks at each kind: a key that it does not know is refused."""
    first = copy.deepcopy(next(m for m in custom() if m["apiVersion"] == api))
    first["spec"]["noSuchKey"] = "x"
    done = try_(knowing, first)
    assert done.code and "noSuchKey" in done.stderr, done
