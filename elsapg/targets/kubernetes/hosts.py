"""Runs commands inside a stack's pods, says which of them run, and runs the runner's tasks.

A unit's name leads to a pod and a container of it: `pg-1` and `pg-1-agent` are two containers of
pod pg-1; `pgbouncer-1` is the first of the pools' pods, by name. There is no runner that waits for
work: a task is a Job, made as its CronJob would make it, and gone when it has ended.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import secrets
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elsapg.definition import topology as t
from elsapg.errors import ElsapgError, MissingError, NotDeployedError, UnhealthyError
from elsapg.settings import Settings
from elsapg.targets.hosts import Completed, UnitState
from elsapg.targets.kubernetes.kubectl import Kubectl

COMPONENT = "app.kubernetes.io/component"
NODES, POOLERS = "pg", "pgbouncer"
BESIDE_POOL = ("gate", "readers")
# The CronJob that a task is made after: its own, or that of the backups.
TASKS_LIKE = "backup-incremental"
OWN_JOBS = ("dump", "check", "drill")
BOOTSTRAP = "bootstrap"
STARTS_WITHIN_S = 120
FRESH_S = 1.0
_OUR_LABELS = "app.kubernetes.io/"
# What does not come right by waiting.
_HOPELESS = ("InvalidImageName", "CreateContainerConfigError", "ErrImageNeverPull")

Pod = Mapping[str, Any]


@dataclass(frozen=True)
class Spot:
    """A container of a pod."""

    pod: str
    container: str


class KubernetesHosts:
    """The pods of one stack."""

    def __init__(self, stack: str, settings: Settings) -> None:
        self._stack = stack
        self._settings = settings
        self.kubectl = Kubectl(stack, t.namespace(stack, settings), settings.kubernetes.context)
        self._turn = threading.Lock()
        self._seen: tuple[float, list[Pod]] = (-FRESH_S, [])

    # -- where ---------------------------------------------------------------------------------

    def physical(self, unit: str) -> str:
        """The pod's name."""
        return self.spot(unit).pod

    def spot(self, unit: str) -> Spot:
        """The container of a unit. Raises NotDeployedError for a pool that has no pod."""
        if unit in t.node_names(self._settings):
            return Spot(unit, "postgres")
        if unit.endswith("-agent"):
            return Spot(unit.removesuffix("-agent"), "agent")
        if unit.startswith(POOLERS):
            pods = self._pods()
            names = t.pooler_names(self._settings)
            known = {**dict(zip(names, _poolers(pods), strict=False)), **self._leaving(pods)}
            if unit in known:
                return Spot(_name(known[unit]), POOLERS)
        raise NotDeployedError(
            f"{unit} of stack {self._stack!r} does not run: "
            f"`elsapg status --stack {self._stack}` says what does"
        )

    def leaving(self) -> tuple[str, ...]:
        """Pools that are on their way out and still serve clients: their numbers follow the last
        one's."""
        return tuple(self._leaving(self._pods()))

    def _leaving(self, pods: list[Pod]) -> dict[str, Pod]:
        found = (p for p in pods if _component(p) == POOLERS)
        gone = sorted((p for p in found if _serves_and_leaves(p)), key=_name)
        first = self._settings.pooler.instances + 1
        return {f"{POOLERS}-{first + i}": pod for i, pod in enumerate(gone)}

    def shell(self, unit: str, *command: str) -> str:
        spot = self.spot(unit)
        return self.kubectl.line("exec", spot.pod, "-c", spot.container, "--", *command)

    def anew(self, unit: str) -> str:
        line = self.kubectl.line("delete", "pod", self.physical(unit))
        return (
            f"apply the stack (`elsapg up`); if it stays so, `{line}`: it is made anew, and its "
            "volumes stay"
        )

    def remedy(self, unit: str, state: str = "") -> str:
        if state == "missing":
            # Why a pod was never made stands with whoever is to make it.
            kind = "deployment,replicaset" if unit.startswith(POOLERS) else "statefulset"
            component = POOLERS if unit.startswith(POOLERS) else NODES
            line = self.kubectl.line("describe", kind, "-l", f"{COMPONENT}={component}")
            return f"`{line}` says why"
        if unit.startswith(POOLERS):
            what: tuple[str, ...] = ("pods", "-l", f"{COMPONENT}={POOLERS}")
        else:
            what = ("pod", self.physical(unit))
        line = self.kubectl.line("describe", *what)
        told = self._warned(what[1]) if what[0] == "pod" else ""
        return f"`{line}` says {f'more{told}{self._makes(told)}' if told else 'why'}"

    def _makes(self, told: str) -> str:
        """Who makes a Secret that a pod waits for."""
        if not re.search(r"secret \S+ not found", told):
            return ""
        command = {"cluster": "secrets apply", "pulumi": "up --refresh"}
        wanted = command.get(self._settings.kubernetes.secrets)
        return f" (`elsapg {wanted} --stack {self._stack}` makes it)" if wanted else ""

    # -- commands ------------------------------------------------------------------------------

    def run(self, unit: str, *command: str, timeout: int = 60) -> Completed:
        try:
            return self._run(unit, command, timeout)
        except NotDeployedError:
            if unit not in t.pooler_names(self._settings):
                raise
        # A pool's pod has a name of its own: the one that we knew may have been replaced.
        self._seen = (-FRESH_S, [])
        return self._run(unit, command, timeout)

    def _run(self, unit: str, command: tuple[str, ...], timeout: int) -> Completed:
        spot = self.spot(unit)
        done = self.kubectl.inside(spot.pod, spot.container, command, timeout)
        return Completed(done.code, done.stdout + done.stderr)

    def converse(self, unit: str, *command: str) -> subprocess.Popen[str]:
        spot = self.spot(unit)
        return self.kubectl.start(
            "exec", "--stdin", spot.pod, f"--container={spot.container}", "--", *command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    # -- states --------------------------------------------------------------------------------

    def states(self) -> dict[str, UnitState]:
        """Every unit with a pod; also what is beside each pool, as `pgbouncer-1-gate`.

        Raises NotDeployedError when there is no such namespace: a list of pods would be empty.
        """
        pods = self._pods()
        states: dict[str, UnitState] = {}
        for pod in pods:
            if _component(pod) == NODES:
                for container, unit in (("postgres", _name(pod)), ("agent", f"{_name(pod)}-agent")):
                    states[unit] = _state(unit, pod, container)
        for number, pod in enumerate(_poolers(pods)):
            unit = f"{POOLERS}-{number + 1}"
            states[unit] = _state(unit, pod, POOLERS)
            # A pool of an earlier release may have fewer.
            named = {c["name"] for c in pod["spec"]["containers"]}
            for container in BESIDE_POOL:
                if container in named:
                    states[f"{unit}-{container}"] = _state(f"{unit}-{container}", pod, container)
        return states

    def _pods(self) -> list[Pod]:
        """The stack's pods, at most a moment old: one look asks for them many times."""
        with self._turn:
            if time.monotonic() - self._seen[0] > FRESH_S:
                found = self.kubectl.json("get", "pods", "--selector=app.kubernetes.io/name=elsapg")
                if not found["items"]:
                    self._check_namespace()
                self._seen = (time.monotonic(), found["items"])
            return self._seen[1]

    def _check_namespace(self) -> None:
        """Raise NotDeployedError if it is not there: of an absent one, kubectl lists no pods."""
        # Who may see the pods need not be allowed to see namespaces.
        with contextlib.suppress(MissingError):
            self.kubectl.run("get", "namespace", self.kubectl.namespace)

    # -- the runner's tasks --------------------------------------------------------------------

    def task(self, *command: str, timeout: int = t.LONG_S) -> Completed:
        """Run it as a Job of its own, which is deleted whatever happens."""
        own = command[0] if command[0] in OWN_JOBS else TASKS_LIKE
        like = self.kubectl.json("get", "cronjob", own)
        return self._to_its_end(_job(command, like, timeout))

    def rerun(self, *tasks: str) -> None:
        """Run some of the bootstrap's tasks again, as the newest Job of them has them.

        Raises NotDeployedError if there is none, UnhealthyError with what a task said.
        """
        for task in tasks:
            [timeout] = [k.timeout_s for k in t.tasks(self._settings) if k.name == task]
            done = self._to_its_end(_again(task, self.bootstrap_job(), timeout))
            if done.code:
                told = " ".join(done.output.split())[-600:]
                raise UnhealthyError(told or f"{task} ended with {done.code}, without a word")

    def bootstrap_job(self) -> dict[str, Any]:
        """The newest bootstrap Job, run or not. Raises NotDeployedError if there is none."""
        found = self.kubectl.json("get", "jobs", "--selector=app.kubernetes.io/name=elsapg")
        jobs = [job for job in found["items"] if _name(job).startswith(f"{BOOTSTRAP}-")]
        if not jobs:
            raise NotDeployedError(
                f"there is no Job {BOOTSTRAP}-… in namespace {self.kubectl.namespace!r}, and it "
                "is what says how roles, migrations and configuration come to what the stack "
                f"says: `elsapg render --stack {self._stack} --out FOLDER` and apply it (or "
                f"`elsapg up --stack {self._stack}`), then run this again"
            )
        return dict(max(jobs, key=lambda job: job["metadata"]["creationTimestamp"]))

    def _to_its_end(self, job: dict[str, Any]) -> Completed:
        """Make the Job, wait for it, and delete it whatever happens."""
        name, timeout = _name(job), job["spec"]["activeDeadlineSeconds"]
        try:
            self.kubectl.run("create", "--filename=-", stdin=json.dumps(job))
            pod, code = self._end(name, timeout)
            container = job["spec"]["template"]["spec"]["containers"][0]["name"]
            output = self.kubectl.run("logs", pod, f"--container={container}")
            return Completed(code, output)
        finally:
            # It goes by itself later (its ttlSecondsAfterFinished); what it did counts.
            with contextlib.suppress(ElsapgError):
                self.kubectl.run("delete", "job", name, "--ignore-not-found", "--wait=false")

    def _end(self, job: str, timeout: int) -> tuple[str, int]:
        """Wait for a Job's one pod to end: its name and exit code."""
        began = time.monotonic()
        limit = min(STARTS_WITHIN_S, timeout)
        while True:
            watch = ("get", "pods", f"--selector=job-name={job}", "--watch", f"--output={_EVENT}")
            with self.kubectl.follow(*watch) as follower:
                while True:
                    try:
                        line = follower.line(began + limit - time.monotonic())
                    except TimeoutError:
                        raise UnhealthyError(
                            f"{job} did not {'start' if limit < timeout else 'end'} within "
                            f"{limit} s{self._warned(job)}"
                        ) from None
                    if line is None:
                        break
                    name, phase, waiting, code = line.split("|")
                    if phase in ("Succeeded", "Failed"):
                        # One that ran into its deadline may have ended by itself, with 0.
                        return name, int(code or 0) or int(phase == "Failed")
                    if waiting in _HOPELESS:
                        raise UnhealthyError(f"{job} cannot start: {waiting}{self._warned(job)}")
                    if phase == "Running":
                        limit = timeout
            # The server ends a watch now and then; if it was something else, this says what.
            self.kubectl.run("get", "job", job)

    def _warned(self, name: str) -> str:
        """The cluster's last warning about a pod, or a Job and its pod."""
        try:
            found = self.kubectl.json("get", "events", "--field-selector=type=Warning")
        except ElsapgError:
            return ""
        # A probe that fails says that something is wrong, and not what.
        about = [
            event
            for event in found["items"]
            if event["involvedObject"].get("name", "").startswith(name)
            and event.get("reason") != "Unhealthy"
        ]
        if not about:
            return ""
        last = max(about, key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "")
        return f": {' '.join(last['message'].split())[:300]}"


# Not by tabs: kubectl makes columns of those.
_EVENT = (
    'jsonpath={.metadata.name}{"|"}{.status.phase}{"|"}'
    '{.status.containerStatuses[0].state.waiting.reason}{"|"}'
    '{.status.containerStatuses[0].state.terminated.exitCode}{"\\n"}'
)


def _job(command: tuple[str, ...], like: Mapping[str, Any], timeout: int) -> dict[str, Any]:
    """A Job as the CronJob would make it, for another command.

    Not the CronJob's own: it would count it among its runs, and hold the next one back.
    """
    pod: dict[str, Any] = copy.deepcopy(like["spec"]["jobTemplate"]["spec"]["template"])
    [container] = pod["spec"]["containers"]
    container["args"] = list(command)
    return _once(command[0], pod, timeout)


def _again(task: str, job: Mapping[str, Any], timeout: int) -> dict[str, Any]:
    """A Job that does one task of the bootstrap Job, with the files of that task alone."""
    pod: dict[str, Any] = copy.deepcopy(job["spec"]["template"])
    spec = pod["spec"]
    every = [*spec.pop("initContainers", ()), *spec["containers"]]
    spec["containers"] = [c for c in every if c["name"] == task]
    mounted = {m["name"] for m in spec["containers"][0]["volumeMounts"]}
    spec["volumes"] = [v for v in spec["volumes"] if v["name"] in mounted]
    return _once(task, pod, timeout)


def _once(what: str, pod: dict[str, Any], timeout: int) -> dict[str, Any]:
    """A Job of one pod that is tried once, under a name that nobody else has."""
    labels = pod["metadata"].get("labels", {})
    # Those by which the first Job knows its own pods are not for this one.
    pod["metadata"] = {"labels": {k: v for k, v in labels.items() if k.startswith(_OUR_LABELS)}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"task-{what}-{secrets.token_hex(4)}",
            "labels": dict(pod["metadata"]["labels"]),
        },
        "spec": {
            "template": pod,
            "backoffLimit": 0,
            "activeDeadlineSeconds": timeout,
            # Should whoever waits for it be killed before it could delete it.
            "ttlSecondsAfterFinished": 300,
        },
    }


