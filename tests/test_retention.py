"""What retention promises: restic's rules to the letter, and guarantees that no policy can override."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from opsctl.manifest import EVIDENCE_LEVELS
from opsctl.retention import Candidate, Decision, Policy, parse_duration, plan_prune

NOW = datetime(2027, 1, 4, 12, tzinfo=UTC)
RESTORED_AND_BETTER = ("restored", "counted", "content")
NO_RULE = ("kept by no rule",)


def taken(moment, **more):
    """A backup taken at ``2026-11-22 03:00`` UTC, with its time for an id."""
    return Candidate(id=moment, created_at=datetime.fromisoformat(moment).replace(tzinfo=UTC), **more)


def daily(count, newest=NOW):
    return [Candidate(f"day-{age:03}", newest - timedelta(days=age)) for age in range(count)]


def reasons(plan):
    return {decision.id: decision.reasons for decision in plan}


def kept(plan):
    return {decision.id for decision in plan if decision.keep}


# The rules, on concrete dates


def test_every_rule_counts_on_its_own_and_any_one_keeps():
    """Rules are OR-ed; each counts its own buckets, whatever another one keeps. A removal says so."""
    backups = [
        taken("2027-01-04 03:00"),
        taken("2027-01-03 15:00"),
        taken("2027-01-03 03:00"),
        taken("2027-01-01 03:00"),
        taken("2026-12-31 03:00"),
        taken("2026-12-27 03:00"),
        taken("2026-12-26 03:00"),
        taken("2026-11-30 03:00"),
        taken("2026-11-15 03:00"),
        taken("2026-06-01 03:00"),
    ]
    policy = Policy(keep_last=2, keep_daily=3, keep_weekly=3, keep_monthly=3, keep_yearly=2)
    assert reasons(plan_prune(backups, policy, now=NOW)) == {
        "2027-01-04 03:00": (
            *("last 1", "daily 2027-01-04", "weekly 2027-W01", "monthly 2027-01", "yearly 2027"),
            "newest good",
        ),
        "2027-01-03 15:00": ("last 2", "daily 2027-01-03", "weekly 2026-W53"),
        "2027-01-03 03:00": NO_RULE,
        "2027-01-01 03:00": ("daily 2027-01-01",),
        "2026-12-31 03:00": ("monthly 2026-12", "yearly 2026"),
        "2026-12-27 03:00": ("weekly 2026-W52",),
        "2026-12-26 03:00": NO_RULE,
        "2026-11-30 03:00": ("monthly 2026-11",),
        "2026-11-15 03:00": NO_RULE,
        "2026-06-01 03:00": NO_RULE,
    }


def test_weeks_are_iso_weeks_across_the_end_of_a_year():
    """31 December 2024 is in week 1 of 2025, and 3 January 2027 in week 53 of 2026: one bucket each, one backup."""
    backups = [
        taken("2027-01-04 03:00"),
        taken("2027-01-03 03:00"),
        taken("2026-12-28 03:00"),
        taken("2026-12-27 03:00"),
        taken("2025-01-05 03:00"),
        taken("2024-12-31 03:00"),
        taken("2024-12-30 03:00"),
        taken("2024-12-29 03:00"),
        taken("2024-12-22 03:00"),
    ]
    assert reasons(plan_prune(backups, Policy(keep_weekly=5), now=NOW)) == {
        "2027-01-04 03:00": ("weekly 2027-W01", "newest good"),
        "2027-01-03 03:00": ("weekly 2026-W53",),
        "2026-12-28 03:00": NO_RULE,
        "2026-12-27 03:00": ("weekly 2026-W52",),
        "2025-01-05 03:00": ("weekly 2025-W01",),
        "2024-12-31 03:00": NO_RULE,
        "2024-12-30 03:00": NO_RULE,
        "2024-12-29 03:00": ("weekly 2024-W52",),
        "2024-12-22 03:00": NO_RULE,
    }


def test_the_oldest_is_kept_while_counts_remain():
    """When a rule has more counts than buckets, the oldest backup is kept for it; with none left it is not."""
    backups = [
        taken("2026-11-22 15:30"),
        taken("2026-11-22 15:10"),
        taken("2026-11-22 14:00"),
        taken("2026-11-21 03:00"),
        taken("2026-11-21 02:00"),
        taken("2026-11-21 01:00"),
    ]
    assert reasons(plan_prune(backups, Policy(keep_hourly=3, keep_daily=3, keep_weekly=2), now=NOW)) == {
        "2026-11-22 15:30": ("hourly 2026-11-22T15", "daily 2026-11-22", "weekly 2026-W47", "newest good"),
        "2026-11-22 15:10": NO_RULE,
        "2026-11-22 14:00": ("hourly 2026-11-22T14",),
        "2026-11-21 03:00": ("hourly 2026-11-21T03", "daily 2026-11-21"),
        "2026-11-21 02:00": NO_RULE,
        "2026-11-21 01:00": ("oldest daily", "oldest weekly"),
    }
    assert kept(plan_prune(backups, Policy(keep_daily=2), now=NOW)) == {"2026-11-22 15:30", "2026-11-21 03:00"}


def test_only_buckets_that_hold_a_backup_count():
    """Weekly backups under keep_daily 4: the last four, a month's worth (the example of restic's manual)."""
    sundays = [datetime(2019, 11, 17, 11, tzinfo=UTC) - timedelta(weeks=week) for week in range(12)]
    backups = [Candidate(f"{sunday:%Y-%m-%d}", sunday) for sunday in sundays]
    assert kept(plan_prune(backups, Policy(keep_daily=4), now=NOW)) == {
        *("2019-10-27", "2019-11-03", "2019-11-10", "2019-11-17"),
    }


def test_buckets_are_natural_ones_in_utc():
    """One minute before midnight UTC and one after are two days, also where the time was written with an offset."""
    late = taken("2026-11-21 23:59")
    early = datetime.fromisoformat("2026-11-21T21:01:00-03:00")
    plan = plan_prune([late, Candidate("early", early)], Policy(keep_daily=2), now=NOW)
    assert reasons(plan) == {"early": ("daily 2026-11-22", "newest good"), late.id: ("daily 2026-11-21",)}


def test_within_looks_back_from_the_newest_backup():
    """keep_within 7d of daily backups keeps seven: the one exactly seven days older is not within."""
    plan = plan_prune(daily(10), Policy(keep_within=timedelta(days=7)), now=NOW + timedelta(days=300))
    assert kept(plan) == {f"day-00{age}" for age in range(7)}
    assert plan[6] == Decision("day-006", keep=True, reasons=("within 7d",))


@pytest.mark.parametrize(
    ("duration", "reason"),
    [
        (timedelta(days=30), "within 30d"),
        (timedelta(days=1, hours=12), "within 1d12h"),
        (timedelta(hours=36), "within 1d12h"),
        (timedelta(minutes=30), "within 1800s"),
    ],
)
def test_the_reason_names_the_duration(duration, reason):
    """The reason shows the configured duration, in days and hours."""
    assert reason in plan_prune(daily(1), Policy(keep_within=duration), now=NOW)[0].reasons


@pytest.mark.parametrize("policy", [Policy(), Policy(keep_last=0, keep_yearly=0, keep_within=timedelta(0))])
def test_an_empty_policy_keeps_everything(policy):
    """None and zero both mean no rule; without a rule nothing is removed, not even what failed verification."""
    backups = [*daily(3), taken("2020-01-01 03:00", failed=True)]
    assert policy.is_empty
    assert {decision.reasons for decision in plan_prune(backups, policy, now=NOW)} == {("no policy",)}
    assert len(kept(plan_prune(backups, policy, now=NOW))) == 4


@pytest.mark.parametrize("rule_of_one", [{"keep_last": 1}, {"keep_yearly": 1}, {"keep_within": timedelta(hours=1)}])
def test_one_rule_is_a_policy(rule_of_one):
    """A single rule makes a policy that is not empty, and keeps the newest alone of three days."""
    assert not Policy(**rule_of_one).is_empty
    assert kept(plan_prune(daily(3), Policy(**rule_of_one), now=NOW)) == {"day-000"}


@pytest.mark.parametrize("wrong", [{"keep_last": -1}, {"keep_within": timedelta(hours=-1)}])
def test_a_negative_rule_is_refused(wrong):
    """A typing mistake must not read as 'remove everything'."""
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must not be negative"):
        Policy(**wrong)


def test_a_backup_listed_twice_is_refused():
    """Two repositories' lists in one plan would count every backup twice, and halve what the policy keeps."""
    with pytest.raises(ValueError, match="listed twice"):
        plan_prune([*daily(2), *daily(2)], Policy(keep_last=2), now=NOW)


