"""A stack's units in pods: where each is, how it is, and what kubectl's complaints mean."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from elsapg import stackfile
from elsapg.definition import topology
from elsapg.errors import (
    DeploymentError,
    ElsapgError,
    MissingError,
    NotDeployedError,
    UnhealthyError,
)
from elsapg.settings import Settings
from elsapg.targets.hosts import STARTS, Completed, UnitState
from elsapg.targets.kubernetes import forward as forwarding
from elsapg.targets.kubernetes import hosts as module
from elsapg.targets.kubernetes.forward import forward
from elsapg.targets.kubernetes.hosts import KubernetesHosts
from elsapg.targets.kubernetes.kubectl import TO_ITS_END, Kubectl
from tests.unit.fake_kubectl import FakeKubectl, listed, pg, pod, pooler


def settings(**kubernetes: Any) -> Settings:
    values = {
        "target": "kubernetes",
        "archive": {"endpoint": "s3.example.org"},
        "kubernetes": {"registry": "registry.example.org", **kubernetes},
    }
    return stackfile.load(values, "test")


@pytest.fixture
def hosts(kubectl: FakeKubectl, monkeypatch: pytest.MonkeyPatch) -> KubernetesHosts:
    monkeypatch.setattr(module, "FRESH_S", 0)
    kubectl.on("get pods", listed(pg(1), pg(2), pooler("x"), pooler("b")))
    return KubernetesHosts("test", settings())


# -- where ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "where"),
    [
        ("pg-2", ["pg-2", "--container=postgres"]),
        ("pg-1-agent", ["pg-1", "--container=agent"]),
        # By name, not in the order in which the cluster lists them.
        ("pgbouncer-1", ["pgbouncer-7d9-b", "--container=pgbouncer"]),
        ("pgbouncer-2", ["pgbouncer-7d9-x", "--container=pgbouncer"]),
    ],
)
def test_a_unit_is_a_container_of_a_pod(
    hosts: KubernetesHosts, kubectl: FakeKubectl, unit: str, where: list[str]
) -> None:
    kubectl.on("exec", "out\n", "and err\n")
    assert hosts.run(unit, "some", "--thing") == Completed(0, "out\nand err\n")
    assert kubectl.asked[-1] == ["exec", *where, "--", *TO_ITS_END, "some", "--thing"]


def test_a_commands_own_failure_is_not_kubectls(
    hosts: KubernetesHosts, kubectl: FakeKubectl
) -> None:
    kubectl.on("exec", "", "psql: no\ncommand terminated with exit code 3\n", code=3)
    assert hosts.run("pg-1", "psql") == Completed(3, "psql: no\n")


@pytest.mark.parametrize("code", [0, 3])
def test_kubectls_own_log_is_not_the_commands_output(
    hosts: KubernetesHosts, kubectl: FakeKubectl, code: int
) -> None:
    aside = 'E1125 19:53:01.123456   42 v3.go:79] "Unhandled Error" err="broken pipe"\n'
    ended = f"command terminated with exit code {code}\n" if code else ""
    kubectl.on("exec", "row\n", f"{aside}Error of psql\n{aside}{ended}", code=code)
    assert hosts.run("pg-1", "psql") == Completed(code, "row\nError of psql\n")


@pytest.mark.parametrize("stdout", ["", "half a ro", "a row\n"])
def test_a_connection_that_breaks_is_no_success(
    hosts: KubernetesHosts, kubectl: FakeKubectl, stdout: str
) -> None:
    """kubectl ends with 0 all the same."""
    kubectl.on("exec", stdout, whole=False)
    with pytest.raises(
        UnhealthyError, match=r"^pg-1: the connection to `psql -c 'SELECT 1'` broke"
    ):
        hosts.run("pg-1", "psql", "-c", "SELECT 1")


@pytest.mark.parametrize("code", [0, 1])
def test_a_connection_that_breaks_when_all_was_said(
    hosts: KubernetesHosts, kubectl: FakeKubectl, code: int
) -> None:
    kubectl.on("exec", "a row\n\x1e3", "error: unexpected EOF\n" * code, code=code, whole=False)
    assert hosts.run("pg-1", "psql").code == 3
    assert hosts.run("pg-1", "psql").output.startswith("a row\n")


def test_a_command_that_was_never_started_is_tried_again(
    hosts: KubernetesHosts, kubectl: FakeKubectl
) -> None:
    why = "exec failed: unable to start container process: waiting for init preliminary setup: read"
    kubectl.on("exec", "", f"error: Internal error occurred: {why}\n", code=1)
    with pytest.raises(DeploymentError, match="waiting for init"):
        hosts.run("pg-1", "psql")
    assert len([words for words in kubectl.asked if words[0] == "exec"]) == STARTS


def test_a_command_that_is_killed_with_its_shell(
    hosts: KubernetesHosts, kubectl: FakeKubectl
) -> None:
    ended = "command terminated with exit code 137\n"
    kubectl.on("exec", "half", ended, code=137, whole=False)
    assert hosts.run("pg-1", "psql") == Completed(137, "half")


def test_a_pool_that_was_replaced_is_found_again(
    kubectl: FakeKubectl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH_S", 600)
    hosts = KubernetesHosts("test", settings())
    kubectl.on("get pods", listed(pooler("a"), pooler("b")))
    assert hosts.physical("pgbouncer-1") == "pgbouncer-7d9-a"
    kubectl.on("get pods", listed(pooler("b"), pooler("c")))
    gone = 'Error from server (NotFound): pods "pgbouncer-7d9-a" not found'
    kubectl.on("exec pgbouncer-7d9-a", "", gone, code=1)
    kubectl.on("exec pgbouncer-7d9-b", "here")
    assert hosts.run("pgbouncer-1", "true").output == "here"


def test_a_pool_without_a_pod(hosts: KubernetesHosts, kubectl: FakeKubectl) -> None:
    kubectl.on("get pods", listed(pg(1), pooler("a", phase="Failed")))
    with pytest.raises(NotDeployedError, match=r"pgbouncer-1 .*does not run: `elsapg status"):
        hosts.run("pgbouncer-1", "true")


def test_a_node_is_not_looked_for_twice(hosts: KubernetesHosts, kubectl: FakeKubectl) -> None:
    gone = 'Error from server (NotFound): pods "pg-1" not found'
    kubectl.on("exec", "", gone, code=1)
    with pytest.raises(NotDeployedError, match='pods "pg-1" not found'):
        hosts.run("pg-1", "true")
    assert len(kubectl.asked) == 1


def test_what_a_person_types(hosts: KubernetesHosts) -> None:
    assert hosts.shell("pg-1", "patronictl", "list", "a b") == (
        "kubectl -n elsapg-test exec pg-1 -c postgres -- patronictl list 'a b'"
    )
    there = KubernetesHosts("test", settings(context="prod", namespace="elsapg-test"))
    assert there.remedy("pg-1-agent") == (
        "`kubectl --context prod -n elsapg-test describe pod pg-1` says why"
    )
    assert "-l app.kubernetes.io/component=pgbouncer" in there.remedy("pgbouncer-9")
    # Of a pod that was never made, whoever is to make it knows why.
    assert "describe statefulset -l app.kubernetes.io/component=" in there.remedy("pg-2", "missing")
    pools = there.remedy("pgbouncer-1", "missing")
    assert "describe deployment,replicaset -l app.kubernetes.io/component=pgbouncer" in pools
    assert "delete pod pg-1`" in there.anew("pg-1")


@pytest.mark.parametrize(
    ("kept", "command"),
    [("cluster", "secrets apply --stack test"), ("pulumi", "up --refresh --stack test")],
)
def test_what_a_pod_waits_for_is_told(kubectl: FakeKubectl, kept: str, command: str) -> None:
    kubectl.on("get events", {"items": [
        _event("pg-1", "FailedMount", "volume tls: secret \"tls-pg\" not found", "09:00"),
        _event("pg-1", "FailedScheduling", "older", "08:00"),
        _event("pg-1", "Unhealthy", "a probe", "10:00"),
        _event("pg-2", "FailedMount", "of another", "11:00"),
    ]})  # fmt: skip
    there = KubernetesHosts("test", settings(namespace="elsapg-test", secrets=kept))
    assert there.remedy("pg-1") == (
        '`kubectl -n elsapg-test describe pod pg-1` says more: volume tls: secret "tls-pg" not '
        f"found (`elsapg {command}` makes it)"
    )


def _event(pod: str, reason: str, message: str, at: str) -> dict[str, Any]:
    when = f"2026-01-01T{at}:00Z"
    about = {"kind": "Pod", "name": pod}
    return {"involvedObject": about, "reason": reason, "message": message, "lastTimestamp": when}


def test_no_word_of_a_command_is_dropped(
    hosts: KubernetesHosts, kubectl: FakeKubectl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kubectl is kept from websockets, whatever the user's environment says of them."""
    monkeypatch.setenv("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "true")
    script = (
        '#!/bin/sh\necho "websockets $KUBECTL_REMOTE_COMMAND_WEBSOCKETS"\n'
        'case "$*" in *" sh -c "*) printf "\\0360" ;; esac\n'
    )
    (kubectl.folder / "bin" / "kubectl").write_text(script)
    assert hosts.run("pg-1", "true").output == "websockets false\n"
    with hosts.converse("pg-1", "true") as process:
        assert process.stdout is not None
        assert process.stdout.read() == "websockets false\n"


def test_the_context_of_the_stacks_file_is_used(kubectl: FakeKubectl) -> None:
    kubectl.on("exec", "ok")
    KubernetesHosts("test", settings(context="prod")).run("pg-1", "true")
    assert kubectl.asked[-1][0] == "--context=prod"


def test_a_conversation(hosts: KubernetesHosts, kubectl: FakeKubectl) -> None:
    kubectl.on("exec --stdin pg-1 --container=postgres -- handover --driven", "ready pg-2\n")
    process = hosts.converse("pg-1", "handover", "--driven")
    out, _ = process.communicate("go\n", timeout=10)
    assert out == "ready pg-2\n"


def test_a_command_that_does_not_end(hosts: KubernetesHosts, kubectl: FakeKubectl) -> None:
    kubectl.on("exec", stays=True)
    with pytest.raises(UnhealthyError, match="kubectl exec did not end within 1 s"):
        hosts.run("pg-1", "sleep", "60", timeout=1)


# -- states --------------------------------------------------------------------------------


def test_states_of_a_healthy_stack(hosts: KubernetesHosts, kubectl: FakeKubectl) -> None:
    kubectl.on("get pods", listed(pg(1), pooler("a"), pod("task-x", "runner", "runner")))
    assert {n: s.state for n, s in hosts.states().items()} == dict.fromkeys(
        (
            *("pg-1", "pg-1-agent"),
            *("pgbouncer-1", "pgbouncer-1-gate", "pgbouncer-1-readers"),
        ),
        "running",
    )


def test_a_pool_of_an_earlier_release_has_less_beside_it(
    hosts: KubernetesHosts, kubectl: FakeKubectl
) -> None:
    kubectl.on("get pods", listed(pg(1), pod("pgbouncer-1", "pgbouncer", "pgbouncer", "gate")))
    assert "pgbouncer-1-readers" not in hosts.states()
    assert hosts.states()["pgbouncer-1-gate"].state == "running"


def container(state: dict[str, Any], restarts: int = 0, ready: bool = False) -> dict[str, Any]:
    return {"name": "postgres", "restartCount": restarts, "state": state, "ready": ready}


@pytest.mark.parametrize(
    ("changed", "state", "restarts"),
    [
        (
            {
                "containerStatuses": [
                    container({"waiting": {"reason": "CrashLoopBackOff"}}, restarts=7)
                ]
            },
            "CrashLoopBackOff",
            7,
        ),
        (
            {"containerStatuses": [container({"terminated": {"reason": "OOMKilled"}}, 1)]},
            "OOMKilled",
            1,
        ),
        ({"containerStatuses": [container({"waiting": {}})]}, "waiting", 0),
        (
            {
                "phase": "Pending",
                "containerStatuses": [],
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
                ],
            },
            "Unschedulable",
            0,
        ),
        ({"phase": "Pending", "containerStatuses": [], "conditions": []}, "Pending", 0),
        (
            {"phase": "Failed", "reason": "Evicted", "containerStatuses": [], "conditions": []},
            "Evicted",
            0,
        ),
        ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, "terminating", 0),
        # The control plane has given up on the machine: nobody knows what runs there.
        ({"conditions": [{"type": "Ready", "status": "False"}]}, "unreachable", 0),
        # Not ready by its own kubelet's word: it runs all the same.
        (
            {
                "conditions": [{"type": "Ready", "status": "False"}],
                "containerStatuses": [container({"running": {}})],
            },
            "running",
            0,
        ),
    ],
)
def test_one_word_for_each_state(
    hosts: KubernetesHosts,
    kubectl: FakeKubectl,
    changed: dict[str, Any],
    state: str,
    restarts: int,
) -> None:
    kubectl.on("get pods", listed(pg(1, **changed)))
    assert hosts.states()["pg-1"] == UnitState("pg-1", state, restarts)


