-- A commit that notifies takes a lock that every other notifying commit of the cluster waits for. So
-- only the first enqueue after a worker went to sleep, or came, notifies, and at most one each 50 ms
-- after it.
-- Each queue for itself: a busy one must not hush the others, whose workers do not come for its tasks.
-- notified_at has in its upper bits when such 50 ms began, and in its last 20 bits who notified since, two
-- of them for each queue. Two queues may have the same ones, but hardly ever, and not the next time.
-- offer (_sleeper.sql) names queues in the same way.

-- Inlined as the functions of _hash.sql are, for the same reason.
create or replace function tasklib._queue_bits(queue text, began bigint)
  returns bigint
  language sql
  immutable
as $$
  select (1::pg_catalog.int8 << ((pg_catalog.hashtextextended(queue, began) & 1048575) % 20)::pg_catalog.int4)
    | (1::pg_catalog.int8 << (((pg_catalog.hashtextextended(queue, began) & 1048575) + 1
      + (pg_catalog.hashtextextended(queue, began) & 1048575) / 20 % 19) % 20)::pg_catalog.int4)
$$;
comment on function tasklib._queue_bits(text, bigint) is
  'Internal. Which two of the last 20 bits are those of a queue, by what the bits above them say.';

create or replace function tasklib._names(flags bigint, queue text)
  returns boolean
  language sql
  immutable
as $$
  select tasklib._queue_bits(queue, flags >> 20) & ~flags = 0
$$;
comment on function tasklib._names(bigint, text) is
  'Internal. Whether the last 20 bits have those of a queue. Inlined.';

create or replace function tasklib._is_hushed(queue text, notified_at bigint, now timestamptz)
  returns boolean
  language sql
  stable
as $$
  select notified_at >> 20 > tasklib._milliseconds(now) - 50 and tasklib._names(notified_at, queue)
$$;
comment on function tasklib._is_hushed(text, bigint, timestamptz) is
  'Internal. A notification of the queue was sent within 50 ms, and no worker fell asleep since. Inlined.';

-- Two are named, as the first may have died in its sleep. Any is as good as another: random, so that
-- one which does not answer is not asked again and again.
create or replace function tasklib._wake_some(queue text, types bigint[], now timestamptz)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now bigint := tasklib._milliseconds(now);
  v_last bigint := (select last_value from tasklib.notified_at);
begin
  if tasklib._is_hushed(_wake_some.queue, v_last, _wake_some.now)
    or exists (select from tasklib.queue as settings
      where settings.name = _wake_some.queue and not settings.notify)
  then
    return false;
  end if;
  if v_last >> 20 <= v_now - 50 then
    v_last := v_now << 20;
  end if;
  -- first, so that few notify for the same 50 ms
  perform setval('tasklib.notified_at', v_last | tasklib._queue_bits(_wake_some.queue, v_last >> 20));
  perform pg_notify('tasklib', coalesce(string_agg(sleeper.id::text, ' '), ''))
  from (
    select worker.id from tasklib.worker
    where worker.asleep_until > _wake_some.now and worker.lost_at is null
      and _wake_some.queue = any (worker.queues)
      and (_wake_some.types && worker.types) is not false
    order by random() limit 2
  ) as sleeper;
  return true;
end;
$$;
comment on function tasklib._wake_some(text, bigint[], timestamptz) is
  'Internal. Sends a notification, unless one of the queue was sent within 50 ms and no worker fell asleep since; true when it did. It names up to two workers that have slept for long and know one of types (null: any); others that sleep look at any. Call it when some worker sleeps (_sleeps_at).';

create or replace function tasklib._sleeps_at(at timestamptz)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (select last_value from tasklib.asleep_until)
    > tasklib._milliseconds(greatest(at, clock_timestamp()));
end;
$$;
comment on function tasklib._sleeps_at(timestamptz) is
  'Internal. Some worker sleeps now and means to sleep at that time.';

create or replace function tasklib._wake_by(queue text, types bigint[], run_at timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if tasklib._sleeps_at(run_at) then
    perform tasklib._wake_some(queue, types, clock_timestamp());
  end if;
end;
$$;
comment on function tasklib._wake_by(text, bigint[], timestamptz) is
  'Internal. Notifies sleeping workers of a task that will be due while they mean to sleep.';

create or replace function tasklib._wake_for(specs tasklib.task_spec[], now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_asleep_until bigint := (select last_value from tasklib.asleep_until);
  v_new record;
begin
  for v_new in
    select coalesce(spec.queue, type.queue, 'default') as queue,
      array_agg(distinct coalesce(type.type, tasklib._type_of(spec.name))) as types
    from unnest(specs) as spec
      left join tasklib.task_type as type on type.name = spec.name
    where tasklib._milliseconds(greatest(_wake_for.now,
        coalesce(spec.scheduled_at, _wake_for.now + spec.delay))) < v_asleep_until
    group by 1
  loop
    perform tasklib._wake_some(v_new.queue, v_new.types, now);
  end loop;
end;
$$;
comment on function tasklib._wake_for(tasklib.task_spec[], timestamptz) is
  'Internal. The same for tasks of several queues, of which some are for later.';
