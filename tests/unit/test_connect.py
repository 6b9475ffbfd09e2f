"""Connection strings: what a client parses is what was meant, whatever the password holds."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as within
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from elsapg import stackfile
from elsapg.definition.secrets import PASSWORD_ROLES
from elsapg.errors import UsageError
from elsapg.services import connect
from elsapg.services.connect import Connection, connection, environment, libpq, npgsql

NASTY = [
    "plain-URL_safe",
    "it's",
    'say "hi"',
    "a;b=c",
    "user@host:5432/db?x=1#y",
    "100%25",
    "with space ",
    " leading",
    "back\\slash",
    "$HOME `id` $(id)",
    "grüße-日本-🐘",
    "''",
    "&+,",
]
# NUL cannot stand in a password; PostgreSQL's own limit is elsewhere.
PASSWORDS = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=30
)


def made(password: str = "secret", **changed: Any) -> Connection:
    values: dict[str, Any] = {
        "role": "elsa_app",
        "password": password,
        "database": "elsa_workflows",
        "addresses": (("127.0.0.1", 6432), ("127.0.0.1", 6433)),
        "ca_file": Path("/project/ca.crt"),
        "via": "pool",
        **changed,
    }
    return Connection(**values)


def check_libpq(password: str) -> None:
    assert conninfo_to_dict(libpq(made(password))) == {
        "user": "elsa_app",
        "password": password,
        "host": "127.0.0.1,127.0.0.1",
        "port": "6432,6433",
        "dbname": "elsa_workflows",
        "sslmode": "verify-full",
        "sslrootcert": "/project/ca.crt",
    }


@pytest.mark.parametrize("password", NASTY)
def test_libpq(password: str) -> None:
    check_libpq(password)


@within(deadline=None)
@given(PASSWORDS)
def test_libpq_with_anything(password: str) -> None:
    check_libpq(password)


def parse_npgsql(text: str) -> dict[str, str]:
    """As .NET's DbConnectionStringBuilder: values may be quoted, quotes inside are doubled."""
    found: dict[str, str] = {}
    rest = text
    while rest:
        key, _, rest = rest.partition("=")
        if rest[:1] in ("'", '"'):
            quote, rest = rest[0], rest[1:]
            value = ""
            while True:
                part, _, rest = rest.partition(quote)
                value += part
                if not rest.startswith(quote):
                    break
                value, rest = value + quote, rest[1:]
            assert rest[:1] in ("", ";"), text
            rest = rest[1:]
        else:
            value, _, rest = rest.partition(";")
            value = value.strip()
        found[key] = value
    return found


def check_npgsql(password: str) -> None:
    assert parse_npgsql(npgsql(made(password))) == {
        "Host": "127.0.0.1:6432,127.0.0.1:6433",
        "Database": "elsa_workflows",
        "Username": "elsa_app",
        "Password": password,
        "SSL Mode": "VerifyFull",
        "Root Certificate": "/project/ca.crt",
        "No Reset On Close": "true",
    }


@pytest.mark.parametrize("password", NASTY)
def test_npgsql(password: str) -> None:
    check_npgsql(password)


def test_npgsql_resets_a_session_of_its_own() -> None:
    assert "No Reset On Close" not in npgsql(made(via="session"))
    assert "No Reset On Close" in npgsql(made(via="readonly"))


def test_environment_names_what_libpq_reads() -> None:
    text = environment(made())
    assert dict(line.split("=", 1) for line in text.splitlines()) == {
        "PGHOST": "127.0.0.1,127.0.0.1",
        "PGPORT": "6432,6433",
        "PGDATABASE": "elsa_workflows",
        "PGUSER": "elsa_app",
        "PGPASSWORD": "secret",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "/project/ca.crt",
    }


ODD_FOLDER = Path("/a project/ca & co.crt")


def from_a_shell(found: Connection) -> str:
    script = f"set -a\n{environment(found)}\nprintf '%s' \"$PGPASSWORD|$PGSSLROOTCERT\""
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    return done.stdout


