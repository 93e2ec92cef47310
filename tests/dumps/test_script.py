r"""What of a plain dump is run, and what is refused: nothing gets past that pg_dump would not have written."""

import gzip
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from opsctl.dumps.examine import date_in_name
from opsctl.dumps.script import Excerpt, Script
from opsctl.errors import BackupDamaged, Refused
from opsctl.postgres.binaries import Binaries, choose_psql, knows_restrict
from opsctl.stream import NotUnpacked, unpacked

BEGIN = (
    b"--\n-- PostgreSQL database dump\n--\n\n\\restrict key\n\n-- Dumped from database version 15.4 (Debian 15.4-1)\n"
)
END = b"\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict key\n"

BODY = rb"""-- Dumped by pg_dump version 16.2

SET statement_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
ALTER TABLE ONLY public."users" DROP CONSTRAINT users_pkey;
DROP TABLE public."users";
CREATE EXTENSION IF NOT EXISTS hstore WITH SCHEMA public;
COMMENT ON EXTENSION hstore IS 'it''s; "here"';
CREATE FUNCTION public.f() RETURNS integer LANGUAGE plpgsql AS $_$ begin return 1; end; $_$;
CREATE FUNCTION public.g() RETURNS integer LANGUAGE sql
    BEGIN ATOMIC
 SELECT CASE WHEN true THEN 1 ELSE 2 END;
 SELECT 2;
END;
ALTER FUNCTION public.f() OWNER TO "The Owner";
CREATE TABLE public."users" (
    id bigint NOT NULL, -- a comment; with a semicolon
    note text DEFAULT E'a\'; b' /* another; one /* inside */ */
);
ALTER TABLE public."users" OWNER TO saas;
CREATE TABLE public.events (id bigint, at timestamp) PARTITION BY RANGE (at);
CREATE TABLE public.flags (id bigint, is_on boolean);
CREATE RULE r AS ON INSERT TO public.flags DO ALSO ( SELECT 1; SELECT 2; );
COPY public."users" (id, note) FROM stdin;
1	DROP DATABASE saas;
2	\\! id
3	\N
\.
INSERT INTO public.flags VALUES (1, true);
INSERT INTO public.flags VALUES (2, false);
INSERT INTO public.flags (id, is_on) VALUES
	(3, true),
	(4, NULL);
SELECT pg_catalog.setval('public.users_id_seq', 3, true);
GRANT SELECT ON TABLE public."users" TO reader;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
"""
DUMP = BEGIN + BODY + END


def read(data, *, excerpt=None, at=()):
    """The script, and what of it is run, when it arrives in pieces that end ``at`` these places."""
    script = Script(excerpt)
    cuts = [0, *sorted(place % (len(data) + 1) for place in at), len(data)]
    pieces = [data[start:end] for start, end in pairwise(cuts)]
    return script, b"".join(script.run(pieces))


def test_what_a_dump_holds_is_known_without_a_server():
    script, run = read(DUMP)

    section = script.section
    assert (script.server_version, script.pg_dump_version) == ("15.4", "16.2")
    assert section.tables == {(b"public", b"users"): 3, (b"public", b"events"): 0, (b"public", b"flags"): 4}
    assert section.partitioned == {(b"public", b"events")}
    assert set(section.owned) == {b"The Owner", b"saas"}
    assert section.roles == {b"reader"}
    assert section.extensions == {b"hstore": b"public"}
    assert run == b""  # nothing is selected


@given(st.lists(st.integers(0, len(DUMP)), max_size=40))
@example(list(range(len(DUMP))))
def test_where_a_piece_ends_makes_no_difference(places):
    """A statement, a string, COPY data: whatever is cut in two is read as one."""
    whole, run = read(DUMP, excerpt=Excerpt())
    cut, same = read(DUMP, excerpt=Excerpt(), at=places)

    assert cut.section == whole.section
    assert b"".join(same.split()) == b"".join(run.split())


def test_only_the_contents_of_the_database_are_run():
    r"""What --clean removes is not there; psql's commands are ours; no older server knows transaction_timeout."""
    _, run = read(DUMP, excerpt=Excerpt())

    for left in (b"DROP TABLE", b"DROP CONSTRAINT", b"\\restrict", b"\\unrestrict", b"transaction_timeout"):
        assert left not in run
    for kept in (
        b"\\\\! id\n3\t\\N\n\\.\n",
        b"BEGIN ATOMIC\n SELECT CASE",
        b"(4, NULL);",
        b"OWNER TO saas",
        b"REVOKE ALL",
    ):
        assert kept in run


