-- Names that no live worker knows go out of the way of claims, so that a claim never walks past rows
-- which it may not take. While no worker lives at all nobody is in anybody's way.

create or replace function tasklib._live_types()
  returns bigint[]
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(array_agg(distinct known.type), '{}')
  from tasklib.worker cross join lateral unnest(worker.types) as known (type)
  where worker.lost_at is null
$$;
comment on function tasklib._live_types() is 'Internal. Names that live workers registered.';

create or replace function tasklib._park(max_rows int)
  returns int
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_types bigint[];
  v_lane bigint;
  v_parked bigint[];
  v_keys bigint[];
  v_count int := 0;
  v_look int;
begin
  if not exists (select from tasklib.worker where worker.lost_at is null)
    or exists (select from tasklib.worker where worker.lost_at is null and worker.types is null)
  then
    return 0;
  end if;
  v_types := tasklib._live_types();

  v_lane := tasklib._first_lane(-9223372036854775808, 9223372036854775807, null);
  while v_lane is not null and v_count < max_rows loop
    v_look := 20;
    loop
      with head as materialized (
        select candidate.ctid as place, candidate.type
        from tasklib.ready as candidate
        where candidate.lane = v_lane and candidate.pos >= tasklib._low_pos(v_lane)
        order by candidate.lane, candidate.pos limit v_look
      ),
      gone as (
        delete from tasklib.ready
        where ready.ctid = any (array(
          select candidate.ctid from tasklib.ready as candidate
          where candidate.ctid = any (array(
              select head.place from head where head.type <> all (v_types)))
          for update skip locked))
        returning ready.*
      ),
      moved as (
        insert into tasklib.parked (type, task_id, attempt, unique_until, key)
        select gone.type, gone.task_id, gone.attempt, gone.unique_until, gone.key from gone
      )
      select array_agg(gone.type), array_agg(gone.key) filter (where gone.key is not null)
        into v_parked, v_keys from gone;

      exit when v_parked is null;
      if cardinality(v_parked) >= 100 then
        perform tasklib._note_lanes(array[v_lane]);
      end if;
      v_count := v_count + cardinality(v_parked);
      insert into tasklib.gate_check (key) select distinct unnest(v_keys);
      exit when v_count >= max_rows;
      v_look := max_rows - v_count;
    end loop;
    v_lane := tasklib._first_lane(v_lane + 1, 9223372036854775807, null);
  end loop;
  return v_count;
end;
$$;
comment on function tasklib._park(int) is
  'Internal. Moves tasks at the head of their lanes whose name no live worker knows from ready to parked.';

create or replace function tasklib._low_pos(lane bigint)
  returns bigint
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce((
    select mark.low_pos from tasklib.mark where mark.lane = _low_pos.lane
    order by mark.lane desc, mark.low_pos desc limit 1), 0);
end;
$$;
comment on function tasklib._low_pos(bigint) is 'Internal. The low-water mark of a lane.';

-- Only a name that was not known when its task was enqueued can still change where the task goes, and
-- only in what the producer left open.
create or replace function tasklib._unpark(max_rows int, types bigint[] default null)
  returns int
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_types bigint[] := types;
  v_any_name boolean := exists (
    select from tasklib.worker where worker.lost_at is null and worker.types is null);
  v_known bigint[] := array[]::bigint[];
  v_type bigint;
  v_row record;
  v_count int := 0;
begin
  select parked.type into v_type from tasklib.parked order by parked.type, parked.task_id limit 1;
  if v_type is not null and v_types is null and not v_any_name then
    v_types := tasklib._live_types();
  end if;
  while v_type is not null loop
    if v_any_name or v_type = any (v_types) then
      v_known := v_known || v_type;
    end if;
    v_type := (
      select parked.type from tasklib.parked where parked.type > v_type
      order by parked.type, parked.task_id limit 1);
  end loop;
  if v_known = array[]::bigint[] then
    return 0;
  end if;

  -- of all these names together, in the order in which they were enqueued
  for v_row in
    with oldest as materialized (
      select candidate.place
      from unnest(v_known) as known (type)
        cross join lateral (
          select parked.ctid as place, parked.task_id from tasklib.parked
          where parked.type = known.type
          order by parked.type, parked.task_id limit max_rows
        ) as candidate
      order by candidate.task_id limit max_rows
    ),
    gone as (
      delete from tasklib.parked
      where parked.ctid = any (array(
        select candidate.ctid from tasklib.parked as candidate
        where candidate.ctid = any (array(select oldest.place from oldest))
        for update skip locked))
      returning parked.task_id, parked.attempt
    )
    select gone.task_id, gone.attempt from gone order by gone.task_id
  loop
    perform tasklib._route(v_row.task_id, v_row.attempt);
    v_count := v_count + 1;
  end loop;
  return v_count;
end;
$$;
comment on function tasklib._unpark(int, bigint[]) is
  'Internal. Makes parked tasks ready whose name a live worker knows (or one of types).';

create or replace function tasklib._route(task_id uuid, attempt int)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task tasklib.task;
  v_type tasklib.task_type;
  v_queue text;
  v_priority int;
begin
  select task.* into v_task from tasklib.task where task.id = _route.task_id;
  select task_type.* into v_type from tasklib.task_type where task_type.type = v_task.type;
  v_queue := case when v_task.queue_given then v_task.queue else coalesce(v_type.queue, v_task.queue) end;
  v_priority := case when v_task.priority_given then v_task.priority
    else coalesce(v_type.priority, v_task.priority) end;

  if v_queue <> v_task.queue and (not tasklib._may_move(v_task, v_queue)
    or v_task.unique_key is not null and exists (
      select from tasklib.unique_key
      where unique_key.queue = v_queue and unique_key.key = v_task.unique_key))
  then
    v_queue := v_task.queue;
  end if;
  if (v_queue, v_priority) is distinct from (v_task.queue, v_task.priority::int) then
    v_task := tasklib._reroute(v_task, v_queue, v_priority, false, false, v_task.scheduled_at);
  end if;
  insert into tasklib.ready (task_id, lane, type, attempt, unique_until, key)
  values (v_task.id, tasklib._lane(v_queue, v_priority), v_task.type, _route.attempt,
    v_task.unique_until, tasklib._key(v_queue, v_task.concurrency_key));
end;
$$;
comment on function tasklib._route(uuid, int) is
  'Internal. Makes a parked task ready, in the queue and with the priority that its name''s defaults say.';