def test_nothing_to_decide():
    """No backups, no decisions."""
    assert plan_prune([], Policy(keep_last=1), now=NOW) == []


# What no policy can remove


@pytest.mark.parametrize("policy", [Policy(keep_within=timedelta(days=7)), Policy(keep_daily=7)])
def test_a_dead_schedule_loses_nothing(policy):
    """60 daily backups, then 40 days without one and a prune on each: the same seven stay to the end."""
    store = daily(60)
    for day in range(41):
        plan = plan_prune(store, policy, now=NOW + timedelta(days=day))
        store = [backup for backup in store if backup.id in kept(plan)]
        assert [backup.id for backup in store] == [f"day-00{age}" for age in range(7)]


def test_the_newest_proof_of_every_level_stays():
    """A newer but weaker proof does not replace a stronger one, nor the other way round."""
    backups = [
        taken("2026-12-31 03:00"),
        taken("2026-12-30 03:00", proven="decoded"),
        taken("2026-12-20 03:00", proven="restored"),
        taken("2026-12-10 03:00", proven="counted"),
        taken("2026-12-09 03:00", proven="restored"),
        taken("2026-10-01 03:00", proven="content"),
        taken("2026-09-01 03:00", proven="content"),
    ]
    assert reasons(plan_prune(backups, Policy(keep_last=1), now=NOW)) == {
        "2026-12-31 03:00": ("last 1", "newest good"),
        "2026-12-30 03:00": NO_RULE,
        "2026-12-20 03:00": ("newest proven restored or better",),
        "2026-12-10 03:00": ("newest proven counted or better",),
        "2026-12-09 03:00": NO_RULE,
        "2026-10-01 03:00": ("newest proven content",),
        "2026-09-01 03:00": NO_RULE,
    }


