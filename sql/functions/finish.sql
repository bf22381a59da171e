create or replace function tasklib.finish(
  worker_id uuid,
  ids uuid[],
  attempts int[],
  outcomes jsonb default null,
  caller tasklib.caller default current_user
)
  returns setof text
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set enable_bitmapscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
  set plan_cache_mode = force_generic_plan
as $$
declare
  v_all_completed boolean;
  v_status text[];
begin
  perform tasklib._check_batch(ids, attempts);
  v_all_completed := tasklib._check_outcomes(outcomes, cardinality(ids));
  perform tasklib._registration(finish.worker_id, finish.caller);

  v_status := tasklib._complete_many(finish.worker_id, ids, attempts, outcomes);
  if not v_all_completed then
    v_status := tasklib._end_others(finish.worker_id, ids, attempts, outcomes, v_status);
  end if;
  if array_position(v_status, null) is not null then
    v_status := tasklib._explain_many(finish.worker_id, ids, attempts, outcomes, v_status);
  end if;
  return query select unnest(v_status);
end;
$$;
comment on function tasklib.finish(uuid, uuid[], int[], jsonb, tasklib.caller) is
  'End many attempts of one worker. outcomes: null when all completed without a result, else an array as long as ids, each element null (completed) or {"state": "completed", "result": …}, {"state": "failed", "error": "…", "retry": true, "retry_in": seconds, "cause": "error"}, {"state": "released"}, {"state": "snoozed", "seconds": n} or {"state": "cancelled", "error": "…"}. Returns one status a row, in the order of ids: ok; already (this attempt had the same outcome before: a repeated call); stale (the lease is another''s); cancelled; gone. Errors: TL001, TL002, TL007, TL011.';

create or replace function tasklib._check_batch(ids uuid[], attempts int[])
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if ids is null or attempts is null or cardinality(ids) <> cardinality(attempts)
    or array_ndims(ids) > 1 or array_ndims(attempts) > 1
    or array_position(ids, null) is not null or array_position(attempts, null) is not null
  then
    perform tasklib._reject('TL001', 'ids and attempts must be lists of the same length without NULL, got '
      || tasklib._shown(ids::text) || ' and ' || tasklib._shown(attempts::text), null,
      'Pass the id and the attempt of each task as claim returned them.');
  elsif cardinality(ids) > 10000 then
    perform tasklib._reject('TL002', 'ids has ' || cardinality(ids) || ' elements', null,
      'At most 10000 are taken in one call.');
  end if;
end;
$$;
comment on function tasklib._check_batch(uuid[], int[]) is
  'Internal. Raises TL001 or TL002 unless ids and attempts are parallel lists without NULL.';

create or replace function tasklib._check_twice(ids uuid[])
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_twice uuid := (select id from unnest(ids) as id group by id having count(*) > 1 limit 1);
begin
  if v_twice is not null then
    perform tasklib._reject('TL001', 'ids names task ' || v_twice || ' twice', null, 'Pass each task once.');
  end if;
end;
$$;
comment on function tasklib._check_twice(uuid[]) is
  'Internal. Raises TL001 when an id occurs twice.';

-- Nearly all elements say that the task completed: those need one look. A result is as long as its text
-- at most, so that the texts of a short batch need not be measured one by one.
create or replace function tasklib._check_outcomes(outcomes jsonb, count int)
  returns boolean
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_short boolean := octet_length(outcomes::text) <= 1048576;
  v_others boolean := false;
  v_odd record;
