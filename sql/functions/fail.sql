create or replace function tasklib.fail(
  id uuid,
  worker_id uuid,
  attempt int,
  error text default null,
  retry boolean default true,
  retry_in interval default null,
  cause text default 'error',
  caller tasklib.caller default current_user
)
  returns tasklib.failed
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
begin
  if cause is null or cause not in ('error', 'timeout', 'crashed', 'lost') then
    perform tasklib._reject('TL001', 'unknown cause ' || tasklib._shown(fail.cause), null,
      'Pass ''error'', ''timeout'', ''crashed'' or ''lost''.');
  end if;
  return tasklib._fail(
    tasklib._hold(fail.id, fail.worker_id, fail.attempt, 'failed', fail.caller), fail.error,
    coalesce(fail.retry, true), tasklib._clamp(fail.retry_in), fail.cause);
end;
$$;
comment on function tasklib.fail(uuid, uuid, int, text, boolean, interval, text, tasklib.caller) is
  'running to failed: with the time of the next attempt, after least(cap, base * multiplier ^ (charged attempts - 1)) or retry_in, while retries are left; else for good. The error is clipped to 64 kB. cause crashed or lost also counts towards max_crashes. A task that was asked to cancel ends as cancelled. Returns (state, next_retry_at). Errors: TL001, TL003 to TL007, TL011.';

-- The run is out of `running` already. The clock is read after that, so that run_at is above the time
-- of every note in horizon that this transaction is not covered by.
create or replace function tasklib._fail(
  run tasklib.running,
  error text,
  retry boolean,
  retry_in interval,
  cause text
)
  returns tasklib.failed
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_rules record;
  v_crashes int := 0;
  v_charged int;
  v_retry_at timestamptz;
  v_asked boolean := exists (select from tasklib.cancel_request where cancel_request.task_id = run.task_id);
begin
  select body.queue,
    coalesce(body.max_retries, type.max_retries, 3) as max_retries,
    coalesce(body.backoff, type.backoff, '{}') as backoff,
    coalesce(type.max_crashes, settings.max_crashes, 3) as max_crashes
    into v_rules
  from tasklib.task as body
    left join tasklib.task_type as type on type.type = run.type
    left join tasklib.queue as settings on settings.name = body.queue
  where body.id = run.task_id;

  if cause in ('crashed', 'lost') then
    v_crashes := (tasklib._count(run.task_id, 0, 0, 1)).crashes;
  end if;
  v_charged := 1 + tasklib._retry_count(run.task_id, run.attempt);

  if retry and not v_asked and v_charged <= v_rules.max_retries and v_crashes < v_rules.max_crashes then
    v_retry_at := v_now + coalesce(retry_in, tasklib._backoff(v_rules.backoff, v_charged));
  end if;
  insert into tasklib.failure (task_id, attempt, failed_at, worker_id, retry_at, cause, error)
  values (run.task_id, run.attempt, v_now, run.worker_id, v_retry_at, _fail.cause, tasklib._clip(_fail.error))
  on conflict do nothing;

  if v_retry_at is null then
    perform tasklib._close(run.task_id, case when v_asked then 3 else 2 end::smallint, run, _fail.error);
    return row(case when v_asked then 'cancelled' else 'failed' end, null::timestamptz)::tasklib.failed;
  end if;
  insert into tasklib.delayed (run_at, task_id, lane, type, attempt, reason, unique_until, key)
  values (v_retry_at, run.task_id, run.lane, run.type, run.attempt, 'r', run.unique_until, run.key);
  perform tasklib._let_go(array[run.key], null);
  if cause <> 'error' then
    -- its worker may be no more, or not know; after an error it knows when to look again
    perform tasklib._wake_by(v_rules.queue, array[run.type], v_retry_at);
  end if;
  return row('failed', v_retry_at)::tasklib.failed;
end;
$$;
comment on function tasklib._fail(tasklib.running, text, boolean, interval, text) is
  'Internal. What becomes of a failed attempt.';

-- The exponent and the product are clamped before they can overflow. jitter j moves the delay by up to
-- j of itself, either way.
create or replace function tasklib._backoff(backoff jsonb, charged int)
  returns interval
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return tasklib._seconds((
    least(
      coalesce((backoff ->> 'cap_seconds')::float8, 3600),
      coalesce((backoff ->> 'base_seconds')::float8, 5)
        * power(coalesce((backoff ->> 'multiplier')::float8, 2), least(charged - 1, 60)::float8))
    * (1 + coalesce((backoff ->> 'jitter')::float8, 0) * (2 * random() - 1)))::numeric);
end;
$$;
comment on function tasklib._backoff(jsonb, int) is
  'Internal. least(cap, base * multiplier ^ (charged - 1)) seconds, with jitter; 5 s, x 2, 1 h and no jitter by default.';

create or replace function tasklib._count(task_id uuid, excused int, releases int, crashes int)
  returns tasklib.allowance
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_allowance tasklib.allowance;
begin
  insert into tasklib.allowance (task_id, excused, releases, crashes)
  values (_count.task_id, _count.excused, _count.releases, _count.crashes)
  on conflict on constraint allowance_pkey do update
    set excused = allowance.excused + excluded.excused,
        releases = allowance.releases + excluded.releases,
        crashes = allowance.crashes + excluded.crashes
  returning allowance.* into v_allowance;
  return v_allowance;
end;
$$;
comment on function tasklib._count(uuid, int, int, int) is
  'Internal. Adds to the counters of a task that attempt alone does not say; returns them.';
