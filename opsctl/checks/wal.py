"""Where a server's WAL goes and what holds it back: standbys, replication slots, the archive."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from opsctl.checks.amounts import counted, spoken_bytes
from opsctl.checks.check import WORST_FIRST, Check, Finding, Remedy, Status, Thresholds
from opsctl.checks.databases import LANE, NOT_CONFIGURED, PER_SERVER, psql, servers
from opsctl.checks.disks import free_for_wal
from opsctl.checks.scope import Scope
from opsctl.checks.sessions import SESSION_GRANT, spoken
from opsctl.errors import NotPermitted

if TYPE_CHECKING:
    from opsctl.postgres.wal import Archiver, Replay, Replication, Slot, Standby

LAG_BYTES = 1024**3
INACTIVE_SECONDS = 1800
WARN_SHARE, CRIT_SHARE = 0.2, 0.5
"""Of the free disk, kept by one slot."""

SHOWN_SLOTS = "select slot_name, active, wal_status, restart_lsn from pg_replication_slots"
SHOWN_STANDBYS = (
    "select application_name, client_addr, state, sent_lsn, replay_lsn, replay_lag from pg_stat_replication"
)
SHOWN_ARCHIVER = "select last_archived_wal, last_archived_time, last_failed_wal, last_failed_time from pg_stat_archiver"


def check_replication(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.wal import read_replication

    return judge_replication(read_replication(scope.session(target)), thresholds)


def judge_replication(found: "Replication", thresholds: Thresholds) -> Finding:
    """The server's own replay if it is a standby, and the standby furthest behind it: the worse of both."""
    judged = [_judge_replay(found.replay, thresholds)] if found.replay else []
    judged += [_judge_standby(each, thresholds) for each in found.standbys]
    if not judged:
        return Finding("ok", "No standby is connected.", value=0, details={"standbys": []})
    worst = min(judged, key=lambda each: (WORST_FIRST.index(each.status), -(each.value or 0)))
    others = len(found.standbys) + bool(found.replay) - 1
    details = {"standbys": [asdict(each) for each in found.standbys], **worst.details}
    message = worst.message + (f" {counted(others, 'other')} looked at." if others else "")
    return Finding(worst.status, message, worst.value, details, worst.remedy, worst.code)


def _judge_standby(standby: "Standby", thresholds: Thresholds) -> Finding:
    seconds, behind = standby.lag_seconds or 0.0, standby.lag_bytes or 0
    status = _worse(thresholds.judge(seconds), "warn" if behind >= LAG_BYTES else "ok")
    return Finding(
        status,
        f"The standby {standby.name or 'without a name'} ({standby.address}, {standby.sync_state}, {standby.state}) is"
        f" {spoken_bytes(behind)} and {spoken(seconds)} behind.",
        value=round(seconds, 1),
        code=None if status == "ok" else "lag",
        remedy=Remedy(
            "Look at the standby: its log, its disk and its network, and whether a long query there stops the replay.",
            psql(SHOWN_STANDBYS),
        )
        if status != "ok"
        else None,
    )


def _judge_replay(replay: "Replay", thresholds: Thresholds) -> Finding:
    details = {"lag_bytes": replay.lag_bytes, "lag_seconds": replay.lag_seconds, "is_paused": replay.is_paused}
    if replay.is_disconnected:
        return Finding(
            "crit",
            "This standby receives nothing: it has no connection to its primary.",
            details=details,
            code="disconnected",
            remedy=Remedy(
                "See in this server's log why it cannot connect: the primary is down, the password, or a missing slot.",
                psql("show primary_slot_name", "select pg_last_wal_receive_lsn(), pg_last_xact_replay_timestamp()"),
            ),
        )
    seconds = replay.lag_seconds or 0.0
    status = _worse(thresholds.judge(seconds), "warn" if replay.is_paused or replay.lag_bytes >= LAG_BYTES else "ok")
    age = "" if replay.lag_seconds is None else f" and {spoken(seconds)}"
    remedy = Remedy(
        "See what stops the replay: a long query here, or a disk that cannot keep up.",
        psql("select pid, state, query_start, left(query, 60) from pg_stat_activity order by query_start limit 10"),
    )
    if replay.is_paused:
        remedy = Remedy("Let it replay again, if nobody paused it for a reason.", psql("select pg_wal_replay_resume()"))
    return Finding(
        status,
        f"This standby is {spoken_bytes(replay.lag_bytes)}{age} behind{'; its replay is paused' * replay.is_paused}.",
        value=round(seconds, 1),
        details=details,
        code=None if status == "ok" else "paused" if replay.is_paused else "lag",
        remedy=None if status == "ok" else remedy,
    )