begin
  if outcomes is null then
    return true;
  end if;
  if jsonb_typeof(outcomes) <> 'array' or jsonb_array_length(outcomes) <> count then
    perform tasklib._reject('TL001', 'outcomes must be a JSON array of ' || count || ' elements, got '
      || tasklib._shown(outcomes::text), null, 'Pass one element for each id, or leave outcomes out.');
  end if;
  for v_odd in
    select outcome.value, (outcome.n - 1)::int as index
    from jsonb_array_elements(outcomes) with ordinality as outcome (value, n)
    where not (v_short and jsonb_typeof(outcome.value) = 'object'
      and outcome.value - 'result' = '{"state": "completed"}')
  loop
    if not coalesce(tasklib._is_outcome(v_odd.value), false) then
      perform tasklib._reject(
        case when octet_length((v_odd.value -> 'result')::text) > 1048576 then 'TL002' else 'TL001' end,
        'outcomes[' || v_odd.index || '] is not an outcome: ' || tasklib._shown(v_odd.value::text), null,
        'See tasklib.finish for the five forms; a result has at most 1048576 bytes as text.');
    end if;
    v_others := v_others or v_odd.value ->> 'state' <> 'completed';
  end loop;
  return not v_others;
end;
$$;
comment on function tasklib._check_outcomes(jsonb, int) is
  'Internal. Raises TL001 or TL002 unless outcomes is null or has count well-formed elements. True when all completed.';

create or replace function tasklib._is_outcome(outcome jsonb)
  returns boolean
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when jsonb_typeof(outcome) = 'null' then true
    when jsonb_typeof(outcome) <> 'object' then false
    else case outcome ->> 'state'
      when 'completed' then outcome - '{state,result}'::text[] = '{}'
        and octet_length((outcome -> 'result')::text) <= 1048576 is not false
      when 'failed' then outcome - '{state,error,retry,retry_in,cause}'::text[] = '{}'
        and coalesce(jsonb_typeof(outcome -> 'error'), 'null') in ('string', 'null')
        and coalesce(jsonb_typeof(outcome -> 'retry'), 'null') in ('boolean', 'null')
        and coalesce(jsonb_typeof(outcome -> 'retry_in'), 'null') in ('number', 'null')
        and coalesce(outcome ->> 'cause', 'error') in ('error', 'timeout', 'crashed', 'lost')
      when 'released' then outcome - 'state' = '{}'
      when 'snoozed' then outcome - '{state,seconds}'::text[] = '{}'
        and jsonb_typeof(outcome -> 'seconds') = 'number'
      when 'cancelled' then outcome - '{state,error}'::text[] = '{}'
        and coalesce(jsonb_typeof(outcome -> 'error'), 'null') in ('string', 'null')
    end
  end;
end;
$$;
comment on function tasklib._is_outcome(jsonb) is
  'Internal. Whether finish takes this element of outcomes; null when it has no known state.';

-- The common case in one statement, and nothing in it that a planner could turn: ids are looked up one
-- by one, and the rows are deleted by their place, in one order for all batches that overlap.
create or replace function tasklib._complete_many(
  worker_id uuid,
  ids uuid[],
  attempts int[],
  outcomes jsonb
)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_status text[] := array_fill('ok'::text, array[cardinality(ids)]);
  v_ended bigint[];
  v_keys bigint[];
  v_unique uuid[];
  v_n int;
