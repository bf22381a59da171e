create or replace function tasklib.tick(max_rows int default 1000)
  returns setof tasklib.ticked
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set enable_sort = off
  set enable_bitmapscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
  set plan_cache_mode = force_generic_plan
as $$
declare
  v_did tasklib.ticked;
begin
  if max_rows is null or max_rows not between 1 and 100000 then
    perform tasklib._reject('TL001', 'max_rows ' || tasklib._shown(max_rows::text) || ' is out of range',
      null, 'Pass 1 to 100000: how much of each kind of work this call may do.');
  end if;
  if current_setting('transaction_isolation') <> 'read committed' then
    perform tasklib._reject('TL010', 'tick needs READ COMMITTED, not '
      || upper(current_setting('transaction_isolation')),
      'With an older snapshot a low-water mark could pass tasks that it does not show.',
      'Call it in a transaction of its own with that isolation level.');
  end if;
  perform from tasklib.housekeeping for update skip locked;
  if not found then
    return;
  end if;
  v_did := tasklib._tick(tick.max_rows);
  return next v_did;
end;
$$;
comment on function tasklib.tick(int) is
  'Housekeeping, at most max_rows of each kind a call: due tasks become ready, tasks of dead workers and overdue attempts are failed, names that nobody knows are parked and come back, gates, low-water marks, retention. Workers call it each second; pg_cron or anybody granted may. No row when another session is at it. more: call again at once. Errors: TL001, TL010 in another isolation level than READ COMMITTED.';

create or replace function tasklib._tick(max_rows int)
  returns tasklib.ticked
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_did tasklib.ticked;
  v_safe record;
begin
  perform tasklib._reset_marks();
  perform tasklib._grant_grace();
  select safe.pos, safe.at into v_safe from tasklib._safe() as safe;

  v_did.promoted := tasklib._promote(max_rows, v_safe.at);
  v_did.reclaimed := tasklib._reclaim(max_rows);
  v_did.timed_out := tasklib._time_out(max_rows, v_safe.at);
  v_did.parked := tasklib._park(max_rows);
  v_did.unparked := tasklib._unpark(max_rows);
  v_did.handed_over := tasklib._check_gates(max_rows);
  v_did.purged := tasklib._retain(max_rows);
  perform tasklib._count_backlog(max_rows);
  if v_safe.pos is not null then
    perform tasklib._move_marks(v_safe.pos);
  end if;
  v_did.more := greatest(v_did.promoted, v_did.reclaimed, v_did.timed_out, v_did.parked,
    v_did.unparked, v_did.handed_over, v_did.purged) >= max_rows;
  return v_did;
end;
$$;
comment on function tasklib._tick(int) is
  'Internal. One round of housekeeping; the caller has locked its row.';

-- For consumers without housekeeping of their own: claim calls it when it found too little. A full tick
-- when the last one is two seconds old; in between only what lets a task that is due go at once.
create or replace function tasklib._keep_house(look_again boolean)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_did tasklib.ticked;
  v_count int := 0;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    return false;
  end if;
  if tasklib._last_note() > clock_timestamp() - interval '2 seconds' then
    if look_again then
      v_count := tasklib._promote(100, null);
      if v_count > 0 then
        v_count := v_count + tasklib._unpark(100);
      end if;
      v_count := v_count + tasklib._check_gates(100);
    end if;
    return v_count > 0;
  end if;
  perform from tasklib.housekeeping for update skip locked;
  if not found then
    return false;
  end if;
  v_did := tasklib._tick(100);
  return v_did.promoted + v_did.reclaimed + v_did.timed_out + v_did.unparked + v_did.handed_over > 0;
end;
$$;
comment on function tasklib._keep_house(boolean) is
  'Internal. A bounded tick from within claim; true when tasks may have become ready. look_again: the claim found nothing and will look again.';

-- Nobody could send heartbeats while the server was down, and nobody looked while nobody ticked. Once
-- between two heartbeats, or a dead worker would be spared by every tick of a slow ticker.
create or replace function tasklib._grant_grace()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_last timestamptz := tasklib._last_note();
begin
  if v_last < pg_postmaster_start_time() or v_last < clock_timestamp() - interval '30 seconds' then
    update tasklib.worker
    set lease_until = clock_timestamp() + worker.lease, graced = true
    where worker.lost_at is null and not worker.graced
      and worker.lease_until < clock_timestamp() + worker.lease;
  end if;
end;
$$;
comment on function tasklib._grant_grace() is
  'Internal. After a server start or 30 s without a tick every lease begins anew, once for each heartbeat.';

