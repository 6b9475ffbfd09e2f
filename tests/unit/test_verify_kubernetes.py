"""Each check of pods and of what is around them can go red: seen on a cluster made of manifests."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from elsapg.errors import MissingError
from tests.infra import test_kubernetes as checks
from tests.infra.facts import NotSo
from tests.infra.kubernetes_backend import Cluster, quantity
from tests.unit import kubernetes_stacks as stacks

Object = dict[str, Any]
STACK = "least"
DONE = [{"type": "Complete", "status": "True"}]


class Live(Cluster):
    """The rendered objects of a stack, as a cluster has them when all is well."""

    def __init__(self) -> None:
        self.objects: list[Object] = copy.deepcopy(list(stacks.rendered(STACK).values()))
        self.machines_here = [_machine(n) for n in ("a", "b", "c")]
        for thing in list(self.objects):
            getattr(self, f"_{thing['kind'].lower()}", lambda _: None)(thing)
        self.objects += [
            _slice("primary", "pg-1"),
            _slice("replica", "pg-2"),
            _slice("pgbouncer", *(checks.name(p) for p in self.pods("pgbouncer"))),
        ]

    @property
    def _objects(self) -> list[Object]:  # type: ignore[override]
        return self.objects

    @property
    def namespace(self) -> Object:  # type: ignore[override]
        [found] = self.all("Namespace")
        return found

    @property
    def machines(self) -> list[Object]:  # type: ignore[override]
        return self.machines_here

    def one(self, kind: str, name: str) -> Object:
        [found] = [thing for thing in self.all(kind) if checks.name(thing) == name]
        return found  # type: ignore[return-value]

    def _statefulset(self, thing: Object) -> None:
        self._workload(thing, [f"pg-{n}" for n in range(1, thing["spec"]["replicas"] + 1)])

    def _deployment(self, thing: Object) -> None:
        self._workload(thing, [f"pgbouncer-7d9-{n}" for n in range(thing["spec"]["replicas"])])

    def _workload(self, thing: Object, names: list[str]) -> None:
        thing["metadata"]["generation"] = 3
        count = thing["spec"]["replicas"]
        thing["status"] = {"observedGeneration": 3}
        thing["status"] |= dict.fromkeys(("replicas", "readyReplicas", "updatedReplicas"), count)
        for number, name in enumerate(names):
            template = copy.deepcopy(thing["spec"]["template"])
            spec = template["spec"] | {"nodeName": "abc"[number % 3]}
            statuses = [
                {"name": c["name"], "restartCount": 0, "ready": True, "state": {"running": {}}}
                for c in spec["containers"]
            ]
            self.objects.append(
                {
                    "kind": "Pod",
                    "metadata": {"name": name, "labels": template["metadata"]["labels"]},
                    "spec": spec,
                    "status": {"phase": "Running", "containerStatuses": statuses},
                }
            )

    def _poddisruptionbudget(self, thing: Object) -> None:
        thing["status"] = {"disruptionsAllowed": 1, "expectedPods": 2, "currentHealthy": 2}

    def _persistentvolumeclaim(self, thing: Object) -> None:
        size = thing["spec"]["resources"]["requests"]["storage"]
        thing["status"] = {"phase": "Bound", "capacity": {"storage": size}}

    def _job(self, thing: Object) -> None:
        thing["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
        thing["status"] = {"conditions": DONE}


def _machine(name: str, **spec: Any) -> Object:
    status = {"conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": {"name": name}, "spec": spec, "status": status}


def _slice(service: str, *pods: str) -> Object:
    return {
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service}-1",
            "labels": {"kubernetes.io/service-name": service},
        },
        "endpoints": [{"targetRef": {"name": pod}, "conditions": {"ready": True}} for pod in pods],
    }


@pytest.fixture
def live() -> Live:
    return Live()


def facts() -> Any:
    return SimpleNamespace(
        deployment=SimpleNamespace(stack=STACK, settings=stacks.settings()),
        members=[
            {"name": "pg-1", "role": "leader", "state": "running"},
            {"name": "pg-2", "role": "sync_standby", "state": "streaming"},
        ],
        primary=lambda: "pg-1",
    )


ROOT = stacks.shared_project()
RUNS: dict[str, Callable[[Live], None]] = {
    "machines": lambda c: checks.test_pods_are_on_machines_of_their_own(facts(), c, "pg"),
    "pool machines": lambda c: checks.test_pods_are_on_machines_of_their_own(
        facts(), c, "pgbouncer"
    ),
    "budget": lambda c: checks.test_one_pod_at_a_time_may_be_taken(c, "pg"),
    "rollout": checks.test_the_rollout_is_complete,
    "images": checks.test_images_are_by_digest,
    "namespace": checks.test_the_namespace_is_restricted,
    "contained": checks.test_every_container_is_contained,
    "limits": checks.test_every_container_has_its_limits,
    "tokens": checks.test_only_who_must_speaks_to_the_api_server,
    "secrets": checks.test_secrets_are_files,
    "restarts": checks.test_containers_do_not_restart,
    "data": lambda c: checks.test_data_is_kept_in_its_size(facts(), c, "pg-2"),
    "names": lambda c: checks.test_names_lead_where_they_should(facts(), c),
    "ways": lambda c: checks.test_every_way_is_closed_but_ours(facts(), c),
    "bootstrap": lambda c: checks.test_the_bootstrap_is_done(facts(), c, ROOT),
    "backups": lambda c: checks.test_backups_are_scheduled_and_good(facts(), c),
    "asked": checks.test_the_cluster_can_be_asked,
}


@pytest.mark.parametrize("what", RUNS)
def test_a_healthy_cluster_is_green(live: Live, what: str) -> None:
    RUNS[what](live)


def pod(c: Live, name: str = "pg-2") -> Object:
    return c.one("Pod", name)


def container(c: Live, number: int = 0, name: str = "pg-2") -> Object:
    found: Object = pod(c, name)["spec"]["containers"][number]
    return found


def bootstrap(c: Live) -> Object:
    return next(j for j in c.all("Job") if checks.name(j).startswith("bootstrap-"))  # type: ignore[return-value]


def run_of(c: Live, kind: str, start: str) -> None:
    c.objects.append(
        {
            "kind": "Job",
            "metadata": {
                "name": f"backup-full-{start}",
                "ownerReferences": [{"kind": "CronJob", "name": "backup-full"}],
            },
            "spec": {"template": {"spec": {"containers": []}}},
            "status": {"startTime": start, "conditions": [{"type": kind, "status": "True"}]},
        }
    )


def together(c: Live) -> None:
    pod(c)["spec"]["nodeName"] = "a"


def pools_together(c: Live) -> None:
    for one in c.pods("pgbouncer"):
        one["spec"]["nodeName"] = "a"  # type: ignore[index]


def not_placed(c: Live) -> None:
    del pod(c)["spec"]["nodeName"]


def no_budget(c: Live) -> None:
    c.objects.remove(c.one("PodDisruptionBudget", "pg"))


def budget_spent(c: Live) -> None:
    c.one("PodDisruptionBudget", "pg")["status"]["disruptionsAllowed"] = 0


def budget_of_two(c: Live) -> None:
    c.one("PodDisruptionBudget", "pg")["spec"]["maxUnavailable"] = 2


def half_rolled(c: Live) -> None:
    c.one("StatefulSet", "pg")["status"]["updatedReplicas"] = 1


def not_seen_yet(c: Live) -> None:
    c.one("Deployment", "pgbouncer")["metadata"]["generation"] = 4


def by_tag(c: Live) -> None:
    container(c)["image"] = "registry.example.com/elsapg-postgres:latest"


def open_namespace(c: Live) -> None:
    c.namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "baseline"


def secret_in_env(c: Live) -> None:
    reference = {"secretKeyRef": {"name": "roles", "key": "roles.json"}}
    container(c)["env"].append({"name": "ROLES", "valueFrom": reference})


def all_of_a_secret(c: Live) -> None:
    spec = c.one("CronJob", "backup-full")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    spec["containers"][0]["envFrom"] = [{"secretRef": {"name": "repository"}}]


def as_root(c: Live) -> None:
    container(c, 1)["securityContext"]["runAsUser"] = 0


def with_capability(c: Live) -> None:
    container(c)["securityContext"]["capabilities"]["add"] = ["NET_ADMIN"]


def unconfined(c: Live) -> None:
    pod(c)["spec"]["securityContext"]["seccompProfile"] = {"type": "Unconfined"}


def writable(c: Live) -> None:
    container(c)["securityContext"] = {**container(c)["securityContext"]}
    container(c)["securityContext"]["readOnlyRootFilesystem"] = False


def on_the_host(c: Live) -> None:
    pod(c)["spec"]["hostNetwork"] = True


def no_limit(c: Live) -> None:
    del container(c)["resources"]["limits"]["cpu"]


def memory_not_promised(c: Live) -> None:
    container(c)["resources"]["requests"]["memory"] = "1Mi"


def token(c: Live) -> None:
    pod(c)["spec"]["automountServiceAccountToken"] = True


def token_for_the_agent(c: Live) -> None:
    container(c, 1)["volumeMounts"].append({"name": "x", "mountPath": checks.TOKEN})


def storming(c: Live) -> None:
    pod(c, "pgbouncer-7d9-0")["status"]["containerStatuses"][1]["restartCount"] = 12


def crash_looping(c: Live) -> None:
    state = {"waiting": {"reason": "CrashLoopBackOff"}}
    pod(c)["status"]["containerStatuses"][1]["state"] = state


def claim_gone(c: Live) -> None:
    c.objects.remove(c.one("PersistentVolumeClaim", "data-pg-2"))


def not_grown(c: Live) -> None:
    c.one("PersistentVolumeClaim", "data-pg-2")["status"]["capacity"]["storage"] = "1Gi"


def another_size(c: Live) -> None:
    claim = c.one("PersistentVolumeClaim", "data-pg-2")
    claim["spec"]["resources"]["requests"]["storage"] = "1Gi"


def unbound(c: Live) -> None:
    c.one("PersistentVolumeClaim", "data-pg-2")["status"]["phase"] = "Lost"


def being_deleted(c: Live) -> None:
    claim = c.one("PersistentVolumeClaim", "data-pg-2")
    claim["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"


def not_retained(c: Live) -> None:
    spec = c.one("StatefulSet", "pg")["spec"]
    spec["persistentVolumeClaimRetentionPolicy"] = {"whenDeleted": "Delete", "whenScaled": "Retain"}


def endpoints(c: Live, service: str) -> list[Object]:
    found: list[Object] = c.one("EndpointSlice", f"{service}-1")["endpoints"]
    return found


def two_primaries(c: Live) -> None:
    endpoints(c, "primary").append(endpoints(c, "replica")[0])


def wrong_primary(c: Live) -> None:
    endpoints(c, "primary")[0]["targetRef"]["name"] = "pg-2"


def no_pool(c: Live) -> None:
    endpoints(c, "pgbouncer")[0]["conditions"]["ready"] = False


def no_denial(c: Live) -> None:
    c.objects.remove(c.one("NetworkPolicy", "deny-all"))


def wide_open(c: Live) -> None:
    c.one("NetworkPolicy", "nodes-from-poolers")["spec"]["ingress"] = [{}]


def another_policy(c: Live) -> None:
    c.objects.append(
        {"kind": "NetworkPolicy", "metadata": {"name": "debug"}, "spec": {"podSelector": {}}}
    )


def bootstrap_failed(c: Live) -> None:
    bootstrap(c)["status"]["conditions"] = [{"type": "Failed", "status": "True"}]


def bootstrap_runs(c: Live) -> None:
    bootstrap(c)["status"] = {"active": 1}


def bootstrap_of_before(c: Live) -> None:
    bootstrap(c)["metadata"]["name"] = "bootstrap-0000000000"


def suspended(c: Live) -> None:
    c.one("CronJob", "backup-full")["spec"]["suspend"] = True


def at_another_time(c: Live) -> None:
    c.one("CronJob", "backup-full")["spec"]["schedule"] = "0 0 1 1 *"


def no_schedule(c: Live) -> None:
    c.objects.remove(c.one("CronJob", "backup-incremental"))


def last_backup_failed(c: Live) -> None:
    run_of(c, "Complete", "2026-01-01T01:00:00Z")
    run_of(c, "Failed", "2026-01-08T01:00:00Z")


def no_pods(c: Live) -> None:
    c.objects = [thing for thing in c.objects if thing["kind"] != "Pod"]


@pytest.mark.parametrize(
    ("what", "wrong", "says"),
    [
        ("machines", together, "2 pods on 1 machines: a"),
        ("machines", not_placed, "on 2 machines"),
        ("pool machines", pools_together, "on 1 machines: a"),
        ("budget", no_budget, "no PodDisruptionBudget pg"),
        ("budget", budget_spent, "0 may be taken now"),
        ("budget", budget_of_two, "2, not 1"),
        ("rollout", half_rolled, "pg: updatedReplicas 1"),
        ("rollout", not_seen_yet, "pgbouncer: "),
        ("images", by_tag, r"pg-2/postgres runs .*:latest"),
        ("namespace", open_namespace, "'baseline', not 'restricted'"),
        ("contained", as_root, "pg-2/agent: runAsUser is 0"),
        ("contained", with_capability, r"pg-2/postgres: add is \['NET_ADMIN'\]"),
        ("contained", unconfined, "seccompProfile is Unconfined"),
        ("contained", writable, "readOnlyRootFilesystem is False"),
        ("contained", on_the_host, "pg-2: hostNetwork is set"),
        ("limits", no_limit, "pg-2/postgres has no limit of cpu"),
        ("limits", memory_not_promised, "pg-2/postgres is promised 1Mi"),
        ("tokens", token, "pg-2 gets a token"),
        ("tokens", token_for_the_agent, "pg-2/agent has a token"),
        ("secrets", secret_in_env, "pg-2/postgres: ROLES"),
        ("secrets", all_of_a_secret, "backup-full/runner: all of a Secret"),
        ("restarts", storming, "pgbouncer-7d9-0/gate: 12 restarts"),
        ("restarts", crash_looping, "pg-2/agent: 0 restarts, CrashLoopBackOff"),
        ("data", claim_gone, "data-pg-2 is not there"),
        ("data", not_grown, "data-pg-2 has 1073741824 bytes"),
        ("data", another_size, "asks for 1073741824"),
        ("data", unbound, "data-pg-2 is Lost"),
        ("data", being_deleted, "data-pg-2 is being deleted"),
        ("data", not_retained, "volumes are Deleted whenDeleted"),
        ("names", two_primaries, "primary leads to pg-1, pg-2, not to pg-1"),
        ("names", wrong_primary, "primary leads to pg-2, not to pg-1"),
        ("names", no_pool, "pgbouncer leads to pgbouncer-7d9-1, not to"),
        ("ways", no_denial, "deny-all is missing"),
        ("ways", wide_open, "nodes-from-poolers is another"),
        ("ways", another_policy, "debug opens a way that is not ours"),
        ("bootstrap", bootstrap_failed, "has failed"),
        ("bootstrap", bootstrap_runs, "has not ended"),
        ("bootstrap", bootstrap_of_before, "there is no Job bootstrap-"),
        ("backups", suspended, "backup-full is suspended"),
        ("backups", at_another_time, "backup-full runs at '0 0 1 1"),
        ("backups", no_schedule, "backup-incremental is not there"),
        ("backups", last_backup_failed, "backup-full-2026-01-08T01:00:00Z failed"),
        ("asked", no_pods, "no Pod"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_each_fault_is_red(live: Live, what: str, wrong: Callable[[Live], None], says: str) -> None:
    wrong(live)
    with pytest.raises(NotSo, match=says) as raised:
        RUNS[what](live)
    assert raised.value.todo


def test_a_good_backup_after_a_bad_one_is_green(live: Live) -> None:
    run_of(live, "Failed", "2026-01-01T01:00:00Z")
    run_of(live, "Complete", "2026-01-08T01:00:00Z")
    RUNS["backups"](live)


def test_one_machine_is_all_that_there_is(live: Live) -> None:
    """Pools prefer machines of their own, and take what there is."""
    pools_together(live)
    live.machines_here = [_machine("a"), _machine("b", unschedulable=True)]
    RUNS["pool machines"](live)
    live.machines_here = [
        _machine("a"),
        _machine("b", taints=[{"key": "control-plane", "effect": "NoSchedule"}]),
    ]
    RUNS["pool machines"](live)


def test_who_may_not_see_machines_is_not_told_red(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_: Live) -> list[Object]:
        raise MissingError("forbidden")

    monkeypatch.setattr(Live, "machines", property(forbidden))
    pools_together(live)
    RUNS["pool machines"](live)
    # What is required is known without looking at them.
    together(live)
    with pytest.raises(NotSo):
        RUNS["machines"](live)


def test_without_the_digests_the_newest_bootstrap_counts(live: Live, tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    bootstrap_of_before(live)
    checks.test_the_bootstrap_is_done(facts(), live, tmp_path)


# -- what is seen from inside --------------------------------------------------------------


class Inside:
    """A backend whose every unit answers the same."""

    def __init__(self, stdout: str, stderr: str = "") -> None:
        self.answer = SimpleNamespace(stdout=stdout, stderr=stderr, rc=0)
        self.asked: list[tuple[str, ...]] = []

    def host(self, unit: str) -> Inside:
        return self

    def run(self, *words: str) -> Any:
        self.asked.append(words)
        return self.answer


def looking(inside: Inside) -> Any:
    return SimpleNamespace(backend=inside, need=lambda _: None)


@pytest.mark.parametrize(
    ("stdout", "red"),
    [
        ("open 10.1.0.1\nopen 10.1.0.2\n", None),
        # A third one, on its way out, whose gate is still there or has gone.
        ("open 10.1.0.3\nopen 10.1.0.1\nopen 10.1.0.2\n", None),
        ("open 10.1.0.1\nshut 10.1.0.3 refused\nopen 10.1.0.2\n", None),
        ("open 10.1.0.1\nopen 10.1.0.3\n", "1 of 2 open"),
        ("open 10.1.0.1\n", "1 of 2 open"),
        ("open 10.1.0.1\nshut 10.1.0.2 timed out\n", "1 of 2 open: 10.1.0.2 timed out"),
        ("", "0 of 2 open"),
    ],
)
def test_every_gate_opens_to_a_node(live: Live, stdout: str, red: str | None) -> None:
    for number, pool in enumerate(live.pods("pgbouncer")):
        pool["status"]["podIP"] = f"10.1.0.{number + 1}"
    inside = Inside(stdout)
    if red is None:
        checks.test_a_node_can_hold_every_pool(looking(inside), live, "pg-1")
    else:
        with pytest.raises(NotSo, match=red):
            checks.test_a_node_can_hold_every_pool(looking(inside), live, "pg-1")
    # What is run there can be compiled, and names what is there.
    code = inside.asked[0][1]
    compile(code, "check", "exec")
    from elsapg.runner import gates

    for used in re.findall(r"gates\.(\w+)", code):
        assert hasattr(gates, used)


@pytest.mark.parametrize(
    ("stdout", "red"),
    [
        ("error:0A00045C:SSL routines:ssl3_read_bytes:tlsv13 alert certificate required", False),
        ("ready\npaused\n", True),
        ("Connection refused", True),
        ("", True),
    ],
)
def test_a_gate_that_lets_anybody_in_is_red(stdout: str, red: bool) -> None:
    if red:
        with pytest.raises(NotSo):
            checks.test_nobody_else_can_hold_a_pool(looking(Inside(stdout)), "pgbouncer-1")
    else:
        checks.test_nobody_else_can_hold_a_pool(looking(Inside(stdout)), "pgbouncer-1")


def test_a_unit_without_its_watcher_is_red() -> None:
    service = SimpleNamespace(pid=1, command="pgbouncer /etc/elsapg/pgbouncer.ini")
    watcher = SimpleNamespace(pid=7, command="/bin/sh /usr/local/bin/reload-on-change HUP -- x")
    checks.test_changed_files_are_noticed(SimpleNamespace(name="x", tree=(service, watcher)))  # type: ignore[arg-type]
    with pytest.raises(NotSo, match="nothing looks for changed files in x"):
        checks.test_changed_files_are_noticed(SimpleNamespace(name="x", tree=(service,)))  # type: ignore[arg-type]


def test_sizes() -> None:
    assert [quantity(s) for s in ("1Gi", "500M", "1024", None)] == [2**30, 500 * 10**6, 1024, 0]
    with pytest.raises(NotSo):
        quantity("large")
