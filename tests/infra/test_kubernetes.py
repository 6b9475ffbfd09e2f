"""Kubernetes: where the pods are, what they may do, and what the cluster keeps for the stack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from elsapg.definition import topology as t
from elsapg.errors import ElsapgError, MissingError, UsageError
from elsapg.settings import Settings
from tests.infra.facts import UID, Facts, Unit, judge, none, same
from tests.infra.kubernetes_backend import Cluster, Object, name, named, quantity

pytestmark = pytest.mark.target("kubernetes", reason="they look at pods and what is around them")

NODES, POOLERS, RUNNER = "pg", "pgbouncer", "runner"
APPLY = "apply the stack's own manifests again (`elsapg up`, or `elsapg render` and GitOps)"
RESTARTS = 3
SCHEDULES = {
    "backup-full": "full_schedule",
    "backup-incremental": "incremental_schedule",
    **{job: f"{job}_schedule" for job in ("dump", "check", "drill")},
}
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


def _templates(cluster: Cluster) -> Iterator[tuple[str, Object]]:
    """The pods' specs: of those that run, and of those that CronJobs will make."""
    for pod in cluster.pods(NODES, POOLERS):
        yield name(pod), pod["spec"]
    for job in cluster.all("CronJob"):
        yield name(job), job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    for job in cluster.all("Job"):
        if name(job).startswith("bootstrap-"):
            yield name(job), job["spec"]["template"]["spec"]


def _containers(cluster: Cluster) -> Iterator[tuple[str, Object]]:
    for whose, spec in _templates(cluster):
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            yield f"{whose}/{container['name']}", container


# -- placement -----------------------------------------------------------------------------


@pytest.mark.parametrize("component", [NODES, POOLERS])
def test_pods_are_on_machines_of_their_own(facts: Facts, cluster: Cluster, component: str) -> None:
    """The pods of a kind do not share a machine, as far as the cluster has more than one."""
    pods = cluster.pods(component)
    used = [pod["spec"].get("nodeName", "") for pod in pods]
    strict = facts.deployment.settings.kubernetes.anti_affinity == "required"
    wanted = len(pods)
    if component == POOLERS or not strict:
        wanted = min(wanted, len(_usable(cluster)) or 1)
        # To prefer is all that a scheduler promises: two machines are what a failure asks for.
        wanted = min(wanted, 2)
    judge(
        all(used) and len(set(used)) >= wanted,
        f"{len(pods)} pods on {len(set(used))} machines: {', '.join(sorted(set(used)))}",
        "delete one of two that share a machine (a standby, not the primary): it is placed anew",
    )


def _usable(cluster: Cluster) -> list[str]:
    """Machines that pods can be placed on; none if we may not look."""
    try:
        machines = cluster.machines
    except MissingError:
        return []
    return [
        name(machine)
        for machine in machines
        if not machine["spec"].get("unschedulable")
        and not any(
            taint["effect"] in ("NoSchedule", "NoExecute")
            for taint in machine["spec"].get("taints", [])
        )
        and any(
            c["type"] == "Ready" and c["status"] == "True" for c in machine["status"]["conditions"]
        )
    ]


@pytest.mark.parametrize("component", [NODES, POOLERS])
def test_one_pod_at_a_time_may_be_taken(cluster: Cluster, component: str) -> None:
    """A drain takes one pod of a kind at a time, and could take one now."""
    budget = named(cluster.all("PodDisruptionBudget")).get(component)
    judge(budget, f"there is no PodDisruptionBudget {component}", APPLY)
    assert budget is not None
    same(budget["spec"].get("maxUnavailable"), 1, APPLY)
    status = budget.get("status", {})
    judge(
        status.get("disruptionsAllowed") == 1
        and status.get("expectedPods") == len(cluster.pods(component)),
        f"{status.get('disruptionsAllowed', 0)} may be taken now "
        f"({status.get('currentHealthy', 0)} of {status.get('expectedPods', 0)} are healthy)",
        "`elsapg status` says which pod is not healthy",
    )


