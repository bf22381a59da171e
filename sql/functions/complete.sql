create or replace function tasklib.complete(
  id uuid,
  worker_id uuid,
  attempt int,
  result jsonb default null,
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
declare
  v_run tasklib.running;
begin
  if octet_length(complete.result::text) > 1048576 then
    perform tasklib._reject('TL002', 'result has ' || octet_length(complete.result::text)
      || ' bytes as text', null, 'At most 1048576 are stored: keep large results elsewhere and return a reference.');
  end if;
  v_run := tasklib._hold(complete.id, complete.worker_id, complete.attempt, 'completed', complete.caller);
  insert into tasklib.done (task_id, worker_id, started_at, finished_at, attempt, state, result)
  values (v_run.task_id, v_run.worker_id, v_run.started_at, clock_timestamp(), v_run.attempt, 1,
    complete.result);
  delete from tasklib.cancel_request where cancel_request.task_id = complete.id;
  perform tasklib._let_go(array[v_run.key],
    case when v_run.unique_until = 'f' then array[v_run.task_id] end);
end;
$$;
comment on function tasklib.complete(uuid, uuid, int, jsonb, tasklib.caller) is
  'running to completed. Made to be the last statement of the transaction that did the work: it raises when the lease is not held, so that the work is rolled back. Errors: TL001, TL003 no such task, TL004 the lease is another''s, TL005 this attempt completed before, TL006 cancelled, TL007 the worker is not registered, TL002, TL011.';

create or replace function tasklib._hold(
  id uuid,
  worker_id uuid,
  attempt int,
  outcome text,
  caller text
)
  returns tasklib.running
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run tasklib.running;
begin
  perform tasklib._check_lease(_hold.id, _hold.worker_id, _hold.attempt);
  perform tasklib._registration(_hold.worker_id, _hold.caller);
  v_run := tasklib._take_run(_hold.id, _hold.worker_id, _hold.attempt);
  if v_run.task_id is null then
    perform tasklib._lost(_hold.worker_id, _hold.id, _hold.attempt, _hold.outcome);
  end if;
  return v_run;
end;
$$;
comment on function tasklib._hold(uuid, uuid, int, text, text) is
  'Internal. Takes an attempt out of running; raises TL001 or TL003 to TL007 when the lease is not held.';

create or replace function tasklib._check_lease(id uuid, worker_id uuid, attempt int)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if id is null or worker_id is null or attempt is null then
    perform tasklib._reject('TL001', 'id, worker_id and attempt must be given, got '
      || tasklib._shown(id::text) || ', ' || tasklib._shown(worker_id::text) || ' and '
      || tasklib._shown(attempt::text), null, 'Pass id and attempt as claim returned them.');
  end if;
end;
$$;
comment on function tasklib._check_lease(uuid, uuid, int) is
  'Internal. Raises TL001 unless all three parts of a lease are given.';

create or replace function tasklib._lost(worker_id uuid, id uuid, attempt int, outcome text)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  case tasklib._explain(_lost.worker_id, _lost.id, _lost.attempt, _lost.outcome)
    when 'gone' then
      perform tasklib._reject('TL003', 'no task ' || _lost.id, null,
        'It was purged, or never existed. Drop what was done for it.');
    when 'already' then
      perform tasklib._reject('TL005', 'attempt ' || _lost.attempt || ' of task ' || _lost.id
        || ' was ' || _lost.outcome || ' before', 'What was stored then stays.',
        'A repeated call after a lost connection may take this as success.');
    when 'cancelled' then
      perform tasklib._reject('TL006', 'task ' || _lost.id || ' was cancelled', null,
        'Roll back, or drop what was done for it.');
    else
      perform tasklib._reject('TL004', 'attempt ' || _lost.attempt || ' of task ' || _lost.id
        || ' is not held by worker ' || _lost.worker_id,
        'Another attempt runs or ran, or the attempt ended otherwise. Nothing was changed.',
        'Roll back, or drop what was done: the task belongs to somebody else.');
  end case;
end;
$$;
comment on function tasklib._lost(uuid, uuid, int, text) is
  'Internal. Raises why a lease is not held: TL003, TL004, TL005 or TL006.';
