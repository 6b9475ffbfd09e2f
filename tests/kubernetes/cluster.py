"""A Kubernetes of several nodes on this machine: each node a container with its own containerd.

    with running_cluster(ROOT, print) as cluster: ...

One control plane that runs no stack, and workers in zones of their own; the pods' networks are
joined by static routes. Everything bears one label and goes with it, also what a killed run left.
Nothing but loopback is published.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from elsapg import process
from elsapg.errors import ElsapgError
from elsapg.process import CommandFailedError
from elsapg.services.places import write_private
from elsapg.targets.docker.daemon import BASE_IMAGE
from tests.kubernetes import binaries, system
from tests.kubernetes.machine_files import API_PORT, Files, Node
from tests.stacks import free_ports

WORKERS = 3
NODE_PORTS = 8
FIRST_NODE_PORT = 30100
FIRST_API_PORT = 16443
FIRST_REGISTRY_PORT = 15000
READY_TIMEOUT_S = 180
LABEL = "elsapg.kubernetes"

# What `--privileged` gives but for one capability, which not every machine can give: without it
# such a container does not start there at all.
_RIGHTS = (
    "--cap-add=ALL", "--cap-drop=SYS_RESOURCE", "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined", "--security-opt=systempaths=unconfined",
    "--device-cgroup-rule=a *:* rwm", "--cgroupns=private",
)  # fmt: skip
# Not on the container's own layers: overlay does not go on overlay.
_FOLDERS = ("containerd", "cni", "etcd", "kubelet", "volumes")

# One control plane, beside all else on a small machine: nothing was done then.
_BUSY = re.compile("TLS handshake timeout|dial tcp .*(connection refused|i/o timeout)")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Cluster:
    """A cluster as tests see it. `registry`: what images are pushed to, and named by."""

    kubeconfig: str
    registry: str
    # Ports of 127.0.0.1 that are NodePorts; (0, 0) for a cluster that is not ours.
    node_ports: tuple[int, int]
    # Names of the nodes, which are names of containers too; none for a cluster that is not ours.
    control: str
    workers: tuple[str, ...]
    # Where the nodes are: whoever comes by a NodePort comes from there.
    network: str
    # Whether it goes as a whole when the tests end.
    passing: bool = False

    @property
    def ours(self) -> bool:
        """Whether its nodes are containers of this machine."""
        return bool(self.workers)

    def address(self, node: str) -> str:
        """A node's own address, in the cluster's network."""
        path = "jsonpath={.status.addresses[?(@.type=='InternalIP')].address}"
        return self.kubectl("get", "node", node, "--output", path)

    def kubectl(
        self, *words: str, stdin: str | None = None, timeout: float = 60, check: bool = True
    ) -> str:
        """What kubectl prints; raises CommandFailedError with what it says when it fails."""
        return self._kubectl(words, stdin, timeout, check).stdout

    def try_kubectl(
        self, *words: str, stdin: str | None = None, timeout: float = 60
    ) -> process.Completed:
        """The same for what may fail, or must."""
        return self._kubectl(words, stdin, timeout, False)

    def _kubectl(
        self, words: Sequence[str], stdin: str | None, timeout: float, check: bool
    ) -> process.Completed:
        command = ["kubectl", "--kubeconfig", self.kubeconfig, *words]
        for _ in range(2):
            try:
                return process.run(command, stdin=stdin, timeout=timeout, check=check)
            except CommandFailedError as error:
                if not _BUSY.search(str(error)):
                    raise
            time.sleep(2)
        return process.run(command, stdin=stdin, timeout=timeout, check=check)


def name_of(root: Path) -> str:
    """The cluster of one folder: those of two worktrees do not meet."""
    return "elsapg-k8s-" + hashlib.sha256(str(root).encode()).hexdigest()[:6]


@contextlib.contextmanager
def running_cluster(root: Path, say: Say) -> Iterator[Cluster]:
    """The cluster that KUBECONFIG names, else the one that runs here, else one made and removed.

    With KUBECONFIG, ELSAPG_TEST_REGISTRY names the registry. ELSAPG_KEEP_STACKS=1 keeps it.
    """
    theirs = os.environ.get("KUBECONFIG")
    found = load(root)
    if theirs and (found is None or theirs != found.kubeconfig):
        registry = os.environ.get("ELSAPG_TEST_REGISTRY", "")
        yield Cluster(theirs, registry, (0, 0), "", (), "0.0.0.0/0")
        return
    if found is not None:
        yield found
        return
    passing = os.environ.get("ELSAPG_KEEP_STACKS", "") in ("", "0")
    try:
        yield replace(up(root, say), passing=passing)
    finally:
        if passing:
            down(root)


def load(root: Path) -> Cluster | None:
    """The cluster of this folder, if it runs."""
    path = _record(root)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        cluster = Cluster(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})
    except (OSError, ValueError, TypeError):
        return None
    running = _docker("ps", "--filter", f"label={LABEL}={name_of(root)}", "--format", "{{.Names}}")
    whole = {cluster.control, *cluster.workers} <= set(running.split())
    return cluster if whole else None


def up(root: Path, say: Say, workers: int = WORKERS) -> Cluster:
    """Make the cluster anew and wait until every node is ready."""
    down(root)
    here = binaries.ensure(root, say)
    image = _node_image(say)
    started = time.monotonic()
    name = name_of(root)
    prefix = _network(name)
    nodes = tuple(
        Node(f"{name}-worker-{i}" if i else f"{name}-control", f"{prefix}.{10 + i}", i, f"zone-{i}")
        for i in range(workers + 1)
    )
    api = free_ports(1, FIRST_API_PORT)
    registry = f"127.0.0.1:{free_ports(1, FIRST_REGISTRY_PORT)}"
    first = free_ports(NODE_PORTS, FIRST_NODE_PORT)
    ports = range(first, first + NODE_PORTS)
    _registry(name, here, image, registry, f"{prefix}.5")
    files = Files(nodes, registry, f"{prefix}.5:5000", ports)
    for node in nodes:
        published = [f"127.0.0.1:{api}:{API_PORT}", *(f"127.0.0.1:{p}:{p}" for p in ports)]
        _start(name, here, image, node, files.of(node), published if node.control else [])
    kubeconfig = here / "kubeconfig"
    write_private(kubeconfig, files.authority.kubeconfig(f"127.0.0.1:{api}", files.admin))
    cluster = Cluster(
        str(kubeconfig), registry, (ports.start, ports.stop - 1), nodes[0].name,
        tuple(node.name for node in nodes[1:]), f"{prefix}.0/24",
    )  # fmt: skip
    system.prepare(cluster, nodes, READY_TIMEOUT_S)
    write_private(_record(root), json.dumps(asdict(cluster), indent=2) + "\n")
    say(f"cluster {name}: {len(nodes)} nodes ready ({time.monotonic() - started:.1f} s)")
    return cluster


def down(root: Path) -> None:
    """Remove the cluster of this folder and everything that a killed run left of it."""
    name = name_of(root)
    _record(root).unlink(missing_ok=True)
    (binaries.folder(root) / "kubeconfig").unlink(missing_ok=True)
    ours = ("--filter", f"label={LABEL}={name}")
    containers = _docker("ps", "-aq", *ours).split()
    if containers:
        _docker("rm", "-f", "-v", *containers, timeout=600)
    for network in _docker("network", "ls", "-q", *ours).split():
        _docker("network", "rm", network)


def _record(root: Path) -> Path:
    return binaries.folder(root) / "cluster.json"


def _docker(*words: str, timeout: float = 120) -> str:
    return process.run(["docker", *words], timeout=timeout).stdout


def _node_image(say: Say) -> str:
    """The nodes' image, made once for what its folder holds."""
    folder = Path(__file__).parent / "node"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    image = f"elsapg-k8s-node:{digest.hexdigest()[:12]}"
    if process.run(["docker", "image", "inspect", image], check=False).code != 0:
        say("building the image of the nodes ...")
        process.run(
            ["docker", "build", "-q", "-t", image, "--build-arg", f"BASE={BASE_IMAGE}", folder],
            env={"DOCKER_BUILDKIT": "0"}, timeout=900,
        )  # fmt: skip
    return image


