"""Months and tenants' partitions: made in time, in UTC whatever the session says, moved into."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as within
from hypothesis import strategies as st
from sql_server import Server

pytestmark = pytest.mark.docker

DATABASE = "elsa_workflows"
READS_S = 6.0
TABLES = ("activity_execution_records", "workflow_instances")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Pacific/Kiritimati", "Pacific/Pago_Pago")
INSTANCE = (
    "INSERT INTO elsa_workflows.workflow_instances"
    " (id, definition_id, definition_version, workflow_state, status, created_at, tenant_id)"
    " VALUES (%s, 'flow', 1, '{}', 'Running', %s, 'a')"
)
RECORD = (
    "INSERT INTO elsa_workflows.activity_execution_records"
    " (id, workflow_instance_id, activity_id, activity_node_id, activity_type,"
    " activity_type_version, started_at, status, tenant_id)"
    " VALUES (%s, %s, 'a', 'n', 'T', 1, %s, 'Completed', 'a')"
)


def first(moment: datetime, months: int = 0) -> datetime:
    """The begin of the UTC month of a moment, or of one some months later."""
    moment = moment.astimezone(UTC)
    number = moment.year * 12 + moment.month - 1 + months
    return datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC)


def name(table: str, month: datetime) -> str:
    return f"elsa_workflows.{table}_{month:%Y_%m}"


@contextmanager
def undone(server: Server, zone: str = "UTC") -> Iterator[psycopg.Connection[Any]]:
    """A superuser's transaction that leaves nothing."""
    with server.connect(DATABASE) as connection:
        connection.execute("SELECT set_config('TimeZone', %s, false)", (zone,))
        connection.execute("SET search_path = ''")
        yield connection
        connection.rollback()


def bounds(connection: psycopg.Connection[Any], table: str) -> dict[str, tuple[datetime, datetime]]:
    rows = connection.execute(
        "SELECT name::text, from_at, to_at FROM elsapg.range_partitions(%s::regclass)"
        " WHERE NOT is_default",
        (f"elsa_workflows.{table}",),
    )
    return {row[0]: (row[1].astimezone(UTC), row[2].astimezone(UTC)) for row in rows}


def create(
    connection: psycopg.Connection[Any], ahead: int | None = None, now: datetime | None = None
) -> list[str]:
    if now is None:
        rows = connection.execute("SELECT elsa_workflows.create_monthly_partitions(%s)", (ahead,))
    else:
        rows = connection.execute(
            "SELECT elsa_workflows.create_monthly_partitions(%s, %s)", (ahead, now)
        )
    return [row[0] for row in rows.fetchall()]


def partition_of(connection: psycopg.Connection[Any], table: str, row: str) -> str:
    found = connection.execute(
        f"SELECT tableoid::regclass::text FROM elsa_workflows.{table} WHERE id = %s".encode(),
        (row,),
    ).fetchone()
    assert found is not None
    return str(found[0])


def test_the_bootstrap_makes_this_month_and_the_next(server: Server) -> None:
    now = datetime.now(UTC)
    with undone(server) as connection:
        for table in TABLES:
            found = bounds(connection, table)
            for ahead in range(3):
                month = first(now, ahead)
                assert found[name(table, month)] == (month, first(now, ahead + 1))
        assert create(connection) == []


def test_partitions_are_the_owners_closed_and_like_their_parent(server: Server) -> None:
    with undone(server) as connection:
        made = create(connection, 0, datetime(2001, 5, 5, tzinfo=UTC))
        assert made == [
            "elsa_workflows.activity_execution_records_2001_05",
            "elsa_workflows.workflow_instances_2001_05",
        ]
        for partition in made:
            row = connection.execute(
                "SELECT c.relowner::regrole::text, c.relrowsecurity, c.relforcerowsecurity,"
                " (SELECT count(*) FROM aclexplode(c.relacl) AS a WHERE a.grantee <> c.relowner),"
                " obj_description(c.oid),"
                " (SELECT count(*) FROM pg_index AS i WHERE i.indrelid = c.oid)"
                " = (SELECT count(*) FROM pg_index AS i WHERE i.indrelid = n.inhparent)"
                " FROM pg_class AS c JOIN pg_inherits AS n ON c.oid = n.inhrelid"
                " WHERE c.oid = %s::regclass",
                (partition,),
            ).fetchone()
            assert row is not None
            assert row[:4] == ("elsa_owner", True, True, 0)
            assert "2001-05, UTC" in row[4]
            assert row[5]


