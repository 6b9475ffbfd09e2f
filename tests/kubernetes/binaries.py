"""Kubernetes' own commands, built once from `tools/kubernetes/go.mod`, and two small images.

Both lie below `.elsapg/kubernetes/`; a warm start only compares a hash of the pins.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from elsapg import process
from elsapg.errors import MissingError
from elsapg.services.places import write_private

COMMANDS = (
    "k8s.io/kubernetes/cmd/kube-apiserver",
    "k8s.io/kubernetes/cmd/kube-controller-manager",
    "k8s.io/kubernetes/cmd/kube-proxy",
    "k8s.io/kubernetes/cmd/kube-scheduler",
    "k8s.io/kubernetes/cmd/kubectl",
    "k8s.io/kubernetes/cmd/kubelet",
    "sigs.k8s.io/kube-network-policies/cmd",
    "./coredns",
    "./pause",
)
# `go build` names a command by the last part of its path.
RENAMED = {"cmd": "kube-network-policies"}
PAUSE_IMAGE = "localhost/pause:1"
COREDNS_IMAGE = "localhost/coredns:1"

PLUGIN = "pulumi-resource-kubernetes"
# Of the commit that is pinned; its module bears no version.
PLUGIN_VERSION = "v4.25.0"
_PLUGIN_MODULE = "github.com/pulumi/pulumi-kubernetes/provider/v4"
_VERSION = "k8s.io/component-base/version"


def folder(root: Path) -> Path:
    """Where everything of the test cluster lies that is not in a container."""
    return root / ".elsapg" / "kubernetes"


def ensure(root: Path, say: Callable[[str], None]) -> Path:
    """Build what is missing or pinned anew; returns the folder with `bin/` and `images/`."""
    here = folder(root)
    stamp, wanted = here / "bin" / ".stamp", _stamp(root)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return here
    started = time.monotonic()
    version = _kubernetes_version(root)
    say(f"building Kubernetes {version} (minutes, the first time) ...")
    _build(root, here / "bin", version)
    for name, image in (("pause", PAUSE_IMAGE), ("coredns", COREDNS_IMAGE)):
        target = here / "images" / name / "image.tar"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(static_image(here / "bin" / name, image))
    write_private(stamp, wanted)
    say(f"building Kubernetes {version}: done ({time.monotonic() - started:.1f} s)")
    return here


def plugin(root: Path, say: Callable[[str], None]) -> Path:
    """Build Pulumi's plugin from `tools/plugin/go.mod`, beside the others; returns its path.

    Not of `ensure`: half an hour of CPU, for the one file of tests that is skipped without it.
    """
    tools, target = root / "tools" / "plugin", folder(root) / "bin" / PLUGIN
    target.parent.mkdir(parents=True, exist_ok=True)
    say(f"building {PLUGIN} (half an hour of CPU, the first time) ...")
    flags = f"-s -w -X {_PLUGIN_MODULE}/pkg/version.Version={PLUGIN_VERSION}"
    try:
        _go_build(tools, flags, target, ".")
        found = process.run(
            ["go", "list", "-m", "-f", "{{.Dir}}", _PLUGIN_MODULE], cwd=tools, timeout=60
        )
    except process.CommandFailedError as error:
        raise MissingError(f"cannot build {PLUGIN}: {error}") from None
    source = Path(found.stdout.strip()) / "cmd" / PLUGIN
    for name in ("schema.json", "terraform-mapping.json"):
        (target.parent / name).write_bytes((source / name).read_bytes())
    return target


def _stamp(root: Path) -> str:
    digest = hashlib.sha256()
    tools = root / "tools" / "kubernetes"
    for path in sorted(p for p in tools.rglob("*") if p.is_file()):
        digest.update(path.relative_to(tools).as_posix().encode() + b"\0" + path.read_bytes())
    digest.update(" ".join(COMMANDS).encode())
    return digest.hexdigest()


def _kubernetes_version(root: Path) -> str:
    text = (root / "tools" / "kubernetes" / "go.mod").read_text(encoding="utf-8")
    match = re.search(r"^\s*k8s\.io/kubernetes (v\S+)", text, re.M)
    if match is None:
        raise MissingError(
            "tools/kubernetes/go.mod does not pin k8s.io/kubernetes; restore it from Git"
        )
    return match[1]


def _build(root: Path, target: Path, version: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    major, minor = version.lstrip("v").split(".")[:2]
    flags = (
        f"-s -w -X {_VERSION}.gitVersion={version} -X {_VERSION}.gitMajor={major} "
        f"-X {_VERSION}.gitMinor={minor}"
    )
    try:
        _go_build(root / "tools" / "kubernetes", flags, f"{target}/", *COMMANDS)
    except process.CommandFailedError as error:
        raise MissingError(
            f"cannot build Kubernetes: {error}; it needs a Go module proxy (see 'go env GOPROXY')"
        ) from None
    for name, better in RENAMED.items():
        (target / name).replace(target / better)


def _go_build(module: Path, flags: str, target: Path | str, *packages: str) -> None:
    process.run(
        ["nice", "go", "build", "-trimpath", "-ldflags", flags, "-o", target, *packages],
        cwd=module,
        env={"CGO_ENABLED": "0"},
        timeout=2 * 3600,
    )


def static_image(binary: Path, name: str) -> bytes:
    """An image that holds one static binary and runs it, as `docker save` would write it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo(binary.name)
        entry.size, entry.mode = binary.stat().st_size, 0o755
        with binary.open("rb") as file:
            tar.addfile(entry, file)
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": [f"/{binary.name}"]},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"],
        },
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for path, content in (
            ("layer.tar", layer.getvalue()),
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return whole.getvalue()
