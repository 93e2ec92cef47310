"""The silent success: a backup that succeeded and holds less than those before it."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsctl.manifest import DatabaseProperties, Facts, Manifest, StoredFile, TableFacts
from opsctl.settings import UnusualSettings
from opsctl.unusual import MOST_NAMED, compared, judge, sentences, typical

MIB = 1 << 20
BEGUN = datetime(2026, 11, 24, 3, tzinfo=UTC)
LIMITS = UnusualSettings()
PROPERTIES = DatabaseProperties("o", "UTF8", "libc", "C", "C", None, None, None, None, -1, ())


def backup(tables, *, size=100 * MIB, seconds=600.0, server="1", excluded=()):
    """A manifest with these rows per table of the schema public."""
    facts = Facts(
        level="counts",
        tables=tuple(TableFacts("public", name, rows) for name, rows in tables.items()),
        sequences=(),
        extensions=(),
        roles=(),
        database=PROPERTIES,
    )
    return Manifest(
        id="db-x",
        database="db",
        started_at=BEGUN,
        finished_at=BEGUN + timedelta(seconds=seconds),
        opsctl_version="1",
        pg_dump_version="18.0",
        server_version="18.0",
        host="h",
        files=(StoredFile("dump.zst", size, size // 3, "", ""),),
        facts=facts,
        restore_command="",
        system_identifier=server,
        excluded_tables=excluded,
    )


def found(newest, earlier, **limits):
    settings = UnusualSettings(**limits)
    return [(each.code, each.table) for each in judge(newest, compared(newest, earlier, settings), settings)]


# What is unusual


USERS = {"users": 5000, "plans": 5}


@pytest.mark.parametrize(
    ("newest", "expected"),
    [
        (backup(USERS), []),
        (backup({"users": 9000, "plans": 5, "new": 1}, size=900 * MIB, seconds=9000), []),  # growth is none of this
        (backup(USERS, size=49 * MIB), [("shrunk", None)]),
        (backup(USERS, size=50 * MIB), []),
        (backup(USERS, seconds=60), []),  # a faster disk
        (backup(USERS, size=79 * MIB, seconds=60), [("too_fast", None)]),
        (backup(USERS, size=79 * MIB, seconds=120), []),
        (backup({"users": 0, "plans": 5}), [("rows_lost", "public.users")]),
        (backup({"users": 2503, "plans": 0}), []),  # half is usual; a small table may do what it likes
        (backup({"plans": 5}), [("table_lost", "public.users")]),
        (backup({"plans": 5}, excluded=("public.users",)), []),  # left out on purpose
        (backup({"users": None, "plans": 5}), []),  # not counted is not lost
        (backup({}, size=9, seconds=1), [("shrunk", None), ("too_fast", None), ("table_lost", "public.users")]),
        (backup({}, size=9, seconds=1, server="2"), []),  # the first backups after a move
    ],
)
def test_what_is_less_than_usual(newest, expected):
    """Dump, time and rows each against the median of those before, of the same server."""
    assert found(newest, [backup(USERS)] * 7) == expected


def test_small_databases_are_silent():
    """Below the floors everything may be lost: a demo that is emptied is no alarm."""
    assert found(backup({}, size=9, seconds=0.1), [backup({"t": 999}, size=MIB - 1, seconds=59)] * 7) == []


def test_many_small_tables_emptied_at_once():
    """No table is large enough to be told of; all of them together are. One whose rows are unknown counts nowhere."""
    usual = [backup({f"t{n}": 100 for n in range(50)} | {"audit": 10**6}, excluded=("public.audit",))] * 3

    assert found(backup({f"t{n}": 0 for n in range(50)}), usual) == [("rows_lost", None)]
    assert found(backup({f"t{n}": 60 for n in range(50)}), usual) == []


def test_a_new_state_becomes_the_usual_one():
    """A tenant that left for good is told of until half of the backups compared are like the newest.

    So long it is shown beside one of the old state: beside the night before, nothing would look different.
    """
    large, small = backup(USERS), backup({"users": 1000, "plans": 5}, size=20 * MIB)
    nights, told = [large] * 7, []
    for _ in range(6):
        told.append(found(small, nights))
        assert not told[-1] or typical(nights[:7]) is large
        nights = [small, *nights]

    assert [bool(each) for each in told] == [True, True, True, True, False, False]


def test_limits_are_the_users():
    """How many are compared, every share, every floor and the tables to pass over; 0 compares with none."""
    lost, three = backup({"plans": 5}, size=40 * MIB, seconds=60), [backup(USERS)] * 3

    assert len(found(lost, three)) == 3
    assert found(lost, three[:2]) == []
    assert len(found(lost, three[:1], compared=1)) == 3
    assert found(lost, three, compared=0) == []
    assert found(lost, three, smaller_percent=0, faster_percent=0, fewest_rows=10_000) == []
    assert found(lost, three, smallest_bytes=101 * MIB, ignore_tables=["users"]) == []
    assert found(lost, three, smallest_bytes=101 * MIB, ignore_tables=["public.u*"]) == []
    assert found(lost, three, smallest_bytes=101 * MIB, ignore_tables=["other.users"]) == [
        ("table_lost", "public.users")
    ]


def test_people_are_told_of_the_worst_tables_first():
    """Of 500 lost tables a few are named; programs get them all."""
    usual = {f"t{n:03}": 1000 + n for n in range(500)}
    unusual = judge(backup({}), [backup(usual)] * 3, LIMITS)

    assert len(unusual) == 500
    assert (unusual[0].table, unusual[-1].table) == ("public.t499", "public.t000")
    assert sentences(unusual)[0] == "table public.t499 is not in it, usual are 1,499 rows"
    assert sentences(unusual)[MOST_NAMED:] == [f"{500 - MOST_NAMED} more like these"]


# For all of them

contents = st.dictionaries(st.sampled_from("abcd"), st.none() | st.integers(0, 10**6), max_size=4)
manifests = st.builds(
    lambda tables, size, seconds: backup(tables, size=size, seconds=seconds),
    contents,
    st.integers(1, 10**12),
    st.floats(0, 10**5),
)


@given(manifests, st.integers(1, 9))
def test_the_same_again_is_never_unusual(one, times):
    """Nothing changes, nothing is said, whatever the sizes."""
    assert judge(one, [one] * times, LIMITS) == ()


@given(manifests, st.lists(manifests, min_size=1, max_size=9), st.integers(0, 10**6))
def test_more_is_never_more_unusual(newest, usual, more):
    """A larger dump that took longer and has more rows is told of for nothing that the smaller one is not."""
    facts = replace(
        newest.facts,
        tables=tuple(replace(t, rows=None if t.rows is None else t.rows + more) for t in newest.facts.tables),
    )
    (dump,) = newest.files
    larger = replace(
        newest,
        facts=facts,
        files=(replace(dump, bytes=dump.bytes + more),),
        finished_at=newest.finished_at + timedelta(seconds=more),
    )
    # All rows together are only looked at where no table stands out.
    before, after = ({(each.code, each.table) for each in judge(one, usual, LIMITS)} for one in (newest, larger))

    assert after <= before | {("rows_lost", None)}


@given(manifests, st.lists(manifests, min_size=3, max_size=9), st.randoms())
def test_neither_order_nor_one_odd_backup_matters(newest, usual, random):
    """The median: what is told does not depend on the order, and every number told is below what is usual."""
    shuffled = list(usual)
    random.shuffle(shuffled)
    unusual = judge(newest, usual, LIMITS)

    assert judge(newest, shuffled, LIMITS) == unusual
    assert all(each.value < each.usual for each in unusual)


# The program


@pytest.mark.end_to_end
def test_a_backup_of_less_needs_attention_and_prunes_nothing(run_opsctl, saas):
    """Exit code 3; named in the result, the manifest, the log and the history; the good ones stay till it is usual."""
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases.shop]\nurl = "{saas.url}"\nunusual = {{ compared = 1 }}\n'
        '[repositories.local]\nurl = "backups"\nretention = { keep_last = 1 }\n'
    )
    saas.execute("CREATE TABLE audit AS SELECT generate_series(1, 1000) AS id")
    good = run_opsctl("backup", "--json")
    saas.execute("DROP TABLE audit; DELETE FROM messages")
    less = run_opsctl("backup", "--json")
    repeated = run_opsctl("backup")

    (first,), (second,) = (run.json["result"]["backups"] for run in (good, less))
    assert (good.returncode, less.returncode) == (0, 3), less
    assert (first["unusual"], first["compared_with"]) == ([], None)
    assert second["compared_with"] == first["id"]
    assert [(each["code"], each["table"], each["value"], each["usual"]) for each in second["unusual"]] == [
        ("rows_lost", "public.messages", 0, 20000),
        ("table_lost", "public.audit", 0, 1000),
    ]
    assert less.json["result"]["pruned"] == []
    logged = [json.loads(line) for line in less.stderr.splitlines()]
    assert [each["message"] for each in logged if each["event"] == "backup.unusual"] == [
        "table public.messages has 0 rows, usual are 20,000",
        "table public.audit is not in it, usual are 1,000 rows",
    ]
    assert (repeated.returncode, repeated.stdout.count("pruned shop-")) == (0, 2), repeated
    runs = run_opsctl("history", "--json").json["result"]["runs"]
    assert [each["outcome"] for each in runs] == ["done", "attention", "done"]
    assert "public.messages" in runs[1]["message"]


@pytest.mark.end_to_end
def test_the_warning_stays_with_the_backup(run_opsctl, saas):
    """Whoever looks for a backup to restore sees in it that it is not like the others; the text says what to do."""
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases.shop]\nurl = "{saas.url}"\n[databases.shop.unusual]\ncompared = 1\n'
    )
    run_opsctl("backup", "--quiet")
    saas.execute("TRUNCATE events")
    less = run_opsctl("backup")
    shown = run_opsctl("show", "latest", "--json").json["result"]

    assert less.returncode == 3, less
    assert "UNUSUAL: table public.events has 0 rows, usual are 60,000" in less.stdout
    (command,) = [line.partition("see opsctl ")[2] for line in less.stdout.splitlines() if "see opsctl diff" in line]
    assert "nothing was pruned" in less.stdout
    assert shown["manifest"]["warnings"] == [
        "the dump has 1.7 MiB, usual are 9.0 MiB",
        "table public.events has 0 rows, usual are 60,000",
    ]
    assert "-60,000" in run_opsctl(*command.split()).stdout
