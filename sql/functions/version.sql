create or replace function tasklib.version()
  returns text
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (select max(migration.name) from tasklib.migration);
end;
$$;
comment on function tasklib.version() is
  'The version of the schema: the name of the last migration, such as 0001_tables.';
