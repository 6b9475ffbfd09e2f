"""What was rendered becomes a whole stack, stays one when applied again, and holds every check."""

from __future__ import annotations

import json
import re

import pytest

from elsapg.definition import topology as t
from elsapg.targets.kubernetes import monitoring
from elsapg.targets.kubernetes.objects import Place
from tests.chaos.faults import archive_all, wait_for
from tests.kubernetes.faults import KubernetesFaults
from tests.kubernetes.stack import Stack

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]


def _pods(stack: Stack) -> list[dict]:
    return list(json.loads(stack.kubectl("get", "pods", "-o", "json"))["items"])


def test_every_pod_is_ready(stack: Stack, faults: KubernetesFaults) -> None:
    """Each process runs, none had to be started twice, and no two nodes share a machine."""
    running = [p for p in _pods(stack) if p["status"]["phase"] == "Running"]
    states = {
        f"{p['metadata']['name']}/{c['name']}": (c["ready"], c["restartCount"])
        for p in running
        for c in p["status"]["containerStatuses"]
    }
    assert states and all(ready for ready, _ in states.values()), states
    nodes = [p for p in running if p["metadata"]["name"] in stack.deployment.nodes]
    machines = [p["spec"]["nodeName"] for p in nodes]
    assert len(nodes) == len(stack.deployment.nodes) == len(set(machines)), machines


def test_pod_security_is_enforced(stack: Stack) -> None:
    """The namespace refuses a pod that is not `restricted`: what runs in it passed."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "test-refused"},
        "spec": {"containers": [{"name": "c", "image": "localhost/pause:1"}]},
    }
    said = stack.cluster.try_kubectl(
        "-n", stack.namespace, "apply", "--server-side", "-f", "-", stdin=json.dumps(pod)
    )
    assert said.code != 0 and "violates PodSecurity" in said.stderr, said


def test_applying_again_changes_nothing(stack: Stack, faults: KubernetesFaults) -> None:
    """Neither an object nor a pod: no field is fought over with the cluster's own controllers."""
    before = _identities(stack)
    stack.apply()
    assert _identities(stack) == before
    found = stack.cluster.try_kubectl(
        "diff", "--server-side", "--recursive", "-f", str(stack.manifests), timeout=120
    )
    assert found.code == 0, found.stdout + found.stderr


def _identities(stack: Stack) -> dict[str, object]:
    """Of each object, what changes when its declaration does; of each pod, which one it is."""
    kinds = "statefulset,deployment,cronjob,job,service,pvc,configmap,secret,networkpolicy,pod"
    items = json.loads(stack.kubectl("get", kinds, "-o", "json"))["items"]
    found: dict[str, object] = {}
    for item in items:
        meta = item["metadata"]
        known = (meta["uid"], meta.get("generation"))
        if item["kind"] in ("ConfigMap", "Secret") and not meta["name"].startswith(t.SCOPE + "-"):
            known = (meta["uid"], meta["resourceVersion"])
        found[f"{item['kind']}/{meta['name']}"] = known
    return found


def test_wal_arrives_in_s3(stack: Stack, faults: KubernetesFaults) -> None:
    """A segment switched now is in the bucket soon, by the S3's own account."""
    leader = faults.wait_healthy().leader
    segment = archive_all(stack.deployment)
    info = json.loads(
        stack.deployment.hosts.run(
            leader, "pgbackrest", f"--stanza={t.STANZA}", "--output=json", "info"
        ).output
    )
    assert max(a["max"] for a in info[0]["archive"]) >= segment
    assert [b["type"] for b in info[0]["backup"]][:1] == ["full"], "the first backup is missing"


def test_verify_is_green(stack: Stack, faults: KubernetesFaults) -> None:
    wait_for(stack.verified, "verify is green", 400, 5)


def test_the_alerts_ask_for_what_patroni_tells(stack: Stack) -> None:
    deployment = stack.deployment
    rules = monitoring._rules(Place(stack.name, deployment.settings, {}))
    wanted = set(re.findall(r"\bpatroni_\w+", json.dumps(rules)))
    assert len(wanted) >= 9
    node = deployment.nodes[0]
    url = f"https://{node}:{t.PATRONI_PORT}/metrics"
    told = deployment.hosts.run(node, "curl", "-sS", "--cacert", f"{t.CONFIG_DIR}/tls/ca.crt", url)
    assert wanted <= set(re.findall(r"^(patroni_\w+)\{", told.output, re.MULTILINE)), told.output