def test_the_rollout_is_complete(cluster: Cluster) -> None:
    """Every pod runs what its StatefulSet or Deployment says now, and is ready."""
    wrong = []
    for thing in (*cluster.all("StatefulSet"), *cluster.all("Deployment")):
        status, wanted = thing["status"], thing["spec"]["replicas"]
        seen = status.get("observedGeneration") == thing["metadata"].get("generation")
        counts = {k: status.get(k, 0) for k in ("updatedReplicas", "readyReplicas", "replicas")}
        if not seen or any(count != wanted for count in counts.values()):
            told = ", ".join(f"{key} {count}" for key, count in counts.items())
            wrong.append(f"{name(thing)}: {told} of {wanted}")
    none(wrong, "`kubectl rollout status` shows how it goes on; a pod that is stuck says why")


def test_images_are_by_digest(cluster: Cluster) -> None:
    """Every container runs an image by its digest: what was tested is what runs."""
    none(
        (
            f"{where} runs {container['image']}"
            for where, container in _containers(cluster)
            if "@sha256:" not in container["image"]
        ),
        "`elsapg images push` writes the digests; " + APPLY,
    )


# -- containment ---------------------------------------------------------------------------


def test_the_namespace_is_restricted(cluster: Cluster) -> None:
    """The namespace enforces Pod Security's `restricted`."""
    labels = cluster.namespace["metadata"].get("labels", {})
    same(labels.get("pod-security.kubernetes.io/enforce"), "restricted", APPLY)


def test_every_container_is_contained(cluster: Cluster) -> None:
    """Every container: uid 999, no root, no capability, no escalation, seccomp, read-only root."""
    wrong: list[str] = []
    for whose, spec in _templates(cluster):
        outer = spec.get("securityContext", {})
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            held = {**outer, **container.get("securityContext", {})}
            found = {
                "runAsNonRoot": held.get("runAsNonRoot"),
                "runAsUser": held.get("runAsUser"),
                "runAsGroup": held.get("runAsGroup"),
                "allowPrivilegeEscalation": held.get("allowPrivilegeEscalation"),
                "readOnlyRootFilesystem": held.get("readOnlyRootFilesystem"),
                "privileged": held.get("privileged", False),
                "drop": held.get("capabilities", {}).get("drop"),
                "add": held.get("capabilities", {}).get("add", []),
                "seccompProfile": held.get("seccompProfile", {}).get("type"),
            }
            wrong += [
                f"{whose}/{container['name']}: {key} is {value}"
                for key, value in found.items()
                if value != _CONTAINED[key]
            ]
        wrong += [
            f"{whose}: {key} is set"
            for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")
            if spec.get(key)
        ]
    none(wrong, APPLY)


_CONTAINED: Mapping[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": UID,
    "runAsGroup": UID,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "privileged": False,
    "drop": ["ALL"],
    "add": [],
    "seccompProfile": "RuntimeDefault",
}


def test_every_container_has_its_limits(cluster: Cluster) -> None:
    """Every container has limits of memory and CPU, and is promised all of its memory."""
    wrong = []
    for where, container in _containers(cluster):
        found = container.get("resources", {})
        limits, requests = found.get("limits", {}), found.get("requests", {})
        wrong += [f"{where} has no limit of {k}" for k in ("cpu", "memory") if not limits.get(k)]
        if quantity(requests.get("memory")) != quantity(limits.get("memory")):
            wrong.append(f"{where} is promised {requests.get('memory', 'no memory')}")
    none(wrong, APPLY)