begin
  with ended as (
    delete from tasklib.running
    using (
      select held.place, given.outcome, given.n
      from rows from (unnest(ids), unnest(attempts), jsonb_array_elements(outcomes)) with ordinality
          as given (id, attempt, outcome, n)
        cross join lateral (
          select candidate.ctid as place
          from tasklib.running as candidate
          where candidate.task_id = given.id
            and candidate.attempt = given.attempt
            and candidate.worker_id = _complete_many.worker_id
          offset 0
        ) as held
      where coalesce(given.outcome ->> 'state', 'completed') = 'completed'
      order by held.place
      offset 0
    ) as completed
    where running.ctid = completed.place
    returning running.task_id, running.attempt, running.started_at, running.key,
      running.unique_until, completed.n, completed.outcome
  ),
  kept as (
    insert into tasklib.done (task_id, worker_id, started_at, finished_at, attempt, state, result)
    select ended.task_id, _complete_many.worker_id, ended.started_at, clock_timestamp(),
      ended.attempt, 1, ended.outcome -> 'result'
    from ended
  )
  select array_agg(ended.n), array_agg(ended.key) filter (where ended.key is not null),
    array_agg(ended.task_id) filter (where ended.unique_until = 'f')
    into v_ended, v_keys, v_unique
  from ended;

  if exists (select from tasklib.cancel_request) then
    delete from tasklib.cancel_request
    where cancel_request.task_id = any (array(select ids[n] from unnest(v_ended) as n));
  end if;
  perform tasklib._let_go(v_keys, v_unique);

  if cardinality(v_ended) is distinct from cardinality(ids) then
    -- only here can a task have been named twice
    perform tasklib._check_twice(ids);
    v_status := array_fill(null::text, array[cardinality(ids)]);
    foreach v_n in array coalesce(v_ended, '{}') loop
      v_status[v_n] := 'ok';
    end loop;
  end if;
  return v_status;
end;
$$;
comment on function tasklib._complete_many(uuid, uuid[], int[], jsonb) is
  'Internal. Completes what the worker holds of ids; ok for those, null for the others.';

create or replace function tasklib._end_others(
  worker_id uuid,
  ids uuid[],
  attempts int[],
  outcomes jsonb,
  status text[]
)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_status text[] := status;
  v_run tasklib.running;
  v_given record;
begin
  for v_given in
    select given.id, given.attempt, given.n, outcomes -> (given.n - 1)::int as outcome
    from unnest(ids, attempts) with ordinality as given (id, attempt, n)
    where outcomes -> (given.n - 1)::int ->> 'state' <> 'completed'
    order by given.id
  loop
    v_run := tasklib._take_run(v_given.id, _end_others.worker_id, v_given.attempt);
    if v_run.task_id is not null then
      perform tasklib._end(v_run, v_given.outcome);
      v_status[v_given.n] := 'ok';
    end if;
  end loop;
  return v_status;
end;
$$;
comment on function tasklib._end_others(uuid, uuid[], int[], jsonb, text[]) is
  'Internal. Ends those attempts of finish that did not complete.';

create or replace function tasklib._take_run(task_id uuid, worker_id uuid, attempt int)
  returns tasklib.running
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run tasklib.running;
begin
  delete from tasklib.running
  where running.task_id = _take_run.task_id
    and running.worker_id = _take_run.worker_id
    and running.attempt = _take_run.attempt
  returning running.* into v_run;
  return v_run;
end;
$$;
comment on function tasklib._take_run(uuid, uuid, int) is
  'Internal. Takes an attempt out of running when the lease (worker_id, attempt) is held; else a row of nulls.';

