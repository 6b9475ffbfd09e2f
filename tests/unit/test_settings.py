"""Settings: every problem at once, each with key, value and way out; never a traceback."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as within
from hypothesis import strategies as st
from pydantic import BaseModel

from elsapg import stackfile
from elsapg.errors import ElsapgError, SettingsError, UsageError
from elsapg.settings import OWNED_PARAMETERS, Settings
from elsapg.sums import check_sums, parse_kb, pool_connections

ROOT = Path(__file__).resolve().parents[2]


def problems(values: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(SettingsError) as caught:
        stackfile.load(values, "test")
    return {problem.key.removeprefix("elsapg:"): str(problem) for problem in caught.value.problems}


def test_defaults_hold_together() -> None:
    assert stackfile.load({}, "test") == Settings()


# A test stack that another run has left may be bad on purpose.
OURS = [p for p in sorted((ROOT / "stacks").glob("Pulumi.*.yaml")) if ".test-" not in p.name]


@pytest.mark.parametrize("path", OURS, ids=lambda p: p.name)
def test_our_own_stacks_hold(path: Path) -> None:
    stackfile.read(ROOT, path.stem.removeprefix("Pulumi."))


def test_on_and_off_without_quotes_are_what_yaml_takes_them_for() -> None:
    said = {"synchronous": False, "synchronous_commit": True}
    found = Settings.model_validate({"postgres": said}).postgres
    assert (found.synchronous, found.synchronous_commit) == ("off", "on")
    with pytest.raises(ValueError, match="synchronous_commit"):
        Settings.model_validate({"postgres": {"synchronous_commit": False}})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().postgres.replicas = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "key", "says"),
    [
        ({"tagret": "docker"}, "tagret", "unknown key; known here: archive, database, docker"),
        ({"recovery": {"to": "latest"}}, "recovery.source", "up --from-backup"),
        ({"recovery": {"source": "a", "to": "noon!"}}, "recovery.to", "give a time with its zone"),
        ({"recovery": {"source": "a", "to": "2026-01-31T12:00:00"}}, "recovery.to", "add Z"),
        ({"postgres": {"replica": 1}}, "postgres.replica", "unknown key"),
        ({"postgres": {"replicas": 99}}, "postgres.replicas", "less than or equal to 7"),
        ({"postgres": {"replicas": "many"}}, "postgres.replicas", "valid integer"),
        ({"postgres": 7}, "postgres", "7"),
        ({"target": "vmware"}, "target", "'docker' or 'kubernetes'"),
        ({"patroni": {"ttl": 10}}, "patroni.ttl", "greater than or equal to 20"),
        ({"encryption": {"key_ids": []}}, "encryption.key_ids", "at least 1 item"),
        ({"encryption": {"key_ids": ["k1", "K 2"]}}, "encryption.key_ids", "'K 2' names no key"),
        ({"encryption": {"key_ids": ["a", "b", "a"]}}, "encryption.key_ids", "'a' is there twice"),
        ({"encryption": {"key_ids": ["a", 7]}}, "encryption.key_ids", "valid string"),
        ({"patroni": {"retry_timeout": 15}}, "patroni.ttl", "raise ttl to 32"),
        ({"postgres": {"synchronous": "strict"}}, "postgres.synchronous", "replicas to 2"),
        ({"postgres": {"replicas": 7}}, "postgres.max_wal_senders", "raise it to 11"),
        ({"pooler": {"max_db_connections": 50}}, "pooler.max_db_connections", "lower it to 14"),
        ({"postgres": {"memory_mb": 512}}, "postgres.max_connections", "lower it to 85"),
        ({"tls": {"renew_before_days": 365}}, "tls.renew_before_days", "valid_days 365"),
        ({"docker": {"direct_port": 6433}}, "docker.direct_port", "choose another"),
        ({"archive": {"full_schedule": "daily"}}, "archive.full_schedule", "five cron fields"),
        ({"archive": {"full_schedule": "0 1 * * 7"}}, "archive.full_schedule", "Sunday is 0"),
        ({"archive": {"bucket": "Backups!"}}, "archive.bucket", "pattern"),
        ({"database": {"provider": "oracle"}}, "database.provider", "'postgresql', 'sqlite'"),
        ({"database": {"provider": "sqlserver"}}, "database", "needs host and user as well"),
        ({"database": {"provider": "sqlserver", "host": "x"}}, "database", "needs user as well"),
        ({"database": {"provider": "sqlite", "file": "a\nb"}}, "database.file", "pattern"),
        ({"database": {"password": "x"}}, "database.password", "unknown key"),
        ({"retention": {"instances_days": 0}}, "retention.instances_days", "equal to 1"),
        ({"retention": {"instances_days": 3651}}, "retention.instances_days", "equal to 3650"),
        ({"retention": {"archive_months": -1}}, "retention.archive_months", "equal to 0"),
        ({"retention": {"snapshots_hours": 721}}, "retention.snapshots_hours", "equal to 720"),
        ({"retention": {"months_ahead": 25}}, "retention.months_ahead", "equal to 24"),
        (
            {"postgres": {"parameters": {"wal_level": "minimal"}}},
            "postgres.parameters",
            "belongs to the toolkit",
        ),
        (
            {"postgres": {"parameters": {"shared_buffers": "900MB"}}},
            "postgres.parameters.shared_buffers",
            "lower it to 512MB",
        ),
        (
            {"postgres": {"parameters": {"work_mem": "lots"}}},
            "postgres.parameters.work_mem",
            "write it as '256MB'",
        ),
    ],
)
def test_a_bad_value_says_key_value_and_way_out(
    values: dict[str, Any], key: str, says: str
) -> None:
    found = problems(values)
    assert key in found
    assert says in found[key]


@pytest.mark.parametrize("provider", ["postgresql", "sqlite", "sqlserver"])
def test_switching_the_database_is_one_line(provider: str) -> None:
    """Keys of the providers that are not chosen may stay."""
    values = {"file": "x.db", "host": "sql.example", "user": "elsa", "database": "elsa"}
    found = stackfile.load({"database": {"provider": provider, **values}}, "test").database
    assert found.provisioned == (provider == "postgresql")


def test_every_problem_is_listed_at_once() -> None:
    found = problems(
        {
            "nonsense": 1,
            "postgres": {"replicas": -1, "memory_mb": "x"},
            "patroni": {"retry_timeout": 20},
            "tls": {"valid_days": 1},
        }
    )
    assert set(found) == {
        "nonsense",
        "postgres.replicas",
        "postgres.memory_mb",
        "patroni.ttl",
        "tls.valid_days",
    }


def test_the_message_says_that_nothing_was_created() -> None:
    with pytest.raises(SettingsError, match=r"2 problems; nothing was created"):
        stackfile.load({"a": 1, "b": 2}, "test")


def test_owned_parameters_are_refused_by_name() -> None:
    for name in OWNED_PARAMETERS:
        assert name in problems({"postgres": {"parameters": {name: 1}}})["postgres.parameters"]


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3)
    ),
    max_leaves=8,
)


def _groups() -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


values_of_any_kind = st.integers(-5, 5000) | scalars | st.just({}) | st.just(["x"])
# Keys that mostly exist, with values that are mostly of the right kind.
likely = st.fixed_dictionaries(
    {},
    optional={
        name: values_of_any_kind
        | st.dictionaries(
            st.sampled_from([*sorted(model.model_fields), "unknown", ""]),
            values_of_any_kind,
            max_size=4,
        )
        for name, model in _groups().items()
    }
    | {"unknown": scalars, "target": scalars, "protect": scalars},
)


@given(likely)
@within(deadline=None)
def test_any_value_loads_or_lists_its_problems(values: dict[str, Any]) -> None:
    try:
        settings = stackfile.load(values, "test")
    except SettingsError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.key.startswith("elsapg:")
            assert problem.value
            assert problem.reason
    else:
        assert not check_sums(settings)
        assert pool_connections(settings) <= settings.postgres.max_connections


@given(anything)
@within(deadline=None)
def test_any_document_reads_or_explains_itself(document: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "stacks").mkdir()
        text = yaml.safe_dump({"config": document} if document != "bare" else document)
        (root / "stacks" / "Pulumi.x.yaml").write_text(text, encoding="utf-8")
        try:
            assert isinstance(stackfile.read(root, "x"), Settings)
        except ElsapgError as error:
            assert str(error)


@given(st.binary(max_size=200))
@within(deadline=None)
def test_any_bytes_read_or_explain_themselves(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "stacks").mkdir()
        (root / "stacks" / "Pulumi.x.yaml").write_bytes(content)
        try:
            stackfile.read(root, "x")
        except ElsapgError as error:
            assert str(error)


@given(st.text(max_size=50))
def test_a_stack_name_is_safe_or_refused(name: str) -> None:
    try:
        stackfile.check_stack_name(name)
    except UsageError:
        return
    assert name.isascii()
    assert 0 < len(name) <= 30
    assert set(name) <= set(string.ascii_lowercase + string.digits + "-")
    assert name[0].isalpha()
    assert name[-1] != "-"


@pytest.mark.parametrize(
    "name", ["", "A", "a_b", "a b", "../x", "a/b", "ä", "1a", "a-", "a" * 31, "a\n"]
)
def test_odd_stack_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name containers"):
        stackfile.check_stack_name(name)


def test_a_missing_stack_names_the_known_ones(project: Path) -> None:
    with pytest.raises(UsageError, match=r"no stack 'loacl'.*known stacks: local"):
        stackfile.read(project, "loacl")


def test_keys_of_other_namespaces_are_left_alone(project: Path) -> None:
    (project / "stacks/Pulumi.local.yaml").write_text("config:\n  aws:region: x\n")
    assert stackfile.read(project, "local") == Settings()


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("256MB", 8, 262144),
        ("1GB", 1, 1048576),
        (16, 8, 128),
        ("4 kB", 1, 4),
        ("x", 1, None),
        ("MB", 1, None),
    ],
)
def test_memory_sizes(text: object, unit: int, expected: int | None) -> None:
    assert parse_kb(text, unit) == expected