@pytest.mark.parametrize(("reason", "when"), [("OOMKilled", "2026-01-01T00:00:00Z"), ("Error", "")])
def test_when_a_container_was_killed_for_lack_of_memory(
    hosts: KubernetesHosts, kubectl: FakeKubectl, reason: str, when: str
) -> None:
    last = {"terminated": {"reason": reason, "finishedAt": "2026-01-01T00:00:00Z"}}
    running = {**container({"running": {}}, 1), "lastState": last}
    kubectl.on("get pods", listed(pg(1, containerStatuses=[running])))
    assert hosts.states()["pg-1"] == UnitState("pg-1", "running", 1, when)


def test_pods_on_their_way_out_are_no_pools(hosts: KubernetesHosts, kubectl: FakeKubectl) -> None:
    leaving = pooler("a", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})
    kubectl.on("get pods", listed(leaving, pooler("b"), pooler("c")))
    assert [hosts.physical(f"pgbouncer-{n}")[-1] for n in (1, 2)] == ["b", "c"]
    assert {"pgbouncer-1", "pgbouncer-2"} < hosts.states().keys()
    assert "pgbouncer-3" not in hosts.states()


def test_a_pool_that_leaves_still_has_clients(hosts: KubernetesHosts, kubectl: FakeKubectl) -> None:
    """Whoever holds all pools holds it as well; one that has ended, or is out of reach, is none."""
    leaves = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
    ended = {"name": "pgbouncer", "state": {"terminated": {"reason": "Completed"}}}
    lost = [{"type": "Ready", "status": "False"}]  # and its containers are
    kubectl.on(
        "get pods",
        listed(
            pooler("a", **leaves, containerStatuses=[ended]),
            pooler("d", **leaves, conditions=lost),
            pooler("e", **leaves),
            pooler("b"),
        ),
    )
    assert hosts.leaving() == ("pgbouncer-3",)
    assert hosts.physical("pgbouncer-3") == "pgbouncer-7d9-e"
    with pytest.raises(NotDeployedError):
        hosts.physical("pgbouncer-4")