def test_one_that_failed_verification_counts_for_nothing():
    """It takes no place of a good one, proves nothing, and goes once a newer good one exists; before that it stays."""
    backups = [
        taken("2027-01-04 03:00", failed=True, proven="content"),
        taken("2027-01-03 03:00"),
        taken("2027-01-02 03:00", failed=True, proven="content"),
        taken("2027-01-01 03:00"),
        taken("2026-12-31 03:00", proven="content"),
        taken("2026-12-30 03:00", failed=True, pinned=True),
    ]
    assert reasons(plan_prune(backups, Policy(keep_last=2), now=NOW)) == {
        "2027-01-04 03:00": ("failed verification, no newer good one exists",),
        "2027-01-03 03:00": ("last 1", "newest good"),
        "2027-01-02 03:00": ("failed verification, a newer good one exists",),
        "2027-01-01 03:00": ("last 2",),
        "2026-12-31 03:00": (
            *("newest proven restored or better", "newest proven counted or better", "newest proven content"),
        ),
        "2026-12-30 03:00": ("pinned",),
    }


def test_when_all_failed_all_stay():
    """With no good backup left, a damaged one may be all there is to salvage."""
    backups = [replace(backup, failed=True) for backup in daily(5)]
    assert len(kept(plan_prune(backups, Policy(keep_last=1), now=NOW))) == 5


def test_pinned_ones_stay_and_count():
    """A pin keeps a backup no rule keeps; it counts for the rules like any other."""
    backups = [replace(backup, pinned=backup.id in {"day-001", "day-004"}) for backup in daily(6)]
    plan = plan_prune(backups, Policy(keep_last=2), now=NOW)
    assert {key: value for key, value in reasons(plan).items() if value != NO_RULE} == {
        "day-000": ("last 1", "newest good"),
        "day-001": ("last 2", "pinned"),
        "day-004": ("pinned",),
    }


def test_the_future_is_kept_and_ignored():
    """A backup dated in the future is kept; it is not the newest, takes no place, and protects no failed one."""
    backups = [
        taken("2032-01-01 03:00", failed=True),
        taken("2031-01-01 03:00", proven="content"),
        taken("2027-01-03 03:00", failed=True),
        taken("2027-01-02 03:00"),
        taken("2027-01-01 03:00"),
    ]
    plan = plan_prune(backups, Policy(keep_last=1, keep_within=timedelta(hours=1)), now=NOW)
    assert reasons(plan) == {
        "2032-01-01 03:00": ("dated in the future",),
        "2031-01-01 03:00": ("dated in the future",),
        "2027-01-03 03:00": ("failed verification, no newer good one exists",),
        "2027-01-02 03:00": ("last 1", "within 1h", "newest good"),
        "2027-01-01 03:00": NO_RULE,
    }


