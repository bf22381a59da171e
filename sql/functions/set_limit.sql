create or replace function tasklib.set_limit(
  role text,
  max_bytes int default null,
  min_priority int default null,
  max_priority int default null,
  max_retries int default null,
  max_delay interval default null,
  max_backlog int default null,
  caller tasklib.caller default current_user
)
  returns void
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform tasklib._check_role(set_limit.role);
  perform tasklib._check_priority(set_limit.min_priority);
  perform tasklib._check_priority(set_limit.max_priority);
  perform tasklib._check_options(set_limit.max_retries, null, null);
  perform tasklib._check_time(set_limit.max_delay, null);
  if max_bytes not between 2 and 1048576 then
    perform tasklib._reject('TL001', 'max_bytes ' || max_bytes || ' is out of range', null,
      'Pass 2 to 1048576, which nobody may exceed, or null for that.');
  elsif min_priority > max_priority then
    perform tasklib._reject('TL001', 'min_priority ' || min_priority || ' is above max_priority '
      || max_priority, null, 'Pass a range, such as min_priority => -10, max_priority => 0.');
  elsif max_backlog < 0 then
    perform tasklib._reject('TL001', 'max_backlog ' || max_backlog || ' is out of range', null,
      'Pass 0 or more, or null for no limit.');
  end if;
  perform tasklib._lock_rules();
  insert into tasklib.role_limit (role, max_bytes, min_priority, max_priority, max_retries, max_delay,
    max_backlog, set_by, set_at)
  values (set_limit.role, set_limit.max_bytes, set_limit.min_priority, set_limit.max_priority,
    set_limit.max_retries, set_limit.max_delay, set_limit.max_backlog, set_limit.caller, clock_timestamp())
  on conflict on constraint role_limit_pkey do update
    set max_bytes = excluded.max_bytes,
        min_priority = excluded.min_priority,
        max_priority = excluded.max_priority,
        max_retries = excluded.max_retries,
        max_delay = excluded.max_delay,
        max_backlog = excluded.max_backlog,
        set_by = excluded.set_by,
        set_at = excluded.set_at;
  perform tasklib._apply_rules();
end;
$$;
comment on function tasklib.set_limit(text, int, int, int, int, interval, int, tasklib.caller) is
  'Make the limits of a role for what it enqueues exactly these; null: none. max_bytes: of kwargs as text. min_priority, max_priority, max_retries, max_delay: what it may ask for; defaults that a worker registered are not looked at. max_backlog: how many unfinished tasks it may have, as tick counted them last. Of several, the one for the role itself counts, else the smallest of its groups, else that of public; each role has its own backlog. Errors: TL001, TL002.';

create or replace function tasklib.drop_limit(role text)
  returns boolean
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_found boolean;
begin
  perform tasklib._check_label('role', drop_limit.role, 63);
  perform tasklib._lock_rules();
  delete from tasklib.role_limit where role_limit.role = drop_limit.role;
  v_found := found;
  perform tasklib._apply_rules();
  return v_found;
end;
$$;
comment on function tasklib.drop_limit(text) is
  'Take the limits of a role back. False when it had none. Errors: TL001, TL002.';
