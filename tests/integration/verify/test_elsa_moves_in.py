"""Real Elsa moves into a running stack: its tables, its statements, its tenants, through the pools.

The tables are those of tests/sql/elsa; a stack in which Elsa lives already is left alone.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors

from elsapg.cli import main
from elsapg.services import connect
from elsapg.services.deployment import Deployment
from tests.integration.target_stack import eventually
from tests.sql.elsa_tables import UPSERT_BOOKMARK, bookmark, drop, migrate
from tests.unit.test_connect import parse_npgsql

pytestmark = pytest.mark.docker

COUNT = 'SELECT count(*) FROM "Elsa"."Bookmarks"'
IDS = 'SELECT "Id" FROM "Elsa"."Bookmarks"'
CONTEXT = "SELECT set_config('app.current_tenant_id', %s, true)"


@contextlib.contextmanager
def client(
    stack: Deployment, role: str, via: connect.Via = "pool", pooler: int | None = None
) -> Iterator[psycopg.Connection[Any]]:
    """A verified client, one statement per transaction; of one PgBouncer if `pooler` says which."""
    found = connect.connection(stack, role, via=via)
    if pooler is not None:
        found = replace(found, addresses=found.addresses[pooler : pooler + 1])
    with psycopg.connect(connect.libpq(found), autocommit=True, connect_timeout=10) as db:
        yield db


def values(db: psycopg.Connection[Any], query: str, *parameters: object) -> list[Any]:
    return [row[0] for row in db.execute(query.encode(), parameters or None).fetchall()]


@pytest.fixture(scope="module")
def elsa(stack: Deployment) -> Iterator[Deployment]:
    """Elsa 3.6's tables, made by the migrator through the session door."""
    with client(stack, "elsa_migrator", "session") as db:
        if values(db, "SELECT count(*) FROM pg_tables WHERE schemaname = 'Elsa'") != [0]:
            pytest.skip(f"Elsa lives in stack {stack.stack!r} already")
        try:
            migrate(db, "3.6")
            yield stack
        finally:
            drop(db)


@pytest.fixture
def secured(elsa: Deployment) -> Iterator[Deployment]:
    """With row-level security, and a row of each kind of tenant."""
    with client(elsa, "elsa_migrator", "session") as db:
        for id_, tenant in {"shared": "*", "default": "", "a1": "a", "b1": "b"}.items():
            db.execute(UPSERT_BOOKMARK, bookmark(id_, tenant))
        assert len(values(db, "SELECT elsapg.enable_elsa_row_security()")) == 17
        try:
            yield elsa
        finally:
            db.execute("SELECT elsapg.disable_elsa_row_security()")
            db.execute('TRUNCATE "Elsa"."Bookmarks"')


# -- moving in -----------------------------------------------------------------------------


def test_what_the_migrator_made_is_the_owners(elsa: Deployment) -> None:
    with client(elsa, "elsa_app") as db:
        owners = values(db, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'Elsa'")
    assert owners == ["elsa_owner"]


def test_the_application_writes_the_worker_changes_readers_read(elsa: Deployment) -> None:
    try:
        with client(elsa, "elsa_app") as db:
            db.execute(UPSERT_BOOKMARK, bookmark("moved-in", "", "one"))
        with client(elsa, "elsa_worker") as db:
            db.execute(UPSERT_BOOKMARK, bookmark("moved-in", "", "two"))
        for via in ("pool", "session", "readonly"):
            with client(elsa, "elsa_readonly", via) as db:
                # The read-only door may lead to a standby, which follows.
                assert eventually(
                    lambda db=db: values(db, 'SELECT "Hash" FROM "Elsa"."Bookmarks"') == ["two"]
                )
    finally:
        with client(elsa, "elsa_host") as db:
            db.execute('DELETE FROM "Elsa"."Bookmarks"')


@pytest.mark.parametrize("pooler", [0, 1])
def test_prepared_upserts_work_in_every_pool(elsa: Deployment, pooler: int) -> None:
    """Npgsql and EF Core prepare; transaction pooling must follow the statement about."""
    with (
        client(elsa, "elsa_app", pooler=pooler) as one,
        client(elsa, "elsa_app", pooler=pooler) as two,
    ):
        for round_ in range(6):
            for db in (one, two):
                db.execute(UPSERT_BOOKMARK, bookmark("p", "", str(round_)), prepare=True)
        assert values(two, 'SELECT "Hash" FROM "Elsa"."Bookmarks"') == ["5"]
        one.execute('DELETE FROM "Elsa"."Bookmarks"')


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("monitoring", COUNT),
        ("elsa_readonly", 'BEGIN READ WRITE; DELETE FROM "Elsa"."Users"'),
        ("elsa_app", 'ALTER TABLE "Elsa"."Bookmarks" ADD mine integer'),
        ("elsa_worker", 'CREATE TABLE "Elsa".mine (id integer)'),
        ("elsa_host", 'TRUNCATE "Elsa"."Bookmarks"'),
        ("elsa_admin", "SELECT elsapg.enable_elsa_row_security()"),
    ],
)
@pytest.mark.parametrize("via", ["pool", "session"])
def test_nobody_else_can(elsa: Deployment, role: str, statement: str, via: connect.Via) -> None:
    with client(elsa, role, via) as db, pytest.raises(errors.InsufficientPrivilege):
        db.execute(statement.encode())


