"""The examples in gitops/: valid, and about stacks and folders as docs/gitops.md has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from elsapg import stackfile
from tests.unit import kubernetes_policy as policy

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "gitops").glob("*/*.yaml"))
TOOLS = {"argoproj.io", "source.toolkit.fluxcd.io", "kustomize.toolkit.fluxcd.io", "pulumi.com"}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def test_there_is_one_for_each_tool() -> None:
    assert {p.parent.name for p in FILES} == {"argocd", "flux", "pulumi-operator"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
def test_objects(path: Path) -> None:
    for document in documents(path):
        assert document["metadata"]["name"]
        if document["apiVersion"].partition("/")[0] not in TOOLS:
            assert not list(policy.schema(document)), document["metadata"]["name"]
        assert not list(policy.secrecy(document)), document["metadata"]["name"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
def test_the_stack_is_one_of_ours(path: Path) -> None:
    assert stackfile.read(ROOT, path.stem).target == "kubernetes"
    text = path.read_text(encoding="utf-8")
    if path.parent.name != "pulumi-operator":
        assert f"gitops/rendered/{path.stem}" in text
        assert "prune: true" in text
    else:
        [stack] = [d["spec"] for d in documents(path) if d["kind"] == "Stack"]
        assert stack["stack"] == path.stem
        assert stack["destroyOnFinalize"] is False


def test_the_operators_requirements_are_ours() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["-r requirements/runtime.txt"]
