"""Encrypted JSON values: what opens them, what does not, rotation, where no key ever shows."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives import hashes, hmac, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import HealthCheck, given
from hypothesis import settings as within
from hypothesis import strategies as st
from psycopg.types.json import Jsonb
from sql_server import Server

from elsapg import stackfile
from elsapg.definition.parameters import parameters
from elsapg.errors import UsageError
from elsapg.services.keys import Ring, Rotated, move

pytestmark = pytest.mark.docker

Connection = psycopg.Connection[Any]
KEYS = {name: base64.b64encode(bytes([n]) * 16 + b"sixteen bytes...").decode() for n, name in
        enumerate(("k1", "k2", "k3"), 1)}  # fmt: skip
DATABASES = ["elsa_workflows", "elsa_runtime"]

# Numbers come back as written, so floats and big integers travel as text; NUL is not JSON to
# PostgreSQL.
TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
examples = within(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def ring(current: str = "k1", *others: str, **keys: str) -> str:
    known = {name: KEYS[name] for name in (current, *others)}
    return json.dumps({"current": current, "keys": known | keys})


@contextmanager
def transaction(
    server: Server,
    tenant: str | None = "tenant-1",
    keys: str | None = None,
    role: str = "elsa_app",
    database: str = "elsa_workflows",
) -> Iterator[Connection]:
    """A transaction as an application begins it; rolled back."""
    with server.connect(database, role) as db:
        begin(db, tenant, keys or ring())
        yield db
        db.rollback()


def begin(db: Connection, tenant: str | None, keys: str | None) -> None:
    if tenant is not None:
        db.execute("SELECT set_config('app.current_tenant_id', %s, true)", (tenant,))
    if keys is not None:
        db.execute("SELECT elsa_crypto.use_keys(%s)", (keys,))


def one(db: Connection, function: str, *arguments: Any) -> Any:
    """What a function of elsa_crypto gives; arguments that are no strings travel as JSON."""
    marks = ", ".join(["%s"] * len(arguments))
    given_ = [a if a is None or isinstance(a, (str, Jsonb)) else Jsonb(a) for a in arguments]
    row = db.execute(f"SELECT elsa_crypto.{function}({marks})".encode(), given_).fetchone()
    assert row is not None
    return row[0]


def sealed(server: Server, value: Any, context: str = "ssn", **where: Any) -> dict[str, str]:
    with transaction(server, **where) as db:
        found: dict[str, str] = one(db, "encrypt", Jsonb(value), context)
        return found


@pytest.fixture(scope="module")
def app(server: Server) -> Iterator[Connection]:
    """One connection for the properties; each example is a transaction."""
    with server.connect("elsa_workflows", "elsa_app") as db:
        yield db


@pytest.fixture(autouse=True)
def _no_transaction_is_left(app: Connection) -> Iterator[None]:
    """The server ends a session that is idle in one: on a slow machine, while other tests run."""
    yield
    app.rollback()


# -- round trips ---------------------------------------------------------------------------


@examples
@given(value=VALUES, context=TEXT.filter(bool), tenant=TEXT.filter(bool))
def test_any_value_comes_back(app: Connection, value: Any, context: str, tenant: str) -> None:
    app.rollback()
    begin(app, tenant, ring())
    found = one(app, "encrypt", Jsonb(value), context)
    assert set(found) == {"$enc", "kid", "ctx"}
    assert (found["kid"], found["ctx"]) == ("k1", context)
    assert one(app, "decrypt", found, context) == value
    assert one(app, "is_encrypted", found) is True
    assert one(app, "key_id_of", found) == "k1"


@pytest.mark.parametrize(
    "text", ["1.10", "1e400", "-0.0", '"\\ud83d\\udc18"', "[[]]", "0.30000000"]
)
def test_a_value_comes_back_to_the_letter(app: Connection, text: str) -> None:
    app.rollback()
    begin(app, "tenant-1", ring())
    query = (
        "SELECT elsa_crypto.decrypt(elsa_crypto.encrypt(%s::jsonb, 'c'), 'c')::text,"
        " %s::jsonb::text"
    )
    row = app.execute(query.encode(), (text, text)).fetchone()
    assert row is not None
    assert row[0] == row[1]


def test_nothing_stays_nothing(app: Connection) -> None:
    app.rollback()
    for function, more in [
        ("encrypt", ["ssn"]), ("decrypt", ["ssn"]), ("encrypt_fields", ["{}"]),
        ("decrypt_fields", ["{}"]), ("is_encrypted", []), ("key_id_of", []),
    ]:  # fmt: skip
        assert one(app, function, None, *more) is None


def test_the_same_value_never_looks_the_same(server: Server) -> None:
    assert len({sealed(server, "x")["$enc"] for _ in range(20)}) == 20


@pytest.mark.parametrize(
    "value",
    [
        *(None, 0, "", [], {}),
        {"$enc": "a"},
        {"$enc": 1, "kid": "k", "ctx": "c"},
        {"$enc": "a", "kid": "k", "ctx": "c", "x": 1},
    ],
)
def test_clear_values_are_not_taken_for_encrypted_ones(app: Connection, value: Any) -> None:
    app.rollback()
    begin(app, "tenant-1", ring())
    assert one(app, "is_encrypted", Jsonb(value)) is False
    assert one(app, "key_id_of", Jsonb(value)) is None
    with pytest.raises(psycopg.Error, match="is not encrypted"):
        one(app, "decrypt", Jsonb(value), "ssn")


@examples
@given(document=st.dictionaries(TEXT, VALUES, max_size=4), data=st.data())
def test_any_fields_of_any_document_come_back(
    app: Connection, document: dict[str, Any], data: st.DataObject
) -> None:
    def paths(value: Any, here: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
            value, list) else ()  # fmt: skip
        return [
            p for key, inner in items for p in ((*here, str(key)), *paths(inner, (*here, str(key))))
        ]

    # Some that overlap, some that are not there.
    known = [*paths(document), ("no", "such"), ("0",)]
    chosen = data.draw(st.lists(st.sampled_from(known), max_size=5))
    app.rollback()
    begin(app, "tenant-1", ring())
    made = [
        row[0]
        for path in chosen
        for row in [app.execute("SELECT %s::text[]::text", (list(path),)).fetchone()]
        if row
    ]
    query = b"SELECT elsa_crypto.encrypt_fields(%s, %s::text[])"
    row = app.execute(query, (Jsonb(document), made)).fetchone()
    assert row is not None
    back = app.execute(query.replace(b"encrypt", b"decrypt"), (Jsonb(row[0]), made)).fetchone()
    assert back == (document,)
    assert (row[0] != document) == any(path in paths(document) for path in chosen)


def test_only_the_named_fields_are_encrypted(server: Server) -> None:
    document = {"variables": {"ssn": "123-45-6789", "city": "Bern"}, "n": [1, {"card": "4111"}]}
    paths = ["{variables,ssn}", "{n,1,card}", "{variables,none}"]
    with transaction(server) as db:
        query = b"SELECT elsa_crypto.encrypt_fields(%s, %s::text[])"
        row = db.execute(query, (Jsonb(document), paths)).fetchone()
    assert row is not None
    found = row[0]
    assert found["variables"].pop("ssn").keys() == {"$enc", "kid", "ctx"}
    assert found["n"][1].pop("card")["ctx"] == "{n,1,card}"
    assert found == {"variables": {"city": "Bern"}, "n": [1, {}]}


@pytest.mark.parametrize(
    "paths",
    [None, ["variables.ssn"], ["{}"], [None], ["{a,NULL}"], ["{{a,b}}"], [["{a}"], ["{b}"]]],
)
def test_paths_that_are_none_are_refused(server: Server, paths: Any) -> None:
    for function in ("encrypt_fields", "decrypt_fields"):
        with (
            transaction(server) as db,
            pytest.raises(
                psycopg.errors.InvalidParameterValue, match="no paths of a document"
            ) as e,
        ):
            db.execute(f"SELECT elsa_crypto.{function}('{{}}', %s::text[])".encode(), (paths,))
        assert "ARRAY['{variables,ssn}'" in str(e.value.diag.message_hint)


# -- the construction, by an implementation that is not ours ---------------------------------


def other_key(tenant: str, key: str) -> bytes:
    return HKDF(hashes.SHA512(), 64, None, f"elsapg:{tenant}".encode()).derive(
        base64.b64decode(KEYS[key])
    )


def other_tag(key: bytes, kid: str, context: str, data: bytes) -> bytes:
    additional = kid.encode() + b"\0" + context.encode()
    mac = hmac.HMAC(key[:32], hashes.SHA512())
    mac.update(additional + data + (8 * len(additional)).to_bytes(8, "big"))
    return mac.finalize()[:32]


def test_another_implementation_reads_what_the_database_wrote(server: Server) -> None:
    found = sealed(server, {"grüße": [1, "日本"]}, context="ö", tenant="tenant-ü")
    raw = base64.b64decode(found["$enc"], validate=True)
    key = other_key("tenant-ü", "k1")
    data, tag = raw[:-32], raw[-32:]
    assert tag == other_tag(key, "k1", "ö", data)
    cipher = Cipher(algorithms.AES256(key[32:]), modes.CBC(data[:16])).decryptor()
    unpadder = padding.PKCS7(128).unpadder()
    padded = cipher.update(data[16:]) + cipher.finalize()
    assert json.loads(unpadder.update(padded) + unpadder.finalize()) == {"grüße": [1, "日本"]}


def test_the_database_reads_what_another_implementation_wrote(server: Server) -> None:
    key, vector = other_key("tenant-1", "k2"), b"0123456789abcdef"
    padder = padding.PKCS7(128).padder()
    padded = padder.update(b'"from afar"') + padder.finalize()
    cipher = Cipher(algorithms.AES256(key[32:]), modes.CBC(vector)).encryptor()
    data = vector + cipher.update(padded) + cipher.finalize()
    text = base64.b64encode(data + other_tag(key, "k2", "ssn", data)).decode()
    with transaction(server, keys=ring("k1", "k2")) as db:
        value = {"$enc": text, "kid": "k2", "ctx": "ssn"}
        assert one(db, "decrypt", value, "ssn") == "from afar"


def test_the_tag_is_that_of_rfc_7518(server: Server) -> None:
    """Appendix B.3: A256CBC-HS512. Its additional data has no zero byte: the RFC's is given here
    as key id and context would be, and compared with what the RFC's formula gives."""
    text = b"A cipher system must not be required to be secret, and it must be able to fall into the hands of the enemy without inconvenience"  # noqa: E501
    key = bytes(range(64))
    vector = bytes.fromhex("1af38c2dc2b96ffdd86694092341bc04")
    row = server.rows(
        "SELECT public.encrypt_iv(%s, %s, %s, 'aes-cbc/pad:pkcs'),"
        " elsa_crypto.tag(%s, 'k', 'c', %s)",
        (text, key[32:], vector, key, vector),
        database="elsa_workflows",
    )[0]
    assert (
        row[0].hex().startswith("4affaaadb78c31c5da4b1b590d10ffbd3dd8d5d302423526912da037ecbcc7bd")
    )
    assert row[1] == other_tag(key, "k", "c", vector)