def test_no_pods_and_no_namespace(hosts: KubernetesHosts, kubectl: FakeKubectl) -> None:
    kubectl.on("get pods", listed())
    kubectl.on(
        "get namespace", "", 'Error from server (NotFound): namespaces "elsapg-test" not found',
        code=1,
    )  # fmt: skip
    with pytest.raises(NotDeployedError, match="namespace 'elsapg-test' does not exist"):
        hosts.states()


def test_no_pods_and_no_right_to_see_namespaces(
    hosts: KubernetesHosts, kubectl: FakeKubectl
) -> None:
    kubectl.on("get pods", listed())
    kubectl.on(
        "get namespace", "", "Error from server (Forbidden): namespaces is forbidden", code=1
    )
    assert hosts.states() == {}


# -- kubectl's complaints ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stderr", "error", "says"),
    [
        ('error: context "prod" does not exist', MissingError, "get-contexts"),
        (
            'E1126 06:16:23.963338     906 memcache.go:265] "Unhandled Error" err="refused"\n'
            "The connection to the server localhost:8080 was refused - did you specify the right "
            "host or port?",
            MissingError,
            r"knows no cluster \(The connection .*KUBECONFIG",
        ),
        (
            "error: You must be logged in to the server (Unauthorized)",
            MissingError,
            "does not know who you are",
        ),
        (
            'Error from server (Forbidden): pods "pg-1" is forbidden: User "eve" cannot create '
            'resource "pods/exec"',
            MissingError,
            'does not allow it.*cannot create resource "pods/exec".*administrator',
        ),
        (
            "Unable to connect to the server: dial tcp 10.0.0.1:6443: i/o timeout",
            MissingError,
            "does not answer .*elsapg doctor --stack test",
        ),
        (
            "Unable to connect to the server: tls: failed to verify certificate: x509: unknown "
            "authority",
            MissingError,
            "does not answer .*x509",
        ),
        (
            'error: unable to upgrade connection: container not found ("postgres")',
            NotDeployedError,
            "container not found.*elsapg status",
        ),
        (
            "Error from server: error dialing backend: dial tcp 10.1.1.1:10250: i/o timeout",
            NotDeployedError,
            "the machine that the pod is on does not answer",
        ),
        ('Error from server (NotFound): pods "pg-1" not found', NotDeployedError, "elsapg status"),
        ("error: something new", DeploymentError, "^kubectl: something new$"),
        ("", DeploymentError, "without a message"),
    ],
)
def test_a_complaint_says_the_way_out(
    hosts: KubernetesHosts,
    kubectl: FakeKubectl,
    stderr: str,
    error: type[ElsapgError],
    says: str,
) -> None:
    kubectl.on("exec|get", "", stderr, code=1)
    for ask in (lambda: hosts.run("pg-1", "true"), hosts.states):
        with pytest.raises(error, match=says) as raised:
            ask()
        assert "\n" not in str(raised.value)


