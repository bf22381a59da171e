-- Here, as in the other functions of the hot path, settings, lookups by ctid and `offset 0` in lateral
-- joins leave the planner one plan. In a queue its statistics are always of another moment, and the plan
-- that it would choose with them reads whole tables.
create or replace function tasklib.claim(
  worker_id uuid,
  queues text[] default '{default}',
  max_tasks int default 1,
  caller tasklib.caller default current_user
)
  returns setof tasklib.claimed
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
  v_worker tasklib.worker;
  v_picked tasklib.ready[];
  v_now timestamptz;
begin
  if (max_tasks between 1 and 10000 and cardinality(queues) = 1 and queues[1] is not null) is not true then
    perform tasklib._check_queues(claim.queues), tasklib._check_max_tasks(claim.max_tasks);
  end if;
  v_worker := tasklib._registration(claim.worker_id, claim.caller, lock => true);

  v_picked := tasklib._take(v_worker, claim.queues, claim.max_tasks);
  if cardinality(v_picked) = 0 then
    return;
  end if;

  -- From ready rows to running ones. Reads each body once, at its place when that is still right: for the
  -- timeout of the row that it inserts and for the row that it returns. Nothing in the plan can change
  -- the order of the picks.
  v_now := clock_timestamp();
  return query
    with started as materialized (
      select pick.task_id, pick.lane, pick.type, pick.unique_until, pick.key, pick.attempt + 1 as attempt,
        body.name, body.queue, body.kwargs, body.priority, body.tags, body.headers, body.created_at,
        coalesce(body.max_retries, type.max_retries, 3)::int as max_retries,
        coalesce(body.timeout_seconds, type.timeout_seconds) as timeout_seconds
      from unnest(v_picked)
          as pick (task_id, lane, pos, type, attempt, holds_key, unique_until, place, key)
        cross join lateral (
          (select task.* from tasklib.task
            where task.ctid = pick.place and task.id = pick.task_id)
          union all
          (select task.* from tasklib.task where task.id = pick.task_id)
          limit 1
        ) as body
        left join lateral (
          select known.* from tasklib.task_type as known where known.type = pick.type offset 0
        ) as type on true
    ),
    running as (
      insert into tasklib.running (task_id, worker_id, started_at, deadline, lane, type, attempt,
        unique_until, key)
      select started.task_id, claim.worker_id, v_now,
        v_now + make_interval(secs => started.timeout_seconds), started.lane, started.type,
        started.attempt, started.unique_until, started.key
      from started
    )
    select started.task_id, started.attempt, started.name, started.queue, started.kwargs,
      started.priority::int,
      case when started.attempt = 1 then 0
        else tasklib._retry_count(started.task_id, started.attempt) end,
      started.max_retries, started.timeout_seconds, started.tags, started.headers,
      started.created_at, v_now
    from started;

  -- Not before they run: housekeeping takes the gate of a task that is nowhere for one that was left.
  -- Not each time: a lone task on a quiet queue shall start soon.
  if cardinality(v_picked) < claim.max_tasks and random() < 0.125 then
    perform tasklib._keep_house(look_again => false);
  end if;
end;
$$;
comment on function tasklib.claim(uuid, text[], int, tasklib.caller) is
  'Hand out up to max_tasks due tasks of names that the worker registered: by priority, then queue in the order given, then the order in which they became ready. Rows that other sessions hold are skipped. Each row is an attempt that must be ended by complete, fail, finish, release or snooze with (id, worker_id, attempt). Finding too little, it does some housekeeping first. Commit at once: until then nobody sees that the tasks run. Errors: TL001, TL007 the worker is not registered, or not since the server was started, TL011, TL012 its role may not claim one of its names in one of the queues.';

create or replace function tasklib._check_max_tasks(max_tasks int)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if max_tasks is null or max_tasks not between 1 and 10000 then
    perform tasklib._reject('TL001', 'max_tasks ' || tasklib._shown(max_tasks::text)
      || ' is out of range', null, 'Pass 1 to 10000: as many tasks as can start soon.');
  end if;
end;
$$;
comment on function tasklib._check_max_tasks(int) is
  'Internal. Raises TL001 unless a claim may ask for so many.';

