"""Databases in other encodings than UTF-8, and in none: names and data come back byte for byte, and are counted."""

from dataclasses import replace

import psycopg  # noqa: TID253
import pytest

from opsctl.postgres.encodings import read_name

pytestmark = pytest.mark.end_to_end

ENCODINGS = {
    "UTF8": "Größe ✓ таблица",
    "LATIN1": "Größe é",
    "LATIN9": "Preis €",
    "EUC_JP": "表のデータ",
    "EUC_KR": "표 데이터",
    "EUC_CN": "数据表",
    "EUC_TW": "資料表",
    "WIN1251": "Таблица №",
    "KOI8R": "таблица",
}


def new_encoded(database, encoding):
    """A database like ``database``, in another encoding; it goes with that one."""
    name = f"{database.name}_{encoding.lower()}"
    database.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    return replace(database, name=name)


def fill(database, word, client_encoding="UTF8"):
    """A schema, tables, a column, a sequence and rows named ``word``, in tables of different sizes."""
    script = f'''
        CREATE SCHEMA "{word}";
        CREATE TABLE "{word}"."{word}" (id serial PRIMARY KEY, "{word} ""x""" text);
        INSERT INTO "{word}"."{word}" ("{word} ""x""") SELECT '{word} ' || n FROM generate_series(1, 30) n;
        CREATE TABLE "{word} 2" AS SELECT '{word}' AS "{word}" FROM generate_series(1, 7);
        CREATE TABLE plain AS SELECT '{word}' AS body FROM generate_series(1, 3);
        COMMENT ON TABLE plain IS '{word}'
    '''
    with psycopg.connect(database.url, autocommit=True, client_encoding=client_encoding) as connection:
        connection.execute(script if isinstance(word, str) else script.encode("ascii"))


def configure(run_opsctl, database, more=""):
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases."{database.name}"]\nurl = "{database.url}"\nfacts = "content"\n{more}', encoding="utf-8"
    )


def round_trip(run_opsctl, database, facts_of, only_backup, **options):
    """Backed up, verified down to its rows, restored beside and in place: content and names as they were."""
    facts = facts_of(database)
    backup = run_opsctl("backup", "--json", **options)
    verified = run_opsctl("verify", "--json", **options)
    copy = replace(database, name=f"{database.name}_copy")
    beside = run_opsctl("restore", "latest", "--into", copy.name, "--json", **options)
    in_place = run_opsctl("restore", "latest", "--yes", database.name, "--json", **options)

    for run in (backup, verified, beside, in_place):
        assert run.returncode == 0, run
    assert verified.json["result"]["backups"][0]["evidence"] == "decoded"
    assert {"content"} == {run.json["result"]["evidence"] for run in (beside, in_place)}
    dumped = only_backup(run_opsctl.work / "backups").manifest["facts"]
    assert [each["name"] for each in dumped["tables"]] == [each.name for each in facts.tables]
    assert None not in {each["content_hash"] for each in dumped["tables"]}
    for restored in (copy, database):
        found = facts_of(restored)
        assert found.tables == facts.tables
        assert found.database.encoding == facts.database.encoding
    return facts


MORE_ENCODINGS = [pytest.param(name, marks=pytest.mark.acceptance) for name in ("UTF8", "EUC_TW", "WIN1251")]


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP", *MORE_ENCODINGS])
def test_every_encoding_round_trips(run_opsctl, database, facts_of, only_backup, encoding):
    """Names and rows in the database's own script; verify matches the archive's names with the manifest's."""
    encoded = new_encoded(database, encoding)
    fill(encoded, ENCODINGS[encoding])
    configure(run_opsctl, encoded)
    facts = round_trip(run_opsctl, encoded, facts_of, only_backup)

    assert facts.database.encoding == encoding
    rows = {(each.schema, each.name): each.rows for each in facts.tables}
    word = ENCODINGS[encoding]
    assert rows == {(word, word): 30, ("public", f"{word} 2"): 7, ("public", "plain"): 3}


RAW = b"caf\xe9 \xff\x80"
"""No UTF-8, and no other encoding either."""