def test_only_who_must_speaks_to_the_api_server(cluster: Cluster) -> None:
    """No pod gets a token by itself: Patroni's container has one, and the task that waits until
    the nodes' pods are replaced."""
    wrong = [
        f"{whose} gets a token"
        for whose, spec in _templates(cluster)
        if spec.get("automountServiceAccountToken") is not False
    ]
    for where, container in _containers(cluster):
        mounts = {m["mountPath"] for m in container.get("volumeMounts", [])}
        if TOKEN in mounts and not where.endswith(("/postgres", "/configure")):
            wrong.append(f"{where} has a token")
    none(wrong, APPLY)


def test_secrets_are_files(cluster: Cluster) -> None:
    """No container takes a secret from its environment."""
    wrong = []
    for where, container in _containers(cluster):
        wrong += [
            f"{where}: {variable['name']}"
            for variable in container.get("env", [])
            if "secretKeyRef" in variable.get("valueFrom", {})
        ]
        wrong += [
            f"{where}: all of a Secret" for e in container.get("envFrom", []) if "secretRef" in e
        ]
    none(
        wrong,
        "mount it as a file: what stands in an environment is inherited, and logged; " + APPLY,
    )


def test_containers_do_not_restart(cluster: Cluster) -> None:
    """No container, the gates' and agents' included, is restarted again and again."""
    wrong = []
    for pod in cluster.pods(NODES, POOLERS):
        for state in pod["status"].get("containerStatuses", []):
            waiting = state.get("state", {}).get("waiting", {}).get("reason")
            if state["restartCount"] > RESTARTS or waiting:
                told = f"{state['restartCount']} restarts" + (f", {waiting}" if waiting else "")
                wrong.append(f"{name(pod)}/{state['name']}: {told}")
    none(wrong, "`kubectl logs --previous` says why the last one ended")


def test_changed_files_are_noticed(unit: Unit) -> None:
    """Beside process 1 something waits for new files, and has it read them."""
    judge(
        any("reload-on-change" in p.command for p in unit.tree if p.pid != 1),
        f"nothing looks for changed files in {unit.name}",
        f"delete the pod of {unit.name} (a standby before the primary): it starts with its watcher",
    )


# -- what the cluster keeps ----------------------------------------------------------------


def test_data_is_kept_in_its_size(facts: Facts, cluster: Cluster, node: str) -> None:
    """The node's volumes are bound, of the size that the stack says, and outlive its pod."""
    claims = named(cluster.all("PersistentVolumeClaim"))
    wrong = []
    for volume, size in _sizes(facts.deployment.settings).items():
        claim = claims.get(f"{volume}-{node}")
        if claim is None:
            wrong.append(f"{volume}-{node} is not there")
            continue
        status = claim["status"]
        has, asked = (
            quantity(found.get("storage"))
            for found in (status.get("capacity", {}), claim["spec"]["resources"]["requests"])
        )
        if status.get("phase") != "Bound":
            wrong.append(f"{name(claim)} is {status.get('phase')}")
        elif asked != quantity(size) or has < asked:
            wrong.append(f"{name(claim)} has {has} bytes, asks for {asked}, should have {size}")
        if claim["metadata"].get("deletionTimestamp"):
            wrong.append(f"{name(claim)} is being deleted: it goes as soon as its pod does")
    [nodes] = [s for s in cluster.all("StatefulSet") if name(s) == NODES]
    policy = nodes["spec"].get("persistentVolumeClaimRetentionPolicy", {})
    wrong += [f"volumes are {policy[k]}d {k}" for k in policy if policy[k] != "Retain"]
    none(
        wrong, "the storage class must allow growth, and the claim says what it waits for; " + APPLY
    )


def _sizes(settings: Settings) -> dict[str, str]:
    pg = settings.postgres
    return {"data": pg.volume_size} | ({"wal": pg.wal_volume_size} if pg.wal_volume_size else {})