def test_each_server_has_its_own_backups():
    """Backups of a second server of the same name neither push out the first one's nor are counted with them."""
    backups = [replace(backup, server=("first", "second", None)[number % 3]) for number, backup in enumerate(daily(9))]
    plan = plan_prune(backups, Policy(keep_last=2), now=NOW)
    assert [decision.id for decision in plan] == [f"day-00{age}" for age in range(9)]
    assert kept(plan) == {f"day-00{age}" for age in range(6)}


# The same, for any backups and any policy

counts = st.none() | st.integers(0, 4)
policies = st.builds(
    Policy, *[counts] * 6, keep_within=st.none() | st.integers(0, 24 * 60).map(lambda hours: timedelta(hours=hours))
)
ages = st.one_of(
    st.integers(-300, 60 * 24).map(lambda minutes: timedelta(minutes=minutes)),
    st.integers(-100, 24 * 40).map(lambda hours: timedelta(hours=hours)),
    st.integers(-10, 365 * 3).map(lambda days: timedelta(days=days)),
)
levels = st.none() | st.sampled_from(EVIDENCE_LEVELS)
candidates = st.builds(
    Candidate,
    id=st.just(""),
    created_at=ages.map(lambda age: NOW - age),
    pinned=st.integers(0, 9).map(lambda number: number == 0),
    proven=levels,
    failed=st.integers(0, 3).map(lambda number: number == 0),
    server=st.sampled_from((None, "7316", "7316", "9025")),
)
stores = st.lists(candidates, max_size=40).map(
    lambda drawn: [replace(backup, id=f"b{number:02}") for number, backup in enumerate(drawn)]
)


def good_of(store, server, now=NOW, levels=None):
    """The good backups of a server, those proven to one of the levels if any are given."""
    return [
        backup
        for backup in store
        if backup.server == server
        and not backup.failed
        and backup.created_at <= now
        and (levels is None or backup.proven in levels)
    ]


def lost(store, plan, now=NOW):
    """The guarantees a plan breaks: the newest good backup, and the newest proof per level, of each server."""
    wanted = [None, *(RESTORED_AND_BETTER[start:] for start in range(3))]
    survivors = [backup for backup in store if backup.id in kept(plan)]
    for server in {backup.server for backup in store}:
        for proofs in wanted:
            before, after = (good_of(some, server, now, proofs) for some in (store, survivors))
            newest = max((backup.created_at for backup in before), default=None)
            if newest != max((backup.created_at for backup in after), default=None):
                yield server, proofs


@given(stores, policies)
def test_the_newest_good_and_the_newest_proofs_are_kept(store, policy):
    """Whatever the policy, no server loses its newest good backup, nor the newest one proven to a level."""
    assert not list(lost(store, plan_prune(store, policy, now=NOW)))


@given(stores, policies)
def test_pinned_and_future_ones_are_kept(store, policy):
    """Whatever the policy, a pin and a date in the future keep a backup."""
    exempt = {backup.id for backup in store if backup.pinned or backup.created_at > NOW}
    assert exempt <= kept(plan_prune(store, policy, now=NOW))


@given(stores, policies)
def test_a_failed_one_is_removed_only_for_a_newer_good_one(store, policy):
    """A failed backup is removed only when its server has a good one that is newer."""
    removed = {backup.id for backup in store} - kept(plan_prune(store, policy, now=NOW))
    for backup in store:
        if backup.failed and backup.id in removed:
            assert any(good.created_at > backup.created_at for good in good_of(store, backup.server))


@given(stores, policies)
def test_failed_and_future_ones_change_nothing_for_the_good(store, policy):
    """Good backups are decided, to the reason, as if the failed and the future-dated ones did not exist."""
    good = [backup for backup in store if not backup.failed and backup.created_at <= NOW]
    alone = reasons(plan_prune(good, policy, now=NOW))
    assert {key: value for key, value in reasons(plan_prune(store, policy, now=NOW)).items() if key in alone} == alone


@given(stores, policies)
def test_the_future_changes_nothing_for_the_others(store, policy):
    """All others, failed ones too, are decided as if nothing were dated in the future."""
    present = [backup for backup in store if backup.created_at <= NOW]
    alone = plan_prune(present, policy, now=NOW)
    ids = {backup.id for backup in present}
    assert [decision for decision in plan_prune(store, policy, now=NOW) if decision.id in ids] == alone


@given(stores, policies, candidates)
def test_a_new_failed_backup_removes_nothing(store, policy, newcomer):
    """One more backup that failed verification changes no decision about any other."""
    before = plan_prune(store, policy, now=NOW)
    after = plan_prune([*store, replace(newcomer, id="new", failed=True)], policy, now=NOW)
    assert [decision for decision in after if decision.id != "new"] == before


