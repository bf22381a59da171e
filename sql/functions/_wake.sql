-- A commit that notifies takes a lock that every other notifying commit of the cluster waits for. So
-- only the first enqueue after a worker went to sleep notifies, and at most one each 50 ms after it.

create or replace function tasklib._may_notify(now timestamptz)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (select last_value from tasklib.asleep_until) > tasklib._milliseconds(now)
    and (select last_value from tasklib.notified_at) <= tasklib._milliseconds(now) - 50;
end;
$$;
comment on function tasklib._may_notify(timestamptz) is
  'Internal. Some worker sleeps, and nobody has notified since it fell asleep or within 50 ms.';

create or replace function tasklib._wake(queue text, now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if tasklib._may_notify(now) and not exists (
    select from tasklib.queue as settings where settings.name = _wake.queue and not settings.notify)
  then
    perform tasklib._notify(queue, now);
  end if;
end;
$$;
comment on function tasklib._wake(text, timestamptz) is
  'Internal. Notifies sleeping workers of a task in a queue, when there are any.';

create or replace function tasklib._wake_for(specs tasklib.task_spec[], now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue text;
begin
  if not tasklib._may_notify(now) then
    return;
  end if;
  select max(coalesce(spec.queue, type.queue, 'default')) into v_queue
  from unnest(specs) as spec
    left join tasklib.task_type as type on type.name = spec.name
    left join tasklib.queue as settings
      on settings.name = coalesce(spec.queue, type.queue, 'default')
  where coalesce(settings.notify, true)
    and tasklib._milliseconds(coalesce(spec.scheduled_at, _wake_for.now + coalesce(spec.delay, '0')))
      < (select last_value from tasklib.asleep_until);
  if v_queue is not null then
    perform tasklib._notify(v_queue, now);
  end if;
end;
$$;
comment on function tasklib._wake_for(tasklib.task_spec[], timestamptz) is
  'Internal. The same for tasks of several queues, of which some are for later.';

-- Two are named, as the first may have died in its sleep. Any is as good as another: random, so that
-- one which does not answer is not asked again and again.
create or replace function tasklib._notify(queue text, now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform setval('tasklib.notified_at', tasklib._milliseconds(now));
  perform pg_notify('tasklib', coalesce((
    select string_agg(sleeper.id::text, ' ') from (
      select worker.id from tasklib.worker
      where worker.asleep_until > _notify.now and worker.lost_at is null
        and _notify.queue = any (worker.queues)
      order by random() limit 2
    ) as sleeper), ''));
end;
$$;
comment on function tasklib._notify(text, timestamptz) is
  'Internal. Sends a notification that names up to two workers which have slept for long; others that sleep look at any.';
