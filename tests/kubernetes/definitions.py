"""The definitions (CRDs) of other people's objects, from their own modules: cert-manager, External
Secrets, Prometheus' operator, Argo CD, Flux. Their programs do not run here.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from elsapg import process
from elsapg.errors import MissingError


@dataclass(frozen=True)
class Module:
    """A Go module at a version, the hash of its content as in a go.sum, and where they lie."""

    path: str
    version: str
    sum: str
    files: tuple[str, ...]


MODULES = (
    Module(
        "github.com/cert-manager/cert-manager",
        "v1.21.2",
        "h1:UWgoYM+KLNtRlqmoWOKjKBOBUPVHeepQ6/ac3ERJW68=",
        ("deploy/crds/cert-manager.io_*.yaml",),
    ),
    Module(
        "github.com/external-secrets/external-secrets",
        "v1.3.2",
        "h1:u2J8RjlHIeF0oZCqtl92adI/uZWUwOesJIDkfql6LqQ=",
        ("config/crds/bases/external-secrets.io_externalsecrets.yaml",),
    ),
    Module(
        "github.com/prometheus-operator/prometheus-operator",
        "v0.85.0",
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        (
            "example/prometheus-operator-crd/*_podmonitors.yaml",
            "example/prometheus-operator-crd/*_prometheusrules.yaml",
        ),
    ),
    Module(
        "github.com/argoproj/argo-cd/v3",
        "v3.0.0",
        "h1:VG3KgvjQqD7nQ/xdPnNrvSz5yLraJxVCMljdkLET46I=",
        ("manifests/crds/app*-crd.yaml",),
    ),
    Module(
        "github.com/fluxcd/source-controller",
        "v1.7.0",
        "h1:/fBgS4CSmT5Jj/fjQDF92y+pC3gst1GJjgNSzY8Ff9I=",
        ("config/crd/bases/*_gitrepositories.yaml",),
    ),
    Module(
        "github.com/fluxcd/kustomize-controller",
        "v1.7.3",
        "h1:SzNnGn/4ObAPEHHleM5U7y/AKxKXph3Vj6ZhteeXw8M=",
        ("config/crd/bases/*_kustomizations.yaml",),
    ),
)


def texts() -> list[str]:
    """Every definition, as YAML. Raises MissingError where a module cannot be had."""
    with tempfile.TemporaryDirectory() as folder:
        return [text for module in MODULES for text in _texts(module, folder)]


def _texts(module: Module, folder: str) -> list[str]:
    name = f"{module.path}@{module.version}"
    done = process.run(
        ["go", "mod", "download", "-json", name], cwd=folder, timeout=300, check=False
    )
    try:
        found = json.loads(done.stdout)
    except ValueError:
        found = {"Error": done.stderr}
    if "Error" in found:
        raise MissingError(f"cannot download {name}: {found['Error'].strip()[:300]}")
    if found["Sum"] != module.sum:
        raise MissingError(f"{name} is not what was pinned: {found['Sum']}, not {module.sum}")
    paths = [path for files in module.files for path in Path(found["Dir"]).glob(files)]
    if not paths:
        raise MissingError(f"{name} has no {module.files}")
    return [path.read_text(encoding="utf-8") for path in sorted(paths)]