def test_locks_need_the_session_door(elsa: Deployment) -> None:
    """Medallion's locks are session advisory locks: the reason for a string of their own."""
    take = "SELECT pg_try_advisory_lock(hashtext('elsa'))"
    with client(elsa, "elsa_app", "session") as one, client(elsa, "elsa_app", "session") as two:
        assert values(one, take) == [True]
        assert values(two, take) == [False]
        one.close()
        assert eventually(lambda: values(two, take) == [True])


@pytest.mark.parametrize("environment", ["development", "production"])
def test_every_string_of_appsettings_opens_its_door(
    elsa: Deployment,
    environment: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ELSAPG_ROOT", str(elsa.root))
    assert main(["appsettings", "--stack", elsa.stack, "--environment", environment]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["DatabaseProvider"] == "PostgreSql"
    for name, text in document["ConnectionStrings"].items():
        words = parse_npgsql(text)
        assert ("Include Error Detail" in words) == (environment == "development"), name
        assert Path(words["Root Certificate"]).is_file(), name
        for address in words["Host"].split(","):
            host, _, port = address.rpartition(":")
            with psycopg.connect(
                host=host,
                port=port,
                dbname=words["Database"],
                user=words["Username"],
                password=words["Password"],
                sslmode="verify-full",
                sslrootcert=words["Root Certificate"],
                connect_timeout=10,
            ) as db:
                wanted = "elsa_owner" if name == "ElsaMigrations" else "elsa_app"
                assert values(db, "SELECT current_user::text") == [wanted], name


# -- tenants through transaction pooling ---------------------------------------------------


def test_a_context_ends_with_its_transaction(secured: Deployment) -> None:
    """The next client of the same server connection has none."""
    served: dict[str, set[int]] = {"a": set(), "b": set(), "none": set()}
    with contextlib.ExitStack() as opened:
        clients = {
            name: opened.enter_context(client(secured, "elsa_app", pooler=0)) for name in served
        }
        for _ in range(20):
            for tenant in ("a", "b"):
                db = clients[tenant]
                with db.transaction():
                    db.execute(CONTEXT, (tenant,))
                    assert set(values(db, IDS)) == {"shared", f"{tenant}1"}
                    served[tenant] |= set(values(db, "SELECT pg_backend_pid()"))
                # Its own next transaction has none either.
                assert values(db, IDS) == ["shared"]
            db = clients["none"]
            with db.transaction():
                assert values(db, IDS) == ["shared"]
                served["none"] |= set(values(db, "SELECT pg_backend_pid()"))
    # Otherwise nothing was shown.
    assert served["a"] & served["b"] & served["none"], "the pool gave each its own server"


def test_a_rolled_back_or_broken_transaction_leaves_no_context(secured: Deployment) -> None:
    with client(secured, "elsa_app", pooler=0) as one, client(secured, "elsa_app", pooler=0) as two:
        for ending in ("ROLLBACK", "SELECT 1 / 0"):
            one.execute("BEGIN")
            one.execute(CONTEXT, ("a",))
            with contextlib.suppress(errors.DivisionByZero):
                one.execute(ending.encode())
            if ending != "ROLLBACK":
                one.execute("ROLLBACK")
            for db in (one, two):
                assert values(db, IDS) == ["shared"], ending


def test_many_clients_of_both_tenants_never_see_each_other(secured: Deployment) -> None:
    """More clients than server connections, all at once, through both PgBouncers."""
    pools = secured.settings.pooler.max_db_connections
    rounds = 15
    wrong: list[str] = []
    pids: dict[str, set[int]] = {"a": set(), "b": set(), "": set()}
    guard = threading.Lock()
    tenants = list(pids)

    def work(number: int) -> None:
        # Every tenant in both roles, and both of these through both PgBouncers.
        rest, which = divmod(number, len(tenants))
        tenant, role = tenants[which], ("elsa_app", "elsa_worker")[rest % 2]
        wanted = {"shared", f"{tenant}1"} if tenant else {"shared"}
        try:
            with client(secured, role, pooler=rest // 2 % 2) as db:
                for _ in range(rounds):
                    with db.transaction():
                        if tenant:
                            db.execute(CONTEXT, (tenant,))
                        seen = set(values(db, IDS))
                        [pid] = values(db, "SELECT pg_backend_pid()")
                    with guard:
                        pids[tenant].add(pid)
                        if seen != wanted:
                            wrong.append(f"{tenant or 'nobody'} saw {seen}")
        except Exception as error:
            with guard:
                wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3 * pools)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert pids["a"] & pids["b"] & pids[""], "no server connection served all of them"


def test_a_tenant_cannot_take_anothers_bookmark_by_elsas_upsert(secured: Deployment) -> None:
    for role in ("elsa_app", "elsa_worker"):
        with client(secured, role) as db:
            for victim in ("b1", "shared", "default"):
                with (
                    pytest.raises(errors.InsufficientPrivilege, match="row-level security"),
                    db.transaction(),
                ):
                    db.execute(CONTEXT, ("a",))
                    db.execute(UPSERT_BOOKMARK, bookmark(victim, "a"))
    with client(secured, "elsa_host") as db:
        assert set(values(db, IDS)) == {"shared", "default", "a1", "b1"}


def test_the_standby_keeps_tenants_apart_as_well(secured: Deployment) -> None:
    with client(secured, "elsa_readonly", "readonly") as db:

        def seen() -> set[str]:
            with db.transaction():
                db.execute(CONTEXT, ("b",))
                return set(values(db, IDS))

        assert eventually(lambda: seen() == {"shared", "b1"})
        assert values(db, IDS) == ["shared"]


def test_the_teams_tables_keep_tenants_apart_through_the_pool(elsa: Deployment) -> None:
    """S1-07 … S1-09 under the same contract, and no other."""
    tags = 'SELECT "Tag" FROM "ElsaExtensions"."WorkflowTags"'
    try:
        with client(elsa, "elsa_app") as db:
            for tenant in ("moves-in-a", "moves-in-b"):
                with db.transaction():
                    db.execute(CONTEXT, (tenant,))
                    db.execute(
                        'INSERT INTO "ElsaExtensions"."WorkflowTags"'
                        ' ("WorkflowDefinitionId", "Tag") VALUES (\'flow\', %s)',
                        (tenant,),
                    )
            with db.transaction():
                db.execute(CONTEXT, ("moves-in-a",))
                assert values(db, tags) == ["moves-in-a"]
            assert values(db, tags) == []
    finally:
        with client(elsa, "elsa_host") as db:
            db.execute(
                'DELETE FROM "ElsaExtensions"."WorkflowTags" WHERE "TenantId" ^@ \'moves-in-\''
            )


def test_an_upgrade_through_the_session_door(secured: Deployment) -> None:
    """Under row-level security; the new tables are named, and secured when asked for again."""
    state = "SELECT table_name::text FROM elsapg.elsa_row_security WHERE NOT is_complete"
    new = {
        '"Elsa"."BookmarkQueueDeadLetterItems"',
        '"Elsa"."WorkflowDefinitionRegistryGenerations"',
    }
    with client(secured, "elsa_migrator", "session") as db:
        migrate(db, "3.8")
        with client(secured, "monitoring") as watcher:
            assert set(values(watcher, state)) == new
        assert set(values(db, "SELECT elsapg.enable_elsa_row_security()::text")) == new
        with client(secured, "elsa_app") as app, app.transaction():
            app.execute(CONTEXT, ("a",))
            assert set(values(app, IDS)) == {"shared", "a1"}
