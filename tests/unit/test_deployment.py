"""A stack on kubernetes as the commands see it: whose outputs, which door, what is printed."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from elsapg.cli import main
from elsapg.definition.secrets import PASSWORD_ROLES
from elsapg.errors import NotDeployedError, UnhealthyError, UsageError
from elsapg.services import backups, connect, deployment, status, workspace
from elsapg.services.deployment import Deployment
from elsapg.services.places import Places
from elsapg.targets.docker.hosts import DockerHosts
from tests.unit import kubernetes_stacks as stacks
from tests.unit.conftest import write_command
from tests.unit.fake_kubectl import FakeKubectl, listed, pg, pooler

INFO = [
    {
        "backup": [
            {
                "label": "20260301-010000F",
                "type": "full",
                "timestamp": {"start": 1, "stop": 2},
                "info": {"size": 3, "repository": {"delta": 4}},
            }
        ]
    }
]
PASSWORDS = {role: f"password of {role}" for role in PASSWORD_ROLES}


def secret(name: str, **data: str) -> dict[str, Any]:
    encoded = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
    return {"metadata": {"name": name, "resourceVersion": "1"}, "data": encoded}


@pytest.fixture
def stack(kubectl: FakeKubectl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    root = stacks.project(tmp_path / "project", {"test": stacks.LEAST})
    monkeypatch.setenv("ELSAPG_ROOT", str(root))
    kubectl.on("get pods", listed(pg(1), pg(2), pooler("a"), pooler("b")))
    kubectl.on(
        "get secret",
        listed(
            secret("roles", **{"roles.json": json.dumps(PASSWORDS)}),
            secret("encryption-keys", k1="key"),
            secret("tls-pgbouncer", **{"ca.crt": "CA", "tls.crt": "x", "tls.key": "y"}),
        ),
    )
    return Deployment(root, "test")


# -- outputs -------------------------------------------------------------------------------


def test_what_pulumi_does_not_run_is_asked_of_the_cluster(stack: Deployment) -> None:
    assert stack.outputs["passwords"] == PASSWORDS
    assert stack.outputs["ca"] == "CA"
    assert stack.outputs["encryption_keys"] == {"current": "k1", "keys": {"k1": "key"}}


def test_what_pulumi_runs_is_asked_of_its_state(
    stack: Deployment, kubectl: FakeKubectl, monkeypatch: pytest.MonkeyPatch
) -> None:
    Places(stack.root).workspace("test").mkdir(parents=True)
    known = {"passwords": {"elsa_app": "x"}, "ca": "state's", "pools": []}
    monkeypatch.setattr(workspace, "outputs", lambda *_: known)
    assert stack.outputs["ca"] == "state's"
    assert not kubectl.asked


def test_what_the_state_does_not_hold_is_in_the_cluster(
    stack: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`elsapg up` with kubernetes.secrets: cluster, or certificates by cert-manager."""
    Places(stack.root).workspace("test").mkdir(parents=True)
    monkeypatch.setattr(workspace, "outputs", lambda *_: {"namespace": "elsapg-test"})
    assert stack.outputs["ca"] == "CA"


def test_secrets_that_are_not_there(stack: Deployment, kubectl: FakeKubectl) -> None:
    kubectl.on("get secret", "")
    with pytest.raises(NotDeployedError, match="elsapg secrets apply --stack test"):
        _ = stack.outputs


# -- backups -------------------------------------------------------------------------------


def test_a_node_says_what_backups_there_are(stack: Deployment, kubectl: FakeKubectl) -> None:
    kubectl.on("exec pg-1 .* pgbackrest .*--output=json .*info", INFO)
    assert [b.label for b in backups.backups(stack)] == ["20260301-010000F"]
    # Nothing had to be started for it.
    assert not any(words[0] == "create" for words in kubectl.asked)


def test_a_repository_that_does_not_answer(stack: Deployment, kubectl: FakeKubectl) -> None:
    kubectl.on("exec", "", "ERROR: [101] no\ncommand terminated with exit code 101\n", code=101)
    with pytest.raises(UnhealthyError, match=r"pgBackRest on pg-1: ERROR: \[101\] no"):
        backups.backups(stack)