def test_environment_for_a_shell() -> None:
    """What `up` generates is URL-safe."""
    assert from_a_shell(made("plain-URL_safe")) == "plain-URL_safe|/project/ca.crt"


def test_environment_for_a_shell_quotes() -> None:
    for password in NASTY:
        found = from_a_shell(made(password, ca_file=ODD_FOLDER))
        assert found == f"{password}|{ODD_FOLDER}"


def test_a_project_folder_with_a_space_in_libpqs_uri() -> None:
    found = conninfo_to_dict(libpq(made(ca_file=ODD_FOLDER)))
    assert found["sslrootcert"] == str(ODD_FOLDER)


def test_a_project_folder_with_a_space_in_npgsqls_string() -> None:
    assert parse_npgsql(npgsql(made(ca_file=ODD_FOLDER)))["Root Certificate"] == str(ODD_FOLDER)


# -- from a deployment ---------------------------------------------------------------------


def deployed(tmp_path: Path, **groups: Any) -> Any:
    return SimpleNamespace(
        root=tmp_path,
        stack="test",
        settings=stackfile.load(groups, "test"),
        outputs={
            "passwords": {role: f"password of {role}" for role in PASSWORD_ROLES},
            "ca": "CA",
            "pools": [{"host": "127.0.0.1", "port": 6432.0}, {"host": "127.0.0.1", "port": 6433.0}],
        },
    )


@pytest.mark.parametrize(
    ("via", "database"),
    [
        ("pool", "elsa_runtime"),
        ("session", "elsa_runtime_session"),
        ("readonly", "elsa_runtime_readonly"),
    ],
)
def test_the_door_decides_the_databases_name(
    tmp_path: Path, via: connect.Via, database: str
) -> None:
    found = connection(deployed(tmp_path), "elsa_worker", "elsa_runtime", via)
    assert found.database == database
    assert found.addresses == (("127.0.0.1", 6432), ("127.0.0.1", 6433))
    assert found.password == "password of elsa_worker"
    assert found.ca_file.read_text() == "CA"
    assert found.ca_file.is_relative_to(tmp_path / ".elsapg")


def test_the_direct_door(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--via session, or set docker\.direct_port"):
        connection(deployed(tmp_path), "elsa_app", via="direct")
    found = connection(
        deployed(tmp_path, docker={"direct_port": 5555}), "elsa_migrator", "postgres", "direct"
    )
    assert (found.database, found.addresses) == ("postgres", (("127.0.0.1", 5555),))


@pytest.mark.parametrize(
    ("role", "database", "via", "says"),
    [
        ("postgres", "elsa_runtime", "pool", "roles: elsa_app, elsa_worker"),
        ("elsa_owner", "elsa_runtime", "pool", "role 'elsa_owner' has no password"),
        ("elsa_app", "postgres", "pool", "there are elsa_workflows, elsa_runtime"),
        ("elsa_app", "elsa", "session", "database 'elsa'"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(
    tmp_path: Path, role: str, database: str, via: connect.Via, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        connection(deployed(tmp_path), role, database, via)


def test_appsettings_give_each_need_its_door(tmp_path: Path) -> None:
    document = json.loads(connect.appsettings(deployed(tmp_path)))
    strings = {name: parse_npgsql(s) for name, s in document["ConnectionStrings"].items()}
    assert {n: (s["Username"], s["Database"]) for n, s in strings.items()} == {
        "Elsa": ("elsa_app", "elsa_workflows"),
        "ElsaMigrations": ("elsa_migrator", "elsa_workflows_session"),
        "ElsaLocks": ("elsa_app", "elsa_workflows_session"),
        "ElsaRuntime": ("elsa_app", "elsa_runtime"),
    }
    assert all(s["SSL Mode"] == "VerifyFull" for s in strings.values())
    assert strings["ElsaMigrations"]["Password"] == "password of elsa_migrator"