create or replace function tasklib._take(worker tasklib.worker, queues text[], max_tasks int)
  returns tasklib.ready[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_picked tasklib.ready[] := array[]::tasklib.ready[];
  v_pick tasklib.pick;
  v_asked int := max_tasks;
  v_budget int := max_tasks + 1000;
  v_got int;
  v_above bigint := tasklib._last_gate();
begin
  if worker.restricted then
    perform tasklib._check_claim(worker, queues);
  end if;
  for v_look in 1..2 loop
    -- again while some of what was picked had to wait for its concurrency key
    loop
      if cardinality(queues) > 1 then
        v_pick := tasklib._pick_queues(worker.types, queues, v_asked, v_above);
      else
        exit when exists (select from tasklib.queue where queue.name = queues[1] and queue.paused);
        v_pick := tasklib._pick_between(worker.types, tasklib._lane(queues[1], 1024),
          tasklib._lane(queues[1], -3071), v_asked, v_above);
      end if;
      v_got := cardinality(v_pick.tasks);
      exit when v_got = 0;
      if v_pick.special then
        v_pick.tasks := tasklib._admit(v_pick.tasks);
        v_above := tasklib._last_gate();
      end if;
      v_picked := v_picked || v_pick.tasks;
      v_budget := v_budget - v_got;
      exit when v_got < v_asked or cardinality(v_picked) = max_tasks or v_budget <= 0;
      v_asked := max_tasks - cardinality(v_picked);
    end loop;
    exit when cardinality(v_picked) > 0 or v_look = 2 or not tasklib._keep_house(look_again => true);
    v_above := tasklib._last_gate();
  end loop;
  if cardinality(v_picked) > 0 and worker.channel is not null then
    perform tasklib._withdraw_offer(worker.id);
  end if;
  if cardinality(v_picked) > 0
    and (cardinality(v_picked) = max_tasks or worker.asleep_until is not null)
  then
    perform tasklib._rouse(worker, queues, v_picked[max_tasks]);
  end if;
  -- once in 4096 positions
  if v_picked[1].pos / 4096 <> v_picked[cardinality(v_picked)].pos / 4096 then
    perform tasklib._follow(v_picked[1].lane, v_picked[1].pos);
  end if;
  return v_picked;
end;
$$;
comment on function tasklib._take(tasklib.worker, text[], int) is
  'Internal. Takes up to max_tasks of the best ready tasks out of ready, for this worker to run.';

-- All gates of a pick in one pass: see _open_gates.
create or replace function tasklib._admit(picked tasklib.ready[])
  returns tasklib.ready[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_admitted tasklib.ready[] := tasklib._open_gates(picked);
  v_starting uuid[] := (select array_agg(pick.task_id) from unnest(v_admitted) as pick
    where pick.unique_until = 's');
begin
  if v_starting is not null then
    perform tasklib._free_unique_keys(v_starting);
  end if;
  return v_admitted;
end;
$$;
comment on function tasklib._admit(tasklib.ready[]) is
  'Internal. Those of the picked tasks that may run now: takes their gates, frees unique keys that hold until the start.';

-- A worker that took all it had room for passes the notification on while there is more: so one task
-- wakes one worker, and a thousand wake all. One that was called does so at once, for it may come again
-- only when its tasks have ended.
create or replace function tasklib._rouse(worker tasklib.worker, queues text[], last tasklib.ready)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_queue text;
  v_end bigint;
begin
  if worker.asleep_until is not null then
    update tasklib.worker as sleeper set asleep_until = null where sleeper.id = _rouse.worker.id;
    -- it has answered the call: the next task is somebody else's
    perform setval('tasklib.notified_at', 0);
  end if;
  if last.task_id is null or not tasklib._sleeps_at(v_now) then
    return;
  end if;
  if worker.channel is null or exists (
    select from tasklib.worker as other where other.id <> _rouse.worker.id and other.lost_at is null)
  then
    foreach v_queue in array queues loop
      v_end := tasklib._lane(v_queue, -3071);
      exit when not exists (
          select from tasklib.queue as settings where settings.name = v_queue and settings.paused)
        -- not from the mark, where the claim has just walked over all that is gone
        and case when last.lane between tasklib._lane(v_queue, 1024) and v_end
          then exists (select from tasklib.ready
            where (ready.lane, ready.pos) > (last.lane, last.pos) and ready.lane <= v_end
              and (_rouse.worker.types is null or ready.type = any (_rouse.worker.types)))
          else tasklib._first_lane(tasklib._lane(v_queue, 1024), v_end, _rouse.worker.types) is not null
        end
        and tasklib._wake_some(v_queue, _rouse.worker.types, v_now);
    end loop;
  else
    -- nobody else is there to be woken, and this one looks again: enqueues need not ask any more
    perform setval('tasklib.asleep_until', 0);
  end if;
end;
$$;
comment on function tasklib._rouse(tasklib.worker, text[], tasklib.ready) is
  'Internal. The worker is awake: it took tasks. last: the last of them when it took all it had room for, so that there may be more.';

create or replace function tasklib._check_queues(queues text[])
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if queues is null or array_ndims(queues) is distinct from 1 or array_lower(queues, 1) <> 1
    or cardinality(queues) not between 1 and 1000
    or array_position(queues, null) is not null
  then
    perform tasklib._reject('TL001', 'queues must be a list of 1 to 1000 names, got '
      || tasklib._shown(queues::text), null, 'Pass queues => ''{default,mail}''.');
  end if;
end;
$$;
comment on function tasklib._check_queues(text[]) is
  'Internal. Raises TL001 unless queues is a flat, filled list of names.';

-- Best first over several queues: of the queues that still have something, the one whose first task
-- has the highest priority goes on, up to the priority at which another queue is before it. Lanes
-- sort by priority within a queue; their last 12 bits compare between queues. A rank is those bits, then
-- the place in the list (1024, as a list has at most 1000).
create or replace function tasklib._pick_queues(types bigint[], queues text[], max_tasks int, above bigint)
  returns tasklib.pick
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_all tasklib.pick := row(array[]::tasklib.ready[], false);
  v_pick tasklib.pick;
  v_next bigint[];
  v_last bigint[];
  v_rank bigint[];
  v_best int;
  v_bound bigint;
begin
  select array_agg(tasklib._lane(asked.name, 1024)), array_agg(tasklib._lane(asked.name, -3071))
    into v_next, v_last
  from (
    select name, min(n) as n from unnest(queues) with ordinality as given (name, n)
    where not exists (select from tasklib.queue where queue.name = given.name and queue.paused)
    group by name order by min(n)
  ) as asked;

  while cardinality(v_next) > 1 and cardinality(v_all.tasks) < max_tasks loop
    -- where each queue stands: priority of its first task, then place in the list
    select array_agg((tasklib._first_lane(v_next[i], v_last[i], types) & 4095) * 1024 + i order by i)
      into v_rank
    from generate_subscripts(v_next, 1) as i;
    select i into v_best from generate_subscripts(v_rank, 1) as i
    where v_rank[i] is not null order by v_rank[i] limit 1;
    if not found then
      return v_all;
    end if;
    -- up to, or without, the best priority of the others
    v_bound := (select least(v_last[v_best], (v_last[v_best] & -4096)
        + min(v_rank[i] / 1024 - (i < v_best)::int))
      from generate_subscripts(v_rank, 1) as i where i <> v_best and v_rank[i] is not null);
    v_bound := coalesce(v_bound, v_last[v_best]);
    v_pick := tasklib._pick_between(types, v_next[v_best], v_bound,
      max_tasks - cardinality(v_all.tasks), above);
    v_all.tasks := v_all.tasks || v_pick.tasks;
    v_all.special := v_all.special or v_pick.special;
    v_next[v_best] := v_bound + 1;
  end loop;

  if cardinality(v_next) = 1 then
    v_all := tasklib._pick_between(types, v_next[1], v_last[1], max_tasks, above);
  end if;
  return v_all;
end;
$$;
comment on function tasklib._pick_queues(bigint[], text[], int, bigint) is
  'Internal. Takes the best ready tasks of several queues out of ready, in the order in which they go.';

-- One scan from mark to mark: below the low-water mark of a lane there is nothing, however many dead
-- rows a held snapshot keeps there. ctid, because a join by key may flip to a plan that reads the
-- whole table when statistics were taken at the wrong moment; the subquery has locked the pick.
create or replace function tasklib._pick_between(
  types bigint[],
  first_lane bigint,
  last_lane bigint,
  max_tasks int,
  above bigint
)
  returns tasklib.pick
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_all tasklib.ready[] := array[]::tasklib.ready[];
  v_special boolean := false;
  v_picked tasklib.ready[];
  v_mark record;
  v_lane bigint := first_lane;
  v_pos bigint := 0;
  v_stop bigint;
  v_asked int;
  v_noted bigint[];
  v_odd boolean;
begin
  loop
    select mark.lane, mark.low_pos into v_mark
    from tasklib.mark
    where mark.lane >= v_lane + (v_pos > 0)::int and mark.lane <= last_lane
    order by mark.lane, mark.low_pos desc limit 1;
    v_stop := coalesce(v_mark.lane - 1, last_lane);

    if v_lane <= v_stop then
      v_asked := max_tasks - cardinality(v_all);
      with picked as materialized (
        select candidate.ctid as place, candidate as task
        from tasklib.ready as candidate
        where (candidate.lane, candidate.pos) >= (v_lane, v_pos)
          and candidate.lane <= v_stop
          and (types is null or candidate.type = any (types))
          and (above is null or candidate.key is null or candidate.holds_key or candidate.key > above)
        order by candidate.lane, candidate.pos
        limit v_asked
        for update skip locked
      ),
      gone as (
        delete from tasklib.ready where ready.ctid = any (array(select picked.place from picked))
      )
      select array_agg(picked.task),
          array_agg((picked.task).lane) filter (where (picked.task).pos % 127 = 0),
          bool_or((picked.task).key is not null or (picked.task).unique_until = 's')
        into v_picked, v_noted, v_odd
      from picked;
      if v_picked is not null then
        v_all := v_all || v_picked;
        v_special := v_special or v_odd is true;
        if v_noted is not null then
          perform tasklib._note_lanes(v_noted);
        end if;
      end if;
    end if;

    exit when v_mark.lane is null or cardinality(v_all) >= max_tasks;
    v_lane := v_mark.lane;
    v_pos := greatest(v_mark.low_pos, 1);
  end loop;
  return row(v_all, v_special);
end;
$$;
comment on function tasklib._pick_between(bigint[], bigint, bigint, int, bigint) is
  'Internal. Takes up to max_tasks rows of lanes first_lane to last_lane out of ready. above: only such whose gate comes after that one, or that need to make none.';

create or replace function tasklib._first_lane(first_lane bigint, last_lane bigint, types bigint[])
  returns bigint
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_mark record;
  v_lane bigint := first_lane;
  v_pos bigint := 0;
  v_found bigint;
begin
  loop
    select mark.lane, mark.low_pos into v_mark
    from tasklib.mark
    where mark.lane >= v_lane + (v_pos > 0)::int and mark.lane <= last_lane
    order by mark.lane, mark.low_pos desc limit 1;

    select ready.lane into v_found
    from tasklib.ready
    where (ready.lane, ready.pos) >= (v_lane, v_pos)
      and ready.lane <= coalesce(v_mark.lane - 1, last_lane)
      and (types is null or ready.type = any (types))
    order by ready.lane, ready.pos limit 1;

    exit when v_found is not null or v_mark.lane is null;
    v_lane := v_mark.lane;
    v_pos := greatest(v_mark.low_pos, 1);
  end loop;
  return v_found;
end;
$$;
comment on function tasklib._first_lane(bigint, bigint, bigint[]) is
  'Internal. The lane of the first task between two lanes; null when there is none.';

create or replace function tasklib._retry_count(task_id uuid, attempt int)
  returns int
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return greatest(0, _retry_count.attempt - 1 - coalesce((
    select allowance.excused from tasklib.allowance where allowance.task_id = _retry_count.task_id), 0));
end;
$$;
comment on function tasklib._retry_count(uuid, int) is
  'Internal. Attempts that were charged, less one.';