def test_no_stanza_yet(stack: Deployment, kubectl: FakeKubectl) -> None:
    kubectl.on("exec", "[]")
    assert backups.backups(stack) == []


def test_no_node_runs(stack: Deployment, kubectl: FakeKubectl) -> None:
    kubectl.on("get pods", listed(pooler("a")))
    with pytest.raises(NotDeployedError, match="kubectl -n elsapg-test describe pod pg-1"):
        stack.any_node()


def test_one_that_only_starts_does_not_hide_what_the_others_know(
    stack: Deployment, kubectl: FakeKubectl
) -> None:
    refused = "curl: (7) Failed to connect\ncommand terminated with exit code 7\n"
    kubectl.on("exec pg-1 .*curl", "", refused, code=7)
    kubectl.on("exec pg-2 .*curl", {"members": [{"role": "leader", "state": "running",
                                                 "name": "pg-2"}]})  # fmt: skip
    assert stack.primary() == "pg-2"
    kubectl.on("exec pg-2 .*curl", "", refused, code=7)
    with pytest.raises(UnhealthyError, match=r"Patroni on pg-1 .*; Patroni on pg-2 .*\(7\)"):
        stack.members()
    with pytest.raises(UnhealthyError) as caught:
        stack.patroni("/config", "pg-1")
    assert "pg-2" not in str(caught.value)


# -- doors ---------------------------------------------------------------------------------


def test_pods_of_the_cluster_connect_by_its_names(stack: Deployment) -> None:
    found = connect.connection(stack, "elsa_app")
    assert found.addresses == (("pgbouncer.elsapg-test.svc", 6432),)
    assert "hostaddr" not in connect.libpq(found)
    with pytest.raises(UsageError, match="--via session, or --port-forward"):
        connect.connection(stack, "elsa_app", via="direct")


def test_this_machine_connects_through_a_tunnel(stack: Deployment, kubectl: FakeKubectl) -> None:
    kubectl.on("port-forward", "Forwarding from 127.0.0.1:41234 -> 6432\n", stays=True)
    with connect.tunnel(stack, "session") as through:
        found = connect.connection(stack, "elsa_app", via="session", through=through)
        # The address is here, and the certificate is verified for who answers.
        wanted = {"host": "pgbouncer.elsapg-test.svc", "hostaddr": "127.0.0.1", "port": "41234"}
        assert wanted.items() <= conninfo_to_dict(connect.libpq(found)).items()
        assert wanted.items() <= connect.words(found).items()
        assert connect.variables(found)["PGHOSTADDR"] == "127.0.0.1"
    assert kubectl.asked[-1][2:] == ["service/pgbouncer", ":6432"]


def test_the_direct_door_leads_to_the_primary(stack: Deployment, kubectl: FakeKubectl) -> None:
    members = [{"name": "pg-2", "role": "leader", "state": "running"}]
    kubectl.on("exec", {"members": members})
    kubectl.on("port-forward", "Forwarding from 127.0.0.1:41234 -> 5432\n", stays=True)
    with connect.tunnel(stack, "direct") as through:
        assert through is not None
        assert through.name == "primary"
    assert kubectl.asked[-1][2:] == ["pod/pg-2", ":5432"]


def test_a_docker_stack_needs_no_tunnel(project: Path) -> None:
    found = Deployment(project, "local")
    assert isinstance(found.hosts, DockerHosts)
    assert found.pods is None
    with connect.tunnel(found, "session") as through:
        assert through is None


# -- the command line ----------------------------------------------------------------------


def test_uri_for_the_cluster(stack: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["uri", "elsa_app", "-s", "test", "--ca-file", "/etc/elsa/ca.crt"]) == 0
    found = conninfo_to_dict(capsys.readouterr().out.strip())
    assert (found["host"], found["port"]) == ("pgbouncer.elsapg-test.svc", "6432")
    assert (found["sslmode"], found["sslrootcert"]) == ("verify-full", "/etc/elsa/ca.crt")


