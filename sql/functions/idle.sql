create or replace function tasklib.idle(
  worker_id uuid,
  queues text[] default '{default}',
  max_wait interval default interval '10 seconds'
)
  returns float8
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
as $$
declare
  v_now float8;
  v_wait float8 := extract(epoch from max_wait);
begin
  perform tasklib._check_queues(idle.queues);
  perform tasklib._registration(idle.worker_id);
  if v_wait is null or not v_wait between 0 and 3600 then
    perform tasklib._reject('TL001', 'max_wait ' || tasklib._shown(idle.max_wait::text)
      || ' is out of range', null, 'Pass 0 to 1 hour.');
  end if;
  v_now := extract(epoch from clock_timestamp());
  perform setval('tasklib.asleep_until',
    greatest((select last_value from tasklib.asleep_until), ((v_now + v_wait) * 1000)::bigint));
  perform setval('tasklib.notified_at', 0);
  -- least ignores the null of an empty table
  return greatest(0, least(v_wait, extract(epoch from tasklib._next_due())::float8 - v_now));
end;
$$;
comment on function tasklib.idle(uuid, text[], interval) is
  'A worker that found nothing goes to sleep. Until it wakes (max_wait at most) an enqueue sends NOTIFY on the channel tasklib. Returns the seconds to sleep: until max_wait or until a delayed task is due, whichever is first. LISTEN, call idle, claim once more, then sleep. Errors: TL001, TL007, TL011.';

create or replace function tasklib._next_due()
  returns timestamptz
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select delayed.run_at from tasklib.delayed
  where delayed.run_at >= tasklib._low_time('delayed')
  order by delayed.run_at, delayed.task_id limit 1
$$;
comment on function tasklib._next_due() is
  'Internal. When the next delayed task is due; null when there is none.';
