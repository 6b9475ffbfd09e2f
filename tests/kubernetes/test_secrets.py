"""Secrets that are missing or wrong: who says so, in which words, and how the stack comes back."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from typing import Any

import pytest

from elsapg.errors import ElsapgError
from tests.chaos.faults import archive_all, wait_for
from tests.kubernetes.faults import KubernetesFaults
from tests.kubernetes.stack import Stack
from tests.stacks import elsapg

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(2400)]

# A changed Secret is in the pods' files within a minute or so; then each process reloads.
ARRIVES_S = 180


def _secret(stack: Stack, name: str) -> dict[str, Any]:
    found = json.loads(stack.kubectl("get", "secret", name, "-o", "json"))
    meta = found["metadata"]
    kept = {key: meta[key] for key in ("name", "namespace", "labels", "annotations") if key in meta}
    return {
        **{"apiVersion": "v1", "kind": "Secret", "metadata": kept},
        **{key: found[key] for key in ("type", "data")},
    }


def _put(stack: Stack, secret: dict[str, Any]) -> None:
    stack.kubectl("replace", "-f", "-", stdin=json.dumps(secret))


def _said(stack: Stack, command: str) -> str:
    return elsapg(stack.root, command, "--stack", stack.name).stdout


@pytest.fixture
def standby(faults: KubernetesFaults) -> str:
    found = faults.wait_healthy()
    return next(n for n in faults.deployment.nodes if n != found.leader)


def test_a_missing_one_is_named_and_made_again(
    stack: Stack, faults: KubernetesFaults, standby: str
) -> None:
    """A pod that starts without it waits; `status` says for what, and `secrets apply` makes it."""
    stack.kubectl("delete", "secret", "tls-pg")
    stack.kubectl("delete", "pod", standby, "--wait=false")

    def told() -> bool:
        said = _said(stack, "status")
        return "tls-pg" in said and "secrets apply" in said

    wait_for(told, "status names the Secret and what makes it", 300, 2)
    stack.run("secrets", "apply")
    faults.wait_ready()
    wait_for(stack.verified, "verify is green", 400, 5)


def test_a_wrong_one_is_told_and_nothing_is_lost(stack: Stack, faults: KubernetesFaults) -> None:
    """S3 does not know the archive's key: writes go on, WAL waits, a backup, `status` and `verify`
    say why; with the right key back all of it is archived."""
    deployment = stack.deployment
    good = _secret(stack, "repository")
    _put(stack, _with_wrong_key(good))
    try:
        wait_for(lambda: _waiting(stack), "nothing is archived any more", ARRIVES_S, 5)
        refused = elsapg(stack.root, "backup", "now", "--stack", stack.name)
        assert refused.returncode and "provided access key" in refused.stdout, refused.stdout
        assert WRONG not in refused.stdout
        wait_for(lambda: "archiv" in _said(stack, "status"), "status says so", 120, 2)
        assert not stack.verified()
        stack.run("secrets", "apply", "--new-s3-keys")
        assert _secret(stack, "repository")["data"] == good["data"]
    finally:
        with contextlib.suppress(ElsapgError):  # it is older than what the command has written
            _put(stack, good)
    wait_for(lambda: not _waiting(stack), "all of it is archived", ARRIVES_S, 5)
    stack.run("backup", "now")
    faults.wait_healthy()
    wait_for(stack.verified, "verify is green", 400, 5)
    assert deployment.members()


WRONG = "nobodyknowsme"


def _with_wrong_key(good: dict[str, Any]) -> dict[str, Any]:
    [(name, value)] = good["data"].items()
    text = base64.b64decode(value).decode()
    wrong = re.sub(r"(?m)^repo1-s3-key=.*$", f"repo1-s3-key={WRONG}", text)
    assert wrong != text
    return {**good, "data": {name: base64.b64encode(wrong.encode()).decode()}}


def _waiting(stack: Stack) -> bool:
    """Whether a segment that is switched now is still not archived after some seconds."""
    deployment = stack.deployment
    deployment.query(deployment.primary(), "SELECT txid_current()")
    try:
        archive_all(deployment, 15)
    except TimeoutError:
        return True
    return False