# -- what must not open ----------------------------------------------------------------------


def refused(server: Server, value: Any, context: str = "ssn", **where: Any) -> str:
    with transaction(server, **where) as db, pytest.raises(psycopg.Error) as caught:
        one(db, "decrypt", value, context)
    return str(caught.value)


def test_another_tenants_value_does_not_open(server: Server) -> None:
    found = sealed(server, "x")
    assert "does not decrypt" in refused(server, found, tenant="tenant-2")


def test_another_fields_value_does_not_open(server: Server) -> None:
    found = sealed(server, "x", "users.ssn")
    assert 'encrypted as "users.ssn", not as "users.card"' in refused(server, found, "users.card")
    # Nor with its label changed to suit.
    assert "does not decrypt" in refused(server, {**found, "ctx": "users.card"}, "users.card")


def test_another_key_does_not_open(server: Server) -> None:
    found = sealed(server, "x")
    wrong = json.dumps({"current": "k1", "keys": {"k1": KEYS["k2"]}})
    assert 'does not decrypt with key "k1"' in refused(server, found, keys=wrong)
    assert 'key "k1", which this transaction was not given' in refused(
        server, found, keys=ring("k2")
    )
    # A value cannot be made to name another key.
    both = ring("k1", "k2")
    assert "does not decrypt" in refused(server, {**found, "kid": "k2"}, keys=both)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 40])