create or replace function tasklib._end(run tasklib.running, outcome jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  case outcome ->> 'state'
    when 'failed' then
      perform tasklib._fail(run, outcome ->> 'error', coalesce((outcome ->> 'retry')::boolean, true),
        tasklib._seconds(nullif(outcome -> 'retry_in', 'null')::numeric),
        coalesce(outcome ->> 'cause', 'error'));
    when 'released' then
      perform tasklib._release(run, true);
    when 'snoozed' then
      perform tasklib._snooze(run, tasklib._seconds((outcome -> 'seconds')::numeric));
    when 'cancelled' then
      perform tasklib._close(run.task_id, 3::smallint, run, outcome ->> 'error');
  end case;
end;
$$;
comment on function tasklib._end(tasklib.running, jsonb) is
  'Internal. Ends an attempt that was taken out of running as an outcome of finish says.';

-- The end of a task that did not complete: failed for good or cancelled.
create or replace function tasklib._close(
  task_id uuid,
  state smallint,
  run tasklib.running,
  error text
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into tasklib.done (task_id, worker_id, started_at, finished_at, attempt, state, error)
  values (_close.task_id, run.worker_id, run.started_at, clock_timestamp(), coalesce(run.attempt, 0),
    _close.state, tasklib._clip(_close.error));
  delete from tasklib.cancel_request where cancel_request.task_id = _close.task_id;
  -- also a key held until started, for the task may never have been
  perform tasklib._let_go(array[run.key],
    case when run.unique_until is not null then array[_close.task_id] end);
end;
$$;
comment on function tasklib._close(uuid, smallint, tasklib.running, text) is
  'Internal. Writes how a task ended and frees its keys.';

create or replace function tasklib._let_go(keys bigint[], unique_ids uuid[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if unique_ids is not null then
    perform tasklib._free_unique_keys(unique_ids);
  end if;
  if array_position(keys, null) is distinct from 1 and keys is not null then
    perform tasklib._leave_gates(keys);
  end if;
end;
$$;
comment on function tasklib._let_go(bigint[], uuid[]) is
  'Internal. Frees the unique keys of unique_ids and leaves the gates of keys; null means none.';

create or replace function tasklib._free_unique_keys(ids uuid[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task record;
begin
  for v_task in
    select body.id, body.queue, body.unique_key
    from unnest(ids) as given (id)
      cross join lateral (select task.* from tasklib.task where task.id = given.id offset 0) as body
    order by body.queue, body.unique_key
  loop
    delete from tasklib.unique_key
    where unique_key.queue = v_task.queue
      and unique_key.key = v_task.unique_key
      and unique_key.task_id = v_task.id;
  end loop;
end;
$$;
comment on function tasklib._free_unique_keys(uuid[]) is
  'Internal. Gives up the unique keys that these tasks hold, in key order.';

-- Why a lease is not held.
create or replace function tasklib._explain(
  worker_id uuid,
  id uuid,
  attempt int,
  outcome text
)
  returns text
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_done tasklib.done;
  v_failure tasklib.failure;
begin
  if not exists (select from tasklib.task where task.id = _explain.id) then
    return 'gone';
  end if;
  select done.* into v_done from tasklib.done where done.task_id = _explain.id;
  select failure.* into v_failure from tasklib.failure
  where failure.task_id = _explain.id and failure.attempt = _explain.attempt
    and failure.worker_id = _explain.worker_id;

  return case
    when outcome = 'failed' and v_failure.task_id is not null then 'already'
    when v_done.worker_id = _explain.worker_id and v_done.attempt = _explain.attempt
      and v_done.state = case outcome when 'completed' then 1 when 'failed' then 2 when 'cancelled' then 3 end
      and (outcome <> 'failed' or v_failure.task_id is not null) then 'already'
    when v_done.state = 3 then 'cancelled'
    when outcome = 'released' and exists (select from tasklib.ready where ready.task_id = _explain.id
      and ready.attempt = _explain.attempt) and v_failure.task_id is null then 'already'
    when outcome = 'snoozed' and exists (select from tasklib.delayed where delayed.task_id = _explain.id
      and delayed.attempt = _explain.attempt and delayed.reason = 's') then 'already'
    else 'stale'
  end;
end;
$$;
comment on function tasklib._explain(uuid, uuid, int, text) is
  'Internal. The status of an attempt that is not running: already, stale, cancelled or gone.';

create or replace function tasklib._explain_many(
  worker_id uuid,
  ids uuid[],
  attempts int[],
  outcomes jsonb,
  status text[]
)
  returns text[]
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select array_agg(coalesce(given.status, tasklib._explain(_explain_many.worker_id, given.id,
      given.attempt, coalesce(outcomes -> (given.n - 1)::int ->> 'state', 'completed'))) order by given.n)
  from unnest(ids, attempts, status) with ordinality as given (id, attempt, status, n)
$$;
comment on function tasklib._explain_many(uuid, uuid[], int[], jsonb, text[]) is
  'Internal. Fills the statuses that finish could not settle.';
