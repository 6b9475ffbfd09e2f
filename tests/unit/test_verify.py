"""`elsapg verify` without a stack: selection, reports, exit codes, and that no secret gets out."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from elsapg.cli import main
from elsapg.errors import UsageError
from elsapg.services import verify as service
from elsapg.services.verify import Check, Redactor, Verification

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
