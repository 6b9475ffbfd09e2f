"""Verification of a running stack: runs `tests/infra`, and reports in terminal, XML and HTML.

The checks run in a child process (pytest with options of its own); what comes back passes through
one redaction before anybody or any file gets it.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from elsapg import process
from elsapg.errors import ElsapgError, MissingError, NotDeployedError, UsageError
from elsapg.services.commands import for_stack, for_whoever_applies
from elsapg.services.deployment import Deployment
from elsapg.services.places import Places, write_private
from elsapg.services.verify_plugin import RESULTS
from elsapg.targets.kubernetes import kubectl

TIMEOUT_S = 1800
# More than any check waits by itself, set-up included: what it finds is told, not how long it took.
CHECK_TIMEOUT_S = 180
PASSED, FAILED, UNJUDGED = "passed", "failed", "unjudged"
_TEST = re.compile(r"^def (test_\w+)\(", re.MULTILINE)
# XML 1.0 has no place for these.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Check:
    """One check and what it came to. `subject` is the unit, node or database it is about."""

    group: str
    name: str
    subject: str
    claim: str
    outcome: str
    found: str = ""
    todo: str = ""
    trace: str = ""
    seconds: float = 0.0
    about: str = ""

    @property
    def label(self) -> str:
        """The check's name with its subject, as in `test_every_unit_runs[pg-1]`."""
        return f"{self.name}[{self.subject}]" if self.subject else self.name


@dataclass(frozen=True)
class Group:
    """The checks of one file of tests/infra."""

    name: str
    about: str
    checks: tuple[Check, ...]

    def count(self, outcome: str) -> int:
        """How many of its checks came out so."""
        return sum(check.outcome == outcome for check in self.checks)

    @property
    def green(self) -> bool:
        """Whether every check holds."""
        return all(check.outcome == PASSED for check in self.checks)


@dataclass(frozen=True)
class LeftOut:
    """Checks of one name that make sense on another target only: how many, and why."""

    group: str
    name: str
    target: str
    reason: str
    count: int = 1


@dataclass(frozen=True)
class Verification:
    """What a whole run came to. `broken`: what kept checks from running at all."""

    stack: str
    started: datetime.datetime
    seconds: float
    checks: tuple[Check, ...]
    broken: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    # What did not hold at first, and held when it was asked again.
    late: tuple[Check, ...] = ()

    @property
    def groups(self) -> tuple[Group, ...]:
        """The checks by file, in their order."""
        names = list(dict.fromkeys(check.group for check in self.checks))
        by_name = {n: tuple(c for c in self.checks if c.group == n) for n in names}
        return tuple(Group(name, by_name[name][0].about, by_name[name]) for name in sorted(names))

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if check.outcome == FAILED)

    @property
    def unjudged(self) -> tuple[Check, ...]:
        """The checks that could not be made."""
        return tuple(check for check in self.checks if check.outcome == UNJUDGED)

    @property
    def green(self) -> bool:
        """Whether everything was checked and holds."""
        return bool(self.checks) and not self.broken and all(g.green for g in self.groups)

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        checks = []
        for check in self.checks:
            told = asdict(check)
            del told["trace"], told["about"]
            checks.append(told)
        return {
            "stack": self.stack,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 1),
            "green": self.green,
            "passed": sum(check.outcome == PASSED for check in self.checks),
            "failed": len(self.failures),
            "unjudged": len(self.unjudged),
            "broken": list(self.broken),
            "left_out": [asdict(one) for one in self.left_out],
            "late": [{"check": c.label, "found": c.found} for c in self.late],
            "checks": checks,
        }


@dataclass(frozen=True)
class Redactor:
    """Takes secrets out of text: the known ones, and whatever looks like a verifier or a key."""

    secrets: tuple[str, ...] = field(default=(), repr=False)

    _SHAPES = (
        re.compile(r"SCRAM-SHA-256\$[^\s'\"]+"),
        re.compile(r"\bmd5[0-9a-f]{32}\b"),
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
        re.compile(r"(?i)(?<=password=)\S+"),
    )

    def __call__(self, text: str) -> str:
        """`text` with every secret replaced by [secret]."""
        # The longest first: one may contain another.
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, "[secret]")
        for shape in self._SHAPES:
            text = shape.sub("[secret]", text)
        return text

    def check(self, check: Check) -> Check:
        """The check with no secret in any of its texts."""
        told = asdict(check)
        texts: dict[str, Any] = {k: self(v) for k, v in told.items() if isinstance(v, str)}
        return replace(check, **texts)


def known_secrets(deployment: Deployment) -> tuple[str, ...]:
    """Every secret of the stack that could stand in a text: passwords, keys, the cipher."""
    found = set(_strings(deployment.outputs["passwords"]))
    found |= set(_strings(deployment.outputs.get("encryption_keys", {}).get("keys", {})))
    wanted = re.compile(r"^repo[12]-(?:cipher-pass|s3-key-secret|s3-key)=(.+)$", re.MULTILINE)
    for unit in ("runner", *deployment.nodes):
        try:
            done = deployment.hosts.run(unit, "cat", "/etc/elsapg/pgbackrest.d/secrets.conf")
        except NotDeployedError:
            continue
        found |= {match.strip() for match in wanted.findall(done.output)}
        break
    return tuple(secret for secret in found if len(secret) >= 6)


