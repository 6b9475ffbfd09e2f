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
from elsapg.settings import DatabaseSettings
from tests.unit import kubernetes_stacks

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
        "Load Balance Hosts": "true",
        "No Reset On Close": "true",
    }


@pytest.mark.parametrize("password", NASTY)
def test_npgsql(password: str) -> None:
    check_npgsql(password)


@pytest.mark.parametrize("via", ["pool", "readonly"])
def test_npgsql_does_not_reset_what_the_pool_shares(via: str) -> None:
    words = parse_npgsql(npgsql(made(via=via)))
    assert words["No Reset On Close"] == "true"
    assert "Pooling" not in words


@pytest.mark.parametrize("via", ["session", "direct"])
def test_npgsql_gives_a_session_back_when_it_is_closed(via: str) -> None:
    """Npgsql's own pool would keep one of the door's few server connections for minutes."""
    words = parse_npgsql(npgsql(made(via=via)))
    assert words["Pooling"] == "false"
    assert "No Reset On Close" not in words


def test_npgsql_uses_both_poolers() -> None:
    assert parse_npgsql(npgsql(made()))["Load Balance Hosts"] == "true"
    assert "Load Balance Hosts" not in npgsql(made(addresses=(("127.0.0.1", 6432),)))


def test_npgsql_quotes_rows_in_exceptions_only_when_asked() -> None:
    assert "Include Error Detail" not in npgsql(made())
    assert parse_npgsql(npgsql(made(), detail=True))["Include Error Detail"] == "true"


# npgsql.org/doc/connection-string-parameters, with the values that it gives for enumerations.
NPGSQL_KEYWORDS = {
    "Host", "Port", "Database", "Username", "Password", "Passfile", "SSL Mode",
    "SSL Negotiation", "Trust Server Certificate", "SSL Certificate", "SSL Key", "SSL Password",
    "Root Certificate", "Check Certificate Revocation", "Channel Binding",
    "Persist Security Info", "Kerberos Service Name", "Include Realm", "Include Error Detail",
    "Log Parameters", "Pooling", "Minimum Pool Size", "Maximum Pool Size",
    "Connection Idle Lifetime", "Connection Pruning Interval", "Connection Lifetime", "Timeout",
    "Command Timeout", "Cancellation Timeout", "Keepalive", "Tcp Keepalive",
    "Tcp Keepalive Time", "Tcp Keepalive Interval", "Max Auto Prepare", "Auto Prepare Min Usages",
    "Read Buffer Size", "Write Buffer Size", "Socket Receive Buffer Size",
    "Socket Send Buffer Size", "No Reset On Close", "Target Session Attributes",
    "Load Balance Hosts", "Host Recheck Seconds", "Options", "Application Name", "Enlist",
    "Search Path", "Client Encoding", "Encoding", "Timezone", "Array Nullability Mode",
    "Server Compatibility Mode",
}  # fmt: skip
SSL_MODES = {"Disable", "Allow", "Prefer", "Require", "VerifyCA", "VerifyFull"}
# PgBouncer refuses the first three at login; NpgsqlDataSourceBuilder the last, with several hosts.
NEVER = {"Options", "Search Path", "Timezone", "Target Session Attributes"}


@pytest.mark.parametrize("via", ["pool", "readonly", "session", "direct"])
@pytest.mark.parametrize("detail", [False, True])
def test_npgsql_knows_every_word(via: str, detail: bool) -> None:
    words = parse_npgsql(npgsql(made(via=via), detail=detail))
    assert words.keys() <= NPGSQL_KEYWORDS - NEVER
    assert words["SSL Mode"] in SSL_MODES
    flags = words.keys() & {
        "Load Balance Hosts", "No Reset On Close", "Pooling", "Include Error Detail"
    }  # fmt: skip
    assert {words[flag] for flag in flags} <= {"true", "false"}


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
    ("via", "lifetime"), [("pool", "45"), ("readonly", "45"), ("session", None)]
)
def test_npgsql_connects_anew_before_a_pool_has_gone(
    tmp_path: Path, via: connect.Via, lifetime: str | None
) -> None:
    slow = {"kubernetes": {"pool_leave_s": 60}, "pooler": {"max_db_connections": 7}}
    deployment = deployed(tmp_path)
    deployment.settings = kubernetes_stacks.settings(slow)
    words = parse_npgsql(npgsql(connection(deployment, "elsa_app", via=via)))
    assert words.get("Connection Lifetime") == lifetime
    deployment.settings = kubernetes_stacks.settings({})
    assert "Connection Lifetime" not in npgsql(connection(deployment, "elsa_app", via=via))


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


