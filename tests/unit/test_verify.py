"""`elsapg verify` without a stack: selection, reports, exit codes, and that no secret gets out."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from elsapg import stackfile
from elsapg.cli import main
from elsapg.cli import verify as cli_verify
from elsapg.errors import NotDeployedError, UsageError
from elsapg.services import verify as service
from elsapg.services.deployment import Deployment
from elsapg.services.verify import Check, Redactor, Verification
from elsapg.targets.hosts import Completed, UnitState
from tests.unit import kubernetes_stacks

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "tests" / "infra"
SECRET = "hunter2-and-more"
LONGER = f"{SECRET}-still"
VERIFIER = "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"
KEY = "-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n-----END PRIVATE KEY-----"


def check(**told: Any) -> Check:
    usual: dict[str, Any] = {
        "group": "roles",
        "name": "test_it",
        "subject": "",
        "claim": "It holds.",
        "outcome": "passed",
        "about": "Roles: who may what.",
    }
    return Check(**{**usual, **told})


def verification(*checks: Check, broken: tuple[str, ...] = ()) -> Verification:
    started = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    return Verification("local", started, 12.3, checks, broken)


RED = check(
    name="test_red", subject="pg-1", outcome="failed", found="<b> & \x07 'it'", todo="mend it"
)
UNJUDGED = check(name="test_later", outcome="unjudged", found="pg-2 does not run")


@pytest.mark.parametrize(
    "text",
    [
        f"password is {SECRET}",
        f"{LONGER}{SECRET}",
        f"rolpassword {VERIFIER}, and on",
        f"md5{'0' * 32}",
        f"key: {KEY}",
        "key: -----BEGIN EC PRIVATE KEY-----\nMIGHAgEA (cut off",
        "postgresql://elsa_app:s3cr3t@pg/elsa",
        "host=pg password=s3cr3t dbname=elsa",
    ],
)
def test_no_secret_passes_the_redactor(text: str) -> None:
    redacted = Redactor((SECRET, LONGER))(text)
    assert "[secret]" in redacted
    for part in (SECRET, "still", "c3RvcmVk", "0" * 32, "MIGHAgEA", "s3cr3t"):
        assert part not in redacted


def test_every_text_of_a_check_is_redacted() -> None:
    texts = dict.fromkeys(("claim", "found", "todo", "trace", "subject", "about"), SECRET)
    redacted = Redactor((SECRET,)).check(check(**texts))
    assert SECRET not in json.dumps(verification(redacted).as_json())
    assert SECRET not in redacted.trace


def test_a_redactor_does_not_show_what_it_knows() -> None:
    assert SECRET not in repr(Redactor((SECRET,)))


def test_green_is_everything_checked_and_held() -> None:
    assert verification(check()).green
    assert not verification(check(), RED).green
    assert not verification(check(), UNJUDGED).green
    assert not verification(check(), broken=("not imported",)).green
    assert not verification().green


def test_junit_is_valid_and_complete() -> None:
    suites = ElementTree.fromstring(
        service.junit(verification(check(), RED, UNJUDGED, broken=("half ran",)))
    )
    (roles, whole) = suites.findall("testsuite")
    assert (roles.get("tests"), roles.get("failures"), roles.get("skipped")) == ("3", "1", "1")
    failure = roles.find(".//failure")
    assert failure is not None
    assert failure.text == "should: It holds.\nfound: <b> &  'it'\ndo: mend it"
    assert whole.get("errors") == "1"


def test_the_page_needs_nothing_else_and_escapes() -> None:
    page = service.html(verification(check(), RED, UNJUDGED))
    assert "<b> &" not in page
    assert "&lt;b&gt; &amp;" in page
    assert "http" not in page
    assert "1 checks are red, 1 could not be made" in page


def test_reports_go_to_a_folder_of_their_own_and_latest_follows(tmp_path: Path) -> None:
    folder = service.write_report(verification(check()), None, tmp_path)
    assert folder == tmp_path / ".elsapg" / "reports" / "local" / "20260102T030405Z"
    assert folder.stat().st_mode & 0o777 == 0o700
    latest = folder.parent / "latest"
    assert latest.resolve() == folder.resolve()
    assert {p.name for p in latest.iterdir()} == {"junit.xml", "report.html"}
    service.write_report(verification(check()), None, tmp_path)
    named = service.write_report(verification(check()), tmp_path / "here", tmp_path)
    assert (named / "report.html").exists()
    assert latest.resolve() == folder.resolve()


def test_a_report_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="name another by --report"):
        service.write_report(verification(check()), tmp_path / "file" / "x", tmp_path)


def test_only_names_groups_and_checks() -> None:
    assert service.select(INFRA, []) == [str(INFRA)]
    assert service.select(INFRA, ["tls"]) == [str(INFRA / "test_tls.py")]
    wanted = f"{INFRA / 'test_processes.py'}::test_every_unit_runs"
    assert service.select(INFRA, ["test_every_unit_runs"]) == [wanted]
    assert service.select(INFRA, ["every_unit_runs[pg-1]"]) == [f"{wanted}[pg-1]"]
    with pytest.raises(UsageError, match="no such group or check; groups: archive, audit,"):
        service.select(INFRA, ["nonsense"])


def test_every_check_has_a_sentence_and_a_name_of_its_own() -> None:
    names = [name for group in service.catalogue(INFRA).values() for name in group]
    assert len(names) == len(set(names))
    for path in INFRA.glob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        for name in service.catalogue(INFRA)[path.stem.removeprefix("test_")]:
            body = text.partition(f"def {name}(")[2].partition(":\n")[2]
            assert body.lstrip().startswith('"""'), name


