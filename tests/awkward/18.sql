-- What PostgreSQL 17 and 18 added.

CREATE SCHEMA newer;
CREATE COLLATION newer.builtin (PROVIDER = builtin, LOCALE = 'C.UTF-8');
CREATE TABLE newer.generated (
    a integer,
    doubled integer GENERATED ALWAYS AS (a * 2) VIRTUAL,
    stored integer GENERATED ALWAYS AS (a * 3) STORED,
    gap interval DEFAULT '-infinity',
    CONSTRAINT "a is there" NOT NULL a,
    CONSTRAINT small CHECK (a < 10) NOT ENFORCED
);
INSERT INTO newer.generated (a) VALUES (1), (11);
ALTER TABLE newer.generated ADD CONSTRAINT "gap is there" NOT NULL gap NOT VALID;
CREATE TABLE newer.periods (id int4range, during daterange, PRIMARY KEY (id, during WITHOUT OVERLAPS));
CREATE TABLE newer.within (
    id int4range,
    during daterange,
    FOREIGN KEY (id, PERIOD during) REFERENCES newer.periods (id, PERIOD during)
);
INSERT INTO newer.periods VALUES ('[1,1]', '[2026-01-01,2026-06-01)'), ('[1,1]', '[2026-06-01,)');
INSERT INTO newer.within VALUES ('[1,1]', '[2026-05-01,2026-07-01)');
CREATE TABLE newer.partitioned (id integer GENERATED ALWAYS AS IDENTITY, kind integer) PARTITION BY LIST (kind);
CREATE TABLE newer.partitioned_1 PARTITION OF newer.partitioned FOR VALUES IN (1);
INSERT INTO newer.partitioned (kind) VALUES (1), (1);
GRANT MAINTAIN ON newer.generated TO awkward_writer;