def test_without_kubectl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingError, match="kubectl is not on PATH: install it"):
        KubernetesHosts("test", settings()).states()


# -- tasks ---------------------------------------------------------------------------------

CRON_JOB = {
    "spec": {
        "schedule": "0 1 * * 1-6",
        "jobTemplate": {
            "metadata": {"labels": {"app.kubernetes.io/component": "runner"}},
            "spec": {
                "backoffLimit": 2,
                "template": {
                    "metadata": {"labels": {"app.kubernetes.io/component": "runner"}},
                    "spec": {
                        "containers": [{"name": "runner", "args": ["backup", "incr"]}],
                        "restartPolicy": "Never",
                    },
                },
            },
        },
    }
}
ENDED = "task-1|Pending|ContainerCreating|\ntask-1|Running||\ntask-1|Succeeded||0\n"


@pytest.fixture
def tasks(hosts: KubernetesHosts, kubectl: FakeKubectl) -> KubernetesHosts:
    kubectl.on("get cronjob backup-incremental", CRON_JOB)
    kubectl.on("create|delete", "ok")
    kubectl.on("logs", "20260301-010000F\n")
    kubectl.on("--watch", ENDED, stays=True)
    return hosts


def deleted(kubectl: FakeKubectl) -> list[str]:
    return [words[2] for words in kubectl.asked if words[0] == "delete"]