def test_owners_and_grants_are_left_out_when_asked():
    _, run = read(DUMP, excerpt=Excerpt(no_owner=True, no_privileges=True))

    assert b"OWNER TO" not in run
    assert b"GRANT" not in run
    assert b"REVOKE" not in run
    assert b"COPY public" in run


@pytest.mark.parametrize(
    "hostile",
    [
        r"\! id",
        r"\connect live\! id",
        r"\copy users from program 'id'",
        r"\i /etc/passwd",
        r"\o |id",
        r"\gexec",
        r"SELECT 1 \g |id",
        "CREATE ROLE evil SUPERUSER;",
        "ALTER ROLE saas SUPERUSER;",
        "ALTER USER saas SUPERUSER;",
        "ALTER SYSTEM SET archive_command = 'id';",
        "DO $$ begin execute 'ALTER DATABASE live RENAME TO gone'; end $$;",
        "CALL public.f();",
        "COPY public.users FROM PROGRAM 'id';",
        "COPY public.users TO '/tmp/x';",
        "COPY (SELECT 1) TO PROGRAM 'id';",
        "COPY public.users FROM stdin; SELECT 1;\n\\.",
        "SELECT pg_catalog.pg_terminate_backend(1);",
        "SELECT pg_catalog.set_config('log_directory', '/tmp', false);",
        "SELECT pg_catalog.setval('public.s', (SELECT 1), true);",
        "SELECT pg_catalog.lo_create(pg_read_file('x'));",
        "SELECT lo_export(1, '/tmp/x');",
        "INSERT INTO public.flags VALUES (pg_read_file('/etc/passwd'));",
        "INSERT INTO public.flags SELECT 1;",
        "INSERT INTO public.flags VALUES (1) RETURNING pg_sleep(9);",
        "WITH x AS (DELETE FROM public.users RETURNING 1) SELECT 1;",
        "DELETE FROM public.users;",
        "UPDATE pg_catalog.pg_authid SET rolsuper = true;",
        "CREATE TABLE public.x AS SELECT pg_read_file('/etc/passwd');",
        "CREATE TABLESPACE evil LOCATION '/tmp';",
        "CREATE SUBSCRIPTION s CONNECTION 'host=evil' PUBLICATION p;",
        "GRANT pg_execute_server_program TO saas;",
        "SET ROLE postgres;",
        "SET session_preload_libraries = 'evil';",
        "RESET ROLE;",
        "LOAD 'evil';",
        "VACUUM;",
        "LISTEN x;",
        "PREPARE TRANSACTION 'x';",
        "ROLLBACK;",
        "SET client_encoding = 'SJIS';",
        # What another reader would take for the end of a string, and this one for its middle.
        "COMMENT ON TABLE public.users IS E'a'\n'\\''; DROP DATABASE live; --';",
        "CREATE FOREIGN TABLE begin (a int) SERVER s;\nCOPY public.users FROM stdin;\nend; DROP DATABASE live;\n\\.",
    ],
)
def test_what_pg_dump_does_not_write_is_refused(hostile):
    """… before anything of it has run, wherever in the dump it stands, and whatever hides it from a glance."""
    for before, after in ((BEGIN, BODY), (BEGIN + BODY, b"")):
        with pytest.raises((Refused, BackupDamaged)):
            read(before + hostile.encode() + b"\n" + after + END, excerpt=Excerpt())


@pytest.mark.parametrize(
    "left",
    [
        "CREATE DATABASE live WITH TEMPLATE = template0;",
        "ALTER DATABASE live OWNER TO evil;",
        "ALTER DATABASE live SET default_transaction_read_only = on;",
        "DROP DATABASE IF EXISTS live;",
        "DROP ROLE saas;",
        "COMMENT ON DATABASE live IS 'x';",
        "GRANT ALL ON DATABASE live TO evil;",
        "ALTER ROLE saas IN DATABASE live SET work_mem = '1GB';",
        "CREATE SCHEMA public;",
        "CREATE EXTENSION IF NOT EXISTS plpgsql WITH SCHEMA pg_catalog;",
    ],
)
def test_what_is_about_something_else_is_never_run(left):
    """pg_dump --create and --clean write these; of the live database they are, and it is not theirs to change."""
    script, run = read(BEGIN + left.encode() + b"\n" + BODY + END, excerpt=Excerpt())

    assert left.encode() not in run
    assert script.left


