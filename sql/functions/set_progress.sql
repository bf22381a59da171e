create or replace function tasklib.set_progress(
  id uuid,
  worker_id uuid,
  attempt int,
  fraction float8,
  message text default null,
  caller tasklib.caller default current_user
)
  returns void
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
begin
  perform tasklib._check_lease(set_progress.id, set_progress.worker_id, set_progress.attempt);
  perform tasklib._registration(set_progress.worker_id, set_progress.caller);
  if not exists (
    select from tasklib.running
    where running.task_id = set_progress.id and running.worker_id = set_progress.worker_id
      and running.attempt = set_progress.attempt
  ) then
    perform tasklib._lost(set_progress.worker_id, set_progress.id, set_progress.attempt, 'reported');
  end if;
  if not set_progress.fraction between 0 and 1 then
    perform tasklib._reject('TL001', 'fraction ' || set_progress.fraction || ' is out of range', null,
      'Pass 0 to 1, or null when it is not known.');
  end if;
  insert into tasklib.progress (task_id, updated_at, fraction, message)
  values (set_progress.id, clock_timestamp(), set_progress.fraction, left(set_progress.message, 1000))
  on conflict on constraint progress_pkey do update
    set updated_at = excluded.updated_at, fraction = excluded.fraction, message = excluded.message;
end;
$$;
comment on function tasklib.set_progress(uuid, uuid, int, float8, text, tasklib.caller) is
  'Say how far a running task is: a fraction from 0 to 1 (or null) and a message, of which 1000 characters are kept. Shown in tasklib.tasks. Errors: TL001, TL003, TL004, TL006, TL007, TL011.';