@given(stores, policies, st.data())
def test_a_failing_verification_removes_no_other(store, policy, data):
    """When a backup turns out to be damaged, more of the others may stay, never fewer."""
    assume(store)
    damaged = data.draw(st.sampled_from(store))
    before = kept(plan_prune(store, policy, now=NOW))
    turned = [replace(backup, failed=True) if backup is damaged else backup for backup in store]
    assert before - {damaged.id} <= kept(plan_prune(turned, policy, now=NOW))


@given(stores, policies)
def test_pruning_twice_is_pruning_once(store, policy):
    """A plan over what a plan kept keeps all of it, the oldest included."""
    once = kept(plan_prune(store, policy, now=NOW))
    assert kept(plan_prune([backup for backup in store if backup.id in once], policy, now=NOW)) == once


@given(stores, policies, st.randoms(use_true_random=False))
def test_the_order_of_the_list_does_not_matter(store, policy, shuffler: random.Random):
    """A storage lists in any order; the plan is the same, newest first, one decision per backup."""
    plan = plan_prune(store, policy, now=NOW)
    shuffled = list(store)
    shuffler.shuffle(shuffled)
    assert plan_prune(shuffled, policy, now=NOW) == plan
    times = {backup.id: backup.created_at for backup in store}
    moments = [times[decision.id] for decision in plan]
    assert moments == sorted(moments, reverse=True)
    assert sorted(decision.id for decision in plan) == sorted(times)


BUCKETS = {
    "keep_hourly": lambda moment: (moment.date(), moment.hour),
    "keep_daily": lambda moment: moment.date(),
    "keep_weekly": lambda moment: moment.isocalendar()[:2],
    "keep_monthly": lambda moment: (moment.year, moment.month),
    "keep_yearly": lambda moment: moment.year,
}


@given(stores, policies)
def test_the_counted_rules_are_those_of_restic(store, policy):
    """Said a second way: the newest of each of the n newest buckets, and the oldest where there are fewer than n."""
    assume(not policy.is_empty)
    plain = [replace(backup, pinned=False, proven=None, failed=False, server=None) for backup in store]
    good = good_of(plain, None)
    good.sort(key=lambda backup: (backup.created_at, backup.id), reverse=True)
    expected = {*good[:1], *good[: policy.keep_last or 0]}
    for name, bucket_of in BUCKETS.items():
        count = getattr(policy, name) or 0
        newest = {}
        for backup in good:
            newest.setdefault(bucket_of(backup.created_at), backup)
        expected |= {*list(newest.values())[:count]}
        if len(newest) < count:
            expected |= {*good[-1:]}
    if policy.keep_within:
        expected |= {backup for backup in good if backup.created_at > good[0].created_at - policy.keep_within}
    assert kept(plan_prune(good, policy, now=NOW)) == {backup.id for backup in expected}


class AnyHistory(RuleBasedStateMachine):
    """No sequence of backups, failures, kills, drills, clock jumps and prunes loses the newest good or a proof."""

    @initialize()
    def begin(self):
        self.now, self.store, self.taken = NOW, [], 0

    @rule(minutes=st.integers(1, 60 * 30), server=st.sampled_from(("7316", "9025")))
    def back_up(self, minutes, server):
        self.now += timedelta(minutes=minutes)
        self.taken += 1
        self.store.append(Candidate(f"b{self.taken:03}", self.now, server=server))

    @rule(days=st.integers(1, 7))
    def back_up_daily(self, days):
        for _ in range(days):
            self.back_up(minutes=24 * 60, server="7316")

    @precondition(lambda self: self.store)
    @rule(data=st.data())
    def fail_verification(self, data):
        self._change(data, failed=True)

    @precondition(lambda self: self.store)
    @rule(data=st.data(), level=st.sampled_from(EVIDENCE_LEVELS))
    def pass_drill(self, data, level):
        self._change(data, failed=False, proven=level)

    def _change(self, data, **fields):
        place = data.draw(st.integers(0, len(self.store) - 1))
        self.store[place] = replace(self.store[place], **fields)

    @rule(hours=st.integers(-24 * 60, 24 * 400))
    def jump_clock(self, hours):
        self.now += timedelta(hours=hours)

    @rule(minutes=st.integers(1, 60 * 30))
    def fail_or_be_killed(self, minutes):
        """A run that ends before its manifest is written leaves nothing that retention counts: only time has passed."""
        self.now += timedelta(minutes=minutes)

    @precondition(lambda self: self.store)
    @rule(policy=policies, data=st.data())
    def be_killed_in_prune(self, policy, data):
        """What goes goes oldest first; the rest of the plan is never carried out."""
        plan = plan_prune(self.store, policy, now=self.now)
        going = [decision.id for decision in plan if not decision.keep][::-1]
        gone = set(going[: data.draw(st.integers(0, len(going)))])
        assert not list(lost(self.store, [replace(each, keep=each.id not in gone) for each in plan], self.now))
        self.store = [backup for backup in self.store if backup.id not in gone]

    @rule(policy=policies)
    def prune(self, policy):
        plan = plan_prune(self.store, policy, now=self.now)
        assert not list(lost(self.store, plan, self.now))
        assert {backup.id for backup in self.store if backup.created_at > self.now} <= kept(plan)
        self.store = [backup for backup in self.store if backup.id in kept(plan)]
        assert kept(plan_prune(self.store, policy, now=self.now)) == kept(plan)


