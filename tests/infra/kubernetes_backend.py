"""Units in pods: testinfra's kubectl backend, and the pods' own definitions for what is around."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from elsapg.services.deployment import Deployment
from elsapg.targets.kubernetes.forward import LOCAL, Forward, forward
from elsapg.targets.kubernetes.hosts import KubernetesHosts
from tests.infra import hosts
from tests.infra.facts import Containment, judge

Object = Mapping[str, Any]
COMPONENT = "app.kubernetes.io/component"
_KINDS = (
    "pods", "persistentvolumeclaims", "services", "statefulsets", "deployments", "jobs", "cronjobs",
    "poddisruptionbudgets", "networkpolicies", "endpointslices",
)  # fmt: skip
_UNITS = {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4, "k": 10**3, "M": 10**6,
          "G": 10**9, "T": 10**12}  # fmt: skip
# How long kubectl takes to notice that a connection was broken off, and to end because of it.
_NOTICED_S = 0.3


def quantity(text: object) -> int:
    """Kubernetes' way to write a size, in bytes; 0 for none."""
    match = re.fullmatch(r"(\d+)([KMGT]i|[kMGT])?", str(text or "0"))
    judge(match, f"{text!r} is no size in bytes", "see what set it")
    assert match is not None
    return int(match[1]) * _UNITS.get(match[2] or "", 1)


def name(thing: Object) -> str:
    """The object's name."""
    return str(thing["metadata"]["name"])


def named(things: Iterable[Object]) -> dict[str, Object]:
    """Objects by their names."""
    return {name(thing): thing for thing in things}


class Cluster:
    """The objects of a stack as the API server has them now; fetched at once, once."""

    def __init__(self, hosts: KubernetesHosts) -> None:
        self._hosts = hosts

    @functools.cached_property
    def _objects(self) -> list[Object]:
        found: list[Object] = self._hosts.kubectl.json("get", ",".join(_KINDS))["items"]
        return found

    def all(self, kind: str) -> list[Object]:
        """Those of one kind."""
        return [thing for thing in self._objects if thing["kind"] == kind]

    def pods(self, *components: str) -> list[Object]:
        """Pods of those components that are not on their way out."""
        return [
            pod
            for pod in self.all("Pod")
            if pod["metadata"].get("labels", {}).get(COMPONENT) in components
            and not pod["metadata"].get("deletionTimestamp")
            and pod["status"].get("phase") not in ("Failed", "Succeeded")
        ]

    @functools.cached_property
    def namespace(self) -> Object:
        """The stack's namespace."""
        found: Object = self._hosts.kubectl.json("get", "namespace", self._hosts.kubectl.namespace)
        return found

    @functools.cached_property
    def machines(self) -> list[Object]:
        """The cluster's nodes."""
        found: list[Object] = self._hosts.kubectl.json("get", "nodes")["items"]
        return found


class KubernetesBackend:
    """Units are containers of pods."""

    def __init__(self, deployment: Deployment) -> None:
        assert deployment.pods is not None
        self._deployment = deployment
        self._hosts = deployment.pods
        self.cluster = Cluster(deployment.pods)
        self._forwards: dict[str, Forward] = {}
        self._open = contextlib.ExitStack()

    def host(self, unit: str) -> Any:
        spot, kubectl = self._hosts.spot(unit), self._hosts.kubectl
        context = {"context": kubectl.context} if kubectl.context else {}
        return hosts.get(
            f"kubectl://{spot.pod}",
            container=spot.container,
            namespace=kubectl.namespace,
            **context,
        )

    def _container(self, unit: str) -> tuple[Object, Object, Object]:
        """The pod, the container's definition in it, and what became of it."""
        spot = self._hosts.spot(unit)
        pod = named(self.cluster.all("Pod")).get(spot.pod)
        if pod is None:
            # It has come since all was fetched.
            pod = self._hosts.kubectl.json("get", "pod", spot.pod)
        [defined] = [c for c in pod["spec"]["containers"] if c["name"] == spot.container]
        states = {c["name"]: c for c in pod["status"].get("containerStatuses", [])}
        return pod, defined, states.get(spot.container, {})

    def containment(self, unit: str) -> Containment:
        pod, defined, state = self._container(unit)
        outer, inner = pod["spec"].get("securityContext", {}), defined.get("securityContext", {})
        user, group = (inner.get(key, outer.get(key)) for key in ("runAsUser", "runAsGroup"))
        last = state.get("lastState", {}).get("terminated", {})
        return Containment(
            user=f"{user}:{group}",
            read_only=bool(inner.get("readOnlyRootFilesystem")),
            memory_bytes=quantity(defined.get("resources", {}).get("limits", {}).get("memory")),
            restarts=int(state.get("restartCount", 0)),
            environment=tuple(
                f"{variable['name']}={variable.get('value', variable.get('valueFrom'))}"
                for variable in defined.get("env", [])
            ),
            out_of_memory=last.get("reason") == "OOMKilled",
        )

    def logs(self, unit: str) -> str:
        spot = self._hosts.spot(unit)
        return self._hosts.kubectl.run(
            "logs", spot.pod, f"--container={spot.container}", "--tail=20000"
        )

    def image_history(self) -> str:
        raise NotImplementedError("the images are in their registry")

    # -- the pools, from this machine ----------------------------------------------------------

    def pool(self, pooler: str) -> tuple[str, int]:
        """A forwarded port, opened anew when it was lost. The certificates hold the address."""
        found = self._forwards.get(pooler)
        if found is None or found.ends_within(0):
            target = f"pod/{self._hosts.physical(pooler)}"
            way = forward(self._hosts.kubectl, target, 6432)
            found = self._forwards[pooler] = self._open.enter_context(way)
        return LOCAL, found.port

    def lost(self, pooler: str) -> bool:
        """Whether it was the way that failed: one connection that the pool breaks off ends
        kubectl's forwarding, and all other connections with it."""
        return self._forwards[pooler].ends_within(_NOTICED_S)

    def close(self) -> None:
        self._open.close()
