create or replace function tasklib.sweep()
  returns int
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_hidden int;
  v_late int;
  v_lost int := 0;
  v_stuck int;
  v_run tasklib.running;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    perform tasklib._reject('TL010', 'sweep needs READ COMMITTED, not '
      || upper(current_setting('transaction_isolation')), null,
      'Call it in a transaction of its own with that isolation level.');
  end if;
  perform from tasklib.housekeeping for update;

  with hidden as (
    delete from tasklib.ready
    using (select mark.lane, max(mark.low_pos) as low_pos from tasklib.mark group by mark.lane) as newest
    where ready.lane = newest.lane and ready.pos < newest.low_pos
    returning ready.*
  ),
  shown as (
    insert into tasklib.ready (task_id, lane, type, attempt, holds_key, unique_until, key)
    select hidden.task_id, hidden.lane, hidden.type, hidden.attempt, hidden.holds_key,
      hidden.unique_until, hidden.key
    from hidden order by hidden.pos
  )
  select count(*) into v_hidden from hidden;

  select count(*) into v_late from (
    select from tasklib.delayed where delayed.run_at < tasklib._low_time('delayed')
    union all
    select from tasklib.running where running.deadline < tasklib._low_time('deadline')
  ) as late;
  if v_late > 0 then
    delete from tasklib.time_mark;
  end if;

  for v_run in
    delete from tasklib.running
    where not exists (
      select from tasklib.worker where worker.id = running.worker_id and worker.cleared_at is null)
    returning running.*
  loop
    perform tasklib._fail(v_run, 'its worker is not registered', true, null, 'lost');
    v_lost := v_lost + 1;
  end loop;

  insert into tasklib.gate_check (key)
  select stuck.key from (
    select waiting.key from tasklib.waiting
    where not exists (select from tasklib.gate where gate.key = waiting.key)
      and not exists (select from tasklib.ready where ready.key = waiting.key)
    union
    select gate.key from tasklib.gate
    where not exists (select from tasklib.running where running.task_id = gate.task_id)
      and not exists (select from tasklib.ready where ready.task_id = gate.task_id and ready.holds_key)
  ) as stuck
  where not exists (select from tasklib.gate_check where gate_check.key = stuck.key);
  get diagnostics v_stuck = row_count;
  perform tasklib._check_gates(100000);

  return v_hidden + v_late + v_lost + v_stuck;
end;
$$;
comment on function tasklib.sweep() is
  'The safety net: reads the narrow tables whole and mends what no rule should ever let happen (a task below a low-water mark, a run without a worker, a gate that nobody holds). Returns how many it found, which should be 0: anything else is a bug, or a clock or sequence that was set back. Call it now and then. Errors: TL010.';
