create or replace function tasklib.heartbeat(worker_id uuid, caller tasklib.caller default current_user)
  returns setof uuid
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
begin
  perform tasklib._registration(heartbeat.worker_id, heartbeat.caller);
  update tasklib.worker
  set lease_until = clock_timestamp() + worker.lease, graced = false
  where worker.id = heartbeat.worker_id and worker.lost_at is null;
  if not found then
    perform tasklib._registration(heartbeat.worker_id, heartbeat.caller);
  end if;
  return query select asked.id from tasklib._cancel_requests(heartbeat.worker_id) as asked (id);
end;
$$;
comment on function tasklib.heartbeat(uuid, tasklib.caller) is
  'Renew the lease of everything the worker holds. Returns the ids of its tasks that shall be cancelled. Errors: TL007 when it is no longer registered (its tasks are others'' now), TL011.';

create or replace function tasklib._renew_late(worker tasklib.worker)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if worker.lease_until < clock_timestamp() + worker.lease / 10 then
    update tasklib.worker as late
    set lease_until = clock_timestamp() + late.lease, graced = false
    where late.id = _renew_late.worker.id and late.lost_at is null;
  end if;
end;
$$;
comment on function tasklib._renew_late(tasklib.worker) is
  'Internal. Who claims or goes to sleep lives: its own housekeeping must not take it for dead, even when its lease is about to run out, or has.';

create or replace function tasklib.cancel_requests(worker_id uuid)
  returns setof uuid
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
begin
  return query select asked.id from tasklib._cancel_requests(cancel_requests.worker_id) as asked (id);
end;
$$;
comment on function tasklib.cancel_requests(uuid) is
  'The ids of the worker''s tasks that shall be cancelled. Reads one page when there are none: made to be asked each second while something runs.';

create or replace function tasklib._cancel_requests(worker_id uuid)
  returns setof uuid
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select running.task_id
    from tasklib.cancel_request
      cross join lateral (
        select candidate.* from tasklib.running as candidate
        where candidate.task_id = cancel_request.task_id
        offset 0
      ) as running
    where running.worker_id = _cancel_requests.worker_id;
end;
$$;
comment on function tasklib._cancel_requests(uuid) is
  'Internal. Tasks of a worker that were asked to stop.';
