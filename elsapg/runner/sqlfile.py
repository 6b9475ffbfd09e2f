"""SQL files: their names and directives, and where each statement begins.

The server gets one statement at a time, because it gives a position only for what it cannot
parse: for the rest (a duplicate key, a missing right) the statement's own line has to do.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elsapg.errors import DeploymentError

POSTGRES = "postgres"
DATABASES = ("elsa_workflows", "elsa_runtime")
EVERY_DATABASE = (POSTGRES, *DATABASES)
CLUSTER = "cluster"

_MIGRATION_NAME = re.compile(r"(?P<version>[0-9]{4})_[a-z0-9][a-z0-9_]*\.sql")
_DIRECTIVE = re.compile(r"-- elsapg: (?P<key>[a-z]+)=(?P<value>.+)")
_UNDER_LOAD = re.compile(r"-- Under load:\s*(?P<said>\S.*)")
_COMMENT_LINE = re.compile(r"--\s*(?P<said>\S.*)")
_DIRECTIVE_LIKE = re.compile(r"\s*--\s*elsapg\s*:", re.IGNORECASE)

# One token of the lexer that `split` needs; the order matters.
_TOKEN = re.compile(
    r"""
      (?P<space>   [ \t\r\n\f\v]+ )
    | (?P<line>    --[^\n]* )
    | (?P<block>   /\* )
    | (?P<dollar>  \$(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?\$ )
    | (?P<escape>  [eE]' )
    | (?P<quote>   ' )
    | (?P<ident>   " )
    | (?P<word>    [A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]* )
    | (?P<other>   . )
    """,
    re.VERBOSE | re.DOTALL,
)
_ENDS = {
    "escape": re.compile(r"(?:[^'\\]|\\.|'')*'", re.DOTALL),
    "quote": re.compile(r"(?:[^']|'')*'", re.DOTALL),
    "ident": re.compile(r'(?:[^"]|"")*"', re.DOTALL),
}
_CALLED = {
    "escape": "string",
    "quote": "string",
    "ident": "quoted identifier",
    "block": "comment",
    "dollar": "dollar-quoted string",
}
_COMMENT = re.compile(r"/\*|\*/")
_TRANSACTION_WORDS = frozenset({"abort", "begin", "commit", "end", "rollback", "start"})
_ROUTINES = frozenset({"function", "procedure"})

# What a migration outside a transaction may hold, and the index that it is about.
_NAME = r'(?:(?:"[^"]+"|\w+)\.)?(?P<name>"[^"]+"|\w+)'
_DROP_INDEX = re.compile(rf"DROP\s+INDEX\s+CONCURRENTLY\s+IF\s+EXISTS\s+{_NAME}", re.IGNORECASE)
_CREATE_INDEX = re.compile(
    rf"CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?!IF\b){_NAME}\s+ON\b", re.IGNORECASE
)


class SqlFileError(DeploymentError):
    """A file of `bootstrap_sql` is not one that the bootstrap can run; nothing was run."""


@dataclass(frozen=True)
class Statement:
    """One statement: its text without the semicolon, and the line its first word is on."""

    text: str
    line: int
    words: tuple[str, ...]  # its first words, in lower case

    def line_at(self, position: int) -> int:
        """The file's line of a 1-based character position in the statement."""
        return self.line + self.text.count("\n", 0, max(position - 1, 0))

    def body_line(self, line: int) -> int:
        """The file's line of a 1-based line in the statement's first dollar-quoted body."""
        opening = re.search(r"\$(?:[A-Za-z_][A-Za-z0-9_]*)?\$", self.text)
        start = self.line if opening is None else self.line_at(opening.end())
        return min(start + line - 1, self.line_at(len(self.text)))


@dataclass(frozen=True)
class SqlFile:
    """One file, read and split. Messages name it by `label`, such as `cluster/010_roles.sql`."""

    label: str
    name: str
    sha256: str
    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class ClusterFile(SqlFile):
    """An idempotent file: run on every bootstrap, in each of its databases."""

    databases: tuple[str, ...]
    transaction: bool
    unless: str | None
    after_migrations: bool = False  # for what needs the tables: views, functions over them


@dataclass(frozen=True)
class Migration(SqlFile):
    """A numbered file: applied once. `under_load` is what it says after those words, or ""."""

    version: int
    text: str
    under_load: str
    transaction: bool = True


@dataclass(frozen=True)
class SqlTree:
    """All of `bootstrap_sql`, in the order in which it is run."""

    cluster: tuple[ClusterFile, ...]
    migrations: dict[str, tuple[Migration, ...]]


def split(text: str, label: str) -> tuple[Statement, ...]:
    """Cut a file into statements, as psql does it: quotes, comments and SQL bodies stay whole."""
    return tuple(_statements(text, label))


def _statements(text: str, label: str) -> Iterator[Statement]:
    start: int | None = None
    last = position = parentheses = depth = 0
    words: list[str] = []
    while position < len(text):
        token = _TOKEN.match(text, position)
        kind = token.lastgroup if token else None
        if token is None or kind is None:  # `other` matches anything
            raise AssertionError(position)
        end = _end(text, token, kind, label)
        if kind in ("space", "line", "block"):
            position = end
            continue
        word = token.group().lower()
        if word == ";" and parentheses == 0 and depth == 0:
            if start is not None:
                yield _statement(text, start, last, words)
            start, words = None, []
            position = end
            continue
        if start is None:
            start = position
            if word == "\\":
                raise SqlFileError(
                    f"{label}:{_line(text, position)}: psql's backslash commands do not work here; "
                    "use plain SQL"
                )
        if word == "(":
            parentheses += 1
        elif word == ")":
            parentheses = max(parentheses - 1, 0)
        elif kind == "word":
            depth = _body_depth(depth, word, words, parentheses)
            words.append(word)
        position = last = end
    if start is not None:
        yield _statement(text, start, last, words)


def _end(text: str, token: re.Match[str], kind: str, label: str) -> int:
    """Where the token ends that begins here, with its closing quote."""
    end: int | None
    if kind == "block":
        end = _comment_end(text, token.end())
    elif kind == "dollar":
        found = text.find(token.group(), token.end())
        end = None if found < 0 else found + len(token.group())
    elif kind in _ENDS:
        closing = _ENDS[kind].match(text, token.end())
        end = closing.end() if closing else None
    else:
        end = token.end()
    if end is None:
        line = _line(text, token.start())
        raise SqlFileError(f"{label}:{line}: the {_CALLED[kind]} that begins here has no end")
    return end


def _comment_end(text: str, position: int) -> int | None:
    depth = 1
    for mark in _COMMENT.finditer(text, position):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return mark.end()
    return None


def _body_depth(depth: int, word: str, words: list[str], parentheses: int) -> int:
    """Whether a semicolon would be inside `BEGIN ATOMIC … END` (psql's own rule)."""
    routine = words[:1] == ["create"] and bool(_ROUTINES & set(words[1:4]))
    if not routine or parentheses:
        return depth
    if word == "begin" or (word == "case" and depth > 0):
        return depth + 1
    return depth - 1 if word == "end" and depth > 0 else depth


def _statement(text: str, start: int, end: int, words: list[str]) -> Statement:
    return Statement(text[start:end], _line(text, start), tuple(words[:4]))


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _read(path: Path, label: str) -> tuple[str, str]:
    """The file's text with LF line ends, and its SHA-256: a checkout's line ends do not count."""
    try:
        text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise SqlFileError(f"{label} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    return text, hashlib.sha256(text.encode("utf-8")).hexdigest()


def _directives(text: str, label: str) -> dict[str, str]:
    """The `-- elsapg: key=value` lines at the top of a file."""
    found: dict[str, str] = {}
    at_top = True
    for number, line in enumerate(text.split("\n"), start=1):
        directive = _DIRECTIVE.fullmatch(line.rstrip())
        if directive and at_top:
            if directive["key"] in found:
                raise SqlFileError(f"{label}:{number}: {directive['key']} is given twice")
            found[directive["key"]] = directive["value"].strip()
            continue
        at_top = False
        if _DIRECTIVE_LIKE.match(line):
            raise SqlFileError(
                f"{label}:{number}: a directive is a line '-- elsapg: key=value' above everything "
                "else in the file"
            )
    return found


def cluster_file(path: Path, label: str) -> ClusterFile:
    """Read one file of `cluster/`."""
    text, sha256 = _read(path, label)
    given = _directives(text, label)
    for key in given.keys() - {"database", "transaction", "unless", "after"}:
        raise SqlFileError(
            f"{label}: no directive is called {key}; there are database, transaction, unless, after"
        )
    wanted = given.get("database", "")
    databases = EVERY_DATABASE if wanted == "each" else tuple(wanted.split(","))
    for database in databases:
        if database not in EVERY_DATABASE:
            raise SqlFileError(
                f"{label}: database={wanted or '(missing)'}: name each, or some of "
                f"{', '.join(EVERY_DATABASE)}, separated by commas"
            )
    transaction = given.get("transaction", "on")
    if transaction not in ("on", "off"):
        raise SqlFileError(f"{label}: transaction={transaction}: must be on or off")
    after = given.get("after")
    if after not in (None, "migrations"):
        raise SqlFileError(f"{label}: after={after}: must be migrations")
    statements = split(text, label)
    if transaction == "on":
        _refuse_transaction_control(statements, label)
    return ClusterFile(
        label,
        path.name,
        sha256,
        statements,
        databases,
        transaction == "on",
        given.get("unless"),
        after == "migrations",
    )


def migration(path: Path, label: str) -> Migration:
    """Read one numbered file."""
    name = _MIGRATION_NAME.fullmatch(path.name)
    if name is None:
        raise SqlFileError(
            f"{label}: a migration is called NNNN_what_it_does.sql, in lower case; rename it"
        )
    text, sha256 = _read(path, label)
    return parse_migration(label, path.name, int(name["version"]), text, sha256)


def parse_migration(label: str, name: str, version: int, text: str, sha256: str) -> Migration:
    """A numbered file's text, checked."""
    given = _directives(text, label)
    if given not in ({}, {"transaction": "off"}):
        raise SqlFileError(
            f"{label}: a migration may say '-- elsapg: transaction=off' and nothing else of that"
            " kind; the other directives are for cluster files"
        )
    statements = split(text, label)
    if given:
        _refuse_what_cannot_run_again(statements, label)
    else:
        _refuse_transaction_control(statements, label)
        _refuse_concurrently(statements, label)
    return Migration(
        label, name, sha256, statements, version, text, _under_load(text), transaction=not given
    )


def _under_load(text: str) -> str:
    """What the first comment says after "Under load:", up to its first empty line."""
    lines = itertools.dropwhile(lambda line: _DIRECTIVE.fullmatch(line.rstrip()), text.split("\n"))
    opening = _UNDER_LOAD.match(next(lines, ""))
    if opening is None:
        return ""
    words = [opening["said"]]
    for line in lines:
        more = _COMMENT_LINE.fullmatch(line)
        if more is None:
            break
        words.append(more["said"])
    return " ".join(" ".join(words).split())


def _refuse_concurrently(statements: tuple[Statement, ...], label: str) -> None:
    for statement in statements:
        if statement.words[1:2] != ("materialized",) and "concurrently" in statement.words[:4]:
            raise SqlFileError(
                f"{label}:{statement.line}: CONCURRENTLY does not work in a transaction; put it"
                " into a file of its own that begins with '-- elsapg: transaction=off'"
            )


def _refuse_what_cannot_run_again(statements: tuple[Statement, ...], label: str) -> None:
    """Outside a transaction an interrupted run leaves a part of the file done, and begins anew.

    CREATE INDEX CONCURRENTLY, interrupted, leaves an invalid index: it has to be dropped first,
    and IF NOT EXISTS would take it for the finished one.
    """
    dropped: set[str] = set()
    for statement in statements:
        drop, create = _DROP_INDEX.match(statement.text), _CREATE_INDEX.match(statement.text)
        if drop:
            dropped.add(drop["name"])
        elif create and create["name"] not in dropped:
            raise SqlFileError(
                f"{label}:{statement.line}: put DROP INDEX CONCURRENTLY IF EXISTS … above it: an"
                f" interrupted run leaves {create['name']} behind, invalid"
            )
        elif not create and statement.words[:2] != ("comment", "on"):
            raise SqlFileError(
                f"{label}:{statement.line}: a migration outside a transaction must be one that can"
                " be run again after any statement: DROP INDEX CONCURRENTLY IF EXISTS, CREATE INDEX"
                " CONCURRENTLY without IF NOT EXISTS, and COMMENT ON; put the rest into a file of"
                " its own"
            )


def _refuse_transaction_control(statements: tuple[Statement, ...], label: str) -> None:
    for statement in statements:
        prepared = statement.words[:2] == ("prepare", "transaction")
        if statement.words[:1] and (statement.words[0] in _TRANSACTION_WORDS or prepared):
            raise SqlFileError(
                f"{label}:{statement.line}: {statement.words[0].upper()} has no place in a file "
                "that runs in one transaction; remove it"
            )


def read_tree(sql_dir: Path) -> SqlTree:
    """Read and check every file, before anything is run."""
    if not (sql_dir / CLUSTER).is_dir():
        raise SqlFileError(f"{sql_dir} is not a bootstrap_sql folder: it holds no {CLUSTER}/")
    cluster = tuple(
        cluster_file(path, f"{CLUSTER}/{path.name}")
        for path in sorted((sql_dir / CLUSTER).glob("*.sql"))
    )
    migrations: dict[str, tuple[Migration, ...]] = {}
    for database in DATABASES:
        found = [
            migration(path, f"{database}/{path.name}")
            for path in sorted((sql_dir / database).glob("*.sql"))
        ]
        for before, after in itertools.pairwise(found):
            if before.version == after.version:
                raise SqlFileError(
                    f"{before.label} and {after.label} have the same number; renumber the one that "
                    f"was never applied to {found[-1].version + 1:04d}"
                )
        migrations[database] = tuple(found)
    return SqlTree(cluster, migrations)
