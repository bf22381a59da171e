create or replace function tasklib.set_strict(strict boolean)
  returns void
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  if strict is null then
    perform tasklib._reject('TL001', 'strict must be true or false, got NULL', null, 'Pass true or false.');
  end if;
  perform tasklib._lock_rules();
  update tasklib.config set strict = set_strict.strict;
  perform tasklib._apply_rules();
end;
$$;
comment on function tasklib.set_strict(boolean) is
  'true: a role that no rule covers may neither enqueue nor claim; give every role its rules first. false, as at the beginning: it may do both, as far as it was granted the functions. The owner of the queue, superusers and tasklib_admin are never bound. Errors: TL001.';