def test_names_lead_where_they_should(facts: Facts, cluster: Cluster) -> None:
    """`primary` leads to the primary alone, `replica` to the standbys, `pgbouncer` to all pools."""
    leader = facts.primary()
    streaming = {str(m["name"]) for m in facts.members if m["state"] == "streaming"}
    pools = {name(pod) for pod in cluster.pods(POOLERS)}
    wanted = {t.PRIMARY_HOST: {leader}, t.REPLICA_HOST: streaming, POOLERS: pools}
    found: dict[str, set[str]] = {service: set() for service in wanted}
    for piece in cluster.all("EndpointSlice"):
        service = piece["metadata"].get("labels", {}).get("kubernetes.io/service-name")
        for endpoint in piece.get("endpoints") or []:
            if service in found and endpoint.get("conditions", {}).get("ready") is not False:
                found[service].add(endpoint.get("targetRef", {}).get("name", "a stranger"))
    none(
        (
            f"{service} leads to {', '.join(sorted(found[service])) or 'nobody'}, not to "
            f"{', '.join(sorted(pods)) or 'nobody'}"
            for service, pods in wanted.items()
            if found[service] != pods
        ),
        "Patroni keeps the label `role` of each pod: its log says why it could not",
    )


def test_every_way_is_closed_but_ours(facts: Facts, cluster: Cluster) -> None:
    """The network policies are there as defined: everything denied, then one way per hop."""
    from elsapg.targets.kubernetes.network import policies
    from elsapg.targets.kubernetes.objects import Place

    deployment = facts.deployment
    if not deployment.settings.kubernetes.network_policies:
        return
    wanted = {
        p["metadata"]["name"]: p["spec"]
        for p in policies(Place(deployment.stack, deployment.settings, {}))
    }
    found = {name(p): p["spec"] for p in cluster.all("NetworkPolicy")}
    none(
        (
            f"{policy} is {'another' if policy in found else 'missing'}"
            for policy, spec in wanted.items()
            if found.get(policy) != spec
        ),
        APPLY,
    )
    none(
        (f"{policy} opens a way that is not ours" for policy in found.keys() - wanted.keys()),
        "say it in the stack's file (kubernetes.application_namespaces, …), and delete this one",
    )


def test_the_bootstrap_is_done(facts: Facts, cluster: Cluster, root: Path) -> None:
    """The bootstrap Job of the stack as it is defined now has succeeded."""
    jobs = {n: job for n, job in named(cluster.all("Job")).items() if n.startswith("bootstrap-")}
    wanted = _bootstrap_name(root, facts.deployment.stack) or max(
        jobs, key=lambda n: str(jobs[n]["metadata"]["creationTimestamp"]), default=None
    )
    judge(wanted in jobs, f"there is no Job {wanted or 'bootstrap'}", APPLY)
    judge(
        _succeeded(jobs[str(wanted)]),
        f"{wanted} has {'failed' if _ended(jobs[str(wanted)]) else 'not ended'}",
        f"`kubectl logs job/{wanted} --all-containers` says why; delete it, and " + APPLY,
    )


def _bootstrap_name(root: Path, stack: str) -> str | None:
    """As the files here define it; None where the images' digests are not known here."""
    from elsapg.services.render import render

    try:
        files = render(root, stack).files
    except UsageError:
        return None
    names = [f.removesuffix(".yaml").partition("-job-")[2] for f in files if "-job-" in f]
    return next((n for n in names if n.startswith("bootstrap-")), None)


def _condition(job: Object, kind: str) -> bool:
    found = job.get("status", {}).get("conditions") or []
    return any(c["type"] == kind and c["status"] == "True" for c in found)


def _succeeded(job: Object) -> bool:
    return _condition(job, "Complete")


def _ended(job: Object) -> bool:
    return _succeeded(job) or _condition(job, "Failed")


