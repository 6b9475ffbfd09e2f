"""Faults on a stack in Kubernetes: on its pods, and on the nodes (containers here) under them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from elsapg import process
from tests.chaos.faults import Healthy, Subject, wait_for
from tests.kubernetes.stack import Stack

NODE_BACK_S = 120


class KubernetesFaults(Subject):
    """What can happen to a stack in a cluster."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack.deployment)
        self.stack = stack

    def wait_ready(self) -> None:
        """Wait until every pod is ready, whatever the test before left."""
        self.stack.wait_ready()
        self.wait_healthy()

    def healthy(self) -> Healthy | None:
        """As everywhere, and the Service leads to the leader: a kubelet that was started again
        calls its pods unready until it has asked them."""
        state = super().healthy()
        selector = "--selector=kubernetes.io/service-name=primary"
        slices = json.loads(self.stack.kubectl("get", "endpointslices", selector, "-o", "json"))
        led = {
            endpoint["targetRef"]["name"]
            for piece in slices["items"]
            for endpoint in piece.get("endpoints") or ()
            if endpoint["conditions"].get("ready")
        }
        return state if state and led == {state.leader} else None

    def delete_pod(self, pod: str, *, force: bool = False) -> None:
        """Delete a pod; `force`: at once, without its handover and without a word to its node."""
        words = ("--force", "--grace-period=0", "--wait=false") if force else ("--wait=false",)
        self.stack.kubectl("delete", "pod", pod, *words)

    @contextlib.contextmanager
    def node_lost(self, machine: str) -> Iterator[None]:
        """The node is killed, with everything on it, and comes back at the end of the block."""
        self._leases.pop(machine, None)
        _docker("kill", machine)
        try:
            yield
        finally:
            _docker("start", machine)
            self._wait_node(machine)

    @contextlib.contextmanager
    def node_drained(self, machine: str) -> Iterator[None]:
        """`kubectl drain`, as for an upgrade of the node; it takes pods again after the block."""
        cluster = self.stack.cluster
        try:
            cluster.kubectl(
                "drain", machine, "--ignore-daemonsets", "--delete-emptydir-data",
                "--timeout=240s", timeout=250,
            )  # fmt: skip
            yield
        finally:
            cluster.kubectl("uncordon", machine)

    def on_machine(self, machine: str, *command: str) -> bool:
        """Run a command on the node, beside its pods; whether it succeeds."""
        return process.run(["docker", "exec", machine, *command], timeout=60, check=False).code == 0

    def _wait_node(self, machine: str) -> None:
        until = f"--timeout={NODE_BACK_S}s"
        cluster = self.stack.cluster
        wait_for(lambda: self._is_known_ready(machine), f"{machine} is back", NODE_BACK_S)
        cluster.kubectl("wait", "node", machine, "--for=condition=Ready", until, timeout=130)

    def _is_known_ready(self, machine: str) -> bool:
        """Ready by a word that its kubelet has said since it is back, not by an old one."""
        lease = json.loads(
            self.stack.cluster.kubectl(
                "-n", "kube-node-lease", "get", "lease", machine, "-o", "json"
            )
        )["spec"]["renewTime"]
        before = self._leases.setdefault(machine, lease)
        return bool(lease != before)

    @property
    def _leases(self) -> dict[str, str]:
        return self.__dict__.setdefault("leases", {})


def _docker(*words: str) -> None:
    process.run(["docker", *words], timeout=60)