-- Positions and transaction ids go back when a dump is restored, or the sequence was not replicated.
create or replace function tasklib._reset_marks()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_note tasklib.horizon;
begin
  select note.* into v_note from tasklib.horizon as note order by note.xid desc limit 1;
  if v_note.pos > (select position.last_value from tasklib.position)
    or v_note.xid::text::numeric > pg_snapshot_xmax(pg_current_snapshot())::text::numeric + 100000
  then
    delete from tasklib.mark;
    delete from tasklib.time_mark;
    delete from tasklib.horizon;
    perform setval('tasklib.position', greatest(
      (select position.last_value from tasklib.position),
      v_note.pos,
      (select max(ready.pos) from tasklib.ready),
      (select max(waiting.pos) from tasklib.waiting)));
  end if;
end;
$$;
comment on function tasklib._reset_marks() is
  'Internal. Forgets all marks when the sequence of positions, or the counter of transactions, lags behind them, and moves the sequence past the positions in use.';

create or replace function tasklib._promote(max_rows int, safe_at timestamptz)
  returns int
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_low timestamptz := tasklib._low_time('delayed');
  v_now timestamptz := clock_timestamp();
  v_count int;
begin
  with due as (
    delete from tasklib.delayed
    where delayed.ctid = any (array(
      select candidate.ctid from tasklib.delayed as candidate
      where candidate.run_at >= v_low and candidate.run_at <= v_now
      order by candidate.run_at, candidate.task_id limit max_rows
      for update skip locked))
    returning delayed.*
  ),
  unrouted as (
    insert into tasklib.parked (type, task_id, attempt, unique_until, key)
    select due.type, due.task_id, due.attempt, due.unique_until, due.key
    from due where due.lane is null
  ),
  routed as (
    insert into tasklib.ready (task_id, lane, type, attempt, unique_until, key)
    select due.task_id, due.lane, due.type, due.attempt, due.unique_until, due.key
    from due where due.lane is not null
    order by due.run_at, due.task_id
  )
  select count(*) into v_count from due;

  perform tasklib._move_time_mark('delayed', (
    select delayed.run_at from tasklib.delayed where delayed.run_at >= v_low
    order by delayed.run_at, delayed.task_id limit 1), safe_at);
  return v_count;
end;
$$;
comment on function tasklib._promote(int, timestamptz) is
  'Internal. Delayed tasks whose time has come become ready, in the order of their times.';

create or replace function tasklib._reclaim(max_rows int)
  returns int
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_worker uuid;
  v_run tasklib.running;
  v_count int := 0;
begin
  -- a worker with an open claim is locked, and spared
  update tasklib.worker set lost_at = clock_timestamp()
  where worker.ctid = any (array(
    select late.ctid from tasklib.worker as late
    where late.lost_at is null and late.lease_until < clock_timestamp()
    for update skip locked));

  for v_worker in
    select worker.id from tasklib.worker
    where worker.lost_at is not null and worker.cleared_at is null order by worker.id
  loop
    for v_run in
      delete from tasklib.running
      where running.ctid = any (array(
        select lost.ctid from tasklib.running as lost where lost.worker_id = v_worker
        limit max_rows - v_count for update skip locked))
      returning running.*
    loop
      perform tasklib._fail(v_run, 'worker ' || v_worker || ' went silent: no heartbeat within its lease',
        true, null, 'lost');
      v_count := v_count + 1;
    end loop;
    exit when v_count >= max_rows;
    if not exists (select from tasklib.running where running.worker_id = v_worker) then
      update tasklib.worker set cleared_at = clock_timestamp() where worker.id = v_worker;
    end if;
  end loop;

  delete from tasklib.worker where worker.cleared_at < clock_timestamp() - interval '1 day';
  perform tasklib._forget_any_name();
  return v_count;
end;
$$;
comment on function tasklib._reclaim(int) is
  'Internal. Ends the registrations whose lease ran out, and fails what those workers held as lost.';

-- Ten seconds for the worker to end the attempt itself.
create or replace function tasklib._time_out(max_rows int, safe_at timestamptz)
  returns int
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_low timestamptz := tasklib._low_time('deadline');
  v_limit timestamptz := clock_timestamp() - interval '10 seconds';
  v_run tasklib.running;
  v_count int := 0;
begin
  for v_run in
    delete from tasklib.running
    where running.ctid = any (array(
      select late.ctid from tasklib.running as late
      where late.deadline >= v_low and late.deadline < v_limit
      order by late.deadline limit max_rows
      for update skip locked))
    returning running.*
  loop
    perform tasklib._fail(v_run, 'timed out: it ran from ' || v_run.started_at || ' to '
      || v_run.deadline || ', and its worker did not end it', true, null, 'timeout');
    v_count := v_count + 1;
  end loop;

  perform tasklib._move_time_mark('deadline', (
    select running.deadline from tasklib.running where running.deadline >= v_low
    order by running.deadline limit 1), safe_at);
  return v_count;
end;
$$;
comment on function tasklib._time_out(int, timestamptz) is
  'Internal. Fails attempts that are 10 s past their deadline.';
