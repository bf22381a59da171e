-- A commit that notifies takes a lock that every other notifying commit of the cluster waits for. So
-- only the first enqueue after a worker went to sleep notifies, and at most one each 50 ms after it.
create or replace function tasklib._wake(specs tasklib.task_spec[], now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now bigint := extract(epoch from _wake.now)::float8 * 1000;
  v_until bigint := (select last_value from tasklib.asleep_until);
  v_queue text;
begin
  if v_until <= v_now or (select last_value from tasklib.notified_at) > v_now - 50 then
    return;
  end if;
  select max(coalesce(spec.queue, type.queue, 'default')) into v_queue
  from unnest(specs) as spec
    left join tasklib.task_type as type on type.name = spec.name
    left join tasklib.queue as settings
      on settings.name = coalesce(spec.queue, type.queue, 'default')
  where coalesce(settings.notify, true)
    and coalesce(extract(epoch from spec.scheduled_at)::float8 * 1000,
      v_now + coalesce(extract(epoch from spec.delay)::float8, 0) * 1000) < v_until;
  if v_queue is not null then
    perform setval('tasklib.notified_at', v_now);
    perform pg_notify('tasklib', '');
  end if;
end;
$$;
comment on function tasklib._wake(tasklib.task_spec[], timestamptz) is
  'Internal. Notifies sleeping workers of new tasks, when there are any.';