def test_a_change_of_any_character_is_noticed(server: Server, length: int) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
    found = sealed(server, "x" * length)
    text = found["$enc"]
    changed = [
        text[:n] + other + text[n + 1 :]
        for n, char in enumerate(text)
        for other in (alphabet[(alphabet.index(char) + 1) % 64], "=", " ", "\n", "é", "")
        if other != char
    ]
    changed += [
        text + "A",
        text + "====",
        text + "\n",
        " " + text,
        text[:-4],
        text[4:],
        text * 2,
        "",
    ]
    with transaction(server) as db:
        assert one(db, "decrypt", found, "ssn") == "x" * length
        for other in changed:
            with (
                pytest.raises(psycopg.Error, match=r"does not decrypt|not encrypted"),
                db.transaction(),
            ):
                one(db, "decrypt", {**found, "$enc": other}, "ssn")


@examples
@given(cut=st.integers(1, 63), value=VALUES)
def test_blocks_cut_off_or_swapped_are_noticed(app: Connection, cut: int, value: Any) -> None:
    app.rollback()
    begin(app, "tenant-1", ring())
    found = one(app, "encrypt", Jsonb(value), "ssn")
    raw = base64.b64decode(found["$enc"])
    for changed in (raw[:-cut], raw[cut:], raw[cut:] + raw[:cut]):
        if changed != raw:
            text = base64.b64encode(changed).decode()
            with pytest.raises(psycopg.Error, match="does not decrypt"), app.transaction():
                one(app, "decrypt", {**found, "$enc": text}, "ssn")


@pytest.mark.parametrize("context", [None, ""])
def test_a_missing_context_is_an_error_and_not_a_lost_value(server: Server, context: Any) -> None:
    with (
        transaction(server) as db,
        pytest.raises(psycopg.Error, match="context of an encrypted value is missing"),
    ):
        one(db, "encrypt", Jsonb("x"), context)


def test_without_keys_or_tenant_the_error_says_what_to_do(server: Server) -> None:
    for tenant, keys, says in [
        ("tenant-1", None, "was given no encryption keys"),
        (None, ring(), "names no tenant"),
        ("", ring(), "names no tenant"),
    ]:
        with server.connect("elsa_workflows", "elsa_app") as db:
            begin(db, tenant, keys)
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=says) as caught:
                one(db, "encrypt", Jsonb("x"), "ssn")
            assert "set_config" in str(caught.value) or "use_keys" in str(caught.value)


