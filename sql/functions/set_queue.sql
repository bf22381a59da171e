create or replace function tasklib.set_queue(
  name text,
  retention interval default null,
  max_crashes int default null,
  notify boolean default true
)
  returns void
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform tasklib._check_label('name', set_queue.name, 128);
  if retention < interval '0' or retention > interval '1000 years' then
    perform tasklib._reject('TL001', 'retention ' || tasklib._shown(retention::text)
      || ' is out of range', null, 'Pass an interval such as interval ''30 days'', or null to keep finished tasks for ever.');
  elsif max_crashes not between 1 and 1000 then
    perform tasklib._reject('TL001', 'max_crashes ' || max_crashes || ' is out of range', null,
      'Pass 1 to 1000, or null for 3.');
  elsif notify is null then
    perform tasklib._reject('TL001', 'notify must be true or false, got NULL', null,
      'Pass false for producers that use prepared transactions, which NOTIFY does not allow.');
  end if;
  insert into tasklib.queue (name, retention, max_crashes, notify)
  values (set_queue.name, set_queue.retention, set_queue.max_crashes, set_queue.notify)
  on conflict on constraint queue_pkey do update
    set retention = excluded.retention,
        max_crashes = excluded.max_crashes,
        notify = excluded.notify,
        purge_from = null;
end;
$$;
comment on function tasklib.set_queue(text, interval, int, boolean) is
  'Make the settings of a queue exactly these. retention: finished tasks older than this are deleted by tick; null keeps them for ever. max_crashes: how many dead workers a task may leave behind before it has failed for good (3; a task type may say otherwise). notify: false never wakes sleeping workers, which then poll. A pause stays as it is. Errors: TL001, TL002.';