def strings_of(text: str) -> dict[str, dict[str, str]]:
    document = json.loads(text)
    assert document.keys() == {"DatabaseProvider", "ConnectionStrings"}
    return {name: parse_npgsql(s) for name, s in document["ConnectionStrings"].items()}


ELSAS = {"Elsa", "ElsaMigrations", "ElsaLocks", "ElsaRuntime"}


def test_appsettings_give_each_need_its_door(tmp_path: Path) -> None:
    text = connect.appsettings(deployed(tmp_path))
    assert json.loads(text)["DatabaseProvider"] == "PostgreSql"
    strings = strings_of(text)
    assert {n: (s["Username"], s["Database"]) for n, s in strings.items() if n in ELSAS} == {
        "Elsa": ("elsa_app", "elsa_workflows"),
        "ElsaMigrations": ("elsa_migrator", "elsa_workflows_session"),
        "ElsaLocks": ("elsa_app", "elsa_workflows_session"),
        "ElsaRuntime": ("elsa_app", "elsa_runtime"),
    }
    assert all(s["SSL Mode"] == "VerifyFull" for s in strings.values())
    assert strings["ElsaMigrations"]["Password"] == "password of elsa_migrator"


def test_s1_34_development_shows_details(tmp_path: Path) -> None:
    strings = strings_of(connect.appsettings(deployed(tmp_path), "development"))
    assert strings.keys() == {*ELSAS, "DefaultConnection"}
    assert strings["DefaultConnection"] == strings["Elsa"]
    assert all(s["Include Error Detail"] == "true" for s in strings.values())


def test_s1_35_production_verifies_and_shows_none(tmp_path: Path) -> None:
    strings = strings_of(connect.appsettings(deployed(tmp_path), "production"))
    assert strings.keys() == {*ELSAS, "ProductionConnection"}
    assert strings["ProductionConnection"] == strings["Elsa"]
    assert not any("Include Error Detail" in s for s in strings.values())
    assert all(s["SSL Mode"] == "VerifyFull" and s["Root Certificate"] for s in strings.values())


# -- databases elsewhere -------------------------------------------------------------------


def elsewhere(**database: Any) -> DatabaseSettings:
    return stackfile.load({"database": database}, "test").database


@pytest.mark.parametrize("file", ["elsa.db", "/var/lib/elsa/elsa.db", "a file; of = mine's.db"])
@pytest.mark.parametrize("environment", ["development", "production"])
def test_s1_46_sqlite_is_a_file(file: str, environment: connect.Environment) -> None:
    text = connect.appsettings_elsewhere(elsewhere(provider="sqlite", file=file), environment)
    assert json.loads(text)["DatabaseProvider"] == "Sqlite"
    alias = {"development": "DefaultConnection", "production": "ProductionConnection"}[environment]
    assert strings_of(text) == {name: {"Data Source": file} for name in (*ELSAS, alias)}


SQLSERVER = {"provider": "sqlserver", "host": "sql.example", "user": "elsa", "database": "elsa"}


@pytest.mark.parametrize("password", NASTY)
def test_s1_45_sqlserver_is_a_given_server(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setenv("ELSAPG_DATABASE_PASSWORD", password)
    text = connect.appsettings_elsewhere(elsewhere(**SQLSERVER), "production")
    assert json.loads(text)["DatabaseProvider"] == "SqlServer"
    expected = {
        "Server": "tcp:sql.example,1433",
        "Database": "elsa",
        "User ID": "elsa",
        "Password": password,
        "Encrypt": "True",
        "TrustServerCertificate": "False",
    }
    assert strings_of(text) == dict.fromkeys((*ELSAS, "ProductionConnection"), expected)


@pytest.mark.parametrize("password", [None, ""])
def test_without_the_password_there_is_no_half_a_string(
    monkeypatch: pytest.MonkeyPatch, password: str | None
) -> None:
    monkeypatch.delenv("ELSAPG_DATABASE_PASSWORD", raising=False)
    if password is not None:
        monkeypatch.setenv("ELSAPG_DATABASE_PASSWORD", password)
    with pytest.raises(UsageError, match="variable ELSAPG_DATABASE_PASSWORD"):
        connect.appsettings_elsewhere(elsewhere(**SQLSERVER), "production")


def test_every_provider_has_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that Elsa's code needs no change when the one line changes."""
    monkeypatch.setenv("ELSAPG_DATABASE_PASSWORD", "x")
    texts = [
        connect.appsettings(deployed(tmp_path)),
        connect.appsettings_elsewhere(elsewhere(provider="sqlite"), "production"),
        connect.appsettings_elsewhere(elsewhere(**SQLSERVER), "production"),
    ]
    assert len({frozenset(strings_of(text)) for text in texts}) == 1
