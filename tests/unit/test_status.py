"""`status`: each thing that can be wrong is a problem of its own, and the rest is still told."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from elsapg import stackfile
from elsapg.errors import NotDeployedError, UnhealthyError
from elsapg.services import status
from elsapg.services.backups import Backup
from elsapg.services.commands import for_stack, for_whoever_applies
from elsapg.services.deployment import Deployment
from elsapg.targets.docker.hosts import DockerHosts
from elsapg.targets.hosts import Completed, UnitState
from tests.unit.kubernetes_stacks import settings as kubernetes_settings

UNITS = (
    *("etcd-1", "s3", "pg-1", "pg-2", "pg-1-agent", "pg-2-agent"),
    *("haproxy", "pgbouncer-1", "pgbouncer-2", "runner"),
)
NOW = datetime.datetime.now(datetime.UTC)


def member(name: str, role: str, state: str = "streaming", **more: Any) -> dict[str, Any]:
    return {"name": name, "role": role, "state": state, "timeline": 1, **more}


class Healthy:
    """A deployment in which all is well. Tests take something away."""

    stack = "test"
    nodes = ("pg-1", "pg-2")
    poolers = ("pgbouncer-1", "pgbouncer-2")

    def __init__(self) -> None:
        self.settings = stackfile.load({}, "test")
        self.hosts = self
        self.units = {name: UnitState(name, "running", 0) for name in UNITS}
        self.cluster = [
            member("pg-1", "leader", "running"),
            member("pg-2", "sync_standby", lag=16),
        ]
        self.overview: dict[str, Any] = {"dumps": [], "runs": {}, "problems": []}
        self.archiver = ["000000010000000000000003", "12.5", "0", "1"]
        self.paused = "0"
        self.waits = {"elsa_runtime": ("0", "1"), "elsa_workflows_session": ("4", "3")}
        self.journal, self.held = "", False
        self.used, self.wal_used = "41", "7"
        self.ahead = {"pg-2": 1.0}
        self.clients = "2"
        self.look: dict[str, list[dict[str, Any]]] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.certificate = CERTIFICATE
        self.killed: dict[str, str] = {}

    def run(self, unit: str, *command: str, **_options: Any) -> Completed:
        if command[0] == "date":
            return Completed(0, f"{NOW.timestamp() + self.ahead.get(unit, 0.0)}\n")
        if "elsapg.runner.health" in command:
            return Completed(0, json.dumps(self.overview))
        if command[:2] == ("sh", "-c") and "oom_kill" in command[2]:
            return Completed(0, self.killed.get(unit, "0\n"))
        if command[:2] == ("sh", "-c") and command[2].startswith("cat /etc/elsapg/tls"):
            return Completed(0, self.certificate)
        if command[0] == "df":
            return Completed(0, self._full(command))
        return Completed(0, self.journal)

    def _full(self, command: tuple[str, ...]) -> str:
        if not self.used:
            return ""
        assert command[:2] == ("df", "-Pk")
        full = (self.used, self.wal_used)
        rows = [
            f"/dev/x 100 41 2048000 {p}% {where}"
            for where, p in zip(command[2:], full, strict=False)
        ]
        return "\n".join(["Filesystem", *rows, ""])

    def shell(self, unit: str, *command: str) -> str:
        return DockerHosts("test").shell(unit, *command)

    def remedy(self, unit: str, state: str = "") -> str:
        return DockerHosts("test").remedy(unit, state)

    def states(self) -> dict[str, UnitState]:
        return self.units

    def running_nodes(self) -> list[str]:
        return [n for n in self.nodes if self.units[n].state == "running"]

    def any_node(self) -> str:
        if self.units["pg-1"].state != "running":
            raise NotDeployedError("nothing runs")
        return "pg-1"

    patronictl = Deployment.patronictl

    def members(self) -> list[dict[str, Any]]:
        return self.cluster

    def primary(self) -> str:
        return "pg-1"

    def patroni(self, path: str, node: str = "pg-1") -> dict[str, Any]:
        if path == "/patroni":
            return {"role": "primary" if node == "pg-1" else "replica"}
        assert path == "/cluster"
        return {"pause": True} if self.held else {}

    def query(self, node: str, sql: str, database: str = "postgres") -> list[list[str]]:
        if "pg_stat_archiver" in sql:
            return [self.archiver]
        if "jsonb_build_object" in sql:
            parts = ("blocking", "open", "held", "ids", "behind")
            return [[json.dumps({part: self.look.get(part, []) for part in parts})]]
        return next((r for k, r in self.rows.items() if k in f"{node} {database} {sql}"), [])

    def pooler_console(self, pooler: str, command: str) -> list[dict[str, str]]:
        if command == "SHOW DATABASES":
            return [{"name": "elsa_workflows", "paused": self.paused}]
        if command == "SHOW STATE":
            return [{"key": "paused", "value": "no"}]
        counts = {"user": "elsa_app", "cl_active": self.clients, "cl_waiting": "1", "sv_idle": "3"}
        return [
            *(
                {"database": name, **counts, "maxwait": longest, "sv_active": active}
                for name, (longest, active) in self.waits.items()
            ),
            {"database": "pgbouncer", **counts, "cl_active": "9", "maxwait": "0", "sv_active": "0"},
        ]


def backup(age: datetime.timedelta = datetime.timedelta(hours=1), failed: bool = False) -> Backup:
    when = (NOW - age).isoformat()
    return Backup("20260301-010000F", "full", when, when, 1, 1, failed)


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch) -> Healthy:
    made = Healthy()
    made.backups = [backup()]  # type: ignore[attr-defined]
    monkeypatch.setattr(status.backups, "backups", lambda d: d.backups)
    return made


def gather(deployment: Healthy) -> status.Status:
    return status.gather(deployment)  # type: ignore[arg-type]


def test_all_is_well(deployment: Healthy) -> None:
    found = gather(deployment)
    assert found.problems == []
    assert found.synchronous == "on: pg-2"
    assert [(n.name, n.lag_bytes) for n in found.nodes] == [("pg-1", None), ("pg-2", 16)]
    assert [p.name for p in found.pools] == ["pgbouncer-1", "pgbouncer-2"]
    # The admin console's own line is no pool.
    assert (found.pools[0].clients_active, found.pools[0].servers_idle) == (4, 6)
    assert found.archive == status.Archive("000000010000000000000003", 12.5, 0, 1)
    document = json.loads(found.as_json())
    assert document["healthy"] is True
    assert document["last_backup"]["label"] == "20260301-010000F"


def no_pooler(d: Healthy) -> None:
    d.units["pgbouncer-2"] = UnitState("pgbouncer-2", "exited", 0)


def no_s3(d: Healthy) -> None:
    del d.units["s3"]


def no_leader(d: Healthy) -> None:
    d.cluster[0] = member("pg-1", "replica", "streaming")


def one_member(d: Healthy) -> None:
    del d.cluster[1]


def not_streaming(d: Healthy) -> None:
    d.cluster[1] = member("pg-2", "sync_standby", "running")


def pending(d: Healthy) -> None:
    d.cluster[1]["pending_restart"] = True


def not_synchronous(d: Healthy) -> None:
    d.cluster[1]["role"] = "replica"


def not_joined(d: Healthy) -> None:
    d.cluster[1]["state"] = ""


def archive_fails(d: Healthy) -> None:
    d.archiver = ["", "", "7", "9"]


def no_backup(d: Healthy) -> None:
    d.backups = []  # type: ignore[attr-defined]


def bad_backup(d: Healthy) -> None:
    d.backups = [backup(failed=True)]  # type: ignore[attr-defined]


def copied(d: Healthy) -> None:
    d.cluster[1] = member("pg-2", "replica", "creating replica")


def strict(d: Healthy) -> None:
    d.settings = stackfile.load({"postgres": {"synchronous": "strict", "replicas": 2}}, "test")
    not_synchronous(d)


def crash_loop(d: Healthy) -> None:
    d.units["s3"] = UnitState("s3", "restarting", 9)


def many_clients(d: Healthy) -> None:
    d.clients = "600"


def closed_by_a_restore(d: Healthy) -> None:
    d.paused, d.held = "1", True
    d.journal = json.dumps({"target": "latest", "since": "noon", "stage": "fetching"})


def etcd_away(d: Healthy) -> None:
    def members() -> Any:
        raise UnhealthyError("Patroni on pg-1 does not answer GET /cluster")

    d.members = members  # type: ignore[method-assign]


def frozen(d: Healthy) -> None:
    d.units["pgbouncer-2"] = UnitState("pgbouncer-2", "paused", 0)


def lock_pile_up(d: Healthy) -> None:
    d.look["blocking"] = [
        {"pid": 88, "role": "elsa_migrator", "state": "active", "waiting": 12, "seconds": 40,
         "does": "ALTER TABLE"},
        {"pid": 89, "role": "elsa_app", "state": "idle in transaction", "waiting": 1,
         "seconds": 9, "does": "UPDATE elsa"},
    ]  # fmt: skip


def old_transaction(d: Healthy) -> None:
    d.look["open"] = [
        {"pid": 412, "role": "elsa_migrator", "state": "idle", "hours": 5, "does": "ALTER TABLE"}
    ]


def held_slot(d: Healthy) -> None:
    d.look["held"] = [{"slot": "pg_2", "age": 60_000_000}]


def few_ids(d: Healthy) -> None:
    d.look["ids"] = [{"database": "elsa_runtime", "percent": 61}]


def behind(d: Healthy) -> None:
    d.look["behind"] = [{"node": "pg-2", "mib": 2048}]


def damaged_on_the_standby(d: Healthy) -> None:
    d.rows["pg-2 postgres SELECT coalesce(datname"] = [["elsa_runtime", "3", "today"]]


def damaged_on_the_primary(d: Healthy) -> None:
    d.rows["pg-1 postgres SELECT coalesce(datname"] = [["elsa_runtime", "3", "today"]]


def job_overdue(d: Healthy) -> None:
    d.rows["pg-1 elsa_runtime SELECT job"] = [["cleanup", "deadlock detected"]]


def no_months(d: Healthy) -> None:
    d.rows["elsa_workflows SELECT table_name"] = [["workflow_instances", "0", "0"]]


def rows_outside_all_months(d: Healthy) -> None:
    d.rows["elsa_workflows SELECT table_name"] = [["workflow_instances", "2", "1000"]]


def ending(d: Healthy) -> None:
    d.certificate = made(NOW + datetime.timedelta(days=3))


def ended(d: Healthy) -> None:
    d.certificate = made(NOW - datetime.timedelta(days=3))


def made(ends: datetime.datetime) -> str:
    """A certificate's PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pg-1")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    signed = (
        builder.not_valid_before(NOW - datetime.timedelta(days=90))
        .not_valid_after(ends)
        .sign(key, hashes.SHA256())
    )
    return signed.public_bytes(serialization.Encoding.PEM).decode()


