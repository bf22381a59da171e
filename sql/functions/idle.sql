create or replace function tasklib.idle(
  worker_id uuid,
  queues text[] default '{default}',
  max_wait interval default interval '10 seconds',
  for_long boolean default false,
  caller tasklib.caller default current_user
)
  returns float8
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
declare
  v_worker tasklib.worker;
  v_now timestamptz;
  v_until timestamptz;
begin
  perform tasklib._check_queues(idle.queues);
  v_worker := tasklib._registration(idle.worker_id, idle.caller);
  perform tasklib._renew_late(v_worker);
  if v_worker.restricted then
    perform tasklib._check_claim(v_worker, idle.queues);
  end if;
  if max_wait is null or max_wait < interval '0' or max_wait > interval '1 hour' then
    perform tasklib._reject('TL001', 'max_wait ' || tasklib._shown(idle.max_wait::text)
      || ' is out of range', null, 'Pass 0 to 1 hour.');
  end if;
  -- first, so that what it makes due, or due soon, counts
  perform tasklib._keep_house(look_again => false);
  v_now := clock_timestamp();
  v_until := v_now + idle.max_wait;
  if for_long then
    update tasklib.worker
    set lease_until = v_now + worker.lease, graced = false,
      asleep_until = v_until, queues = idle.queues
    where worker.id = idle.worker_id and worker.lost_at is null;
    if not found then
      perform tasklib._registration(idle.worker_id, idle.caller);
    end if;
  end if;
  perform setval('tasklib.asleep_until', greatest(
    (select last_value from tasklib.asleep_until), tasklib._milliseconds(v_until)));
  perform setval('tasklib.notified_at', 0);
  -- least ignores the null of an empty table
  return greatest(0, extract(epoch from least(v_until, tasklib._next_due(), (
    select min(worker.lease_until) from tasklib.worker where worker.lost_at is null)) - v_now)::float8);
end;
$$;
comment on function tasklib.idle(uuid, text[], interval, boolean, tasklib.caller) is
  'A worker that found nothing goes to sleep. Until it wakes (max_wait at most) an enqueue sends NOTIFY on the channel tasklib. Returns the seconds to sleep: until max_wait, until a delayed task is due, or until the lease of a worker runs out that sends no more heartbeats, whichever is first. LISTEN, call idle, claim once more, then sleep. for_long: it has been idle for a while; this counts as a heartbeat, and the worker needs to look only when the payload of a notification has its id, so that not all run for one task. Any other worker that sleeps looks at every notification. Errors: TL001, TL007, TL011, TL012.';

create or replace function tasklib._next_due()
  returns timestamptz
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select delayed.run_at from tasklib.delayed
    where delayed.run_at >= tasklib._low_time('delayed')
    order by delayed.run_at, delayed.task_id limit 1);
end;
$$;
comment on function tasklib._next_due() is
  'Internal. When the next delayed task is due; null when there is none.';
