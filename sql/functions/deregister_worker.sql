create or replace function tasklib.deregister_worker(
  worker_id uuid,
  crashed boolean default false,
  begun uuid[] default null,
  caller tasklib.caller default current_user
)
  returns int
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
declare
  v_run tasklib.running;
  v_count int := 0;
begin
  -- waits for an open claim of this worker, whose tasks must be given back too
  perform from tasklib.worker where worker.id = deregister_worker.worker_id for update;
  if not tasklib._is_admin(deregister_worker.caller)
    or not exists (select from tasklib.worker
      where worker.id = deregister_worker.worker_id and worker.lost_at is null)
  then
    perform tasklib._registration(deregister_worker.worker_id, deregister_worker.caller);
  end if;
  update tasklib.worker
  set lost_at = clock_timestamp(), cleared_at = clock_timestamp(),
    crashed = deregister_worker.crashed is true
  where worker.id = deregister_worker.worker_id and worker.lost_at is null;

  for v_run in
    delete from tasklib.running where running.worker_id = deregister_worker.worker_id
    returning running.*
  loop
    if crashed and (begun is null or v_run.task_id = any (begun)) then
      perform tasklib._fail(v_run, 'the worker process died', true, null, 'crashed');
    else
      -- One that had begun is to blame for a crash. When none had it may be this one: that must end.
      perform tasklib._release(v_run, crashed is not true or coalesce(cardinality(begun), 0) = 0);
    end if;
    v_count := v_count + 1;
  end loop;
  perform tasklib._forget_any_name();
  return v_count;
end;
$$;
comment on function tasklib.deregister_worker(uuid, boolean, uuid[], tasklib.caller) is
  'End a worker''s registration. What it still holds is given back: released, or failed as crashed when a supervisor saw its process die. begun: the ids of those tasks that the process had begun, when that is known; others were claimed ahead, cannot be to blame, and are released, without counting that when there is one to blame. Returns how many tasks that were. Errors: TL007, TL011.';

create or replace function tasklib._forget_any_name()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  delete from tasklib.task_type
  where task_type.type = 0
    and not exists (select from tasklib.worker where worker.lost_at is null and worker.types is null);
end;
$$;
comment on function tasklib._forget_any_name() is
  'Internal. Removes the task type that stands for any name when no live worker takes any name.';