CERTIFICATE = made(NOW + datetime.timedelta(days=300))


def paused(d: Healthy) -> None:
    d.paused = "1"


def pool_is_full(d: Healthy) -> None:
    d.waits["elsa_workflows_session"] = ("5", "3")


def pool_has_no_server(d: Healthy) -> None:
    d.waits["elsa_runtime"] = ("40", "0")


def disk_fills_up(d: Healthy) -> None:
    d.used = "85"


def wal_queues(d: Healthy) -> None:
    d.archiver = ["000000010000000000000003", "12.5", "0", "40"]


def clock_set_off(d: Healthy) -> None:
    d.ahead["pg-2"] = 3600.0


def overdue(d: Healthy) -> None:
    d.overview["problems"] = [{"job": "drill", "text": "a restore drill was due"}]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (no_pooler, "pgbouncer-2 does not run (exited): `elsapg up --stack test --refresh`"),
        (frozen, "(paused): `docker unpause elsapg-test-pgbouncer-2` lets it go on"),
        (no_s3, "s3 does not run (missing)"),
        (no_leader, "no primary: nothing can be written now"),
        (one_member, "pg-2 is no member of the cluster"),
        (not_streaming, "pg-2 is running, not streaming"),
        (not_joined, "Patroni knows no state of pg-2 yet: "),
        (pending, "pg-2 needs a restart"),
        (not_synchronous, "no synchronous standby now"),
        (archive_fails, "WAL archiving fails since the first segment (7 attempts)"),
        (no_backup, "no backup yet: `elsapg backup now --stack test`"),
        (bad_backup, "backup 20260301-010000F has errors"),
        (copied, "pg-2 is creating replica: wait"),
        (strict, "no synchronous standby now: every commit waits"),
        (crash_loop, "`docker logs --tail 50 elsapg-test-s3` says why"),
        (many_clients, "pgbouncer-1 has 1202 clients and lets no more than 1000 in"),
        (closed_by_a_restore, "pgbouncer-1 is paused: closed by the restore to latest"),
        (etcd_away, "GET /cluster; its DCS may be away: pg-1 leads all the same"),
        (lock_pile_up, "(elsa_migrator, active: ALTER TABLE …) holds up 12 sessions"),
        (lock_pile_up, "-c 'SELECT pg_cancel_backend(88)'` ends that"),
        (lock_pile_up, "-c 'SELECT pg_terminate_backend(89)'` ends that"),
        (
            old_transaction,
            "pid 412 (elsa_migrator, idle: ALTER TABLE …) is in a transaction for 5 h",
        ),
        (held_slot, "replication slot pg_2 keeps vacuum from 60000000 transactions"),
        (few_ids, "database elsa_runtime has used 61 % of its transaction ids"),
        (behind, "pg-2 has yet to replay 2048 MiB"),
        (damaged_on_the_standby, "pg-2 has read damaged pages (3 in elsa_runtime, last today)"),
        (
            damaged_on_the_standby,
            "let no backup expire (archive.retention_days), and make this node anew: `docker exec "
            "elsapg-test-pg-2 patronictl -c /etc/elsapg/patroni.yml reinit elsa pg-2 --force`",
        ),
        (
            damaged_on_the_primary,
            "and `elsapg switchover --stack test` to a clean standby, then make this node anew: `",
        ),
        (job_overdue, "job cleanup of elsa_runtime is overdue (last error: deadlock detected)"),
        (no_months, "workflow_instances has partitions for 0 months ahead: "),
        (no_months, "SELECT elsa_workflows.create_monthly_partitions()'` makes more"),
        (rows_outside_all_months, "workflow_instances has 1000 rows or more outside all months: "),
        (rows_outside_all_months, "create_stray_months()'` makes their months and moves them"),
        (ending, "certificate 'pg-1' of pg-2 ends on "),
        (ended, "certificate 'pg-1' of pgbouncer-1 has ended on "),
        (ended, "`elsapg up --stack test` renews it"),
        (disk_fills_up, "the disk of pg-1 is 85% full, 2000 MiB are left"),
        (wal_queues, "40 WAL segments (640 MiB) wait on the primary's disk"),
        (overdue, "a restore drill was due"),
        (clock_set_off, "s ahead of that of pg-1: S3 refuses what a machine"),
        (paused, "pgbouncer-1 is paused: a switchover is under way"),
        (
            pool_is_full,
            "pgbouncer-1: clients of elsa_app wait for a connection to elsa_workflows_session "
            "(1, the longest for 5 s), and 3 are busy: ",
        ),
        (pool_is_full, "pooler.session_connections is how many there may be"),
        (pool_has_no_server, "longest for 40 s), and nobody has one: the log of pgbouncer-1 says"),
    ],
    ids=lambda v: v.__name__ if callable(v) else "",
)
def test_each_fault_is_told(deployment: Healthy, wrong: Any, says: str) -> None:
    wrong(deployment)
    found = gather(deployment)
    assert any(problem.startswith(says) or says in problem for problem in found.problems)
    assert json.loads(found.as_json())["healthy"] is False


