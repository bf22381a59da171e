-- The one place where bad input becomes an error. It returns boolean, never does, and so can stand in
-- an expression.
create or replace function tasklib._reject(
  code text,
  problem text,
  detail text,
  hint text
)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using
    errcode = _reject.code,
    message = coalesce(_reject.problem, 'an argument is NULL'),
    detail = coalesce(_reject.detail, 'Nothing was changed.'),
    hint = coalesce(_reject.hint, 'Pass a value.');
end;
$$;
comment on function tasklib._reject(text, text, text, text) is
  'Internal. Raises problem with the SQLSTATE code, a detail and a hint.';

create or replace function tasklib._shown(value text)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when value is null then 'NULL'
    when length(value) > 80 then '"' || left(value, 80) || '…"'
    else '"' || value || '"'
  end;
end;
$$;
comment on function tasklib._shown(text) is
  'Internal. A value as an error message quotes it: at most 80 characters.';
