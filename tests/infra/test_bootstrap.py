"""The databases' contents: every migration of bootstrap_sql applied, unedited."""

from __future__ import annotations

from pathlib import Path

from elsapg.runner.migrations import Applied, find_problems
from elsapg.runner.sqlfile import read_tree
from tests.infra.facts import Facts, none

AGAIN = "run `elsapg up --refresh`, which applies them"


def test_every_migration_is_applied(facts: Facts, root: Path, database: str) -> None:
    """Every migration of the database was applied."""
    applied = {m["name"] for m in facts.database(database)["migrations"]}
    tree = read_tree(root / "bootstrap_sql")
    none(
        (f"{m.label} was not" for m in tree.migrations[database] if m.name not in applied),
        AGAIN,
    )


def test_no_migration_was_edited(facts: Facts, root: Path, database: str) -> None:
    """What was applied is what the files say, by their checksums."""
    rows = sorted(facts.database(database)["migrations"], key=lambda m: int(m["version"]))
    applied = [Applied(m["version"], m["name"], m["sha256"], "an earlier day") for m in rows]
    tree = read_tree(root / "bootstrap_sql")
    none(
        find_problems(database, tree.migrations[database], applied),
        "restore the file from Git; a change belongs into a new migration",
    )
