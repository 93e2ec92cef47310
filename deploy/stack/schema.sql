-- What the example's API and bot work with.
create table users (id bigint generated always as identity primary key, name text not null);
create table events (id bigint generated always as identity primary key, at timestamptz not null default now(), what text not null);
insert into users (name) select 'user ' || number from generate_series(1, 1000) number;