def test_backups_are_scheduled_and_good(facts: Facts, cluster: Cluster) -> None:
    """Each CronJob has its schedule, is not suspended, and a backup's last run succeeded.

    How dumps, checks and drills ended is on record, where one by hand makes good for it.
    """
    found = named(cluster.all("CronJob"))
    archive = facts.deployment.settings.archive
    wrong = []
    for cron, key in SCHEDULES.items():
        if cron not in found:
            wrong.append(f"{cron} is not there")
            continue
        spec = found[cron]["spec"]
        says = (spec.get("schedule"), spec.get("timeZone"))
        if says != (getattr(archive, key), "Etc/UTC"):
            wrong.append(f"{cron} runs at {says[0]!r} of {says[1]}")
        if spec.get("suspend"):
            wrong.append(f"{cron} is suspended")
        runs = sorted(_runs(cluster, cron), key=lambda job: str(job["status"].get("startTime")))
        if runs and cron.startswith("backup-") and not _succeeded(runs[-1]):
            wrong.append(f"{name(runs[-1])} failed")
    none(
        wrong,
        "`kubectl logs job/NAME` says why one failed; `elsapg backup now` takes one, and "
        "then the failed Job can be deleted; " + APPLY,
    )


def _runs(cluster: Cluster, cron: str) -> Iterable[Object]:
    """The CronJob's runs that have ended."""
    for job in cluster.all("Job"):
        owners = job["metadata"].get("ownerReferences", [])
        if any(o["kind"] == "CronJob" and o["name"] == cron for o in owners) and _ended(job):
            yield job


# -- the gates -----------------------------------------------------------------------------

_OPEN = """
from pathlib import Path
from elsapg.runner import gates
context = gates.tls_context(gates.Pair.of_node(Path("/etc/elsapg/tls")))
for address in gates.resolve("pgbouncer-pods:%d"):
    try:
        gates.open_gate(address, context).close()
        print("open", address[0])
    except (OSError, gates.GateError) as error:
        print("shut", address[0], error)
"""


def test_a_node_can_hold_every_pool(facts: Facts, cluster: Cluster, node: str) -> None:
    """Every pool's gate opens to the node, which would hold the pool while it hands over."""
    facts.need(node)
    done = facts.backend.host(node).run("python3 -c %s", _OPEN % t.GATE_PORT)
    # Those that are leaving have gates as well, which may just have gone.
    pools = {pod["status"].get("podIP", pod["metadata"]["name"]) for pod in cluster.pods(POOLERS)}
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    opened = {line[1] for line in lines if line[0] == "open"}
    shut = [" ".join(line[1:]) for line in lines if line[0] == "shut" and line[1] in pools]
    judge(
        pools <= opened,
        f"{len(pools & opened)} of {len(pools)} open: {'; '.join(shut)}{done.stderr[-200:]}",
        "the gate's log says why; policies nodes-to-gates and gates-from-nodes must be there",
    )


def test_nobody_else_can_hold_a_pool(facts: Facts, pooler: str) -> None:
    """The gate does nothing for a client without a certificate of this stack's CA."""
    facts.need(pooler)
    # A command, so that openssl waits for the answer to it.
    done = facts.backend.host(pooler).run(
        "(echo pause; sleep 1) | timeout 5 openssl s_client -quiet -connect localhost:%s "
        "-CAfile /etc/elsapg/tls/ca.crt 2>&1",
        str(t.GATE_PORT),
    )
    judge(
        "ready" not in done.stdout.split() and "certificate required" in done.stdout,
        f"it answered {' '.join(done.stdout.split())[-120:]!r}",
        "openssl's word for it is `certificate required`; delete the pod: it starts as defined",
    )


def test_the_cluster_can_be_asked(cluster: Cluster) -> None:
    """The API server answers for every kind of object that the stack has."""
    kinds = ("Pod", "StatefulSet", "Deployment", "CronJob", "Job", "PersistentVolumeClaim")
    try:
        none((f"no {kind}" for kind in kinds if not cluster.all(kind)), APPLY)
    except ElsapgError as error:
        judge(False, str(error), "your account needs the right to read the namespace")