def test_after_a_connect_it_is_about_another_database():
    """pg_dump --create and pg_dumpall name the database; what is run belongs to the chosen one alone."""
    roles = b"CREATE ROLE saas;\nALTER ROLE saas WITH LOGIN PASSWORD 'SCRAM-SHA-256$x';\nGRANT a TO b GRANTED BY c;\n"
    cluster = b"--\n-- PostgreSQL database cluster dump\n--\nSET default_transaction_read_only = off;\n" + roles
    parts = b"\\connect template1\n" + BEGIN + END + b"\\connect saas\n" + DUMP
    parts += (
        b"\\connect -reuse-previous=on \"dbname='it\\'s'\"\n" + BEGIN + b"CREATE TABLE public.other (a int);\n" + END
    )
    data = cluster + parts + b"--\n-- PostgreSQL database cluster dump complete\n--\n"
    script, run = read(data, excerpt=Excerpt(section="saas"))

    assert [name for name, section in script.sections.items() if section.has_content] == ["saas", "it's"]
    assert b"CREATE TABLE public.other" not in run
    assert b"CREATE ROLE" not in run
    assert run.count(b"CREATE TABLE") == 3
    with pytest.raises(BackupDamaged):  # cut behind the first database
        read(cluster + parts)


def test_a_dump_that_is_cut_is_damaged_wherever():
    """Of a cut psql itself would say nothing, and restore the first half."""
    for place in range(len(DUMP) - 29):
        with pytest.raises(BackupDamaged):
            read(DUMP[:place])


def test_two_dumps_in_one_file_are_refused():
    with pytest.raises(Refused):
        read(DUMP + DUMP)
    with pytest.raises((Refused, BackupDamaged)):
        read(DUMP + b"INSERT INTO public.flags VALUES (9, true);\n")


def test_backslashes_escape_where_the_dump_says_so():
    r"""With standard_conforming_strings off, '\'' is one quote."""
    off = b"SET standard_conforming_strings = off;\nCOMMENT ON TABLE public.users IS 'it\\'; DROP TABLE x; --';\n"
    _, run = read(BEGIN + off + END, excerpt=Excerpt())

    assert b"IS 'it\\'; DROP TABLE x; --';" in run


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("saasdb_20251101_030000.sql", (2025, 11, 1, 3, 0, 0)),
        ("saasdb-2025-11-01.sql.gz", (2025, 11, 1, 0, 0, 0)),
        ("saasdb-2025-11-01T03:15:59.dump", (2025, 11, 1, 3, 15, 59)),
        ("backup_2025.11.01-0315.tar", (2025, 11, 1, 3, 15, 0)),
        ("saasdb_20251101030000.sql", (2025, 11, 1, 3, 0, 0)),
        ("saasdb_20251341.sql", None),
        ("saasdb_1234567890123.sql", None),
        ("saasdb.sql", None),
    ],
)
def test_the_date_in_a_name_is_this_hosts_clock(name, expected):
    assert date_in_name(Path(name)) == (expected and datetime(*expected).astimezone(UTC))


def test_a_z_in_a_name_is_utc():
    assert date_in_name(Path("saasdb-20251101T030000Z-e086.dump")) == datetime(2025, 11, 1, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    ("packing", "pack"),
    [("gzip", gzip.compress), ("zstd frames", zstandard.ZstdCompressor().compress)],
)
def test_a_compressed_file_that_is_cut_is_noticed(packing, pack):
    """Several parts one after another are one file; the end of the last one has to be there."""
    parts = [DUMP, DUMP * 5]
    data = b"".join(pack(part) for part in parts)

    assert b"".join(unpacked([data[:70], data[70:]], packing)) == b"".join(parts)
    for place in range(len(data) - 200, len(data)):
        with pytest.raises(NotUnpacked):
            b"".join(unpacked([data[:place]], packing))


def test_a_psql_that_can_be_told_to_run_sql_alone_comes_first():
    versions = ("13.21", "13.22", "15.13", "15.18", "16.2", "18.0")
    found = [Binaries(Path(version), int(version[:2]), version, embedded=False) for version in versions]

    assert [each.version for each in found if knows_restrict(each)] == ["13.22", "15.18", "18.0"]
    assert choose_psql(found, 15).version == "15.18"
    assert choose_psql(found, 16).version == "18.0"
    assert choose_psql([found[4]], 16).version == "16.2"  # better than none: the script is read before