def test_synchronous_off_is_no_problem(deployment: Healthy) -> None:
    deployment.settings = stackfile.load({"postgres": {"synchronous": "off"}}, "test")
    not_synchronous(deployment)
    found = gather(deployment)
    assert (found.synchronous, found.problems) == ("off", [])


def test_what_cannot_be_asked_is_a_problem_and_the_rest_is_told(
    deployment: Healthy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise UnhealthyError("pgBackRest cannot reach S3")

    monkeypatch.setattr(status.backups, "backups", refuse)
    found = gather(deployment)
    assert found.problems == ["pgBackRest cannot reach S3"]
    assert found.last_backup is None
    assert found.archive


def test_a_stack_that_does_not_run_is_an_error(deployment: Healthy) -> None:
    deployment.units["pg-1"] = UnitState("pg-1", "exited", 0)
    with pytest.raises(NotDeployedError):
        gather(deployment)


def test_a_restore_that_others_went_on_without(deployment: Healthy) -> None:
    """Nothing is paused any more: to go on with it would take all of them back."""
    deployment.journal = json.dumps({"target": "latest", "since": "noon", "stage": "fetching"})
    problems = gather(deployment).problems
    assert len(problems) == 2 and all("--abandon` forgets that" in p for p in problems), problems


def test_a_restore_that_has_not_ended(deployment: Healthy) -> None:
    deployment.held = True
    deployment.journal = json.dumps({"target": "latest", "since": "noon", "stage": "fetching"})
    (problem,) = status.gather(deployment).problems  # type: ignore[arg-type]
    assert "a restore to latest" in problem
    assert "elsapg restore --stack test" in problem


def test_nothing_fails_over_while_patroni_is_paused(deployment: Healthy) -> None:
    """By hand, or by a restore whose node is away: no journal tells of it then."""
    deployment.held = True
    [problem] = gather(deployment).problems
    assert "nothing fails over" in problem and "patronictl" in problem and "resume elsa" in problem


def test_a_full_volume_for_wal_is_told(deployment: Healthy) -> None:
    """The data's own has room: it is the other one that stops the database while S3 is away."""
    size = {"volume_size": "20Gi", "wal_volume_size": "5Gi"}
    deployment.settings = kubernetes_settings({"postgres": size})
    deployment.wal_used = "96"
    problems = gather(deployment).problems
    assert len(problems) == 2 and all("the disk for WAL of pg-" in p for p in problems), problems


def test_a_node_that_says_nothing_of_its_disk_is_told(deployment: Healthy) -> None:
    """As one does whose container is being stopped."""
    deployment.used = ""
    assert sorted(gather(deployment).problems) == [
        f"{node}: its disk cannot be looked at: " for node in deployment.nodes
    ]


def test_a_node_that_is_on_its_way_is_left_alone(deployment: Healthy) -> None:
    """`reinit --force` would throw the copy away that is under way; and of a node that may be the
    next primary, while there is none, its data."""
    copied(deployment)
    assert not any("reinit" in problem for problem in gather(deployment).problems)
    no_leader(deployment)
    deployment.cluster[1] = member("pg-2", "replica", "running")
    assert not any("reinit" in problem for problem in gather(deployment).problems)


def test_a_node_that_answers_nothing_is_a_problem_and_no_traceback(
    deployment: Healthy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = deployment.query

    def silent(node: str, sql: str, database: str = "postgres") -> list[list[str]]:
        return [] if "jsonb_build_object" in sql else asked(node, sql, database)

    monkeypatch.setattr(deployment, "query", silent)
    assert "pg-1 told nothing of its sessions: look again" in gather(deployment).problems


def test_a_stack_on_kubernetes_may_be_applied_by_others() -> None:
    told = for_stack(for_whoever_applies("run `elsapg up`, which renews it"), "test")
    again = for_stack(for_whoever_applies("`elsapg up --refresh`"), "test")
    assert again.startswith("`elsapg up --refresh --stack test` (or delete Job bootstrap-…, ")
    assert told == (
        "run `elsapg up --stack test` (or what `elsapg render --stack test` writes, applied), "
        "which renews it"
    )


@pytest.mark.parametrize(
    ("text", "is_for"),
    [
        ("`elsapg backup now` takes one", "`elsapg backup now --stack test` takes one"),
        (
            "`elsapg up --stack other`, `elsapg up`",
            "`elsapg up --stack other`, `elsapg up --stack test`",
        ),
        ("`elsapg setup` here", None),
        ("`elsapg status -s other`; `docker ps`; elsapg up", None),
    ],
)
def test_commands_are_for_this_stack(text: str, is_for: str | None) -> None:
    assert for_stack(text, "test") == (is_for or text)
    assert for_stack(text, "local") == text


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", ["", "0\n", "cat: broken\n"])
def test_a_node_whose_memory_was_enough(deployment: Healthy, killed: str) -> None:
    deployment.killed["pg-1"] = killed
    deployment.rows["pg_stat_bgwriter"] = [["2026-03-01 00:58"]]
    assert gather(deployment).problems == []


def test_memory_that_ran_out_is_told_for_a_day(deployment: Healthy) -> None:
    deployment.killed["pg-2"] = "3\n"
    deployment.rows["pg-2 postgres \nSELECT to_char"] = [["2026-03-01 00:58"]]
    assert gather(deployment).problems == [
        "pg-2 ran out of memory and began anew, 2026-03-01 00:58 UTC, and its sessions ended (it "
        "may have postgres.memory_mb, 1024, and 256 MiB; docs/runbook.md, 'Memory runs out'); "
        "processes killed: 3"
    ]
    deployment.rows.clear()
    assert gather(deployment).problems == []


@pytest.mark.parametrize(("hours", "told"), [(1, True), (23, True), (25, False)])
def test_what_the_engine_started_for_lack_of_memory(
    deployment: Healthy, hours: int, told: bool
) -> None:
    when = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours)
    stamp = f"{when:%Y-%m-%dT%H:%M:%SZ}"
    deployment.units["pgbouncer-1"] = UnitState("pgbouncer-1", "running", 1, stamp)
    problems = gather(deployment).problems
    assert bool(problems) is told
    if told:
        assert problems[0].startswith("pgbouncer-1 ran out of memory and began anew, 20")
        assert "(it may have what pooler.max_client_conn, 1000, needs; docs" in problems[0]
