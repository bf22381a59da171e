-- Run once, as the superuser, in the first database of a new volume. The queue belongs to a role that
-- nobody logs in as: its functions run as their owner, and a superuser's might do anything.
create role tasklib_owner nologin;
create schema tasklib authorization tasklib_owner;
create extension tasklib;