def _network(name: str) -> str:
    """A network with fixed addresses, so that a node keeps its own; returns its first 3 numbers."""
    for third in range(256):
        prefix = f"10.213.{third}"
        done = process.run(
            ["docker", "network", "create", "--label", f"{LABEL}={name}", "--subnet",
             f"{prefix}.0/24", name],
            check=False, timeout=60,
        )  # fmt: skip
        if done.code == 0:
            return prefix
        if "overlaps" not in done.stderr:
            break
    raise ElsapgError(f"cannot make the Docker network {name}: {done.stderr.strip()[:300]}")


def _create(name: str, unit: str, *words: str) -> None:
    _docker(
        "create", "--name", unit, "--hostname", unit, "--label", f"{LABEL}={name}",
        "--network", name, "--log-opt", "max-size=10m", *words,
    )  # fmt: skip


def _registry(name: str, here: Path, image: str, address: str, inside: str) -> None:
    """A registry. What was pushed stays below .elsapg/, as the Go build does: pushing the same
    again costs nothing."""
    unit = f"{name}-registry"
    (here / "registry").mkdir(exist_ok=True)
    config = (
        "version: 0.1\nlog: {accesslog: {disabled: true}, level: warn}\n"
        "storage: {filesystem: {rootdirectory: /var/lib/registry}}\nhttp: {addr: ':5000'}\n"
    )
    _create(
        name, unit, "--ip", inside, "--publish", f"{address}:5000",
        "--volume", f"{here / 'registry'}:/var/lib/registry", image,
        "docker-registry", "serve", "/etc/registry.yml",
    )  # fmt: skip
    _copy(unit, {"/etc/registry.yml": config})
    _docker("start", unit)


def _start(
    name: str, here: Path, image: str, node: Node, files: Mapping[str, str], published: list[str]
) -> None:
    images = [
        here / "images" / which for which in ("pause", *(["coredns"] if node.control else []))
    ]
    _create(
        name, node.name, *_RIGHTS, "--ip", node.address,
        *(f"--publish={port}" for port in published),
        # Gone with the processes, as on a machine that lost its power.
        "--tmpfs=/run:exec,mode=755", "--tmpfs=/tmp:exec",
        *(f"--volume=/var/lib/{folder}" for folder in _FOLDERS),
        f"--volume={here / 'bin'}:/opt/kubernetes/bin:ro",
        *(f"--volume={folder}:/opt/kubernetes/images/{folder.name}:ro" for folder in images),
        image,
    )  # fmt: skip
    _copy(node.name, files)
    _docker("start", node.name)


def _copy(unit: str, files: Mapping[str, str]) -> None:
    """Put files into a container that does not run yet."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            data = content.encode()
            entry.size, entry.mode = len(data), 0o600
            tar.addfile(entry, io.BytesIO(data))
    process.run(
        ["docker", "cp", "-", f"{unit}:/"], stdin=buffer.getvalue().decode("ascii"), timeout=60
    )
