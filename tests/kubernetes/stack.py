"""A stack on the test cluster, deployed as a GitOps tool deploys it: images pushed, manifests
rendered, secrets made in the cluster, everything applied server-side.

    with running_stack(cluster, ROOT) as stack: ...
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from elsapg import stackfile
from elsapg.definition import topology as t
from elsapg.services.deployment import Deployment
from tests.chaos.writes import Access, access
from tests.kubernetes import s3, system
from tests.kubernetes.cluster import Cluster
from tests.stacks import elsapg, far_off, images

STACK = "test-kubernetes"
READY_TIMEOUT_S = 600


@dataclass
class Stack:
    """One stack on one cluster."""

    cluster: Cluster
    root: Path
    name: str
    settings: dict[str, Any]
    # What took how many seconds, for the bench.
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return f"elsapg-{self.name}"

    @property
    def manifests(self) -> Path:
        return self.root / ".elsapg" / "kubernetes" / "manifests" / self.name

    @property
    def deployment(self) -> Deployment:
        """As every day-2 command sees it; made anew, so that changed settings count."""
        return Deployment(self.root, self.name)

    # -- deploying ---------------------------------------------------------------------------

    def write(self, settings: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Write the stack's file, with `settings` on top of what it was made with."""
        groups = {key: dict(value) for key, value in self.settings.items()}
        for key, value in (settings or {}).items():
            groups[key] = {**groups.get(key, {}), **value}
        config = {"elsapg:target": "kubernetes", **{f"elsapg:{k}": v for k, v in groups.items()}}
        path = stackfile.stack_file(self.root, self.name)
        path.write_text(yaml.safe_dump({"config": config}), encoding="utf-8")

    def run(self, *words: str, timeout: float = 900) -> str:
        """The CLI on this stack; raises AssertionError with what it printed when it fails."""
        done = elsapg(self.root, *words, "--stack", self.name, timeout=timeout)
        assert done.returncode == 0, f"elsapg {' '.join(words)} failed:\n{done.stdout}"
        return done.stdout

    def verified(self) -> bool:
        """Whether `elsapg verify` is green."""
        return elsapg(self.root, "verify", "--stack", self.name).returncode == 0

    def render(self) -> None:
        """Write the manifests."""
        with self._timed("render"):
            self.run("render", "--out", str(self.manifests))

    def apply(self) -> dict[str, str]:
        """Apply what was rendered: the namespace, then the secrets, then the rest; returns what
        kubectl said of each object ("kind/name" -> "serverside-applied")."""
        with self._timed("apply"):
            self.apply_namespace()
            self.run("secrets", "apply")
            self._prune()
            said = self.apply_manifests()
        return dict(line.rsplit(" ", 1) for line in said.splitlines() if " " in line)

    def change(self, **settings: Mapping[str, Any]) -> None:
        """Apply what the stack was made with, but for these settings."""
        self.write(settings)
        self.render()
        self.apply()

    def apply_manifests(self) -> str:
        """Apply what was rendered, and nothing else; what kubectl said."""
        return self.kubectl(
            "apply", "--server-side", "--recursive", "-f", str(self.manifests), timeout=120
        )

    def apply_namespace(self) -> None:
        """The namespace alone, for what comes before everything else."""
        for file in sorted(self.manifests.rglob("*.yaml")):
            if _kind(file) == "Namespace":
                self.kubectl("apply", "--server-side", "-f", str(file))

    def _prune(self) -> None:
        """Remove the bootstrap Jobs of other manifests, as a GitOps tool does: one that has run
        would not run again when a setting goes back to what it was."""
        jobs = self.kubectl("get", "jobs", "-o", "name").split()
        names = {j.removeprefix("job.batch/") for j in jobs} - {self.bootstrap_job()}
        old = sorted(n for n in names if n.startswith("bootstrap-"))
        if old:
            self.kubectl("delete", "job", *old)

    def wait_ready(self, timeout: float = READY_TIMEOUT_S) -> None:
        """Wait until every pod is ready and the bootstrap has run."""
        with self._timed("ready"):
            until = f"--timeout={timeout:.0f}s"
            for what in ("statefulset/pg", "deployment/pgbouncer"):
                self.kubectl("rollout", "status", what, until, timeout=timeout + 10)
            self.wait_bootstrapped(timeout)

    def wait_bootstrapped(self, timeout: float = READY_TIMEOUT_S) -> None:
        """Wait until the Job of the manifests has ended well."""
        job = self.bootstrap_job()
        deadline = time.monotonic() + timeout
        while True:
            ends = self.job_ends(job)
            if "Complete" in ends:
                return
            if "Failed" in ends or time.monotonic() > deadline:
                logs = self.kubectl(
                    "logs", f"job/{job}", "--all-containers", "--tail=30", check=False
                )
                state = self.kubectl("get", "job", job, "-o", "jsonpath={.status}")
                raise AssertionError(f"{job}: {state}\n{logs}")
            time.sleep(0.5)

    def job_ends(self, job: str) -> set[str]:
        """How a Job has ended: Complete or Failed among them; empty while it runs."""
        status = json.loads(self.kubectl("get", "job", job, "-o", "json")).get("status", {})
        return {c["type"] for c in status.get("conditions", []) if c["status"] == "True"}

    def bootstrap_job(self) -> str:
        """The Job's name in the manifests: it bears a hash of what it does."""
        [name] = [
            document["metadata"]["name"]
            for document in self.documents()
            if document["kind"] == "Job"
        ]
        return str(name)

    def documents(self) -> list[dict[str, Any]]:
        """Every object rendered."""
        return [
            document
            for file in sorted(self.manifests.rglob("*.yaml"))
            for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))
            if document
        ]

    # -- looking -----------------------------------------------------------------------------

    def kubectl(
        self, *words: str, stdin: str | None = None, timeout: float = 60, check: bool = True
    ) -> str:
        """kubectl in the stack's namespace."""
        return self.cluster.kubectl(
            "-n", self.namespace, *words, stdin=stdin, timeout=timeout, check=check
        )

    def pod(self, unit: str) -> dict[str, Any]:
        """A node's pod as the API server has it."""
        found: dict[str, Any] = json.loads(self.kubectl("get", "pod", unit, "-o", "json"))
        return found

    def uids(self, *components: str) -> dict[str, str]:
        """Of the pods of components: a pod that was replaced has another."""
        chosen = f"app.kubernetes.io/component in ({','.join(components)})"
        found = json.loads(self.kubectl("get", "pods", "-l", chosen, "-o", "json"))["items"]
        return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in found}

    def machine(self, unit: str) -> str:
        """The Kubernetes node that a pod runs on."""
        return str(self.pod(unit)["spec"]["nodeName"])

    def events(self) -> str:
        """What happened lately, for an error's sake."""
        return self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)

    def open_doors(self) -> dict[str, Any]:
        """A Service by which a client on this machine reaches the pools."""
        port = self.cluster.node_ports[0]
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "test-pools"},
            "spec": {
                "type": "NodePort",
                "selector": {
                    "app.kubernetes.io/instance": self.name,
                    "app.kubernetes.io/component": "pgbouncer",
                },
                "ports": [{"port": t.POOL_PORT, **({"nodePort": port} if port else {})}],
            },
        }
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(service))
        made: dict[str, Any] = json.loads(
            self.kubectl("get", "service", "test-pools", "-o", "json")
        )
        return made

    @contextlib.contextmanager
    def doors(self) -> Iterator[Access]:
        """How a client on this machine reaches the pools: by NodePort on the cluster of this
        machine, else by whatever the cluster has made of a Service of its own."""
        made, address = self.open_doors(), None
        if not self.cluster.ours:
            nodes = json.loads(self.cluster.kubectl("get", "nodes", "-o", "json"))["items"]
            addresses = {a["type"]: a["address"] for a in nodes[0]["status"]["addresses"]}
            address = addresses.get("ExternalIP", addresses["InternalIP"])
        pools = ({"host": "localhost", "port": made["spec"]["ports"][0]["nodePort"]},)
        with access(self.deployment, pools, address) as found:
            yield found

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.timings[what] = round(time.monotonic() - started, 1)