BAD_RINGS = {
    "nothing": None,
    "no JSON": f'{{"current": "k1", "keys": {{"k1": {KEYS["k1"]}}}}}',
    "cut off": ring()[:-4],
    "a string": f'"{KEYS["k1"]}"',
    "an array": f'["{KEYS["k1"]}"]',
    "a bare key": KEYS["k1"],
    "one more": json.dumps({**json.loads(ring()), "more": KEYS["k2"]}),
    "no current": json.dumps({"keys": {"k1": KEYS["k1"]}}),
    "current is no string": json.dumps({"current": 1, "keys": {"k1": KEYS["k1"]}}),
    "no such current": json.dumps({"current": "k9", "keys": {"k1": KEYS["k1"]}}),
    "the key as its id": json.dumps({"current": KEYS["k1"], "keys": {KEYS["k1"]: "k1"}}),
    "a short key": json.dumps({"current": "k1", "keys": {"k1": KEYS["k1"][4:]}}),
    "a longer key": json.dumps({"current": "k1", "keys": {"k1": "AAAA" + KEYS["k1"]}}),
    "a key with a line end": json.dumps({"current": "k1", "keys": {"k1": KEYS["k1"] + "\n"}}),
    "a key that is no string": json.dumps({"current": "k1", "keys": {"k1": {"k1": KEYS["k1"]}}}),
    "a second key that is none": json.dumps({"current": "k1", "keys": {"k1": KEYS["k1"], "k2": 7}}),
}


@pytest.mark.parametrize("bad", BAD_RINGS)
def test_what_is_no_ring_is_refused_without_repeating_it(server: Server, bad: str) -> None:
    with (
        server.connect("elsa_workflows", "elsa_app") as db,
        pytest.raises(
            psycopg.errors.InvalidParameterValue, match="this is no ring of keys"
        ) as caught,
    ):
        db.execute("SELECT elsa_crypto.use_keys(%s)", (BAD_RINGS[bad],))
    diag = caught.value.diag
    told = " ".join(
        str(getattr(diag, name)) for name in dir(diag) if name.startswith(("message", "context"))
    )
    assert KEYS["k1"][:8] not in told
    assert KEYS["k1"][8:20] not in told


# -- keys belong to one transaction -----------------------------------------------------------


def test_keys_end_with_their_transaction(server: Server) -> None:
    """Else the next client of a pooled connection would have them."""
    with server.connect("elsa_workflows", "elsa_app") as db:
        begin(db, "tenant-1", ring())
        one(db, "encrypt", Jsonb("x"), "ssn")
        db.commit()
        begin(db, "tenant-1", None)
        with pytest.raises(psycopg.Error, match="no encryption keys"):
            one(db, "encrypt", Jsonb("x"), "ssn")
        db.rollback()
        assert one_setting(db) in (None, "")


def one_setting(db: Connection) -> Any:
    row = db.execute("SELECT current_setting('app.encryption_keys', true)").fetchone()
    assert row is not None
    return row[0]


def test_keys_of_a_session_are_not_taken(server: Server) -> None:
    with server.connect("elsa_workflows", "elsa_app") as db:
        begin(db, "tenant-1", ring())
        # Even the very text that was good in that transaction.
        text = one_setting(db)
        db.execute("SELECT set_config('app.encryption_keys', %s, false)", (text,))
        db.commit()
        assert one_setting(db) == text
        begin(db, "tenant-1", None)
        with pytest.raises(psycopg.Error, match="Keys set for a session, a role or a database"):
            one(db, "encrypt", Jsonb("x"), "ssn")


def test_keys_of_a_role_are_not_taken(server: Server) -> None:
    """Everybody can read pg_db_role_setting."""
    with server.connect(autocommit=True) as admin:
        fake = json.dumps({"current": "k1", "keys": {"k1": "A" * 43 + "="}})
        admin.execute(f"ALTER ROLE elsa_app SET app.encryption_keys = '{fake}'".encode())
        try:
            with server.connect("elsa_workflows", "elsa_app") as db:
                assert one_setting(db) == fake
                begin(db, "tenant-1", None)
                with pytest.raises(psycopg.Error, match="no encryption keys"):
                    one(db, "encrypt", Jsonb("x"), "ssn")
        finally:
            admin.execute("ALTER ROLE elsa_app RESET app.encryption_keys")


def test_keys_in_a_statements_text_are_not_taken(server: Server) -> None:
    with server.connect("elsa_workflows", "elsa_app") as db:
        notices: list[str] = []
        db.add_notice_handler(lambda d: notices.append(f"{d.message_primary} {d.message_hint}"))
        # Not a key of this test's rings: this one does get into the log.
        spoilt = json.dumps({"current": "k1", "keys": {"k1": "B" * 43 + "="}})
        db.execute(f"SELECT elsa_crypto.use_keys('{spoilt}')".encode())
        begin(db, "tenant-1", None)
        with pytest.raises(psycopg.Error, match="no encryption keys"):
            one(db, "encrypt", Jsonb("x"), "ssn")
    assert len(notices) == 1
    assert "bound parameter" in notices[0]
    assert "BBBB" not in notices[0]


