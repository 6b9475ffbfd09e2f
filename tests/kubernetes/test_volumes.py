"""Volumes that are lost, or grow. The last tests: a claim that has grown cannot shrink again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kubernetes.faults import KubernetesFaults
from tests.kubernetes.stack import Stack

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]


def test_a_standbys_volume_is_lost(stack: Stack, faults: KubernetesFaults) -> None:
    """As docs/runbook.md says: a claim of the right size again, the other node's pod untouched."""
    state = faults.wait_healthy()
    lost, claim = state.sync_standby, f"data-{state.sync_standby}"
    before = stack.uids("pg"), _claim(stack, claim)
    stack.kubectl("delete", "statefulset", "pg", "--cascade=orphan")
    stack.kubectl("delete", "pod", lost, "--force", "--grace-period=0")
    stack.kubectl("delete", "pvc", claim, f"wal-{lost}")
    stack.apply()
    faults.wait_ready()
    after = stack.uids("pg"), _claim(stack, claim)
    assert after[0][state.leader] == before[0][state.leader]
    assert after[0][lost] != before[0][lost]
    assert after[1]["metadata"]["uid"] != before[1]["metadata"]["uid"]
    assert after[1]["spec"]["resources"] == before[1]["spec"]["resources"]
    assert stack.deployment.primary() == state.leader


def _claim(stack: Stack, name: str) -> dict[str, Any]:
    return dict(json.loads(stack.kubectl("get", "pvc", name, "-o", "json")))


def test_volumes_grow_without_replacement(stack: Stack) -> None:
    """Only the claims change: the StatefulSet, whose own templates cannot, does not know."""
    nodes = stack.uids("pg")
    before = json.loads(stack.kubectl("get", "statefulset", "pg", "-o", "json"))["metadata"]
    stack.change(postgres={"volume_size": "30Gi"})
    after = json.loads(stack.kubectl("get", "statefulset", "pg", "-o", "json"))["metadata"]
    assert (after["uid"], after["generation"]) == (before["uid"], before["generation"])
    for node in stack.deployment.nodes:
        claim = _claim(stack, f"data-{node}")
        assert claim["spec"]["resources"]["requests"]["storage"] == "30Gi"
    assert stack.uids("pg") == nodes
