"""Processes: what runs in each unit, as whom, and what it could do to the machine."""

from __future__ import annotations

from elsapg.definition import topology as t
from tests.infra.facts import UID, Facts, Unit, judge, none, same

# Process 1, then whatever else may belong to its tree, as regular names of executables.
EXPECTED = {
    "postgres": (
        "elsapg.runner.patroni_node /etc/elsapg/patroni.yml",
        {"patroni", "postgres", "pgbackrest"},
    ),
    "agent": ("pgbackrest server --config=/etc/elsapg/pgbackrest.conf", {"pgbackrest"}),
    "pgbouncer": ("pgbouncer /etc/elsapg/pgbouncer.ini", {"pgbouncer"}),
    "haproxy": ("haproxy -W -db -f /etc/elsapg/haproxy.cfg", {"haproxy"}),
    "etcd": ("etcd --config-file /etc/elsapg/etcd.yml", {"etcd"}),
    "s3": ("versitygw --port :9000", {"versitygw"}),
    # Beside backups: dumps, and the throw-away server of a drill.
    "runner": (
        "-m elsapg.runner schedule",
        {
            *("python3", "pgbackrest", "pg_dump", "pg_restore", "tar", "openssl", "cat"),
            *("postgres", "pg_amcheck", "pg_controldata", "bash", "gzip"),
        },
    ),
}
# What looks for processes that outlived their postmaster, beside process 1 of a node.
ORPHANS = {"no-orphans", "sleep", "grep"}
# What looks for changed files beside process 1, on kubernetes (images/bin/reload-on-change). Of
# what ends just now only the name is known, and the kernel cuts that at 15 characters.
WATCHER = {"reload-on-chang", "sleep", "readlink"}
RESTARTS = 3
DEAD = 2


def _kind(facts: Facts, unit: str) -> str:
    found = next(u for u in t.units(facts.deployment.settings) if u.name == unit)
    return "agent" if unit.endswith("-agent") else found.image


def test_every_unit_runs(facts: Facts, unit_name: str) -> None:
    """The unit runs."""
    state = facts.states.get(unit_name)
    judge(
        facts.runs(unit_name),
        f"{unit_name} is {state.state if state else 'absent'}",
        "its log says why; "
        + facts.deployment.hosts.remedy(unit_name, state.state if state else "missing"),
    )


def test_process_1_is_the_service_itself(facts: Facts, unit: Unit) -> None:
    """Process 1 is the service, started by its configuration file."""
    wanted, _ = EXPECTED[_kind(facts, unit.name)]
    judge(
        wanted in unit.first.command,
        f"process 1 of {unit.name} is {unit.first.command!r}",
        lambda: f"it should be `{wanted}`: {facts.deployment.hosts.anew(unit.name)}",
    )


def test_nothing_else_runs_beside_it(facts: Facts, unit: Unit) -> None:
    """The unit holds one process tree, of this service's programs only."""
    _, programs = EXPECTED[_kind(facts, unit.name)]
    allowed = programs | {"sh", "dash"} | ORPHANS if "postgres" in programs else programs
    if facts.kubernetes:
        allowed = allowed | WATCHER
    none(
        (
            f"{p.command or p.name} (pid {p.pid})"
            for p in unit.tree
            # A dead process has neither command nor executable.
            if p.state != "Z"
            and not any(name in f"{p.name} {p.command}".split("-sf")[0] for name in allowed)
        ),
        f"nothing but {', '.join(sorted(programs))} belongs here: find out who started it",
    )


def test_every_process_runs_as_uid_999(facts: Facts, unit: Unit) -> None:
    """No process of the unit is root's or anybody's but uid 999's."""
    none(
        (f"{p.command or p.name} runs as uid {p.uid}" for p in unit.processes if p.uid != UID),
        lambda: facts.deployment.hosts.anew(unit.name),
    )


def test_nobody_can_log_in_to_a_node(facts: Facts, node: str) -> None:
    """The account that PostgreSQL runs as has no shell."""
    user = facts.unit(node).host.user("postgres")
    same((user.uid, user.shell), (UID, "/usr/sbin/nologin"), "rebuild the image")


def test_no_process_holds_a_capability(facts: Facts, unit: Unit) -> None:
    """No process has a capability, nor can get one by executing a file."""
    none(
        (
            f"{p.name} (pid {p.pid}): capabilities {p.capabilities}, "
            f"no-new-privileges {p.no_new_privileges}"
            for p in unit.tree
            if p.state != "Z" and (int(p.capabilities or "0", 16) or not p.no_new_privileges)
        ),
        lambda: f"{facts.deployment.hosts.anew(unit.name)}, with all capabilities dropped",
    )


def test_its_root_cannot_be_written(facts: Facts, unit: Unit) -> None:
    """The root file system is read-only, and its process can write no configuration or program."""
    root = [line.split()[3].split(",") for line in unit.mounts if line.split()[1] == "/"]
    judge(
        root and "ro" in root[-1] and facts.containment(unit.name).read_only,
        f"{unit.name}'s root is mounted {','.join(root[-1]) if root else 'nowhere'}",
        lambda: facts.deployment.hosts.anew(unit.name),
    )
    none(
        (f"{path} can be written" for path in unit.writable),
        lambda: facts.deployment.hosts.anew(unit.name),
    )


def test_its_memory_is_limited(facts: Facts, unit: Unit) -> None:
    """The unit has the memory limit that its definition says."""
    wanted = next(u for u in t.units(facts.deployment.settings) if u.name == unit.name)
    limit = facts.containment(unit.name).memory_bytes // (1024 * 1024)
    judge(
        limit == wanted.memory_mb,
        f"{unit.name}: {limit or 'no'} MiB, not {wanted.memory_mb} MiB",
        lambda: facts.deployment.hosts.anew(unit.name),
    )


def test_it_does_not_crash(facts: Facts, unit: Unit) -> None:
    """The unit was restarted seldom, and never for want of memory."""
    held = facts.containment(unit.name)
    judge(
        held.restarts <= RESTARTS and not held.out_of_memory,
        f"{held.restarts} restarts"
        + (", the last one because its memory ran out" if held.out_of_memory else ""),
        "its log says why; give it more memory if that ran out",
    )


def test_dead_processes_are_reaped(unit: Unit) -> None:
    """Process 1 collects its dead children."""
    dead = [p.name for p in unit.processes if p.state == "Z"]
    judge(len(dead) <= DEAD, f"{len(dead)} zombies: {', '.join(sorted(set(dead)))}", "restart it")
