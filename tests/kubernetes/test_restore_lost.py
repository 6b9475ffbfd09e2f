"""Everything is lost but S3 and a copy of two Secrets, and comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.chaos.faults import archive_all, wait_for
from tests.kubernetes import system
from tests.kubernetes.faults import KubernetesFaults
from tests.kubernetes.stack import Stack
from tests.kubernetes.test_restore import wal_has_its_volume
from tests.restore.data import fill, sums

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(2400)]


def test_everything_is_lost_but_s3(stack: Stack, faults: KubernetesFaults) -> None:
    """The namespace is gone with all its volumes; of two Secrets there was a copy elsewhere. By the
    stack's file and those the data comes back."""
    deployment = stack.deployment
    fill(deployment)
    before = sums(deployment)
    archive_all(deployment)
    kept = [_copy(stack, name) for name in ("repository", "encryption-keys")]
    stack.kubectl("delete", "namespace", stack.namespace, timeout=600)
    if stack.cluster.ours:
        system.renew_volumes(stack.cluster)
    stack.write({"recovery": {"to": "latest"}})
    try:
        stack.render()
        stack.apply_namespace()
        for secret in kept:
            stack.kubectl("create", "-f", "-", stdin=json.dumps(secret))
        stack.apply()
        stack.open_doors()
        stack.wait_ready()
        faults.wait_healthy()
        assert sums(deployment) == before
        wal_has_its_volume(deployment)
        wait_for(stack.verified, "verify is green", 330, 5)
    finally:
        stack.write()
    # The order goes out of it again, and nothing is asked of the archive any more.
    stack.render()
    stack.apply()
    stack.wait_ready()
    assert sums(deployment) == before


def _copy(stack: Stack, name: str) -> dict[str, Any]:
    """A Secret as somebody would keep it elsewhere."""
    found = json.loads(stack.kubectl("get", "secret", name, "-o", "json"))
    wanted = ("apiVersion", "kind", "type", "data")
    return {**{key: found[key] for key in wanted}, "metadata": {"name": name}}