# -- who -------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", DATABASES)
@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_host", "elsa_admin"])
def test_who_works_with_the_data_can_encrypt(server: Server, role: str, database: str) -> None:
    with transaction(server, role=role, database=database) as db:
        assert one(db, "decrypt", one(db, "encrypt", Jsonb(1), "c"), "c") == 1


@pytest.mark.parametrize("role", ["elsa_readonly", "monitoring", "elsa_migrator"])
def test_others_cannot(server: Server, role: str) -> None:
    with (
        server.connect("elsa_workflows", role) as db,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        db.execute("SELECT elsa_crypto.is_encrypted('1')")


@pytest.mark.parametrize("database", DATABASES)
def test_every_routine_is_commented_and_not_publics(server: Server, database: str) -> None:
    rows = server.rows(
        "SELECT p.proname, p.prosecdef, obj_description(p.oid, 'pg_proc') IS NOT NULL, EXISTS ("
        " SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a"
        " WHERE a.grantee = 0)"
        " FROM pg_proc AS p WHERE p.pronamespace = 'elsa_crypto'::regnamespace",
        database=database,
    )
    assert len(rows) == 19
    assert {row[2:] for row in rows} == {(True, False)}
    assert [row[0] for row in rows if row[1]] == ["rotate_pages"]
    assert server.value(
        "SELECT obj_description('elsa_crypto'::regnamespace, 'pg_namespace') IS NOT NULL",
        database=database,
    )


# -- rotation ---------------------------------------------------------------------------------

TENANTS = ["tenant-1", "tenant-2", "tenant-3"]


@pytest.fixture
def table(server: Server) -> Iterator[str]:
    """A table like the product's: partitioned, and every tenant's rows hidden from the others."""
    name = f"elsa_workflows.rotated_{uuid.uuid4().hex[:8]}"
    with server.connect("elsa_workflows", "elsa_migrator", autocommit=True) as db:
        for statement in (
            f"CREATE TABLE {name} (id integer, state jsonb, tenant_id varchar(255) NOT NULL)"
            " PARTITION BY RANGE (id)",
            f"CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES FROM (0) TO (500)",
            f"CREATE TABLE {name}_2 PARTITION OF {name} DEFAULT",
            f"SELECT elsapg.isolate_tenants('{name}')",
        ):
            db.execute(statement.encode())
        yield name
        db.execute(f"DROP TABLE {name}".encode())


def fill(server: Server, table: str, rows: int, keys: str) -> None:
    with server.connect("elsa_workflows", "elsa_app") as db:
        for tenant in TENANTS:
            begin(db, tenant, keys)
            db.execute(
                f"INSERT INTO {table} (id, state, tenant_id)"
                " SELECT g, elsa_crypto.encrypt_fields(jsonb_build_object("
                "'ssn', %s || ':' || g, 'clear', g, 'list', jsonb_build_array(g, g)),"
                " ARRAY['{{ssn}}', '{{list,1}}']), %s FROM generate_series(1, %s) AS g".encode()
                .replace(b"{{", b"{").replace(b"}}", b"}"),
                (tenant, tenant, rows),
            )  # fmt: skip
            db.commit()


def check(server: Server, table: str, rows: int, keys: str) -> None:
    """Every value of every tenant is what it was, and readable with these keys."""
    with server.connect("elsa_workflows", "elsa_app") as db:
        for tenant in TENANTS:
            begin(db, tenant, keys)
            found = db.execute(
                f"SELECT id, elsa_crypto.decrypt_fields(state, ARRAY['{{ssn}}', '{{list,1}}'])"
                f" FROM {table} ORDER BY id".encode()
            ).fetchall()
            assert found == [
                (n, {"ssn": f"{tenant}:{n}", "clear": n, "list": [n, n]})
                for n in range(1, rows + 1)
            ]
            db.rollback()


def rotate(server: Server, table: str, keys: str, pages: int = 64, role: str = "elsa_host") -> Any:
    with server.connect("elsa_workflows", role, autocommit=True) as db:
        return db.execute(
            "CALL elsa_crypto.rotate(%s::text::regclass, 'state', %s, %s)", (table, keys, pages)
        ).fetchone()


@pytest.mark.parametrize("role", ["elsa_host", "elsa_admin"])
@pytest.mark.parametrize("pages", [1, 64])
def test_rotation_moves_every_tenants_values(
    server: Server, table: str, role: str, pages: int
) -> None:
    fill(server, table, 600, ring("k1"))
    assert rotate(server, table, ring("k2", "k1"), pages, role) == (1800, 0)
    # The old key is not needed any more.
    check(server, table, 600, ring("k2"))
    assert rotate(server, table, ring("k2", "k1"), pages, role) == (0, 0)


def test_the_command_line_rotates(server: Server, table: str) -> None:
    fill(server, table, 10, ring("k1"))
    keys = Ring("k2", {name: KEYS[name] for name in ("k1", "k2")})
    with server.connect("elsa_workflows", "elsa_host", autocommit=True) as db:
        assert move(db, keys, table, "state") == Rotated(30, 0)
        assert move(db, keys, table, "state") == Rotated(0, 0)
        for name, column, says in [
            (table, "id", "no column id of type jsonb"),
            ("elsa_workflows.none", "state", "does not exist"),
            ("a.b.c.d", "state", "too many dotted names"),
        ]:
            with pytest.raises(UsageError, match=says) as caught:
                move(db, keys, name, column)
            assert not any(key in str(caught.value) for key in KEYS.values())
    check(server, table, 10, ring("k2"))


def test_an_interrupted_rotation_loses_nothing_and_goes_on(server: Server, table: str) -> None:
    rows = 900
    fill(server, table, rows, ring("k1"))
    ended: list[BaseException] = []
    interrupted = 0
    for _ in range(6):
        with server.connect("elsa_workflows", "elsa_host", autocommit=True) as db:
            pid = db.info.backend_pid

            def run(db: Connection = db) -> None:
                try:
                    db.execute(
                        "CALL elsa_crypto.rotate(%s::text::regclass, 'state', %s, 1)",
                        (table, ring("k2", "k1")),
                    )
                except psycopg.Error as error:
                    ended.append(error)

            before = current_rows(server, table)
            thread = threading.Thread(target=run)
            thread.start()
            # Killed as soon as it got somewhere.
            while thread.is_alive() and current_rows(server, table) == before:
                pass
            server.value("SELECT pg_terminate_backend(%s)", (pid,))
            thread.join()
        check(server, table, rows, ring("k2", "k1"))
        interrupted += 0 < current_rows(server, table) < 3 * rows
    assert ended
    assert interrupted, "the rotation was never caught half way"
    rotate(server, table, ring("k2", "k1"))
    check(server, table, rows, ring("k2"))


def current_rows(server: Server, table: str) -> int:
    query = f"SELECT count(*) FROM {table} WHERE state -> 'ssn' ->> 'kid' = 'k2'"
    found: int = server.value(query, database="elsa_workflows")
    return found


def test_rotation_beside_a_writing_application(server: Server, table: str) -> None:
    """Rows that move while the rotation runs are found, and no write is lost."""
    rows = 400
    fill(server, table, rows, ring("k1"))
    stop = threading.Event()
    counts: dict[str, int] = dict.fromkeys(TENANTS, 0)
    failures: list[Exception] = []

    def write(tenant: str) -> None:
        try:
            with server.connect("elsa_workflows", "elsa_app") as db:
                while not stop.is_set():
                    begin(db, tenant, ring("k2", "k1"))
                    # Carries old values along to new places.
                    db.execute(
                        f"UPDATE {table} SET state = jsonb_set(state, '{{n}}',"
                        " (coalesce(state ->> 'n', '0')::int + 1)::text::jsonb)"
                        " WHERE id % 7 = 0".encode()
                    )
                    db.commit()
                    counts[tenant] += 1
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(tenant,)) for tenant in TENANTS]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            rotate(server, table, ring("k2", "k1"), 1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    rotate(server, table, ring("k2", "k1"))
    with server.connect("elsa_workflows", "elsa_app") as db:
        for tenant in TENANTS:
            assert counts[tenant] > 0
            begin(db, tenant, ring("k2"))
            found = db.execute(
                f"SELECT id, state ->> 'n', elsa_crypto.decrypt(state -> 'ssn', '{{ssn}}')"
                f" FROM {table} ORDER BY id".encode()
            ).fetchall()
            assert found == [
                (n, None if n % 7 else str(counts[tenant]), f"{tenant}:{n}")
                for n in range(1, rows + 1)
            ]
            db.rollback()


def test_a_row_that_moves_behind_the_rotation_is_found(server: Server, table: str) -> None:
    fill(server, table, 400, ring("k1"))
    with server.connect("elsa_workflows", autocommit=True) as db:
        # Room at the beginning, for the row to move to.
        db.execute(f"DELETE FROM {table}_1 WHERE ctid < '(10,0)'".encode())
        db.execute(f"VACUUM {table}_1".encode())
    found: list[Any] = []
    with server.connect("elsa_workflows") as other:
        other.execute(f"SELECT FROM {table}_1 WHERE ctid = '(10,1)' FOR UPDATE".encode())
        thread = threading.Thread(
            target=lambda: found.append(rotate(server, table, ring("k2", "k1"), 1))
        )
        thread.start()
        waiting = (
            "SELECT count(*) = 1 FROM pg_stat_activity"
            " WHERE starts_with(query, 'CALL elsa_crypto.rotate') AND wait_event_type = 'Lock'"
        )
        until(lambda: server.value(waiting))
        row = other.execute(
            f"UPDATE {table}_1 SET state = state || '{{\"n\": 1}}'"
            f" WHERE ctid = '(20,1)' RETURNING ctid < '(10,0)'".encode()
        ).fetchone()
        assert row == (True,), "the row did not move to the front"
        rows = other.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
        other.commit()
        thread.join()
    assert rows is not None
    assert found == [(rows[0], 0)]
    assert current_rows(server, table) == rows[0]


def test_what_only_looks_encrypted_is_left_alone(server: Server, table: str) -> None:
    fill(server, table, 5, ring("k1"))
    fake = {"deep": [{"$enc": "x", "kid": "k0", "ctx": "y"}]}
    with server.connect("elsa_workflows") as db:
        db.execute(f"UPDATE {table} SET state = state || %s WHERE id = 3".encode(), (Jsonb(fake),))
    # A row of each tenant keeps something that no key opens; what can be read in it is moved.
    assert rotate(server, table, ring("k2", "k1")) == (12, 3)
    with server.connect("elsa_workflows") as db:
        rows = db.execute(f"SELECT state FROM {table} WHERE id = 3".encode()).fetchall()
        assert all(row[0]["deep"] == fake["deep"] for row in rows)
        assert all(row[0]["ssn"]["kid"] == "k2" for row in rows)


def test_a_value_that_is_encrypted_as_a_whole_or_deeply_nested(server: Server) -> None:
    with server.connect("elsa_workflows", "elsa_app") as db:
        begin(db, "tenant-1", ring("k1"))
        whole = one(db, "encrypt", Jsonb({"a": 1}), "doc")
        db.rollback()
        begin(db, "tenant-1", ring("k2", "k1"))
        moved = one(db, "reencrypt", whole)
        assert moved["kid"] == "k2"
        assert one(db, "decrypt", moved, "doc") == {"a": 1}
        assert one(db, "reencrypt", moved) == moved
        assert one(db, "reencrypt", {"clear": [1]}) == {"clear": [1]}
        assert one(db, "reencrypt", None) is None
        deep: Any = whole
        for _ in range(150):
            deep = {"in": [deep]}
        deep = one(db, "reencrypt", deep)
        for _ in range(150):
            deep = deep["in"][0]
        assert one(db, "decrypt", deep, "doc") == {"a": 1}


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker"])
def test_who_sees_one_tenant_only_cannot_rotate(server: Server, table: str, role: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        rotate(server, table, ring("k2", "k1"), role=role)


def test_rotation_says_what_is_wrong(server: Server, table: str) -> None:
    for name, column, pages, says in [
        (table, "nothing", 64, "no column nothing of type jsonb"),
        (table, "id", 64, "no column id of type jsonb"),
        ("elsa_workflows.elsa_none", "state", 64, "does not exist"),
        (table, "state", 0, "p_pages is 0"),
    ]:
        with (
            server.connect("elsa_workflows", "elsa_host", autocommit=True) as db,
            pytest.raises(psycopg.Error, match=says),
        ):
            db.execute(
                "CALL elsa_crypto.rotate(%s::text::regclass, %s, %s, %s)",
                (name, column, ring(), pages),
            )
    with (
        server.connect("elsa_workflows", "elsa_host", autocommit=True) as db,
        pytest.raises(psycopg.Error, match="no ring of keys"),
    ):
        db.execute("CALL elsa_crypto.rotate(%s::text::regclass, 'state', '{}')", (table,))


@pytest.mark.parametrize("role", ["elsa_app", "elsa_worker", "elsa_readonly"])
def test_the_step_that_sees_all_tenants_is_the_hosts_only(server: Server, role: str) -> None:
    assert not server.value(
        "SELECT has_function_privilege(%s, 'elsa_crypto.rotate_pages(regclass,name,bigint,bigint)',"
        " 'EXECUTE')",
        (role,),
        database="elsa_workflows",
    )


def test_a_table_of_ones_own_is_no_way_to_more_rights(server: Server) -> None:
    """Its trigger would run as the owner of the step, who is bound by no policy."""
    with server.connect("elsa_workflows", "elsa_host", autocommit=True) as db:
        for statement in (
            "CREATE TEMPORARY TABLE mine (state jsonb, tenant_id text)",
            'INSERT INTO mine VALUES (\'{"$enc": "x", "kid": "k0", "ctx": "y"}\', \'t\')',
            "CREATE FUNCTION pg_temp.seize() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN RAISE EXCEPTION ''seized as %'', current_user; END'",
            "CREATE TRIGGER seize BEFORE UPDATE ON mine EXECUTE FUNCTION pg_temp.seize()",
            "GRANT ALL ON mine TO elsa_maintenance",
        ):
            db.execute(statement.encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="is not elsa_owner's"):
            db.execute("CALL elsa_crypto.rotate('mine', 'state', %s)", (ring(),))


def test_the_archive_is_rotated_though_nobody_may_write_it(server: Server) -> None:
    """Every jsonb column of a tenants' table can be, in both databases."""
    for database in DATABASES:
        columns = server.rows(
            "SELECT format('%%I.%%I', n.nspname, c.relname), a.attname"
            " FROM pg_attribute AS a INNER JOIN pg_class AS c ON a.attrelid = c.oid"
            " INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid"
            " WHERE a.atttypid = 'jsonb'::regtype AND c.relkind IN ('r', 'p')"
            " AND NOT c.relispartition AND n.nspname = %s AND EXISTS ("
            " SELECT FROM pg_attribute AS t WHERE t.attrelid = c.oid AND t.attname = 'tenant_id')",
            (database,),
            database=database,
        )
        assert columns
        for table, column in columns:
            with server.connect(database, "elsa_host", autocommit=True) as db:
                move(db, Ring("k2", {"k2": KEYS["k2"]}), table, column)


# -- where keys and clear values never show ---------------------------------------------------


@pytest.fixture
def talkative(server: Server) -> Iterator[Server]:
    """The server with production's parameters, and everything else that can be logged."""
    wanted = {
        name: value
        for name, value in parameters(stackfile.load({}, "test")).items()
        if name.startswith(("log_", "pgaudit.", "pg_stat_statements."))
    }
    wanted |= {
        "log_min_duration_statement": 0,
        "log_statement": "all",
        "log_min_messages": "debug1",
        "log_error_verbosity": "verbose",
        "log_duration": True,
        "pg_stat_statements.track": "all",
    }
    with server.connect(autocommit=True) as db:
        for name, value in wanted.items():
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            db.execute(f"ALTER SYSTEM SET {name} = '{shown}'".encode())
        db.execute("SELECT pg_reload_conf()")
    try:
        until(lambda: server.value("SHOW log_error_verbosity") == "verbose")
        assert server.value("SHOW log_parameter_max_length") == "0"
        yield server
    finally:
        with server.connect(autocommit=True) as db:
            db.execute("ALTER SYSTEM RESET ALL")
            db.execute("SELECT pg_reload_conf()")
        until(lambda: server.value("SHOW log_error_verbosity") == "default")


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.05)


def test_keys_and_values_show_nowhere(talkative: Server, table: str) -> None:
    server = talkative
    plain = f"plain-{uuid.uuid4().hex}"
    # Not the other tests' keys: those were logged with the parameters that a plain server logs.
    key, next_key = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
    keys = json.dumps({"current": "new", "keys": {"new": key, "next": next_key}})
    marker = uuid.uuid4().hex
    with server.connect("elsa_workflows", "elsa_app") as db:
        begin(db, "tenant-1", keys)
        value = one(db, "encrypt", Jsonb(plain), "ssn")
        db.execute(
            f"INSERT INTO {table} VALUES (1, %s, 'tenant-1')".encode(), (Jsonb({"a": value}),)
        )
        # Prepared, as a pool's clients do; and every kind of error on the way.
        for _ in range(3):
            db.execute("SELECT elsa_crypto.use_keys(%s)", (keys,), prepare=True)
            db.execute("SELECT elsa_crypto.decrypt(%s, 'ssn')", (Jsonb(value),), prepare=True)
        for arguments in (("ctx", value), ("ssn", {**value, "$enc": "AAAA"}), ("ssn", plain)):
            with pytest.raises(psycopg.Error), db.transaction():
                one(db, "decrypt", Jsonb(arguments[1]), arguments[0])
        for bad in (keys[:-2], keys.replace("}", ',"x":1}', 1), key, keys.replace("new", "Ö", 1)):
            with pytest.raises(psycopg.Error), db.transaction():
                db.execute("SELECT elsa_crypto.use_keys(%s)", (bad,))
        with server.connect(autocommit=True) as other:
            # While it has the keys, others look at it.
            activity = other.execute("SELECT a::text FROM pg_stat_activity AS a").fetchall()
            settings = other.execute("SELECT s::text FROM pg_settings AS s").fetchall()
        db.commit()
    rotated = rotate(server, table, keys.replace('"current": "new"', '"current": "next"'))
    assert rotated == (1, 0)
    with server.connect("elsa_workflows", "elsa_host", autocommit=True) as db:
        with pytest.raises(psycopg.Error, match="no column"):
            db.execute("CALL elsa_crypto.rotate(%s::text::regclass, 'none', %s)", (table, keys))
        db.execute(f"SELECT '{marker}'".encode())
    until(lambda: marker in server.logs())
    dumped = subprocess.run(
        ["docker", "exec", server.container, "pg_dumpall", "-h", "/tmp", "-U", "postgres"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    statements = server.rows("SELECT s::text FROM pg_stat_statements AS s")
    log = server.logs()
    # Else nothing would be proved.
    assert "elsa_crypto.use_keys($1)" in log
    assert "this is no ring of keys" in log
    assert "elsa_crypto.use_keys" in str(statements)
    assert "elsa_crypto.use_keys" in dumped
    assert f"COPY {table}_1" in dumped
    assert activity
    places = {"the log": log, "pg_stat_statements": str(statements), "pg_dumpall": dumped,
              "pg_stat_activity": str(activity), "pg_settings": str(settings)}  # fmt: skip
    for where, text in places.items():
        for secret in (key, key[:12], next_key, plain):
            assert secret not in text, f"{secret[:6]}… stands in {where}"