def _worse(one: Status, other: Status) -> Status:
    return min(one, other, key=WORST_FIRST.index)


def check_slots(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    """The server knows since when a slot is inactive from 17 on; before that, earlier runs do."""
    from opsctl.postgres.wal import read_slots

    found = read_slots(scope.session(target))
    now = scope.clock()
    inactive = [each for each in found.slots if not each.is_active and not each.is_synced]
    earlier = scope.samples.exchange("db.slots", target, {}, now=now)
    known = earlier[1] if earlier else {}
    seen = {each.name: float(known.get(each.name, now.timestamp())) for each in inactive}
    scope.samples.exchange("db.slots", target, seen, now=now)
    ages = {
        each.name: now.timestamp() - seen[each.name] if each.inactive_seconds is None else each.inactive_seconds
        for each in inactive
    }
    free = free_for_wal(scope.server(target).host, found.data_directory) if found.data_directory else None
    return judge_slots(found.slots, thresholds, inactive_seconds=ages, free_bytes=free)


def judge_slots(
    slots: tuple["Slot", ...],
    thresholds: Thresholds,
    *,
    inactive_seconds: Mapping[str, float],
    free_bytes: float | None = None,
) -> Finding:
    """By what each keeps, and whether anybody will ever fetch that."""
    details = {"slots": [asdict(each) for each in slots], "free_bytes": free_bytes}
    kept = max((each.retained_bytes or 0 for each in slots), default=0)
    judged = [(*_judge_slot(each, thresholds, inactive_seconds.get(each.name), free_bytes), each) for each in slots]
    bad = sorted(
        (each for each in judged if each[0] != "ok"),
        key=lambda each: (WORST_FIRST.index(each[0]), -(each[3].retained_bytes or 0), each[3].name),
    )
    if not bad:
        text = f"{counted(len(slots), 'replication slot')}, at most {spoken_bytes(kept)} of WAL kept."
        return Finding("ok", text if slots else "There is no replication slot.", value=kept, details=details)
    status, code, text, slot = bad[0]
    more = f" {counted(len(bad) - 1, 'other slot')} in trouble: {_names(bad[1:])}." if len(bad) > 1 else ""
    return Finding(
        status,
        f"{_described(slot)} {text}.{more}",
        value=kept,
        details=details,
        code=code,
        remedy=_release(slot, code),
    )


def _judge_slot(
    slot: "Slot", thresholds: Thresholds, inactive: float | None, free_bytes: float | None
) -> tuple[Status, str, str]:
    kept = slot.retained_bytes or 0
    idle = "" if inactive is None else f" and nothing has read it for {spoken(inactive)}" * (inactive >= 1)
    idle = idle or " and nothing reads it" * (inactive is not None)
    if slot.wal_status == "lost":
        return "crit", "lost", "is lost: WAL it needs is gone, and its consumer cannot go on"
    if slot.wal_status == "unreserved":
        return "warn", "unreserved", f"keeps {spoken_bytes(kept)}{idle}; the next checkpoint may remove WAL it needs"
    status = thresholds.judge(kept)
    text = f"keeps {spoken_bytes(kept)} of WAL"
    if free_bytes is not None and kept >= WARN_SHARE * free_bytes:
        status = _worse(status, "crit" if kept >= CRIT_SHARE * free_bytes else "warn")
        text += f" with {spoken_bytes(free_bytes)} of disk left"
    if status != "ok":
        return status, "retained", f"{text}{idle}"
    if inactive is not None and inactive >= INACTIVE_SECONDS and slot.retained_bytes is not None:
        return "warn", "inactive", f"{text}{idle}"
    return "ok", "", ""


def _described(slot: "Slot") -> str:
    where = f" of database {slot.database}" if slot.database else ""
    return f"The {slot.kind} slot {slot.name}{where}"


def _names(bad: list[tuple[Status, str, str, "Slot"]]) -> str:
    return ", ".join(f"{slot.name} ({code})" for _, code, _, slot in bad[:5])


def _release(slot: "Slot", code: str) -> Remedy:
    drop = psql(f"select pg_drop_replication_slot('{slot.name}')")
    if code == "lost":
        return Remedy("Drop it and set its standby or subscription up anew.", drop)
    if slot.is_active:
        return Remedy("Its consumer is connected but behind: look at its log, disk and network.", psql(SHOWN_SLOTS))
    return Remedy("Start its consumer. If that is gone for good, drop the slot; the WAL goes at a checkpoint.", drop)


def check_archiver(scope: Scope, target: str, thresholds: Thresholds) -> Finding:
    from opsctl.postgres.wal import read_archiver

    found = read_archiver(scope.session(target))
    finding = judge_archiver(found, thresholds)
    if found.waiting is None and finding.status == "ok":
        raise NotPermitted("This login does not see how much WAL waits to be archived.", hint="GRANT pg_monitor TO it.")
    return finding


def judge_archiver(found: "Archiver", thresholds: Thresholds) -> Finding:
    """A failure nothing has succeeded after; or WAL that waits for long without one."""
    if not found.is_on:
        return Finding("ok", "This server archives no WAL.")
    details = asdict(found)
    waiting = "" if not found.waiting else f" {counted(found.waiting, 'WAL file')} waiting to be archived."
    if _fails(found):
        last = "nothing has been" if found.archived_seconds is None else f"the last success was {_ago(found)}"
        text = f"archive_command fails for {found.failed_wal}, {spoken(found.failed_seconds or 0)} ago;"
        text += f" {last}{' archived' * (found.archived_seconds is None)}.{waiting}"
        remedy = Remedy(
            "The server's log has its words. Repair what it writes to or the command; the server tries again within a"
            " minute and keeps the WAL until it succeeds.",
            psql("show archive_command", SHOWN_ARCHIVER),
        )
        return Finding("crit", text, _oldest(found), details, remedy, "failing")
    status = thresholds.judge(found.waiting_seconds or 0)
    if status != "ok" or (found.has_no_command and found.waiting):
        reason = "archive_command is empty" if found.has_no_command else "the archive does not keep up or hangs"
        text = f"{counted(found.waiting or 0, 'WAL file')} not archived, the oldest for"
        text += f" {spoken(found.waiting_seconds or 0)}: {reason}."
        remedy = Remedy(
            "Set archive_command, or archive_mode to off and restart."
            if found.has_no_command
            else "See whether archive_command hangs, and how fast it is.",
            psql("show archive_command", SHOWN_ARCHIVER),
        )
        return Finding(_worse(status, "warn"), text, _oldest(found), details, remedy, "waiting")
    last = "nothing has had to be archived yet" if found.archived_seconds is None else f"the last success {_ago(found)}"
    return Finding("ok", f"WAL is archived: {last}.{waiting}", _oldest(found), details)


def _fails(found: "Archiver") -> bool:
    if found.failed_seconds is None:
        return False
    return found.archived_seconds is None or found.failed_seconds < found.archived_seconds


def _ago(found: "Archiver") -> str:
    return f"{spoken(found.archived_seconds or 0)} ago"


def _oldest(found: "Archiver") -> float | None:
    return None if found.waiting_seconds is None else round(found.waiting_seconds, 1)


CHECKS = (
    Check(
        id="db.replication",
        title="the standbys keep up",
        probe=check_replication,
        reads="pg_stat_replication; on a standby also what it has received and replayed, and pg_stat_wal_receiver",
        why="A standby that is behind serves old data, and a failover to it loses the rest. 5 min is more than a burst"
        " of writes explains, an hour means that it does not catch up; 1 GiB behind is a warning too. A standby that is"
        f" delayed on purpose needs thresholds above its delay. {PER_SERVER}",
        fix="Look at the standby's log, disk, network and long queries.",
        grant=SESSION_GRANT,
        thresholds=Thresholds(warn=300, crit=3600),
        unit="s",
        after=("db.connect",),
        targets=servers,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
    Check(
        id="db.slots",
        title="replication slots keep little WAL",
        probe=check_slots,
        reads="pg_replication_slots: what WAL each keeps, whether it is in use and since when it is not; and the free"
        " disk of a server on this host",
        why="A slot nobody reads keeps WAL until the disk is full and the server stops. 1 GiB is a warning, and so is"
        " 20 % of the free disk, 50 % of it is critical; so is a slot that is lost. One that nothing has read for 30"
        f" min is a warning: before PostgreSQL 17 counted from the first run that saw it. {PER_SERVER}",
        fix="Start the consumer, or drop the slot with pg_drop_replication_slot; max_slot_wal_keep_size sets a limit.",
        thresholds=Thresholds(warn=1024**3),
        unit="B",
        after=("db.connect",),
        targets=servers,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
    Check(
        id="db.archiver",
        title="WAL is archived",
        probe=check_archiver,
        reads="pg_stat_archiver, and which WAL files wait in pg_wal/archive_status",
        why="While archiving fails there is no recovery to a point in time, and WAL fills the disk. A failure that no"
        " success came after is critical; a file that waits for 30 min without one is a warning: the command hangs or"
        f" does not keep up. {PER_SERVER}",
        fix="Read the server's log, repair the archive or archive_command.",
        grant=SESSION_GRANT,
        thresholds=Thresholds(warn=1800),
        unit="s",
        after=("db.connect",),
        targets=servers,
        not_configured=NOT_CONFIGURED,
        lane=LANE,
    ),
)
