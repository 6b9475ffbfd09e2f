"""Waits until Kubernetes has replaced the nodes' pods, where it is at it: kubernetes only.

A setting such as `postgres.memory_mb` changes both a pod and what PostgreSQL needs a restart for.
Kubernetes replaces the pods, each handing over first; a restart ordered meanwhile would stop the
very node that is about to take over. Whoever restarts therefore looks here first.

The one question to the API server is `GET statefulsets/pg`, which this task's account may ask.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from elsapg.errors import ElsapgError
from elsapg.runner import kube
from elsapg.runner.patroni import PatroniError, wait_until

# Which StatefulSet the nodes are; unset where there is no Kubernetes.
STATEFUL_SET = "ELSAPG_STATEFULSET"
# Each node in turn: its handover, its stop, its start, and the time it must have been ready.
PATIENCE_S = 600.0


def wait(patience: float = PATIENCE_S) -> None:
    """Return when no pod of an older revision is left; at once where there is no Kubernetes.

    Raises TimeoutError, and ElsapgError when the API server refuses to tell.
    """
    name = os.environ.get(STATEFUL_SET)
    if not name:
        return
    seen: dict[str, Any] = {}
    said: list[str] = []

    def over() -> bool:
        seen.update(_stateful_set(name))
        done = is_over(seen)
        if not done and not said:
            said.append(state())
            print(said[0], flush=True)
        return done

    def state() -> str:
        status = seen.get("status", {})
        return (
            f"statefulset/{name} is still replacing its pods: {status.get('updatedReplicas', 0)} "
            f"of {seen.get('spec', {}).get('replicas', '?')} are new (kubectl describe pods tells "
            "what they wait for)"
        )

    wait_until(over, patience, state, pause=2)


def is_over(stateful_set: dict[str, Any]) -> bool:
    """Whether a newer revision has replaced the older one, as `kubectl rollout status` judges.

    The revisions are equal from the start when there is nothing to replace, and become so when the
    last pod is new and has been ready for minReadySeconds.
    """
    status = stateful_set.get("status", {})
    return bool(
        status.get("observedGeneration", 0) >= stateful_set["metadata"]["generation"]
        and status["updateRevision"] == status["currentRevision"]
    )


def _stateful_set(name: str) -> dict[str, Any]:
    try:
        return kube.get(f"statefulsets/{name}", "apis/apps/v1")
    except kube.KubeError as error:
        if error.status in (401, 403, 404):
            # Waiting makes none of these better.
            raise ElsapgError(
                f"{error}: apply the stack's manifests again, Role and RoleBinding runner too"
            ) from None
        print(error, file=sys.stderr, flush=True)
        raise PatroniError(str(error)) from None
