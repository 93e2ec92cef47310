"""Part of a backup: what is chosen brings along what it needs, and what is missing is told."""

import subprocess
from dataclasses import replace

import pytest

from opsctl.dumps.archive import read_head
from opsctl.dumps.contents import contents_of, read_contents
from opsctl.dumps.selection import Selection, select
from opsctl.errors import BackupDamaged, UsageError


@pytest.fixture(scope="module")
def archive(cluster, _rich_template):
    """What pg_dump writes of everything an ordinary database may hold."""
    command = [cluster.binaries.path("pg_dump"), "--format=custom", f"--dbname={cluster.url(_rich_template)}"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture
def entries(archive):
    return contents_of([archive[:1000], archive[1000:]], "UTF8", is_tar=False)


def named(selected, *kinds):
    return {entry.name for entry in selected.entries if entry.kind in kinds}


def test_the_contents_are_those_that_pg_restore_lists(archive, cluster, entries):
    listing = subprocess.run(
        [cluster.binaries.path("pg_restore"), "--list"], input=archive, check=True, capture_output=True
    ).stdout.decode()

    lines = [line for line in listing.splitlines() if line and not line.startswith(";")]
    hidden = {"DATABASE", "ENCODING", "STDSTRINGS", "SEARCHPATH"}  # pg_restore lists them with --create alone
    assert [int(line.partition(";")[0]) for line in lines] == [e.id for e in entries if e.kind not in hidden]
    assert read_head(archive).pg_dump_version == cluster.binaries.version


def test_contents_that_are_cut_are_damaged(archive):
    for place in (11, 40, 500, 5000):
        assert read_contents(archive[:place]) is None
    with pytest.raises(BackupDamaged):
        contents_of([archive[:5000]], "UTF8", is_tar=False)


def test_a_table_comes_with_what_hangs_on_it(entries):
    """Its sequences, keys, indexes, triggers and their functions: pg_restore --table leaves them behind."""
    selected = select(entries, Selection(tables=("billing.invoices",)))

    assert named(selected, "TABLE", "TABLE DATA") == {"invoices"}
    assert named(selected, "SEQUENCE", "SEQUENCE SET") == {"invoices_id_seq", "invoices_number_seq"}
    assert named(selected, "SCHEMA") == {"billing"}
    assert "write_audit()" in named(selected, "FUNCTION")
    assert {"invoices invoices_pkey", "expression & partial"} <= named(selected, "CONSTRAINT", "INDEX")
    assert any("public.write_audit()" in line and "audit_invoices" in line for line in selected.along)


def test_a_foreign_key_to_a_table_left_out_is_told(entries):
    selected = select(entries, Selection(tables=("billing.invoice_lines",)))

    assert not any("invoice_lines_invoice_id_fkey" in name for name in named(selected, "FK CONSTRAINT"))
    assert any("invoice_lines_invoice_id_fkey" in line and "billing.invoices" in line for line in selected.missing)


def test_a_view_brings_its_tables_without_their_rows(entries):
    selected = select(entries, Selection(tables=("open_invoices",)))

    assert "invoices" in named(selected, "TABLE")
    assert not named(selected, "TABLE DATA")
    assert any("without its rows" in line for line in selected.along)


def test_a_foreign_key_to_rows_left_out_is_told(entries):
    """The table is there, for a view; without its rows no row of the other one could come in."""
    wanted = Selection(tables=("open_invoices", "billing.invoice_lines"))
    selected, definitions = select(entries, wanted), select(entries, replace(wanted, schema_only=True))

    assert "invoice_lines" in named(selected, "TABLE DATA")
    assert not any("invoice_lines_invoice_id_fkey" in name for name in named(selected, "FK CONSTRAINT"))
    assert any("invoice_lines_invoice_id_fkey: it needs the rows of" in line for line in selected.missing)
    assert any("invoice_lines_invoice_id_fkey" in name for name in named(definitions, "FK CONSTRAINT"))


def test_a_partitioned_table_has_its_rows_in_its_partitions(entries):
    whole = select(entries, Selection(tables=("measurements",)))
    one = select(entries, Selection(tables=("measurements_2024",)))

    assert "measurements_2025_north" in named(whole, "TABLE DATA")
    assert named(whole, "TABLE ATTACH") >= {"measurements_2024", "measurements_2025"}
    assert named(one, "TABLE") == {"measurements_2024"}
    assert any("a table of its own" in line for line in one.missing)


def test_what_needs_an_excluded_table_is_left_out_too(entries):
    selected = select(entries, Selection(exclude_tables=("billing.invoices",)))

    assert not named(selected, "VIEW") & {"open_invoices"}
    assert not named(selected, "SEQUENCE") & {"invoices_id_seq", "invoices_number_seq"}
    assert {"invoice_lines", "egg", "chicken"} <= named(selected, "TABLE DATA")
    assert any("open_invoices" in line for line in selected.missing)


def test_rows_alone_go_in_behind_what_they_refer_to(entries):
    rows = select(entries, Selection(schemas=("billing",), data_only=True))

    assert not named(rows, "TABLE", "CONSTRAINT")
    names = [entry.name for entry in rows.entries if entry.kind == "TABLE DATA"]
    assert names.index("invoices") < names.index("invoice_lines")
    assert rows.entries[-1].kind != "TABLE DATA"  # views are filled, sequences set, when the rows are there
    circle = select(entries, Selection(tables=("chicken", "egg"), data_only=True))
    assert any("circle" in line for line in circle.missing)


def test_definitions_alone_bring_no_rows(entries):
    selected = select(entries, Selection(schemas=("bill*",), schema_only=True))

    assert "invoices" in named(selected, "TABLE")
    assert not selected.with_rows


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("INVOICES", {"invoices"}),
        ("billing.inv*", {"invoices", "invoice_lines"}),
        ("public.e?g", {"egg"}),
        ('"select"', {"select"}),
        ('"Weird ""Schema"""."Table; with \'all\' of ""it"""', {"Table; with 'all' of \"it\""}),
        ("схема.*", {"таблица"}),
    ],
)
def test_patterns_are_those_of_pg_dump(entries, pattern, expected):
    assert named(select(entries, Selection(tables=(pattern,))), "TABLE DATA") == expected


@pytest.mark.parametrize(
    "wanted", [Selection(tables=("no",)), Selection(schemas=("no",)), Selection(exclude_tables=("no",))]
)
def test_a_pattern_that_matches_nothing_is_an_error(entries, wanted):
    with pytest.raises(UsageError):
        select(entries, wanted)
