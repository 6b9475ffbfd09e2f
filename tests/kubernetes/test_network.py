"""Each way that a NetworkPolicy opens works, and what none opens is closed.

The cluster that is made here enforces policies. One that KUBECONFIG names may not: what is closed
is then not shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from elsapg.definition import topology as t
from tests.chaos.faults import wait_for
from tests.kubernetes import s3
from tests.kubernetes.faults import KubernetesFaults
from tests.kubernetes.stack import Stack

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]

STRANGER = "test-stranger"
# A port opens within a moment or it does not at all.
_TRY = (
    "import socket,sys\n"
    "for to in sys.argv[1:]:\n"
    "  host, port = to.rsplit(':', 1)\n"
    "  try:\n"
    "    socket.create_connection((host, int(port)), 3).close(); print(to, 'open')\n"
    "  except OSError as e: print(to, 'closed')\n"
)


def _pod(stack: Stack, component: str | None) -> str:
    """A pod that does nothing, under the labels of a component (or none)."""
    image = next(
        c["image"]
        for d in stack.documents()
        if d["kind"] == "Job"
        for c in d["spec"]["template"]["spec"]["containers"]
    )
    name = f"test-as-{component or 'nobody'}"
    labels = {"app.kubernetes.io/name": "elsapg", "app.kubernetes.io/instance": stack.name}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {**labels, "app.kubernetes.io/component": component} if component else {},
        },
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": t.UID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            # Ready for no Service: nobody must be sent here.
            "readinessGates": [{"conditionType": "elsapg.test/never"}],
            "containers": [
                {
                    "name": "c",
                    "image": image,
                    "command": ["sleep", "600"],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }
    stack.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(pod))
    stack.kubectl(
        "wait", f"pod/{name}", "--for=condition=ContainersReady", "--timeout=180s", timeout=190
    )
    return name


@pytest.fixture(scope="module")
def stranger(stack: Stack) -> Iterator[str]:
    name = _pod(stack, None)
    yield name
    stack.kubectl("delete", "pod", name, "--now")


def _reach(stack: Stack, pod: str, *to: str) -> dict[str, str]:
    words = ("exec", pod, "--", "python3", "-c", _TRY, *to)
    told = wait_for(lambda: stack.kubectl(*words, timeout=90), f"{pod} answers", 180)
    return dict(line.split() for line in told.splitlines())


def _addresses(stack: Stack) -> dict[str, str]:
    items = json.loads(stack.kubectl("get", "pods", "-o", "json"))["items"]
    return {i["metadata"]["name"]: i["status"].get("podIP", "") for i in items}


NODE = (t.PG_PORT, t.PATRONI_PORT, t.AGENT_PORT)
# Who may open which ports of a node, of a pooler, and S3.
WAYS = {
    "pg": (NODE[:2], (t.GATE_PORT,), True),
    "pgbouncer": ((t.PG_PORT,), (), False),
    "runner": (NODE, (t.GATE_PORT,), True),
}


@pytest.mark.parametrize("component", WAYS)
def test_each_component_reaches_what_it_needs_and_nothing_else(
    stack: Stack, faults: KubernetesFaults, component: str
) -> None:
    to_nodes, to_poolers, to_s3 = WAYS[component]
    pod = _pod(stack, component)
    try:
        addresses = _addresses(stack)
        pooler = next(a for n, a in addresses.items() if n.startswith("pgbouncer-"))
        node = addresses[stack.deployment.nodes[0]]
        wanted = {f"{node}:{port}": port in to_nodes for port in NODE}
        # The pools are open to applications, not to the stack's own pods.
        wanted |= {f"{pooler}:{port}": port in to_poolers for port in (t.POOL_PORT, t.GATE_PORT)}
        wanted[f"{s3.HOST}:{s3.PORT}"] = to_s3
        allowed = {to for to, may in wanted.items() if may}

        def open_ways() -> set[str]:
            """As soon as all that is allowed is open: a pod's rules come a moment after it."""
            found = _reach(stack, pod, *wanted)
            ways = {to for to, state in found.items() if state == "open"}
            return ways if ways >= allowed else set()

        ways = wait_for(open_ways, "what is allowed is open", 120, 2)
    finally:
        stack.kubectl("delete", "pod", pod, "--now")
    if stack.cluster.ours:
        assert ways == allowed


def test_a_stranger_in_the_namespace_reaches_nothing(stack: Stack, stranger: str) -> None:
    if not stack.cluster.ours:
        pytest.skip("nobody knows whether the cluster that KUBECONFIG names enforces policies")
    addresses = _addresses(stack)
    pooler = next(a for n, a in addresses.items() if n.startswith("pgbouncer-"))
    node = addresses[stack.deployment.nodes[0]]
    to = [*(f"{node}:{p}" for p in NODE), f"{pooler}:{t.POOL_PORT}", f"{pooler}:{t.GATE_PORT}"]
    assert set(_reach(stack, stranger, *to).values()) == {"closed"}
