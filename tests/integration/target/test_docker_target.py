"""The docker target against a real daemon: nothing to do, things removed by hand, destroy."""

from __future__ import annotations

import contextlib
import http.client
import shlex
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from elsapg import process
from elsapg.definition import topology as t
from elsapg.targets.docker import daemon as d
from tests.integration.target_stack import Target, eventually

pytestmark = pytest.mark.docker


def test_what_runs_is_what_the_definition_says(target: Target) -> None:
    units = {u.name: u for u in t.units(target.deployment.settings)}
    containers = target.containers()
    assert set(containers) == set(units), "a unit is missing, or a task was left behind"
    for name, container in containers.items():
        assert container.status == "running", name
        host = container.attrs["HostConfig"]
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert host["SecurityOpt"] == ["no-new-privileges"], name
        assert host["Memory"] == (units[name].memory_mb or 0) * 1024 * 1024, name
        assert container.attrs["Config"]["User"] == "999:999", name
        [network] = container.attrs["NetworkSettings"]["Networks"].values()
        assert set(units[name].aliases) <= set(network["Aliases"]), name
        published = {int(p.partition("/")[0]): b for p, b in (host["PortBindings"] or {}).items()}
        assert published == {
            port.container: [{"HostIp": "127.0.0.1", "HostPort": str(port.host)}]
            for port in units[name].ports
        }, name
    data = {m.volume for u in units.values() for m in u.mounts}
    wanted = {d.physical_name(target.stack, name) for name in data}
    wanted |= {d.physical_name(target.stack, f"{name}-config") for name in units}
    assert target.volumes() == wanted
    assert target.networks() == {d.physical_name(target.stack, "network")}


def test_an_answer_that_comes_at_once_is_read_whole(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy client finds the command's output in one piece with the answer's header."""
    begin = http.client.HTTPResponse.begin

    def late(response: http.client.HTTPResponse) -> None:
        time.sleep(0.5)
        begin(response)

    monkeypatch.setattr(http.client.HTTPResponse, "begin", late)
    done = target.deployment.hosts.run("runner", "sh", "-c", "echo one; sleep 1; echo two >&2")
    assert (done.code, done.output) == (0, "one\ntwo\n")


def test_a_second_up_changes_nothing(target: Target) -> None:
    target.up()  # An earlier test may have had other settings.
    before = target.process_starts()
    target.unchanged()
    output = target.up()
    assert " unchanged in " in output
    assert "created" not in output
    assert "updated" not in output
    assert target.process_starts() == before


def test_what_was_removed_or_stopped_by_hand_comes_back(target: Target) -> None:
    before = target.ids()
    leader = target.deployment.primary()
    [standby] = set(target.deployment.nodes) - {leader}
    target.container(standby).remove(force=True)
    target.container("pgbouncer-2").remove(force=True)
    target.container("runner").stop(timeout=1)
    # Without looking, Pulumi believes its state.
    target.unchanged()
    told = target.run("refresh", "--expect-no-changes", code=9)
    for unit in (standby, "pgbouncer-2", "runner"):
        assert unit in told
    target.run("refresh", "--yes")
    output = target.up()
    assert "2 created, 1 updated" in output, output
    after = target.ids()
    assert set(after) == set(before)
    assert {u for u in before if before[u] != after[u]} == {standby, "pgbouncer-2"}
    assert all(c.status == "running" for c in target.containers().values())
    eventually(lambda: not target.problems())
    with target.client() as db:
        assert db.execute("SELECT 1").fetchone() == (1,)
    target.run("up", "--expect-no-changes", "--refresh")


def test_up_with_refresh_is_one_command_for_it(target: Target) -> None:
    target.container("haproxy").stop(timeout=1)
    assert "1 updated" in target.run("up", "--yes", "--refresh")
    assert target.container("haproxy").status == "running"
    eventually(lambda: not target.problems())


def test_clients_that_wait_for_a_full_pool_are_told(target: Target) -> None:
    size = target.deployment.settings.pooler.session_connections
    with contextlib.ExitStack() as held, ThreadPoolExecutor(1) as late:
        # All come to the first pool that answers.
        first, *others = (
            held.enter_context(target.client(role="elsa_migrator", via="session"))
            for _ in range(size + 1)
        )
        for db in others:
            db.execute("SELECT 1")
        waits = late.submit(first.execute, "SELECT 1")
        told = eventually(lambda: [p for p in target.problems() if "wait for a connection" in p])[0]
        assert "clients of elsa_migrator wait for a connection to elsa_workflows_session (1" in told
        assert f"and {size} are busy" in told
        way = shlex.split(told.split("`")[1])
        assert process.run(way, timeout=30).stdout.count("elsa_migrator") >= size
        assert not waits.done()
        others[0].close()
        assert waits.result(timeout=30).fetchone() == (1,)
        eventually(lambda: not target.problems())


def test_a_session_that_holds_up_others_is_told(target: Target) -> None:
    """Here one that forgot its transaction; the command that `status` prints ends it."""
    table = "elsa_workflows.bookmarks"
    with (
        target.client(role="elsa_migrator", via="session") as holder,
        target.client(role="elsa_migrator", via="session") as other,
        ThreadPoolExecutor(1) as late,
    ):
        holder.execute("BEGIN")
        holder.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        other.execute("SET lock_timeout = 0")  # its role's would end it while this looks
        waits = late.submit(other.execute, f"SELECT count(*) FROM {table}")
        told = eventually(lambda: [p for p in target.problems() if "holds up" in p])[0]
        assert "(elsa_migrator, idle in transaction: LOCK TABLE …) holds up 1 sessions" in told
        assert not waits.done()
        process.run(shlex.split(told.split("`")[1]), timeout=30)
        assert waits.result(timeout=30).fetchone() is not None
        with pytest.raises(psycopg.OperationalError):
            holder.execute("SELECT 1")


def test_destroy_keeps_data_and_secrets_for_the_next_up(target: Target) -> None:
    deployment = target.deployment
    passwords = deployment.outputs["passwords"]
    leader = deployment.primary()
    deployment.query(leader, "CREATE TABLE IF NOT EXISTS survivor AS SELECT 41 + 1 AS answer")
    system = deployment.query(leader, "SELECT system_identifier FROM pg_control_system()")
    authority = deployment.outputs["ca"]

    output = target.run("destroy", "--yes")
    assert f"destroy --stack {target.stack} --purge" in output
    assert target.containers() == {}
    assert target.networks() == set()
    # The sockets' volumes and the configurations (with keys in them) are no data.
    kept = {"pg-1", "pg-2", "etcd-1", "s3", "s3-versions"}
    assert target.volumes() == {d.physical_name(target.stack, name) for name in kept}
    assert "nothing runs" in target.run("destroy", "--yes")

    target.up()
    again = target.deployment
    assert again.outputs["passwords"] == passwords
    assert again.outputs["ca"] == authority
    leader = again.primary()
    assert again.query(leader, "SELECT system_identifier FROM pg_control_system()") == system
    assert again.query(leader, "SELECT answer FROM survivor") == [["42"]]
    with target.client() as db:
        assert db.execute("SELECT current_user").fetchone() == ("elsa_app",)
    target.wait_healthy()
    target.unchanged()