@within(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    now=st.datetimes(datetime(1971, 1, 1), datetime(2199, 1, 1), timezones=st.just(UTC)),
    zone=st.sampled_from(ZONES),
    ahead=st.integers(0, 2),
)
def test_months_are_utc_and_without_gaps_whenever_and_wherever(
    server: Server, now: datetime, zone: str, ahead: int
) -> None:
    with undone(server, zone) as connection:
        create(connection, ahead, now)
        for table in TABLES:
            found = bounds(connection, table)
            for month in range(ahead + 1):
                begin, end = first(now, month), first(now, month + 1)
                assert found[name(table, begin)] == (begin, end)
        begin, end = first(now), first(now, ahead + 1)
        for label, moment in (("begin", begin), ("end", end - timedelta(microseconds=1))):
            connection.execute(INSTANCE, (label, moment))
            assert partition_of(connection, "workflow_instances", label) == name(
                "workflow_instances", first(moment)
            )


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(
    ("moment", "month"),
    [
        ("2028-02-29 23:59:59.999999+00", "2028_02"),  # a leap day's last moment
        ("2028-03-01 00:00:00+00", "2028_03"),
        ("2100-02-28 23:59:59.999999+00", "2100_02"),  # no leap year
        ("2027-12-31 23:59:59.999999+00", "2027_12"),
        ("2028-01-01 00:00:00+00", "2028_01"),
        ("2027-12-31 20:00:00-04", "2028_01"),  # next year already
        ("2028-05-01 13:59:59+14", "2028_04"),  # still last month
        ("2028-03-26 01:30:00+00", "2028_03"),  # Berlin changes its clocks
        ("2028-10-29 00:59:59+00", "2028_10"),
        ("2028-11-05 05:30:00+00", "2028_11"),  # New York does
    ],
)
def test_a_row_lands_in_its_utc_month(server: Server, zone: str, moment: str, month: str) -> None:
    with undone(server, zone) as connection:
        connection.execute(
            "SELECT elsa_workflows.create_monthly_partitions(0, %s::timestamptz)", (moment,)
        )
        connection.execute(INSTANCE, ("i", moment))
        connection.execute(RECORD, ("r", "i", moment))
        assert partition_of(connection, "workflow_instances", "i").endswith(month)
        assert partition_of(connection, "activity_execution_records", "r").endswith(month)


def health(connection: psycopg.Connection[Any], table: str) -> Any:
    return connection.execute(
        "SELECT months_ahead, default_rows, healthy FROM elsapg.partition_health"
        " WHERE table_name = %s",
        (f"elsa_workflows.{table}",),
    ).fetchone()


def test_rows_outside_all_months_are_kept_reported_and_moved_when_their_month_comes(
    server: Server,
) -> None:
    moment = datetime(2002, 2, 3, tzinfo=UTC)
    with undone(server) as connection:
        assert health(connection, "workflow_instances") == (2, 0, True)
        connection.execute(INSTANCE, ("stray", moment))
        connection.execute(INSTANCE, ("other", first(moment, 1)))
        connection.execute(RECORD, ("stray-r", "stray", moment))
        assert partition_of(connection, "workflow_instances", "stray").endswith("_default")
        assert health(connection, "workflow_instances") == (2, 2, False)
        assert health(connection, "activity_execution_records") == (2, 1, False)

        create(connection, 0, moment)
        assert partition_of(connection, "workflow_instances", "stray").endswith("_2002_02")
        assert partition_of(connection, "activity_execution_records", "stray-r").endswith("2002_02")
        assert partition_of(connection, "workflow_instances", "other").endswith("_default")
        # The keys stayed: children can still be added, ids are still taken.
        connection.execute(RECORD, ("stray-r2", "stray", moment))
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute(INSTANCE, ("stray", first(moment, 1)))
        connection.rollback()
        assert health(connection, "workflow_instances") == (2, 0, True)


