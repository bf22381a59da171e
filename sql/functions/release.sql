create or replace function tasklib.release(
  worker_id uuid,
  ids uuid[],
  attempts int[],
  caller tasklib.caller default current_user
)
  returns setof text
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform tasklib._check_batch(ids, attempts);
  return query
    select * from tasklib.finish(release.worker_id, release.ids, release.attempts, (
      select coalesce(jsonb_agg('{"state": "released"}'::jsonb), '[]')
      from generate_series(1, cardinality(release.ids))), release.caller);
end;
$$;
comment on function tasklib.release(uuid, uuid[], int[], tasklib.caller) is
  'Give back what was not started: ready again, behind those that are ready now, and not charged (the eleventh release of a task counts as a failed attempt). Returns a status a row, as finish does. Errors: TL001, TL002, TL007, TL011.';

create or replace function tasklib._release(run tasklib.running, is_counted boolean)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from tasklib.cancel_request where cancel_request.task_id = run.task_id) then
    perform tasklib._close(run.task_id, 3::smallint, run, null);
  elsif (tasklib._count(run.task_id, 0, is_counted::int, 0)).releases > 10 and is_counted then
    perform tasklib._fail(run, 'released more than 10 times', true, null, 'error');
  else
    perform tasklib._count(run.task_id, 1, 0, 0);
    insert into tasklib.ready (task_id, lane, type, attempt, unique_until, key)
    values (run.task_id, run.lane, run.type, run.attempt, run.unique_until, run.key);
    perform tasklib._let_go(array[run.key], null);
    perform tasklib._wake_by((select task.queue from tasklib.task where task.id = run.task_id),
      array[run.type], clock_timestamp());
  end if;
end;
$$;
comment on function tasklib._release(tasklib.running, boolean) is
  'Internal. Puts a run back among the ready tasks, excused, and wakes a worker for it. One that is counted may be one too many, and fails.';