def test_a_task_is_a_job_of_its_own(tasks: KubernetesHosts, kubectl: FakeKubectl) -> None:
    assert tasks.task("backup", "full", timeout=600) == Completed(0, "20260301-010000F\n")
    [job] = kubectl.given
    name = job["metadata"]["name"]
    assert name.startswith("task-backup-")
    # The CronJob must not count it among its own runs.
    assert "ownerReferences" not in job["metadata"]
    assert job["metadata"]["labels"] == {"app.kubernetes.io/component": "runner"}
    spec = job["spec"]
    assert spec["template"]["spec"]["containers"] == [
        {"name": "runner", "args": ["backup", "full"]}
    ]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (0, 600)
    assert spec["ttlSecondsAfterFinished"] > 0
    assert ["logs", "task-1", "--container=runner"] in kubectl.asked
    assert deleted(kubectl) == [name]


def test_what_has_a_cronjob_of_its_own_is_made_like_it(
    tasks: KubernetesHosts, kubectl: FakeKubectl
) -> None:
    kubectl.on("get cronjob drill", CRON_JOB)
    tasks.task("drill")
    assert ["get", "cronjob", "drill"] in [words[:3] for words in kubectl.asked]


def test_two_tasks_have_two_names(tasks: KubernetesHosts, kubectl: FakeKubectl) -> None:
    tasks.task("backup", "full")
    tasks.task("backup", "full")
    assert len({job["metadata"]["name"] for job in kubectl.given}) == 2


