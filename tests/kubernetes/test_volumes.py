"""Volumes grow where they are. The last test of all: a claim that has grown cannot shrink again."""

from __future__ import annotations

import json

import pytest

from tests.kubernetes.stack import Stack

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]


def test_volumes_grow_without_replacement(stack: Stack) -> None:
    """Only the claims change: the StatefulSet, whose own templates cannot, does not know."""
    nodes = stack.uids("pg")
    before = json.loads(stack.kubectl("get", "statefulset", "pg", "-o", "json"))["metadata"]
    stack.change(postgres={"volume_size": "30Gi"})
    after = json.loads(stack.kubectl("get", "statefulset", "pg", "-o", "json"))["metadata"]
    assert (after["uid"], after["generation"]) == (before["uid"], before["generation"])
    for node in stack.deployment.nodes:
        claim = json.loads(stack.kubectl("get", "pvc", f"data-{node}", "-o", "json"))
        assert claim["spec"]["resources"]["requests"]["storage"] == "30Gi"
    assert stack.uids("pg") == nodes