def test_a_failing_tear_down_counts() -> None:
    held, failed = check(), check(outcome="failed", found="left something")
    (one,) = service._once([held, failed])
    assert one.outcome == "failed"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_verify, "SETTLES_WITHIN_S", 0)


@pytest.mark.parametrize("doubtful", [RED, dataclasses.replace(RED, outcome="unjudged")])
@pytest.mark.parametrize(("heals", "green"), [(True, True), (False, False)])
def test_what_settles_is_not_red_and_what_does_not_is(
    heals: bool, green: bool, doubtful: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def verify(_deployment: object, only: Sequence[str] = (), **_options: Any) -> Verification:
        asked.append(list(only))
        if not only:
            return verification(check(), doubtful)
        return verification(dataclasses.replace(doubtful, outcome="passed") if heals else doubtful)

    monkeypatch.setattr(service, "verify", verify)
    found = service.settled(Deployment(ROOT, "local"), 0.05)
    assert found.green == green
    assert [c.label for c in found.checks] == ["test_it", "test_red[pg-1]"]
    assert asked[:2] == [[], ["test_red[pg-1]"]]
    assert not heals or len(asked) == 2


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("found", "code"),
    [
        (verification(check()), 0),
        (verification(check(), RED), 7),
        (verification(check(), UNJUDGED), 7),
        (verification(check(), broken=("test_x.py: ImportError",)), 7),
    ],
)
def test_the_exit_code_says_it(
    found: Verification,
    code: int,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(service, "verify", lambda *_args, **_options: found)
    assert main(["verify"]) == code
    told = capsys.readouterr()
    assert "report.html" in told.out
    assert ("does not hold" in told.err) == bool(code)
    assert main(["verify", "--json"]) == code
    parsed = json.loads(capsys.readouterr().out)
    assert parsed["green"] == (code == 0)


@pytest.mark.usefixtures("hasty")
def test_like_findings_are_told_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reds = [
        check(
            name="test_red", subject=f"pg-{n}", outcome="failed", found=f"pg-{n} is off", todo="x"
        )
        for n in range(1, 7)
    ]
    monkeypatch.setattr(service, "verify", lambda *_args, **_options: verification(*reds))
    main(["verify"])
    told = capsys.readouterr().out
    assert told.count("It holds.") == 1
    assert "(pg-1, pg-2, pg-3, pg-4 and 2 more)" in told


LEFT_OUT = [
    {"kind": "left out", "group": "kubernetes", "name": "test_pods", "target": "kubernetes",
     "reason": "they look at pods"},
]  # fmt: skip


def test_what_is_for_another_target_is_told_and_not_red(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left_out = service._left_out([*LEFT_OUT, *LEFT_OUT, {"kind": "collected", "count": 1}])
    found = dataclasses.replace(verification(check()), left_out=left_out)
    assert found.green
    monkeypatch.setattr(service, "verify", lambda *_args, **_options: found)
    assert main(["verify"]) == 0
    told = capsys.readouterr().out
    assert "left out: 2, which are for kubernetes only (they look at pods)" in told
    assert found.as_json()["left_out"][0]["count"] == 2
    assert "they look at pods" in service.html(found)


class Hosts:
    """Units that all run."""

    def states(self) -> dict[str, Any]:
        return {"pg-1": UnitState("pg-1", "running", 0)}

    def run(self, unit: str, *_command: str) -> Completed:
        if unit == "runner":
            raise NotDeployedError("no such unit")
        return Completed(0, "[global]\nrepo1-s3-key-secret=s3-secret\nrepo1-cipher-pass=cipher\n")


def deployed(**settings: Any) -> Any:
    return SimpleNamespace(
        stack="test",
        root=ROOT,
        settings=stackfile.load(settings, "test"),
        nodes=("pg-1",),
        hosts=Hosts(),
        outputs={"passwords": {"elsa_app": SECRET}},
    )


def test_only_what_is_for_another_target_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [*LEFT_OUT, {"kind": "collected", "count": 0}]
    monkeypatch.setattr(service, "_run", lambda *_: (records, ""))
    with pytest.raises(UsageError, match=r"for target kubernetes only .*'test' is on docker"):
        service.verify(deployed(), ["kubernetes"])
    # Without --only it is a run that checked nothing, and not green.
    assert not service.verify(deployed()).green


def test_the_secrets_are_known_where_there_is_no_runner() -> None:
    assert set(service.known_secrets(deployed())) == {SECRET, "s3-secret", "cipher"}


def test_a_check_for_one_target_says_which_and_why() -> None:
    marks = [
        node
        for path in INFRA.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "target"
    ]
    assert marks
    for mark in marks:
        [target] = [a.value for a in mark.args if isinstance(a, ast.Constant)]
        assert target in ("docker", "kubernetes")
        assert [k.arg for k in mark.keywords] == ["reason"]


def test_a_target_collects_its_own_checks(tmp_path: Path) -> None:
    """By pytest itself, on a stack of each target: nothing is asked of any unit."""
    results = {}
    for target, values in (("docker", {}), ("kubernetes", kubernetes_stacks.LEAST)):
        root = kubernetes_stacks.project(tmp_path / target, {"it": {**values, "target": target}})
        path = tmp_path / f"{target}.results"
        path.touch()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-c", INFRA / "verify.ini", "--rootdir", ROOT,
             "-p", "no:cacheprovider", "-p", "elsapg.services.verify_plugin", "--collect-only",
             "-q", "--stack", "it", INFRA],
            env={**os.environ, "ELSAPG_ROOT": str(root), "PYTHONPATH": str(ROOT),
                 "ELSAPG_VERIFY_RESULTS": str(path)},
            cwd=ROOT, input="{}", capture_output=True, text=True, check=False,
        )  # fmt: skip
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert not [r for r in records if r["kind"] == "broken"], done.stdout
        results[target] = (done.stdout, {r["name"] for r in records if r["kind"] == "left out"})
    docker, kubernetes = results["docker"], results["kubernetes"]
    assert "test_etcd_wants_a_client_certificate" in docker[0]
    assert "test_etcd_wants_a_client_certificate" in kubernetes[1]
    assert "test_secrets_are_files" in kubernetes[0]
    assert "test_secrets_are_files" in docker[1]
    # The same checks of the databases, whatever they run on.
    for name in ("test_every_standby_streams", "test_every_role_gets_in[pgbouncer-1]"):
        assert name in docker[0]
        assert name in kubernetes[0]