def test_a_task_that_fails_says_what_it_said(tasks: KubernetesHosts, kubectl: FakeKubectl) -> None:
    kubectl.on("--watch", "task-1|Running||\ntask-1|Failed||1\n", stays=True)
    kubectl.on("logs", "backup: pgbackrest failed")
    assert tasks.task("backup", "full") == Completed(1, "backup: pgbackrest failed")
    assert deleted(kubectl)


def test_a_task_that_cannot_be_removed_has_done_its_work(
    tasks: KubernetesHosts, kubectl: FakeKubectl
) -> None:
    kubectl.on("delete", "", "Error from server: etcdserver: request timed out", code=1)
    assert tasks.task("backup", "full").output == "20260301-010000F\n"


@pytest.mark.parametrize("code", ["", "0"])
def test_a_pod_that_failed_is_a_failure_whatever_its_exit_code(
    tasks: KubernetesHosts, kubectl: FakeKubectl, code: str
) -> None:
    kubectl.on("--watch", f"task-1|Failed||{code}\n", stays=True)
    assert tasks.task("backup", "full").code == 1


@pytest.mark.parametrize("way", ["never starts", "cannot start", "never ends"])
def test_a_task_is_not_waited_for_without_end(
    tasks: KubernetesHosts, kubectl: FakeKubectl, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    starts, timeout = {"never starts": (1, 60), "cannot start": (60, 60), "never ends": (5, 6)}[way]
    monkeypatch.setattr(module, "STARTS_WITHIN_S", starts)
    events = {
        "never starts": "task-1|Pending||\n",
        "cannot start": "task-1|Pending|InvalidImageName|\n",
        "never ends": "task-1|Running||\n",
    }[way]
    kubectl.on("--watch", events, stays=True)
    warning = {"involvedObject": {"name": "other"}, "message": "not about us"}
    kubectl.on("get events", listed(warning))
    with pytest.raises(UnhealthyError) as raised:
        tasks.task("backup", "full", timeout=timeout)
    told = str(raised.value)
    says = {
        "never starts": "did not start within 1 s",
        "cannot start": "cannot start: InvalidImageName",
        "never ends": "did not end within 6 s",
    }
    assert says[way] in told
    assert "not about us" not in told
    assert deleted(kubectl)


def test_a_task_that_never_starts_says_why(
    tasks: KubernetesHosts, kubectl: FakeKubectl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STARTS_WITHIN_S", 1)
    monkeypatch.setattr(module.secrets, "token_hex", lambda _: "00")
    kubectl.on("--watch", "", stays=True)
    about = {"involvedObject": {"name": "task-backup-00-abc"}, "message": "0/3 nodes are available"}
    kubectl.on("get events", listed(about))
    with pytest.raises(UnhealthyError, match="did not start within 1 s: 0/3 nodes are available"):
        tasks.task("backup", "full")


def test_a_watch_that_the_server_ends_is_taken_up_again(
    tasks: KubernetesHosts, kubectl: FakeKubectl
) -> None:
    kubectl.on("--watch", "task-1|Running||\n")
    # What was asked in between ends the test's first act.
    kubectl.on("get job", "", 'Error from server (NotFound): jobs "task" not found', code=1)
    with pytest.raises(NotDeployedError, match='jobs "task" not found'):
        tasks.task("backup", "full")
    assert deleted(kubectl)


def test_ctrl_c_leaves_no_job_behind(tasks: KubernetesHosts, kubectl: FakeKubectl) -> None:
    kubectl.on("--watch", "task-1|Running||\n", stays=True)
    script = (
        "from tests.unit.test_kubernetes_hosts import settings, KubernetesHosts\n"
        "KubernetesHosts('test', settings()).task('backup', 'full')\n"
    )
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=root, stderr=subprocess.DEVNULL, process_group=0
    )
    deadline = time.monotonic() + 30
    while not any("--watch" in words for words in kubectl.asked):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # As a terminal does: to the whole group.
    os.killpg(process.pid, signal.SIGINT)
    process.wait(20)
    assert deleted(kubectl) == [kubectl.given[0]["metadata"]["name"]]


# -- tasks of the bootstrap ----------------------------------------------------------------


def bootstrap(name: str, made: str, password: str = "secret-passwords") -> dict[str, Any]:
    """A bootstrap Job as the API server has it, once it has run."""

    def container(task: str) -> dict[str, Any]:
        mounts = [{"name": f"config-{task}"}, {"name": "tmp"}]
        return {"name": task, "args": [task], "volumeMounts": mounts}

    controller = {"controller-uid": "u", "batch.kubernetes.io/job-name": name}
    return {
        "metadata": {
            "name": name,
            "uid": "u",
            "creationTimestamp": made,
            # As a tool of GitOps marks what it may remove.
            "labels": {"app.kubernetes.io/instance": "claimed"},
        },
        "spec": {
            "selector": {"matchLabels": controller},
            "activeDeadlineSeconds": 175200,
            "backoffLimit": 6,
            "template": {
                "metadata": {"labels": {"app.kubernetes.io/component": "runner", **controller}},
                "spec": {
                    "initContainers": [container("configure"), container("bootstrap")],
                    "containers": [container("first-backup")],
                    "volumes": [
                        {"name": "config-configure"},
                        {"name": "config-bootstrap", "from": password},
                        {"name": "config-first-backup"},
                        {"name": "tmp"},
                    ],
                },
            },
        },
    }


@pytest.mark.parametrize("task", ["configure", "bootstrap", "first-backup"])
def test_one_task_of_the_newest_bootstrap_is_run_again(
    tasks: KubernetesHosts, kubectl: FakeKubectl, task: str
) -> None:
    old = bootstrap("bootstrap-b", "2026-01-01T00:00:00Z", "of-the-old-one")
    kubectl.on("get jobs", listed(bootstrap("bootstrap-a", "2026-02-01T00:00:00Z"), old))
    tasks.rerun(task)
    [job] = kubectl.given
    assert job["metadata"]["name"].startswith(f"task-{task}-")
    assert job["metadata"]["labels"] == {"app.kubernetes.io/component": "runner"}
    spec = job["spec"]
    # The API server gives it a selector and labels of its own.
    assert "selector" not in spec
    assert spec["template"]["metadata"] == {"labels": {"app.kubernetes.io/component": "runner"}}
    [timeout] = [k.timeout_s for k in topology.tasks(settings()) if k.name == task]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (0, timeout)
    pod = spec["template"]["spec"]
    assert [c["args"] for c in pod["containers"]] == [[task]]
    assert "initContainers" not in pod
    # The superuser's key and the passwords go to the task that needs them, to no other.
    assert [v["name"] for v in pod["volumes"]] == [f"config-{task}", "tmp"]
    assert "of-the-old-one" not in str(pod)
    assert deleted(kubectl) == [job["metadata"]["name"]]


def test_a_bootstrap_task_that_fails_says_why(tasks: KubernetesHosts, kubectl: FakeKubectl) -> None:
    kubectl.on("get jobs", listed(bootstrap("bootstrap-a", "2026-02-01T00:00:00Z")))
    kubectl.on("--watch", "task-1|Running||\ntask-1|Failed||1\n", stays=True)
    kubectl.on("logs", "bootstrap: table x\nis missing")
    with pytest.raises(UnhealthyError, match=r"^bootstrap: table x is missing$"):
        tasks.rerun("bootstrap")
    assert deleted(kubectl)


def test_without_a_bootstrap_job(tasks: KubernetesHosts, kubectl: FakeKubectl) -> None:
    kubectl.on("get jobs", listed({"metadata": {"name": "task-backup-00"}}))
    with pytest.raises(NotDeployedError, match=r"no Job bootstrap-.*elsapg render --stack test"):
        tasks.bootstrap_job()


# -- forwarded ports -----------------------------------------------------------------------


def test_a_port_is_forwarded_for_as_long_as_it_is_used(kubectl: FakeKubectl) -> None:
    told = "Forwarding from 127.0.0.1:41234 -> 6432\n"
    kubectl.on("port-forward", told, stays=True)
    with forward(Kubectl("test", "elsapg-test"), "service/pgbouncer", 6432) as found:
        assert found.port == 41234
        process = found.follower._process
        assert process.poll() is None
    assert process.poll() is not None
    assert kubectl.asked[-1] == [
        "port-forward", "--address=127.0.0.1", "service/pgbouncer", ":6432",
    ]  # fmt: skip


def test_a_lost_pod_ends_the_wait(kubectl: FakeKubectl) -> None:
    kubectl.on("port-forward", "Forwarding from 127.0.0.1:41234 -> 6432\nlost connection to pod\n")
    with forward(Kubectl("test", "elsapg-test"), "pod/pg-1", 5432, 41234) as found:
        found.wait()
    assert kubectl.asked[-1][-1] == "41234:5432"


def test_a_port_that_cannot_be_forwarded(
    kubectl: FakeKubectl, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl.on("port-forward", "", 'Error from server (NotFound): services "pgbouncer" not found',
               code=1)  # fmt: skip
    with (
        pytest.raises(NotDeployedError, match='services "pgbouncer" not found'),
        forward(Kubectl("test", "elsapg-test"), "service/pgbouncer", 6432),
    ):
        pass
    monkeypatch.setattr(forwarding, "READY_S", 0.3)
    kubectl.on("port-forward", stays=True)
    with (
        pytest.raises(UnhealthyError, match="no port was forwarded"),
        forward(Kubectl("test", "elsapg-test"), "service/pgbouncer", 6432),
    ):
        pass


def test_a_forwarded_port_ends_with_us(kubectl: FakeKubectl) -> None:
    kubectl.on("port-forward", "Forwarding from 127.0.0.1:41234 -> 6432\n", stays=True)
    script = (
        "import os, signal\n"
        "from elsapg.targets.kubernetes.kubectl import Kubectl\n"
        "from elsapg.targets.kubernetes.forward import forward\n"
        "with forward(Kubectl('test', 'elsapg-test'), 'service/x', 1) as found:\n"
        "    print(found.follower._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    group = int(done.stdout)
    deadline = time.monotonic() + 10
    while _alive(group):
        assert time.monotonic() < deadline, "the forwarding goes on"
        time.sleep(0.05)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