def _name(pod: Pod) -> str:
    return str(pod["metadata"]["name"])


def _component(pod: Pod) -> str:
    return str(pod["metadata"].get("labels", {}).get(COMPONENT, ""))


def _poolers(pods: list[Pod]) -> list[Pod]:
    """The pools' pods, without those that are on their way out, or were evicted."""
    found = (
        pod
        for pod in pods
        if _component(pod) == POOLERS
        and not pod["metadata"].get("deletionTimestamp")
        and pod["status"].get("phase") not in ("Failed", "Succeeded")
    )
    return sorted(found, key=_name)


def _serves_and_leaves(pod: Pod) -> bool:
    leaves = _state(POOLERS, pod, POOLERS).state == "terminating"
    return leaves and not _lost(pod["status"])


def _state(unit: str, pod: Pod, container: str) -> UnitState:
    every = {c["name"]: c for c in pod["status"].get("containerStatuses", [])}
    own = every.get(container, {})
    last = own.get("lastState", {}).get("terminated", {})
    return UnitState(
        unit,
        _word(pod, own.get("state", {})),
        int(own.get("restartCount", 0)),
        str(last.get("finishedAt", "")) if last.get("reason") == "OOMKilled" else "",
    )


def _word(pod: Pod, state: Mapping[str, Any]) -> str:
    status = pod["status"]
    if "running" in state:
        if pod["metadata"].get("deletionTimestamp"):
            return "terminating"
        return "unreachable" if _lost(status) else "running"
    for kind in ("waiting", "terminated"):
        if kind in state:
            return str(state[kind].get("reason") or kind)
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("reason") or "Unschedulable")
    return str(status.get("reason") or status.get("phase") or "unknown")


def _lost(status: Mapping[str, Any]) -> bool:
    """Whether the pod's machine has not been heard of: then the control plane, not the kubelet,
    says that the pod is not ready, and knows nothing new of its containers."""
    ready = {c["type"]: c["status"] for c in status.get("conditions", [])}.get("Ready")
    return ready == "False" and all(c["ready"] for c in status.get("containerStatuses", []))