def test_strays_of_any_month_get_their_months(server: Server) -> None:
    moments = [datetime(2002, 2, 3, tzinfo=UTC), datetime(2002, 5, 31, 23, tzinfo=UTC)]
    with undone(server, "Asia/Tokyo") as connection:
        for number, moment in enumerate(moments):
            connection.execute(INSTANCE, (f"stray-{number}", moment))
            connection.execute(RECORD, (f"stray-r{number}", f"stray-{number}", moment))
        connection.execute(INSTANCE, ("never", "infinity"))
        made = connection.execute("SELECT elsa_workflows.create_stray_months()").fetchall()
        assert sorted(name.rpartition(".")[2] for (name,) in made) == [
            f"{table}_2002_{month}"
            for table in ("activity_execution_records", "workflow_instances")
            for month in ("02", "05")
        ]
        for number, month in enumerate(("02", "05")):
            instances = partition_of(connection, "workflow_instances", f"stray-{number}")
            records = partition_of(connection, "activity_execution_records", f"stray-r{number}")
            assert instances.endswith(f"_2002_{month}") and records.endswith(f"_2002_{month}")
        # What has no month stays, and is still told of.
        assert health(connection, "workflow_instances") == (2, 1, False)
        assert health(connection, "activity_execution_records") == (2, 0, True)
        assert connection.execute("SELECT elsa_workflows.create_stray_months()").fetchall() == []


def test_health_is_bad_when_months_lack_ahead(server: Server) -> None:
    now = datetime.now(UTC)
    with undone(server) as connection:
        for ahead, left in ((2, 1), (1, 0), (0, -1)):
            connection.execute(
                f"DROP TABLE {name('workflow_instances', first(now, ahead))}".encode()
            )
            assert health(connection, "workflow_instances") == (left, 0, left >= 1)
        create(connection)
        assert health(connection, "workflow_instances") == (2, 0, True)
        # A gap counts: what lies behind it is not covered.
        connection.execute(f"DROP TABLE {name('workflow_instances', first(now, 1))}".encode())
        assert health(connection, "workflow_instances") == (0, 0, False)


@pytest.mark.parametrize("role", ["monitoring", "elsa_admin"])
def test_health_is_for_those_who_watch(server: Server, role: str) -> None:
    with server.connect(DATABASE, role) as connection:
        rows = connection.execute("SELECT table_name FROM elsapg.partition_health").fetchall()
        assert len(rows) == 4


def test_a_partition_with_other_bounds_is_an_error_that_says_so(server: Server) -> None:
    with undone(server) as connection:
        connection.execute(
            "CREATE TABLE elsa_workflows.workflow_instances_2003_03 PARTITION OF"
            " elsa_workflows.workflow_instances"
            " FOR VALUES FROM ('2003-03-01 00:00+01') TO ('2003-04-01 00:00+01')"
        )
        with pytest.raises(
            psycopg.errors.InvalidObjectDefinition,
            match=r"workflow_instances_2003_03 holds 2003-02-28 23:00:00\+00 to .* should hold"
            r" 2003-03-01 00:00:00\+00",
        ):
            create(connection, 0, datetime(2003, 3, 9, tzinfo=UTC))


def test_a_name_that_is_taken_is_an_error_that_says_so(server: Server) -> None:
    with undone(server) as connection:
        connection.execute("CREATE TABLE elsa_workflows.workflow_instances_2003_03 ()")
        with pytest.raises(psycopg.errors.DuplicateTable, match="a relation of that name exists"):
            create(connection, 0, datetime(2003, 3, 9, tzinfo=UTC))


