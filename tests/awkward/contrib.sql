-- What needs PostgreSQL's contrib modules, XML and ICU: distributions have them, the embedded programs do not.

SET client_min_messages = error;

CREATE SCHEMA "ext ensions";
CREATE EXTENSION pgcrypto;
CREATE EXTENSION pg_trgm SCHEMA "ext ensions";
CREATE EXTENSION hstore SCHEMA "ext ensions";
CREATE EXTENSION citext;
CREATE EXTENSION btree_gist;
CREATE EXTENSION postgres_fdw;
CREATE EXTENSION file_fdw;
CREATE EXTENSION pg_stat_statements;  -- its view cannot be read without its library
CREATE EXTENSION dblink VERSION '1.2';

CREATE SCHEMA contrib;
CREATE COLLATION contrib.ignoring_case (PROVIDER = icu, LOCALE = 'und-u-ks-level2', DETERMINISTIC = false);
CREATE TABLE contrib.things (
    id uuid DEFAULT gen_random_uuid() PRIMARY KEY,
    email citext UNIQUE,
    attributes "ext ensions".hstore,
    name text COLLATE contrib.ignoring_case,
    document xml,
    hash text,
    EXCLUDE USING gist (hash WITH =, id WITH <>)
);
INSERT INTO contrib.things (email, attributes, name, document, hash) VALUES
    ('A@b.example', '"a b"=>"c\"d", e=>NULL', 'É', '<a b="&lt;">ü</a>', crypt('x', '$1$saltsalt')),
    (NULL, '', 'é', NULL, NULL);
CREATE INDEX similar_names ON contrib.things USING gin (name "ext ensions".gin_trgm_ops);

CREATE SERVER loopback FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1');
CREATE USER MAPPING FOR CURRENT_USER SERVER loopback OPTIONS (user 'nobody', password 'x');
CREATE FOREIGN TABLE contrib.remote (id integer OPTIONS (column_name 'ID')) SERVER loopback OPTIONS (schema_name 's', table_name 't');
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE contrib.from_a_file (line text) SERVER files OPTIONS (filename '/does/not/exist', format 'text');

RESET client_min_messages;