def test_appsettings_for_the_cluster(stack: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["appsettings", "-s", "test", "--ca-file", "/etc/elsa/ca.crt"]) == 0
    for string in json.loads(capsys.readouterr().out)["ConnectionStrings"].values():
        assert "Host=pgbouncer.elsapg-test.svc:6432" in string
        assert "Root Certificate=/etc/elsa/ca.crt" in string


def test_port_forward_is_for_kubernetes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["uri", "elsa_app", "--port-forward"]) == UsageError.exit_code
    assert "ports are published here" in capsys.readouterr().err


def test_a_forwarded_port_is_kept_until_ctrl_c(stack: Deployment, kubectl: FakeKubectl) -> None:
    """The pod that it leads to goes; the next one is led to by the same port."""
    kubectl.on("port-forward .* :6432", "Forwarding from 127.0.0.1:41234 -> 6432\nlost\n")
    kubectl.on(
        "port-forward .* 41234:6432", "Forwarding from 127.0.0.1:41234 -> 6432\n", stays=True
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "elsapg.cli", "uri", "elsa_app", "-s", "test", "--port-forward"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    shown = conninfo_to_dict(process.stdout.readline().strip())
    assert (shown["host"], shown["port"]) == ("127.0.0.1", "41234")
    deadline = time.monotonic() + 20
    while kubectl.asked[-1][-1] != "41234:6432":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == ""
    assert "forwarding 127.0.0.1:41234; Ctrl-C ends it" in err


def test_psql_has_its_tunnel_for_as_long_as_it_runs(
    stack: Deployment, kubectl: FakeKubectl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl.on("port-forward", "Forwarding from 127.0.0.1:41234 -> 6432\n", stays=True)
    asked = tmp_path / "psql-asked"
    write_command(kubectl.folder / "bin" / "psql", f'printf "%s\\n" "$@" >{asked}; exit 3')
    assert main(["psql", "elsa_app", "-s", "test", "-c", "SELECT 1"]) == 3
    conninfo, *rest = asked.read_text().splitlines()
    words = conninfo_to_dict(conninfo)
    assert (words["hostaddr"], words["port"]) == ("127.0.0.1", "41234")
    assert (words["host"], words["sslmode"]) == ("pgbouncer.elsapg-test.svc", "verify-full")
    assert rest == ["-c", "SELECT 1"]
    # Neither in arguments nor in the environment.
    assert PASSWORDS["elsa_app"] not in asked.read_text()
    assert PASSWORDS["elsa_app"] in Path(words["passfile"]).read_text()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "name", "means"),
    [
        (1, "gate", "nobody new comes to its pool, and a drain would"),
        (2, "readers", "nobody new comes to its pool, and its readers"),
    ],
)
def test_status_tells_of_what_does_not_run_beside_a_pool(
    stack: Deployment, kubectl: FakeKubectl, number: int, name: str, means: str
) -> None:
    broken = pooler("a")
    broken["status"]["containerStatuses"][number]["state"] = {
        "waiting": {"reason": "CrashLoopBackOff"}
    }
    kubectl.on("get pods", listed(pg(1), pg(2), broken, pooler("b")))
    kubectl.on("exec", "", "nobody answers\ncommand terminated with exit code 1\n", code=1)
    found = status.gather(stack)
    told = [p for p in found.problems if name in p]
    assert len(told) == 1
    assert told[0].startswith(f"pgbouncer-1-{name} does not run (CrashLoopBackOff): {means} ")
    # The pool itself runs.
    assert found.units_down == []


def test_advice_is_for_the_target(stack: Deployment) -> None:
    assert stack.patronictl("pg-2", "reinit", "--force") == (
        "kubectl -n elsapg-test exec pg-2 -c postgres -- "
        "patronictl -c /etc/elsapg/patroni.yml reinit elsa pg-2 --force"
    )
    assert deployment.KubernetesHosts("test", stack.settings).remedy("pg-2").startswith("`kubectl")