@pytest.mark.parametrize("ahead", [-1, 121])
def test_months_ahead_have_bounds(server: Server, ahead: int) -> None:
    with undone(server) as connection, pytest.raises(psycopg.errors.InvalidParameterValue):
        create(connection, ahead)


def drop_months(server: Server, year: int) -> None:
    with server.connect(DATABASE, autocommit=True) as connection:
        for table in TABLES:
            for partition in bounds(connection, table):
                if f"_{year}_" in partition:
                    connection.execute(f"DROP TABLE {partition}".encode())


def test_two_at_once_make_each_month_once(server: Server) -> None:
    made: list[str] = []
    errors: list[BaseException] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        try:
            with server.connect(DATABASE, autocommit=True) as connection:
                barrier.wait()
                made.extend(create(connection, 2, datetime(2004, 1, 1, tzinfo=UTC)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(made) == len(set(made)) == 6
    finally:
        drop_months(server, 2004)


def test_writers_hardly_wait_even_when_somebody_holds_the_default_partition(server: Server) -> None:
    """A reader of all months is in the way for seconds: the function tries until he is gone, and
    the writer behind it never waits longer than an attempt or two."""
    waits: list[float] = []
    stop = threading.Event()

    def write() -> None:
        number = 0
        with server.connect(DATABASE, autocommit=True) as connection:
            while not stop.is_set():
                number += 1
                began = time.monotonic()
                connection.execute(INSTANCE, (f"wait-{number}", datetime.now(UTC)))
                connection.execute(RECORD, (f"w-{number}", f"wait-{number}", datetime.now(UTC)))
                waits.append(time.monotonic() - began)

    writer = threading.Thread(target=write)
    with server.connect(DATABASE) as reader, server.connect(DATABASE, autocommit=True) as maker:
        reader.execute("SELECT count(*) FROM elsa_workflows.workflow_instances")
        writer.start()
        while len(waits) <= 10 and writer.is_alive():
            time.sleep(0.01)
        release = threading.Timer(READS_S, reader.rollback)
        release.start()
        try:
            made = create(maker, 2, datetime(2005, 1, 1, tzinfo=UTC))
        finally:
            stop.set()
            writer.join()
            release.join()
            drop_months(server, 2005)
            maker.execute("DELETE FROM elsa_workflows.workflow_instances WHERE id LIKE 'wait-%'")
    assert len(made) == 6
    assert len(waits) > 10
    assert max(waits) < 0.75 * READS_S


def test_a_lock_that_never_comes_is_an_error_that_leaves_nothing(server: Server) -> None:
    with server.connect(DATABASE) as reader, server.connect(DATABASE, autocommit=True) as maker:
        reader.execute("SELECT count(*) FROM elsa_workflows.workflow_instances")
        with pytest.raises(psycopg.errors.LockNotAvailable, match="40 attempts of 100 ms"):
            create(maker, 0, datetime(2006, 1, 1, tzinfo=UTC))
        found = maker.execute("SELECT to_regclass('elsa_workflows.workflow_instances_2006_01')")
        assert found.fetchone() == (None,)


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_readonly", "elsa_host"])
@pytest.mark.parametrize(
    "call",
    [
        "elsa_workflows.create_monthly_partitions()",
        "elsa_workflows.create_stray_months()",
        "elsa_workflows.add_tenant_partition('a')",
        "elsapg.add_months(ARRAY['elsa_workflows.workflow_instances'::regclass], ARRAY[now()])",
        "elsapg.drop_partition('elsa_workflows.workflow_instances', true)",
        "elsapg.partition_health()",
    ],
)
def test_the_application_makes_and_drops_no_partitions(
    server: Server, role: str, call: str
) -> None:
    with (
        server.connect(DATABASE, role) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(f"SELECT {call}".encode())


def test_jobs_and_admins_make_months(server: Server) -> None:
    try:
        with server.connect(DATABASE, "elsa_admin", autocommit=True) as connection:
            assert len(create(connection, 0, datetime(2007, 7, 7, tzinfo=UTC))) == 2
        with server.connect(DATABASE) as connection:
            connection.execute("SET SESSION AUTHORIZATION elsa_jobs")
            assert len(create(connection, 0, datetime(2007, 8, 7, tzinfo=UTC))) == 2
    finally:
        drop_months(server, 2007)


def define(connection: psycopg.Connection[Any], tenant: str) -> None:
    connection.execute(
        "INSERT INTO elsa_workflows.workflow_definitions"
        " (id, definition_id, version, name, materialized_workflow, tenant_id)"
        " VALUES ('1', 'flow', 1, 'Flow', '{}', %s)",
        (tenant,),
    )


def own(connection: psycopg.Connection[Any], tenant: str) -> str:
    row = connection.execute(
        "SELECT elsa_workflows.add_tenant_partition(%s)::text", (tenant,)
    ).fetchone()
    assert row is not None
    return str(row[0])


def test_a_tenants_definitions_move_into_its_partition(server: Server) -> None:
    with undone(server) as connection:
        for tenant in ("tenant-001", "tenant-002"):
            define(connection, tenant)
        assert own(connection, "tenant-001") == "elsa_workflows.workflow_definitions_tenant_001"
        assert own(connection, "tenant-001") == "elsa_workflows.workflow_definitions_tenant_001"
        rows = connection.execute(
            "SELECT tenant_id, tableoid::regclass::text FROM elsa_workflows.workflow_definitions"
            " ORDER BY 1"
        ).fetchall()
        assert rows == [
            ("tenant-001", "elsa_workflows.workflow_definitions_tenant_001"),
            ("tenant-002", "elsa_workflows.workflow_definitions_default"),
        ]
        # Isolation is the parent's, as before; the partition itself shows nothing.
        connection.execute("SET LOCAL ROLE elsa_app")
        connection.execute("SELECT set_config('app.current_tenant_id', 'tenant-001', true)")
        seen = connection.execute("SELECT tenant_id FROM elsa_workflows.workflow_definitions")
        assert seen.fetchall() == [("tenant-001",)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM elsa_workflows.workflow_definitions_tenant_001")


@within(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    tenants=st.lists(
        st.one_of(
            st.text(
                st.characters(exclude_categories=("Cs",), exclude_characters="\x00"),
                min_size=1,
                max_size=255,
            ),
            st.sampled_from(
                ["a-b", "a_b", "A-B", "default", "x" * 255, "x" * 254, "'; DROP", "ü", "\\", "\\'"]
            ),
        ),
        min_size=1,
        max_size=4,
        unique=True,
    )
)
def test_any_tenant_gets_a_partition_of_its_own(server: Server, tenants: list[str]) -> None:
    with undone(server) as connection:
        for tenant in tenants:
            define(connection, tenant)
        names = [own(connection, tenant) for tenant in tenants]
        assert len(set(names)) == len(tenants)
        for tenant, partition in zip(tenants, names, strict=True):
            assert len(partition.removeprefix("elsa_workflows.").encode()) <= 63
            rows = connection.execute(f"SELECT tenant_id FROM {partition}".encode()).fetchall()
            assert rows == [(tenant,)]
            assert own(connection, tenant) == partition


@pytest.mark.parametrize("tenant", [None, "", "x" * 256])
def test_what_is_no_tenant_gets_none(server: Server, tenant: str | None) -> None:
    with undone(server) as connection, pytest.raises(psycopg.errors.InvalidParameterValue):
        connection.execute("SELECT elsa_workflows.add_tenant_partition(%s)", (tenant,))


def test_only_admins_make_tenants_partitions(server: Server) -> None:
    with server.connect(DATABASE, "elsa_admin") as connection:
        assert own(connection, "t").endswith("workflow_definitions_t")
        connection.rollback()
    with (
        server.connect(DATABASE) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SET SESSION AUTHORIZATION elsa_jobs")
        own(connection, "t")