def _strings(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _strings(inner)


def verify(
    deployment: Deployment, only: Sequence[str] = (), *, debug: bool = False
) -> Verification:
    """Run the checks of `tests/infra`, all or those of the groups and names in `only`.

    Raises UsageError for an unknown name or if all are for another target, NotDeployedError when
    nothing of the stack runs, MissingError without pytest and testinfra.
    """
    folder = deployment.root / "tests" / "infra"
    targets = select(folder, only)
    for module in ("pytest", "testinfra", "pytest_timeout"):
        if importlib.util.find_spec(module) is None:
            raise MissingError(
                f"verification needs {module}: run `make venv`, which installs requirements/dev.txt"
            )
    redact = Redactor(known_secrets(deployment))
    states = deployment.hosts.states()
    if not any(state.state == "running" for state in states.values()):
        raise NotDeployedError(
            f"nothing of stack {deployment.stack!r} runs: `elsapg up --stack {deployment.stack} "
            "--refresh` starts it"
        )
    started = datetime.datetime.now(datetime.UTC)
    clock = time.monotonic()
    records, output = _run(deployment, folder, targets, debug)
    checks = tuple(
        redact.check(_check(record, deployment)) for record in records if record["kind"] == "result"
    )
    left_out = _left_out(records)
    if only and left_out and not checks:
        one = left_out[0]
        raise UsageError(
            f"--only {', '.join(only)}: for target {one.target} only ({one.reason}); stack "
            f"{deployment.stack!r} is on {deployment.settings.target}"
        )
    broken = [redact(f"{r['name']}: {r['told']}") for r in records if r["kind"] == "broken"]
    expected = next((r["count"] for r in records if r["kind"] == "collected"), None)
    if expected is None or len({(c.group, c.label) for c in checks}) < expected:
        tail = " ".join(redact(process.printable(output)).split())[-300:]
        broken.append(f"{len(checks)} of {expected or 'no'} checks ran: {tail}")
    seconds = time.monotonic() - clock
    return Verification(deployment.stack, started, seconds, _once(checks), tuple(broken), left_out)


def _check(record: Mapping[str, Any], deployment: Deployment) -> Check:
    made = Check(**{k: v for k, v in record.items() if k != "kind"})
    todo = for_whoever_applies(made.todo) if deployment.pods is not None else made.todo
    return replace(made, todo=for_stack(todo, deployment.stack))


def settled(
    deployment: Deployment, patience_s: float, only: Sequence[str] = (), *, debug: bool = False
) -> Verification:
    """As `verify`, and what does not hold is asked again until it does, for so long: a standby is
    away for a moment, or a machine is busy.

    Raises what `verify` does the first time.
    """
    found = first = verify(deployment, only, debug=debug)
    deadline = time.monotonic() + patience_s
    doubtful = [*found.failures, *found.unjudged]
    while doubtful and not found.broken and time.monotonic() < deadline:
        try:
            again = verify(deployment, [check.label for check in doubtful], debug=debug)
        except ElsapgError:
            break  # what was found stands
        newer = {(check.group, check.label): check for check in again.checks}
        found = replace(
            found,
            checks=tuple(newer.get((c.group, c.label), c) for c in found.checks),
            broken=again.broken,
            seconds=found.seconds + again.seconds,
        )
        before, doubtful = doubtful, [*found.failures, *found.unjudged]
        if not found.failures and _told(before) == _told(doubtful):
            break  # what cannot be made for the same reason, it may be for good
    passed = {(c.group, c.label) for c in found.checks if c.outcome == PASSED}
    late = (c for c in (*first.failures, *first.unjudged) if (c.group, c.label) in passed)
    return replace(found, late=tuple(late))


def _told(checks: Iterable[Check]) -> set[tuple[str, str, str]]:
    return {(check.group, check.label, check.found) for check in checks}


def _left_out(records: Iterable[Mapping[str, Any]]) -> tuple[LeftOut, ...]:
    found = Counter(
        LeftOut(r["group"], r["name"], r["target"], r["reason"])
        for r in records
        if r["kind"] == "left out"
    )
    return tuple(replace(one, count=count) for one, count in found.items())


def _once(checks: Iterable[Check]) -> tuple[Check, ...]:
    """One result a check: a failing tear-down counts against a check that passed."""
    found: dict[tuple[str, str], Check] = {}
    for check in checks:
        key = (check.group, check.label)
        if key not in found or found[key].outcome == PASSED:
            found[key] = check
    return tuple(found.values())


def _run(
    deployment: Deployment, folder: Path, targets: Sequence[str], debug: bool
) -> tuple[list[dict[str, Any]], str]:
    with tempfile.TemporaryDirectory(prefix="elsapg-verify-") as private:
        results = Path(private) / "results"
        results.touch(mode=0o600)
        inherited = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")
        done = process.run(
            [
                sys.executable, "-m", "pytest", "-c", folder / "verify.ini",
                "--rootdir", deployment.root, "-p", "no:cacheprovider",
                "-p", "elsapg.services.verify_plugin", "-q", "--no-header",
                f"--tb={'short' if debug else 'no'}", "--show-capture=no",
                "-o", f"timeout={CHECK_TIMEOUT_S}", "--stack", deployment.stack, *targets,
            ],
            cwd=deployment.root,
            env={
                "PYTHONPATH": os.pathsep.join(
                    [str(deployment.root), os.environ.get("PYTHONPATH", "")]
                ).rstrip(os.pathsep),
                "PYTHONDONTWRITEBYTECODE": "1",
                "ELSAPG_ROOT": str(deployment.root),
                RESULTS: str(results),
                **dict.fromkeys((n for n in inherited if n in os.environ), ""),
                # testinfra calls kubectl by itself.
                **kubectl.ENVIRONMENT,
            },
            # The child need not ask Pulumi again; standard input is nowhere to be seen.
            stdin=json.dumps(dict(deployment.outputs)),
            timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip
        lines = results.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], done.stdout + done.stderr


# -- which checks ------------------------------------------------------------------------------


def catalogue(folder: Path) -> dict[str, tuple[str, ...]]:
    """The groups of checks, and the names in each."""
    found = {
        path.stem.removeprefix("test_"): tuple(_TEST.findall(path.read_text(encoding="utf-8")))
        for path in sorted(folder.glob("test_*.py"))
    }
    if not found:
        raise UsageError(f"{folder} holds no checks: run from a complete checkout of the project")
    return found


def select(folder: Path, only: Sequence[str]) -> list[str]:
    """pytest's arguments for the groups and checks named in `only`; all if it is empty."""
    groups = catalogue(folder)
    if not only:
        return [str(folder)]
    targets: list[str] = []
    for name in only:
        short = name.partition("[")[0]
        held = [g for g, names in groups.items() if short in names or f"test_{short}" in names]
        if name in groups:
            targets.append(str(folder / f"test_{name}.py"))
        elif held:
            test = short if short.startswith("test_") else f"test_{short}"
            suffix = name[len(short) :]
            targets.append(f"{folder / f'test_{held[0]}.py'}::{test}{suffix}")
        else:
            raise UsageError(f"--only {name}: no such group or check; groups: {', '.join(groups)}")
    return targets


# -- reports -----------------------------------------------------------------------------------


def write_report(verification: Verification, folder: Path | None, root: Path) -> Path:
    """Write junit.xml and report.html into `folder`; returns it.

    By default that is `.elsapg/reports/<stack>/<time>`, and `latest` beside it points there.
    """
    latest: Path | None = None
    if folder is None:
        reports = Places(root).private / "reports" / verification.stack
        folder = reports / f"{verification.started:%Y%m%dT%H%M%SZ}"
        latest = reports / "latest"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(folder / "junit.xml", junit(verification), mode=0o644)
        write_private(folder / "report.html", html(verification), mode=0o644)
        if latest is not None:
            fresh = latest.with_name(f".latest.{os.getpid()}")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(folder.name)
            fresh.replace(latest)
    except OSError as error:
        raise UsageError(
            f"cannot write the report to {folder}: {error.strerror}; name another by --report"
        ) from None
    return folder


def junit(verification: Verification) -> str:
    """The run as JUnit XML: one suite a group."""
    suites = ElementTree.Element(
        "testsuites", name=f"elsapg verify {verification.stack}", time=f"{verification.seconds:.3f}"
    )
    for group in verification.groups:
        suite = ElementTree.SubElement(
            suites, "testsuite",
            name=group.name,
            tests=str(len(group.checks)),
            failures=str(group.count(FAILED)),
            skipped=str(group.count(UNJUDGED)),
            errors="0",
            time=f"{sum(check.seconds for check in group.checks):.3f}",
            timestamp=verification.started.strftime("%Y-%m-%dT%H:%M:%S"),
        )  # fmt: skip
        for check in group.checks:
            case = ElementTree.SubElement(
                suite, "testcase",
                classname=f"infra.{group.name}", name=check.label, time=f"{check.seconds:.3f}",
            )  # fmt: skip
            if check.outcome == FAILED:
                failure = ElementTree.SubElement(case, "failure", message=_clean(check.found))
                failure.text = _clean(
                    f"should: {check.claim}\nfound: {check.found}\ndo: {check.todo}"
                )
            elif check.outcome == UNJUDGED:
                ElementTree.SubElement(case, "skipped", message=_clean(check.found))
    if verification.broken:
        suite = ElementTree.SubElement(
            suites, "testsuite", name="verify", tests="1", errors="1", failures="0", skipped="0"
        )
        case = ElementTree.SubElement(suite, "testcase", classname="infra", name="all checks ran")
        ElementTree.SubElement(case, "error", message=_clean("; ".join(verification.broken)))
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True)


def _clean(text: str) -> str:
    return _CONTROL.sub("", text)


def html(verification: Verification) -> str:
    """The run as one page that needs nothing else."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(v=verification)
