"""Replication: one primary, and standbys that really follow it."""

from __future__ import annotations

from elsapg.services import clocks
from tests.infra.facts import Facts, eventually, judge, none, same, unjudged

BEHIND_BYTES = 32 * 1024 * 1024
LAG_S = 10.0
SILENT_S = 15.0
APPLY_S = 10.0
STATUS = "`elsapg status --watch` shows how it comes back; the node's log says why it does not"


def test_one_member_leads(facts: Facts) -> None:
    """Exactly one member leads, and it accepts writes."""
    leaders = [m["name"] for m in facts.members if m["role"] == "leader"]
    judge(
        len(leaders) == 1 and facts.members and facts.primary() == leaders[0],
        f"leaders: {', '.join(leaders) or 'none'}",
        STATUS,
    )
    judge(
        not facts.server(leaders[0])["server"][0]["recovery"],
        f"{leaders[0]} leads but is in recovery",
        STATUS,
    )


def test_every_node_is_a_member(facts: Facts) -> None:
    """Patroni knows every node of the stack, and each runs or streams."""
    found = {m["name"]: m["state"] in ("running", "streaming") for m in facts.members}
    same(found, dict.fromkeys(facts.deployment.nodes, True), STATUS)


def test_every_standby_streams(facts: Facts, primary: str, standbys: tuple[str, ...]) -> None:
    """The primary streams to every standby."""
    senders = {s["application_name"]: s["state"] for s in facts.server(primary)["senders"]}
    same(
        {name: senders.get(name, "absent") for name in standbys},
        dict.fromkeys(standbys, "streaming"),
        STATUS,
    )


def test_commits_wait_for_a_standby(facts: Facts, primary: str, standbys: tuple[str, ...]) -> None:
    """A commit is acknowledged only once a synchronous standby has it."""
    if facts.deployment.settings.postgres.synchronous == "off":
        unjudged("the stack's postgres.synchronous is off")
    if not standbys:
        unjudged("the stack has no standby")
    server = facts.server(primary)
    synchronous = {s["application_name"] for s in server["senders"] if s["sync_state"] == "sync"}
    named = server["server"][0]["synchronous_standby_names"]
    judge(
        synchronous & set(standbys) and named,
        f"synchronous: {', '.join(synchronous) or 'nobody'} (named: {named or 'nobody'})",
        "after a failover this takes a few seconds; else " + STATUS,
    )


def test_the_clocks_agree(facts: Facts) -> None:
    """The nodes' clocks tell the same time: a restore to a time goes by the primary's."""
    found = clocks.apart(facts.deployment, facts.deployment.nodes)
    judge(not found, str(found), "put the machines' clocks right, by NTP")


def test_slots_keep_the_wal_that_standbys_need(
    facts: Facts, primary: str, standbys: tuple[str, ...]
) -> None:
    """Each standby has an active physical slot on the primary, and nobody else holds WAL back."""
    found = {
        s["slot_name"]: s["slot_type"] == "physical"
        and s["active"]
        and s["wal_status"] in ("reserved", "extended")
        for s in facts.server(primary)["slots"]
        if not s["temporary"]
    }
    same(
        found,
        {name.replace("-", "_"): True for name in standbys},
        "drop a slot that nobody uses (pg_drop_replication_slot): it fills the disk; else "
        + STATUS,
    )


def test_standbys_are_close(facts: Facts, primary: str) -> None:
    """No standby is more than a few seconds or megabytes behind."""
    none(
        (
            f"{s['application_name']} is {s['behind']} bytes, {s['lag']:.1f} s behind"
            for s in facts.server(primary)["senders"]
            if s["state"] == "streaming" and (s["behind"] > BEHIND_BYTES or s["lag"] > LAG_S)
        ),
        "see what the standby waits for: its disk, its CPU, or a long query on it",
    )


def test_all_are_on_one_timeline(facts: Facts) -> None:
    """All members follow the primary's timeline, in the same cluster."""
    lines = {m["name"]: m["timeline"] for m in facts.members if m.get("timeline")}
    judge(len(set(lines.values())) == 1, f"timelines: {lines}", STATUS)
    systems = {
        node: facts.server(node)["server"][0]["system"]
        for node in facts.deployment.nodes
        if facts.runs(node)
    }
    judge(len(set(systems.values())) == 1, f"system identifiers: {systems}", STATUS)


def test_standbys_receive_and_refuse_writes(facts: Facts, standbys: tuple[str, ...]) -> None:
    """Every standby is in recovery and receives WAL from its slot on the primary."""
    wrong = []
    for node in (n for n in standbys if facts.runs(n)):
        server = facts.server(node)
        receivers = server["receiver"]
        if not server["server"][0]["recovery"]:
            wrong.append(f"{node} accepts writes")
        elif not receivers or receivers[0]["status"] != "streaming":
            wrong.append(f"{node} receives nothing")
        elif receivers[0]["slot_name"] != node.replace("-", "_"):
            wrong.append(f"{node} uses slot {receivers[0]['slot_name']}")
        elif receivers[0]["silent"] > SILENT_S:
            wrong.append(f"{node} has heard nothing for {receivers[0]['silent']:.0f} s")
    none(wrong, STATUS)


def test_what_is_written_arrives(facts: Facts, primary: str, standbys: tuple[str, ...]) -> None:
    """WAL written on the primary now is applied by every running standby within seconds."""
    ((lsn,),) = facts.deployment.query(
        primary, "SELECT pg_logical_emit_message(false, 'elsapg', 'verify')"
    )
    late = [
        node
        for node in standbys
        if facts.runs(node)
        and not eventually(
            lambda n=node: (
                facts.deployment.query(  # type: ignore[misc]
                    n, f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn"
                )
                == [["t"]]
            ),
            APPLY_S,
        )
    ]
    none((f"{node} has not applied {lsn} after {APPLY_S:.0f} s" for node in late), STATUS)


def test_what_is_committed_is_readable_on_standbys(
    facts: Facts, primary: str, standbys: tuple[str, ...]
) -> None:
    """Rows that the primary has are readable on every running standby."""
    query = "SELECT version, sha256 FROM elsapg.schema_migration ORDER BY version"
    wanted = facts.deployment.query(primary, query, "elsa_runtime")
    for node in (n for n in standbys if facts.runs(n)):
        same(facts.deployment.query(node, query, "elsa_runtime"), wanted, STATUS)
