"""`opsctl diff`: two backups, or a backup and the live database, table by table."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsctl.comparison import State, compare
from opsctl.manifest import DatabaseProperties, ExtensionFacts, Facts, TableFacts

PROPERTIES = DatabaseProperties("o", "UTF8", "libc", "C", "C", None, None, None, None, -1, ())
FACTS = Facts("content", (), (), (), (), PROPERTIES, large_objects=0)

hashes = st.none() | st.sampled_from(["1", "2"])
tables = st.dictionaries(
    st.sampled_from([("public", "a"), ("public", "b"), ("x", "a")]),
    st.tuples(st.none() | st.integers(0, 3), hashes),
    max_size=3,
)
facts = st.builds(
    lambda found, extensions, large_objects, schema: replace(
        FACTS,
        tables=tuple(TableFacts(*key, *value) for key, value in found.items()),
        extensions=tuple(ExtensionFacts(name, version, "public") for name, version in extensions.items()),
        large_objects=large_objects,
        schema_sha256=schema,
    ),
    tables,
    st.dictionaries(st.sampled_from(["hstore", "pg_trgm"]), st.sampled_from(["1", "2"])),
    st.none() | st.integers(0, 2),
    hashes,
)
MIRRORED = {"added": "removed", "removed": "added"}


# Pure


@given(facts)
def test_nothing_differs_from_itself(one):
    """No difference where there is none; what was not counted or hashed is never called the same."""
    comparison = compare(State(one, dumped_by="18.0"), State(one, dumped_by="18.0"))

    assert comparison.is_same is not False
    assert {each.status for each in comparison.tables} <= {"same", "same_rows", "unknown"}
    known = all(table.rows is not None and table.content_hash for table in one.tables) and one.large_objects == 0
    assert (comparison.is_same is True) == (known and bool(one.tables)) or not one.tables


@given(facts, facts)
def test_the_other_way_round_is_the_mirror(a, b):
    """Whoever mixes up A and B reads the same differences with the signs turned."""
    there, back = compare(State(a), State(b)), compare(State(b), State(a))

    assert [MIRRORED.get(each.status, each.status) for each in there.tables] == [each.status for each in back.tables]
    turned = [None if each.more_rows is None else -each.more_rows for each in there.tables]
    assert turned == [each.more_rows for each in back.tables]
    assert there.is_same == back.is_same
    assert [each.name for each in there.extensions] == [each.name for each in back.extensions]


@given(facts, facts)
def test_every_table_is_told_of_once(a, b):
    """Nothing is left out, nothing is twice, and rows that differ are never the same."""
    found = compare(State(a), State(b)).tables
    keys = [(each.schema, each.name) for each in found]

    assert keys == sorted({(each.schema, each.name) for side in (a, b) for each in side.tables})
    for each in found:
        if each.a_rows is not None and each.b_rows is not None and each.a_rows != each.b_rows:
            assert each.status == "different"


def test_data_left_out_on_purpose_is_not_lost():
    """What exclude_tables keeps out of one of the two is not compared; and only the same pg_dump writes the same."""
    audit = replace(FACTS, tables=(TableFacts("public", "audit", 5, "1"),), schema_sha256="a")
    without = replace(FACTS, schema_sha256="b")
    one = State(audit, dumped_by="18.0")

    (table,) = compare(one, State(without, frozenset({"public.audit"}), "18.1")).tables
    assert (table.status, table.left_out, table.more_rows) == ("unknown", True, None)
    assert compare(one, State(without)).tables[0].status == "removed"
    assert [compare(one, State(without, dumped_by=each)).definitions for each in ("18.0", "18.1")] == [
        "different",
        "unknown",
    ]


# The program


def statuses(run):
    return {each["name"]: each["status"] for each in run.json["result"]["tables"]}


@pytest.mark.end_to_end
def test_two_backups_and_the_live_database(run_opsctl, saas, back_up):
    """Rows lost, content changed in place, tables dropped and made: each is named; live tables are hashed, too."""
    first = back_up(saas, "content")
    unchanged = run_opsctl("diff", "latest", "live", "--json")
    saas.execute(
        "DELETE FROM messages WHERE id % 2 = 0; UPDATE users SET full_name = 'x' WHERE id = 1;"
        "DROP TABLE events CASCADE; CREATE TABLE coupons AS SELECT generate_series(1, 3) AS id; DROP EXTENSION plpgsql"
    )
    live = run_opsctl("diff", first, "live", "--json")
    second = back_up(saas, "content")
    backups = run_opsctl("diff", first, second, "--json")
    text = run_opsctl("diff", first, "latest").stdout

    assert (unchanged.returncode, unchanged.json["result"]["same"]) == (0, True), unchanged
    assert unchanged.json["result"]["definitions"] == "unknown"
    expected = {
        "companies": "same",
        "coupons": "added",
        "events": "removed",
        "messages": "different",
        "users": "different",
    }
    for run in (live, backups):
        assert (run.returncode, run.json["result"]["same"]) == (0, False), run
        assert statuses(run) == expected
        result = run.json["result"]
        rows = {each["name"]: (each["a_rows"], each["b_rows"], each["more_rows"]) for each in result["tables"]}
        assert rows["messages"] == (20000, 10000, -10000)
        assert rows["events"] == (60000, None, -60000)
        assert rows["coupons"] == (None, 3, 3)
        assert result["counts"] == {
            "same": 1,
            "same_rows": 0,
            "different": 2,
            "added": 1,
            "removed": 1,
            "unknown": 0,
        }
        assert [each["name"] for each in result["extensions"]] == ["plpgsql"]
    assert live.json["result"]["tables"] == backups.json["result"]["tables"]
    assert (live.json["result"]["b"]["id"], backups.json["result"]["b"]["id"]) == (None, second)
    assert backups.json["result"]["definitions"] == "different"
    for line in ("only in A", "only in B", "other content", "-10,000", "1 table has the same content", "DIFFER"):
        assert line in text
    assert "companies" not in text


@pytest.mark.end_to_end
def test_nothing_differs_right_after_a_backup(run_opsctl, rich, back_up):
    """Partitions, inheritance, row security, odd names, large objects: what nobody has written to is the same."""
    back_up(rich, "content")
    run = run_opsctl("diff", "latest", "live", "--json")

    differing = [each for each in run.json["result"]["tables"] if each["status"] != "same"]
    assert (run.returncode, run.json["result"]["same"], differing) == (0, True, []), run
    assert run.json["result"]["large_objects"] == {"status": "same", "a_count": 3, "b_count": 3}


@pytest.mark.end_to_end
def test_a_locked_table_is_unknown_and_nobody_waits(run_opsctl, saas, back_up):
    """With counts alone nobody says that contents are the same; a table that is locked is named, with code 3."""
    back_up(saas)
    with saas.connect(autocommit=False) as holder:
        holder.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        run = run_opsctl("diff", "latest", "live", "--json")
        holder.rollback()

    assert run.returncode == 3, run
    assert statuses(run) == {
        "companies": "same_rows",
        "events": "same_rows",
        "messages": "same_rows",
        "users": "unknown",
    }
    assert run.json["result"]["same"] is None
    assert run.json["result"]["b"]["rows"] is None
    assert "contents were not compared" in run_opsctl("diff", "live", "latest").stdout


@pytest.mark.end_to_end
def test_what_cannot_be_compared(run_opsctl, stored):
    """The live database with itself is a mistake, a backup that is not there is 14, a database that is gone is 12."""
    cases = {("live", "live"): 2, ("latest", "nonsense"): 14, ("latest", "live"): 10, ("latest", "latest"): 0}
    for arguments, code in cases.items():
        url = "postgresql://u@127.0.0.1:1/other"
        run = run_opsctl("diff", *arguments, "--json", url=url)
        assert run.returncode == code, run
