create or replace function tasklib.snooze(
  id uuid,
  worker_id uuid,
  attempt int,
  delay interval,
  caller tasklib.caller default current_user
)
  returns timestamptz
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
begin
  if snooze.delay is null then
    perform tasklib._reject('TL001', 'delay must be given, got NULL', null,
      'Pass an interval such as interval ''10 minutes''.');
  end if;
  perform tasklib._check_time(snooze.delay, null);
  return tasklib._snooze(
    tasklib._hold(snooze.id, snooze.worker_id, snooze.attempt, 'snoozed', snooze.caller),
    snooze.delay);
end;
$$;
comment on function tasklib.snooze(uuid, uuid, int, interval, tasklib.caller) is
  'Put off a running task: it runs again after delay, and the attempt is not charged. Returns when. Errors: TL001, TL003 to TL007, TL011.';

create or replace function tasklib._snooze(run tasklib.running, delay interval)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run_at timestamptz := clock_timestamp() + delay;
begin
  if exists (select from tasklib.cancel_request where cancel_request.task_id = run.task_id) then
    perform tasklib._close(run.task_id, 3::smallint, run, null);
    return null;
  end if;
  perform tasklib._count(run.task_id, 1, 0, 0);
  insert into tasklib.delayed (run_at, task_id, lane, type, attempt, reason, unique_until, key)
  values (v_run_at, run.task_id, run.lane, run.type, run.attempt, 's', run.unique_until, run.key);
  perform tasklib._let_go(array[run.key], null);
  return v_run_at;
end;
$$;
comment on function tasklib._snooze(tasklib.running, interval) is
  'Internal. Delays a run, excused; null when it was asked to cancel and so ends.';