@pytest.mark.parametrize("encoding", ["SQL_ASCII", pytest.param("MULE_INTERNAL", marks=pytest.mark.acceptance)])
def test_bytes_in_no_encoding_round_trip(run_opsctl, database, facts_of, only_backup, encoding):
    """Where the server converts nothing, names and data may be any bytes: shown escaped, kept as they are."""
    encoded = new_encoded(database, encoding)
    raw = RAW if encoding == "SQL_ASCII" else b"caf\x81\xe9"
    statements = [
        b'CREATE SCHEMA "%b"',
        b'CREATE TABLE "%b"."%b" ("%b" text, "\xc3\xa9" text)'
        if encoding == "SQL_ASCII"
        else b'CREATE TABLE "%b"."%b" ("%b" text)',
        b'INSERT INTO "%b"."%b" ("%b") SELECT \'%b\' || n FROM generate_series(1, 20) n',
        b"CREATE TABLE plain AS SELECT '%b'::text AS body",
    ]
    with psycopg.connect(encoded.url, autocommit=True, client_encoding="SQL_ASCII") as connection:
        for statement in statements:
            connection.execute(statement % ((raw,) * statement.count(b"%b")))
    configure(run_opsctl, encoded)
    facts = round_trip(run_opsctl, encoded, facts_of, only_backup)

    name = raw.decode("utf-8", "backslashreplace")
    assert {(each.schema, each.name): each.rows for each in facts.tables} == {(name, name): 20, ("public", "plain"): 1}
    with psycopg.connect(f"{encoded.url}&client_encoding=SQL_ASCII") as connection:
        cursor = connection.cursor(binary=True)
        stored = cursor.execute("SELECT textsend(body) FROM plain").fetchall()
    assert stored == [(raw,)]


def test_login_and_environment_do_not_decide_the_archives_encoding(run_opsctl, database, facts_of, only_backup):
    """A role's client_encoding and PGCLIENTENCODING leave the archive in the database's encoding."""
    encoded = new_encoded(database, "LATIN1")
    fill(encoded, ENCODINGS["LATIN1"])
    configure(run_opsctl, encoded)
    encoded.execute(f"ALTER DATABASE {encoded.name} SET client_encoding = 'UTF8'")
    round_trip(run_opsctl, encoded, facts_of, only_backup, env={"PGCLIENTENCODING": "UTF8"})

    dump = only_backup(run_opsctl.work / "backups").plain_dump()
    assert ENCODINGS["LATIN1"].encode("latin-1") in dump
    assert ENCODINGS["LATIN1"].encode() not in dump


@pytest.mark.acceptance
@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP"])
def test_tables_are_excluded_by_any_name(run_opsctl, database, facts_of, encoding):
    """``exclude_tables`` reaches pg_dump in the database's encoding: the data really stays out."""
    encoded, word = new_encoded(database, encoding), ENCODINGS[encoding]
    fill(encoded, word)
    configure(run_opsctl, encoded, f'exclude_tables = ["{word}"]\n')
    backup = run_opsctl("backup", "--json")
    restore = run_opsctl("restore", "latest", "--into", f"{encoded.name}_copy", "--json")

    assert (backup.returncode, restore.returncode) == (0, 0), (backup, restore)
    assert backup.json["result"]["backups"][0]["rows"] == 10
    restored = facts_of(replace(encoded, name=f"{encoded.name}_copy"))
    assert {each.name: each.rows for each in restored.tables} == {word: 0, f"{word} 2": 7, "plain": 3}


@pytest.mark.acceptance
def test_rows_lost_under_a_foreign_name_are_found(run_opsctl, database, only_backup):
    """A table whose name is not ASCII is really compared: fewer rows in the dump are damage."""
    encoded = new_encoded(database, "WIN1251")
    fill(encoded, ENCODINGS["WIN1251"])
    configure(run_opsctl, encoded)
    assert run_opsctl("backup").returncode == 0
    stored = only_backup(run_opsctl.work / "backups")
    old = f"7\t{ENCODINGS['WIN1251']} 7\n".encode("cp1251")
    assert old in stored.plain_dump()
    stored.replace_dump(stored.plain_dump().replace(old, old[:-1] + b" "))
    run = run_opsctl("verify", "--json")

    assert run.returncode == 15, run
    (problem,) = run.json["result"]["backups"][0]["problems"]
    assert f"{ENCODINGS['WIN1251']} has 29 rows in the dump, 30 in the manifest" in problem


def test_names_as_python_reads_them(database):
    """Python reads every encoding a database may have as the server does, or says that it cannot (EUC_TW)."""
    names = database.execute(
        "SELECT DISTINCT pg_encoding_to_char(n) FROM generate_series(0, 34) n"
        " WHERE pg_encoding_to_char(n) NOT IN ('', 'SQL_ASCII', 'MULE_INTERNAL', 'EUC_TW', 'UTF8')"
    )
    for (encoding,) in names:
        for word in ENCODINGS.values():
            try:
                ((raw,),) = database.execute("SELECT convert_to(%s, %s)", word, encoding)
            except psycopg.DatabaseError:
                continue  # that encoding has no such characters
            assert read_name(raw, encoding) == word or "\\x" in read_name(raw, encoding)
    assert read_name(b"\xa4\xa4", "EUC_TW") == "\\xa4\\xa4"