class TestAnyHistory(AnyHistory.TestCase):
    """No sequence of backups, failures, kills, drills, clock jumps and prunes loses the newest good or a proof."""

    settings = settings(max_examples=100, stateful_step_count=30)


# How long locks may last


@given(
    st.integers(0, 12),
    st.integers(0, 80),
    st.integers(0, 20),
    st.integers(0, 10),
    st.integers(0, 200),
    st.sets(st.integers(0, 39), min_size=1),
)
def test_what_is_younger_than_the_certain_span_is_kept(days, hours, within, last, within_hours, nights):
    """Backups of any nights: none is let go before it is that old, so that no lock stands in the way of a prune."""
    policy = Policy(
        keep_last=last, keep_daily=days, keep_hourly=hours, keep_within=timedelta(days=within, hours=within_hours)
    )
    backups = [Candidate(str(night), NOW - timedelta(days=night)) for night in nights]
    newest = min(nights)
    certain = {str(night) for night in nights if timedelta(days=night - newest) < policy.certain_span}

    assert certain <= kept(plan_prune(backups, policy, now=NOW))


def test_the_certain_span_is_the_longest_rule_that_speaks_of_days():
    """Weeks, months and numbers say nothing certain about a single night."""
    assert Policy(keep_daily=7, keep_hourly=200, keep_within=timedelta(days=3)).certain_span == timedelta(hours=200)
    assert Policy(keep_daily=7, keep_within=timedelta(days=9)).certain_span == timedelta(days=9)
    assert Policy(keep_last=9, keep_weekly=9, keep_monthly=9, keep_yearly=9).certain_span == timedelta(0)


# Durations


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("30d", timedelta(days=30)),
        ("2w", timedelta(days=14)),
        ("36h", timedelta(hours=36)),
        ("1y", timedelta(days=365)),
        ("3m", timedelta(days=90)),
        ("1y5m7d2h", timedelta(days=365 + 5 * 30 + 7, hours=2)),
        ("1d1w", timedelta(days=8)),
        ("0d", timedelta(0)),
    ],
)
def test_durations(text, duration):
    """Numbers with y, m, w, d, h, in any order; a year is 365 days, a month 30."""
    assert parse_duration(text) == duration


@pytest.mark.parametrize(
    "text", ["", " ", "30", "d", "-7d", "1.5d", "7 d", " 7d", "7D", "7days", "7d3", "5s", "\u0667d"]
)
def test_what_is_no_duration(text):
    """Anything else is refused with the way to write it, never read in part."""
    with pytest.raises(ValueError, match="is not a duration; write it like 30d"):
        parse_duration(text)


def test_a_unit_twice():
    """1d1d is a mistake: restic reads it as one day, others as two."""
    with pytest.raises(ValueError, match="'1d1d' names a unit twice"):
        parse_duration("1d1d")


@pytest.mark.parametrize("text", ["999999999999y", "9" * 5000 + "d", "9" * 400 + "h"])
def test_a_duration_beyond_all_time(text):
    """A number too large for a date is a ValueError too, and a short one."""
    with pytest.raises(ValueError, match="is too long a duration"):
        parse_duration(text)


def test_a_very_long_duration_keeps_everything():
    """Looking back beyond the first year of the calendar is no error."""
    assert len(kept(plan_prune(daily(3), Policy(keep_within=parse_duration("9000y")), now=NOW))) == 3