def _kind(file: Path) -> str:
    document = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    return str(document.get("kind"))


@contextlib.contextmanager
def running_stack(
    cluster: Cluster, root: Path, name: str = STACK, **settings: Mapping[str, Any]
) -> Iterator[Stack]:
    """Deploy a stack, and its S3; yields when every pod is ready and the bootstrap has run."""
    bucket = s3.start(cluster, root)
    stack = prepare(cluster, root, bucket, name, **settings)
    finished = False
    try:
        images()  # once for all workers
        stack.run("images", "push")
        stack.render()
        stack.apply()
        stack.wait_ready()
        yield stack
        finished = True
    except BaseException:
        if not finished:
            print(stack.kubectl("get", "pods", "-o", "wide", check=False), file=sys.stderr)
            print(stack.events()[-4000:], file=sys.stderr)
        raise
    finally:
        if os.environ.get("ELSAPG_KEEP_STACKS", "") in ("", "0"):
            remove(stack)


def prepare(
    cluster: Cluster, root: Path, bucket: s3.S3, name: str, **settings: Mapping[str, Any]
) -> Stack:
    """A stack's file, ready to be pushed, rendered and applied."""
    # What a person would have set for the CLI.
    os.environ["KUBECONFIG"] = cluster.kubeconfig
    os.environ["ELSAPG_S3_ACCESS_KEY"] = bucket.access_key
    os.environ["ELSAPG_S3_SECRET_KEY"] = bucket.secret_key
    groups: dict[str, Any] = {
        # WAL on a volume of its own is the harder of two ways.
        "postgres": {"memory_mb": 768, "cpus": 1, "wal_volume_size": "2Gi"},
        # Room for a pool that leaves slowly beside its successor.
        "pooler": {"max_db_connections": 7},
        "archive": {
            **{"endpoint": bucket.endpoint, "ca": bucket.ca, "bucket": s3.BUCKET},
            **far_off(),
        },
        "kubernetes": {
            "registry": cluster.registry,
            "secrets": "cluster",
            "application_cidrs": [cluster.network],
            "pool_names": ["localhost"],
            "pool_leave_s": 16,
        },
    }
    for key, value in settings.items():
        groups[key] = {**groups.get(key, {}), **value}
    stack = Stack(cluster, root, name, groups)
    shutil.rmtree(stack.manifests, ignore_errors=True)
    stack.write()
    return stack


def remove(stack: Stack, *, bucket: bool = True) -> None:
    """Remove a stack with its data, and the bucket that it may have shared: another stack could
    not read what this one has encrypted."""
    if not (bucket and stack.cluster.passing):
        _remove_objects(stack, bucket)
    shutil.rmtree(stack.manifests, ignore_errors=True)
    for path in (
        stackfile.stack_file(stack.root, stack.name),
        stack.root / "stacks" / f"images.{stack.name}.yaml",
    ):
        path.unlink(missing_ok=True)


def _remove_objects(stack: Stack, bucket: bool) -> None:
    # S3 last: a primary that stops ships its last WAL.
    for namespace in (stack.namespace, *((s3.NAMESPACE,) if bucket else ())):
        stack.cluster.kubectl("delete", "namespace", namespace, "--ignore-not-found", timeout=600)
    if stack.cluster.ours:
        system.renew_volumes(stack.cluster)
