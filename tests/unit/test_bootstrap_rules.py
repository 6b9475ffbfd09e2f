"""The runner's rules without a database: refusals, error lines, passwords, configuration."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsapg.errors import UsageError
from elsapg.runner import scram
from elsapg.runner.bootstrap import (
    PASSWORD_ROLES,
    SETTINGS,
    Result,
    check_passwords,
    check_settings,
    main,
)
from elsapg.runner.migrations import (
    Applied,
    RefusedError,
    describe,
    examine,
    find_problems,
    pending,
    refuse,
)
from elsapg.runner.sqlfile import Migration, parse_migration, split

PASSWORDS = dict.fromkeys(PASSWORD_ROLES, "secret")


LOAD = "-- Under load: nobody waits\n"


def file(version: int, content: str = f"{LOAD}SELECT 1;", name: str | None = None) -> Migration:
    name = name or f"{version:04d}_step.sql"
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    return parse_migration(f"elsa_runtime/{name}", name, version, content, sha256)


def applied(migration: Migration) -> Applied:
    return Applied(migration.version, migration.name, migration.sha256, "2026-01-02 03:04")


def problems(files: list[Migration], history: list[Migration]) -> list[str]:
    return find_problems("elsa_runtime", tuple(files), [applied(row) for row in history])


def test_a_history_that_fits_has_no_problems() -> None:
    assert problems([file(1), file(2), file(4)], [file(1), file(2)]) == []


@settings(deadline=None)
@given(st.integers(0, 8), st.integers(0, 8))
def test_any_prefix_of_the_files_fits(count: int, done: int) -> None:
    files = [file(number + 1) for number in range(count)]
    assert problems(files, files[:done]) == []


def test_an_edited_file_is_named_with_its_date_and_the_way_out() -> None:
    (problem,) = problems([file(1, "SELECT 2;"), file(2)], [file(1), file(2)])
    assert problem.startswith("elsa_runtime/0001_step.sql was edited after it was applied on 2026-")
    assert "0003_" in problem


def test_a_missing_file_is_named() -> None:
    (problem,) = problems([file(2)], [file(1), file(2)])
    assert "elsa_runtime/0001_step.sql was applied" in problem
    assert "is missing; restore" in problem


def test_a_renamed_file_is_named() -> None:
    (problem,) = problems([file(1, name="0001_other.sql")], [file(1)])
    assert "0001_other.sql was applied as 0001_step.sql" in problem


def test_a_number_below_the_newest_applied_is_refused_with_a_free_one() -> None:
    (problem,) = problems([file(1), file(2), file(3)], [file(1), file(3)])
    assert "0002_step.sql is new but numbered below 0003" in problem
    assert "0004 or above" in problem


def test_a_new_file_must_say_how_it_behaves_under_load() -> None:
    (problem,) = problems([file(2, "SELECT 1;")], [])
    assert "elsa_runtime/0002_step.sql does not say how it behaves under load" in problem
    assert "'-- Under load: …'" in problem


def test_the_rule_on_load_spares_what_was_there_before_it() -> None:
    first, second = file(1, "SELECT 1;"), file(2, "SELECT 1;")
    assert problems([first], []) == []
    assert problems([first, second], [first, second]) == []


def test_a_new_file_without_a_statement_is_refused() -> None:
    (problem,) = problems([file(2, LOAD)], [])
    assert "0002_step.sql holds no statement" in problem


def test_every_state_has_its_name() -> None:
    files = [
        file(1),
        file(2, "SELECT 2;"),
        file(3, name="0003_new.sql"),
        file(4),
        file(7),
        file(8, "SELECT 1;"),
        file(9, LOAD),
    ]
    history = [file(1), file(2), file(3), file(5), file(6)]
    steps = examine("elsa_runtime", files, map(applied, history))
    assert {step.version: step.state for step in steps} == {
        1: "applied",
        2: "edited",
        3: "renamed",
        4: "late",
        5: "missing",
        6: "missing",
        7: "pending",
        8: "unexplained",
        9: "empty",
    }
    assert all(bool(step.problem) == (step.state not in ("applied", "pending")) for step in steps)
    assert pending(examine("elsa_runtime", [file(1), file(3)], [applied(file(1))])) == [file(3)]


def test_every_problem_of_every_database_is_told_at_once() -> None:
    steps = {
        "elsa_workflows": examine("elsa_workflows", (), [applied(file(7))]),
        "elsa_runtime": examine("elsa_runtime", [file(1, "X;")], [applied(file(1))]),
    }
    with pytest.raises(RefusedError, match="nothing was applied") as caught:
        refuse(steps)
    assert "elsa_workflows/0007_step.sql" in str(caught.value)
    assert "elsa_runtime/0001_step.sql" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"days": 1}, "no data setting is called days; there are instances_days, "),
        ({"instances_days": -1}, "instances_days = -1: must be a whole number from 0"),
        ({"instances_days": 2**31}, "instances_days = 2147483648"),
        ({"instances_days": "90"}, "instances_days = '90'"),
        ({"instances_days": True}, "instances_days = True"),
        ({"instances_days": 1.5}, r"instances_days = 1\.5"),
    ],
)
def test_a_data_setting_that_cannot_be_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_settings(settings)


def test_the_known_data_settings_are_those_of_the_table() -> None:
    check_settings(dict.fromkeys(SETTINGS, 0))
    path = Path(__file__).parents[2] / "bootstrap_sql" / "cluster" / "055_elsapg.sql"
    inserted = path.read_text().split("INSERT INTO elsapg.setting")[1].split(";")[0]
    assert re.findall(r"\('([a-z_]+)', [0-9]+\)", inserted) == list(SETTINGS)


class FakeError(Exception):
    """As much of a psycopg.Error as `describe` looks at."""

    def __init__(self, **diag: Any) -> None:
        super().__init__(diag.get("message_primary"))
        names = ("sqlstate", "message_primary", "message_detail", "message_hint", "context")
        self.diag = SimpleNamespace(
            **{name: diag.get(name) for name in (*names, "statement_position")}
        )


def told(text: str, **diag: Any) -> list[str]:
    (statement,) = split(text, "f")
    error: Any = FakeError(message_primary="broken", sqlstate="42P01", **diag)
    return describe("a.sql", "elsa_runtime", statement, error, "Kept nothing.").splitlines()


def test_an_error_names_file_line_database_and_message() -> None:
    lines = told("\nSELECT\n  x;", statement_position="10", message_detail="D", message_hint="H")
    assert lines == [
        "a.sql:3: in elsa_runtime: broken (42P01)",
        "  DETAIL: D",
        "  HINT: H",
        "  Kept nothing.",
    ]


def test_without_a_position_the_statements_line_is_named() -> None:
    assert told("\n\nSELECT\n  x;")[0].startswith("a.sql:3:")


def test_a_do_block_is_named_by_its_inner_line() -> None:
    context = "PL/pgSQL function inline_code_block line 3 at RAISE"
    assert told("DO $$\nBEGIN\n  RAISE 'x';\nEND $$;", context=context)[0].startswith("a.sql:3:")


def test_a_functions_line_is_not_mistaken_for_the_files() -> None:
    context = "PL/pgSQL function f() line 40 at RAISE"
    assert told("\nSELECT f();", context=context)[0].startswith("a.sql:2:")


def test_a_page_of_context_is_cut() -> None:
    lines = told("SELECT f();", context="\n".join(map(str, range(500))))
    assert len(lines) < 15
    assert "more lines" in lines[-2]


def test_the_result_says_what_happened() -> None:
    nothing = "0 migrations applied, 0 passwords changed, 0 settings changed"
    assert str(Result()) == nothing
    assert not Result(migrations={"elsa_runtime": []}).changed
    done = Result(migrations={"elsa_runtime": ["a"], "elsa_workflows": ["b"]})
    done.passwords_changed = ["elsa_app"]
    assert str(done) == "2 migrations applied, 1 password changed, 0 settings changed"
    assert done.changed
    assert Result(settings_changed=["instances_days"]).changed


# RFC 7677's own example: user "user", password "pencil".
RFC_SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")


def test_the_verifier_is_the_rfcs() -> None:
    verifier = scram.verifier("pencil", salt=RFC_SALT, iterations=4096)
    stored, server = verifier.split("$")[2].split(":")
    # The RFC's ServerSignature and ClientProof follow from these two keys.
    assert stored == "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
    assert server == "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="


@given(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=64),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=64),
)
@settings(max_examples=25, deadline=None)
def test_a_verifier_matches_its_own_password_only(password: str, other: str) -> None:
    verifier = scram.verifier(password, iterations=2)
    assert scram.matches(password, verifier)
    assert scram.matches(other, verifier) == (password == other)
    assert password == "SCRAM" or password not in verifier or len(password) < 5


def test_the_same_password_gets_another_salt_each_time() -> None:
    assert scram.verifier("a") != scram.verifier("a")


@pytest.mark.parametrize("stored", [None, "", "md5abc", "SCRAM-SHA-256$1:!$a:b", "secret"])
def test_what_is_no_verifier_matches_nothing(stored: str | None) -> None:
    assert not scram.matches("secret", stored)


def test_every_role_must_have_a_usable_password() -> None:
    check_passwords(PASSWORDS)
    for role in PASSWORD_ROLES:
        with pytest.raises(UsageError, match=role):
            check_passwords({name: value for name, value in PASSWORDS.items() if name != role})
        for bad in ("", "pässword", "a\nb"):
            with pytest.raises(UsageError, match=role) as caught:
                check_passwords({**PASSWORDS, role: bad})
            assert not bad or bad not in str(caught.value)
    with pytest.raises(UsageError, match="replicator takes no password"):
        check_passwords({**PASSWORDS, "replicator": "x"})


def config(tmp_path: Path, **changes: Any) -> Path:
    roles = tmp_path / "roles.json"
    roles.write_text(json.dumps(PASSWORDS))
    values: dict[str, Any] = {
        "primary": {"host": "localhost", "port": 1},
        "superuser": "postgres",
        "sslrootcert": "/ca",
        "sslcert": "/cert",
        "sslkey": "/key",
        "sql_dir": str(tmp_path),
        "passwords_file": str(roles),
        **changes,
    }
    path = tmp_path / "runner.json"
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"sslkey": None}, 2, "'sslkey'"),
        ({"primary": {"host": "localhost"}}, 2, "'port'"),
        ({"synchronous_commit": "maybe"}, 2, "synchronous_commit"),
        ({"settings": [1]}, 2, "settings must be a JSON object"),
        ({"settings": {"days": 1}}, 2, "no data setting is called days"),
        ({"passwords_file": "/nonexistent"}, 2, "/nonexistent cannot be read"),
        ({}, 6, "is not a bootstrap_sql folder"),
    ],
)
def test_the_door_says_what_is_wrong_and_returns_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: Any, code: int, says: str
) -> None:
    assert main(config(tmp_path, **changes)) == code
    printed = capsys.readouterr()
    assert says in printed.err
    assert "Traceback" not in printed.err
    assert "secret" not in printed.out + printed.err


def test_a_broken_password_file_is_not_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path)
    (tmp_path / "roles.json").write_text('{"elsa_app": "hunter2",,}')
    assert main(path) == 2
    assert "hunter2" not in capsys.readouterr().err
