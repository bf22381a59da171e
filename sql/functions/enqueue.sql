create or replace function tasklib.enqueue(
  name text,
  kwargs jsonb default '{}',
  queue text default null,
  priority int default null,
  delay interval default null,
  scheduled_at timestamptz default null,
  max_retries int default null,
  timeout_seconds float8 default null,
  tags jsonb default null,
  unique_key text default null,
  concurrency_key text default null,
  headers jsonb default null,
  unique_until text default 'finished',
  backoff jsonb default null,
  caller tasklib.caller default current_user
)
  returns uuid
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
  set plan_cache_mode = force_generic_plan
as $$
declare
  v_spec tasklib.task_spec := row(
    enqueue.name, enqueue.kwargs, enqueue.queue, enqueue.priority, enqueue.delay,
    enqueue.scheduled_at, enqueue.max_retries, enqueue.timeout_seconds, enqueue.tags,
    enqueue.unique_key, enqueue.concurrency_key, enqueue.headers, enqueue.unique_until,
    enqueue.backoff);
  v_now timestamptz := clock_timestamp();
  v_known record;
  v_offer bigint;
  v_notified_at bigint;
  v_noted boolean;
  v_id uuid;
  v_key bigint;
  v_place tid;
begin
  if num_nonnulls(enqueue.delay, enqueue.scheduled_at, enqueue.tags, enqueue.unique_key) > 0 then
    return tasklib._enqueue_with_more(v_spec, enqueue.caller);
  end if;

  if tasklib._is_plain(v_spec) is not true then
    perform tasklib._check_spec(v_spec, null);
  end if;
  select coalesce(known.type, tasklib._type_of(enqueue.name)) as type,
    coalesce(enqueue.queue, known.queue, 'default') as queue,
    coalesce(enqueue.priority, known.priority, 0) as priority,
    known.type is not null or exists (select from tasklib.task_type where task_type.type = 0) as is_known,
    config.shard, config.enqueue_ruled,
    (select last_value from tasklib.asleep_until) as asleep_until
    into v_known
  from tasklib.config left join tasklib.task_type as known on known.name = enqueue.name;
  if v_known.enqueue_ruled then
    perform tasklib._check_enqueue(array[v_spec], enqueue.caller, false);
  end if;

  v_id := tasklib._new_id(v_known.shard, v_now);
  insert into tasklib.task (id, type, created_at, timeout_seconds, priority, max_retries, queue_given,
    priority_given, name, queue, enqueued_by, kwargs, headers, backoff, concurrency_key)
  values (v_id, v_known.type, v_now, enqueue.timeout_seconds, v_known.priority, enqueue.max_retries,
    enqueue.queue is not null, enqueue.priority is not null, enqueue.name, v_known.queue, enqueue.caller,
    enqueue.kwargs, enqueue.headers, enqueue.backoff, enqueue.concurrency_key)
  returning task.ctid into v_place;
  v_key := tasklib._key(v_known.queue, enqueue.concurrency_key);
  -- the body has taken the transaction id, the plan takes the lock on ready: both before the position
  if v_known.is_known then
    insert into tasklib.ready (task_id, lane, type, attempt, place, key)
    values (v_id, tasklib._lane(v_known.queue, v_known.priority), v_known.type, 0, v_place, v_key);
  else
    insert into tasklib.parked (type, task_id, attempt, key) values (v_known.type, v_id, 0, v_key);
  end if;

  if v_known.asleep_until > tasklib._milliseconds(v_now) then
    select offer.last_value, notified_at.last_value into v_offer, v_notified_at
    from tasklib.offer, tasklib.notified_at;
    v_noted := false;
    if v_offer > 0 then
      v_noted := tasklib._names(v_offer, v_known.queue) and tasklib._note_handover(v_id, v_offer >> 20,
        v_known.type, v_known.queue, v_key, enqueue.kwargs, enqueue.headers);
    end if;
    if not v_noted and not tasklib._is_hushed(v_known.queue, v_notified_at, v_now) then
      perform tasklib._wake_some(v_known.queue, array[v_known.type], v_now);
    end if;
  end if;
  return v_id;
end;
$$;
comment on function tasklib.enqueue(
  text, jsonb, text, int, interval, timestamptz, int, float8, jsonb, text, text, jsonb, text, jsonb,
  tasklib.caller
) is
  'Insert one task in the caller''s transaction and return its id; the task exists when that transaction commits. An option left out (or null) is taken from the defaults that a worker registered for the name, when it is needed. When an unfinished task of the queue holds unique_key, nothing is inserted and its id is returned with a notice. Errors: TL001 invalid argument, TL002 limit exceeded, TL012 a rule does not allow it, TL013 limit of the role, TL014 its backlog is full.';

-- A task without time, tags and unique key, which is what nearly every call of enqueue brings, is inserted
-- by enqueue itself, in statements so plain that they take a third of the time.
create or replace function tasklib._enqueue_with_more(spec tasklib.task_spec, caller text)
  returns uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task tasklib.enqueued;
begin
  select made.id, made.created into v_task from tasklib._insert_tasks(array[spec], false, caller) as made;
  if not v_task.created then
    raise notice 'task % holds unique_key %: nothing was enqueued', v_task.id,
      tasklib._shown(spec.unique_key);
  end if;
  return v_task.id;
end;
$$;
comment on function tasklib._enqueue_with_more(tasklib.task_spec, text) is
  'Internal. What enqueue does for a task with a time, tags or a unique key.';

-- Inlined as the functions of _hash.sql are, for the same reason.
create or replace function tasklib._is_plain(spec tasklib.task_spec)
  returns boolean
  language sql
  immutable
as $$
  select (spec).name !~ '[[:cntrl:]]'
    and pg_catalog.octet_length((spec).name) between 1 and 128
    and pg_catalog.jsonb_typeof((spec).kwargs) = 'object'
    and case
      -- 64 levels of brackets and their names take more
      when pg_catalog.octet_length((spec).kwargs::pg_catalog.text) <= 128 then true
      else pg_catalog.octet_length((spec).kwargs::pg_catalog.text) <= 1048576
        and not pg_catalog.jsonb_path_exists((spec).kwargs, 'strict $.**{65}')
    end
    and (spec).unique_until = 'finished'
    and coalesce((spec).queue, (spec).unique_key, (spec).concurrency_key) is null
    and coalesce((spec).tags, (spec).headers, (spec).backoff) is null
    and coalesce((spec).priority, (spec).max_retries, (spec).timeout_seconds) is null
    and (spec).delay is null
    and (spec).scheduled_at is null
$$;
comment on function tasklib._is_plain(tasklib.task_spec) is
  'Internal. A name and a few arguments, within the limits, and nothing else: needs no further look.';

-- Any number of tasks of any kind. Rows are inserted in the order of specs: ids and positions ascend
-- with it. The transaction id and the locks that show tick a writer are taken before the clock (for
-- tasks of later) and before any position: the proof of the low-water marks (see _safe) rests on that.
create or replace function tasklib._insert_tasks(specs tasklib.task_spec[], batch boolean, caller text)
  returns setof tasklib.enqueued
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz;
  v_ids uuid[] := tasklib._new_ids(cardinality(specs));
  v_twins uuid[];
  v_any_name boolean;
  v_ruled boolean;
  v_has_key boolean;
  v_default_lane bigint := tasklib._lane('default', 0);
  v_not_ready boolean;
begin
  perform pg_current_xact_id();
  lock table tasklib.ready, tasklib.delayed in row exclusive mode;
  v_now := clock_timestamp();

  select config.enqueue_ruled, exists (select from tasklib.task_type where task_type.type = 0)
    into v_ruled, v_any_name
  from tasklib.config;
  v_has_key := tasklib._check_specs(specs, batch);
  if v_ruled then
    perform tasklib._check_enqueue(specs, caller, batch);
  end if;
  if v_has_key then
    v_twins := tasklib._take_unique_keys(specs, v_ids);
  end if;

  with spec as materialized (
    select given.n,
      v_ids[given.n] as id,
      coalesce(type.type, tasklib._type_of(given.name)) as type,
      coalesce(given.scheduled_at, v_now + given.delay) as run_at,
      coalesce(given.queue, type.queue, 'default') as queue,
      coalesce(given.priority, type.priority, 0) as priority,
      given.queue is not null as queue_given,
      given.priority is not null as priority_given,
      type.type is not null or v_any_name as known,
      case when given.unique_key is not null then left(given.unique_until, 1)::"char" end as until,
      given.name, given.kwargs, given.timeout_seconds, given.max_retries, given.tags, given.headers,
      given.backoff, given.unique_key, given.concurrency_key
    from unnest(specs) with ordinality as given (name, kwargs, queue, priority, delay, scheduled_at,
      max_retries, timeout_seconds, tags, unique_key, concurrency_key, headers, unique_until, backoff, n)
      left join lateral (
        select known.* from tasklib.task_type as known where known.name = given.name offset 0
      ) as type on true
    where v_twins is null or v_twins[given.n] is null
  ),
  body as (
    insert into tasklib.task (id, type, created_at, scheduled_at, timeout_seconds, priority,
      max_retries, queue_given, priority_given, name, queue, enqueued_by, kwargs, tags, headers,
      backoff, unique_key, concurrency_key, unique_until)
    select spec.id, spec.type, v_now, spec.run_at, spec.timeout_seconds, spec.priority,
      spec.max_retries, spec.queue_given, spec.priority_given, spec.name, spec.queue, caller,
      spec.kwargs, spec.tags, spec.headers, spec.backoff, spec.unique_key, spec.concurrency_key,
      spec.until
    from spec
    returning task.ctid as place, task.id, task.type, task.queue, task.priority, task.scheduled_at,
      task.concurrency_key, task.unique_until
  ),
  ready as (
    insert into tasklib.ready (task_id, lane, type, attempt, unique_until, place, key)
    select body.id,
      case when body.queue = 'default' and body.priority = 0 then v_default_lane
        else tasklib._lane(body.queue, body.priority) end,
      body.type, 0, body.unique_until, body.place,
      case when body.concurrency_key is not null
        then tasklib._key(body.queue, body.concurrency_key) end
    from body
    where (body.scheduled_at > v_now) is not true
  )
  select bool_or(not spec.known or spec.run_at > v_now or spec.tags is not null) into v_not_ready
  from spec;

  if v_not_ready then
    perform tasklib._insert_rest(v_ids, v_now, v_any_name);
  end if;
  if tasklib._sleeps_at(v_now) then
    -- no lone task of this transaction goes before them
    perform set_config('tasklib.handover', 'many', true), tasklib._wake_for(specs, v_now);
  end if;
  return query
    select coalesce(v_twins[n], v_ids[n]), v_twins is null or v_twins[n] is null
    from generate_series(1, cardinality(specs)) as n;
end;
$$;
comment on function tasklib._insert_tasks(tasklib.task_spec[], boolean, text) is
  'Internal. Checks and inserts tasks, in order; one row each. batch: errors name the index.';

-- Most tasks are a name and a few arguments: those need no further look. The others go through a loop,
-- so that an error quotes one short line of context and not this statement.
create or replace function tasklib._check_specs(specs tasklib.task_spec[], batch boolean)
  returns boolean
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_odd record;
  v_has_unique_key boolean := false;
begin
  for v_odd in
    select (spec.name, spec.kwargs, spec.queue, spec.priority, spec.delay, spec.scheduled_at,
        spec.max_retries, spec.timeout_seconds, spec.tags, spec.unique_key, spec.concurrency_key,
        spec.headers, spec.unique_until, spec.backoff)::tasklib.task_spec as spec,
      case when batch then spec.n - 1 end::int as index
    from unnest(specs) with ordinality as spec (name, kwargs, queue, priority, delay, scheduled_at,
      max_retries, timeout_seconds, tags, unique_key, concurrency_key, headers, unique_until, backoff, n)
    where (
        spec.name !~ '[[:cntrl:]]'
        and octet_length(spec.name) between 1 and 128
        and jsonb_typeof(spec.kwargs) = 'object'
        and octet_length(spec.kwargs::text) <= 1048576
        and not jsonb_path_exists(spec.kwargs, 'strict $.**{65}')
        and spec.unique_until = 'finished'
        and coalesce(spec.queue, spec.unique_key, spec.concurrency_key) is null
        and coalesce(spec.tags, spec.headers, spec.backoff) is null
        and coalesce(spec.priority, spec.max_retries, spec.timeout_seconds) is null
        and spec.delay is null
        and spec.scheduled_at is null
      ) is not true
  loop
    v_has_unique_key := tasklib._check_spec(v_odd.spec, v_odd.index) or v_has_unique_key;
  end loop;
  return v_has_unique_key;
end;
$$;
comment on function tasklib._check_specs(tasklib.task_spec[], boolean) is
  'Internal. Raises TL001 or TL002 for the first task that enqueue does not take. True when one has a unique key.';

-- What _insert_tasks leaves for a second look, as most batches have none of it: tasks for later, tags,
-- and names that nobody registered, which are ready already and go to parked.
create or replace function tasklib._insert_rest(ids uuid[], now timestamptz, any_name boolean)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  with body as materialized (
    select task.id, task.type, task.scheduled_at, task.queue, task.priority, task.unique_until,
      task.tags, tasklib._key(task.queue, task.concurrency_key) as key,
      any_name or exists (select from tasklib.task_type where task_type.type = task.type) as known
    from unnest(ids) with ordinality as given (id, n)
      cross join lateral (select made.* from tasklib.task as made where made.id = given.id offset 0) as task
    order by given.n
  ),
  later as (
    insert into tasklib.delayed (run_at, task_id, lane, type, attempt, reason, unique_until, key)
    select body.scheduled_at, body.id,
      case when body.known then tasklib._lane(body.queue, body.priority) end,
      body.type, 0, 'd', body.unique_until, body.key
    from body
    where body.scheduled_at > _insert_rest.now
  ),
  unknown as (
    delete from tasklib.ready
    where ready.ctid = any (array(
      select candidate.place
      from body cross join lateral (
        select made.ctid as place from tasklib.ready as made where made.task_id = body.id offset 0
      ) as candidate
      where not body.known))
    returning ready.*
  ),
  gone as (
    insert into tasklib.parked (type, task_id, attempt, unique_until, key)
    select unknown.type, unknown.task_id, 0, unknown.unique_until, unknown.key from unknown
  )
  insert into tasklib.tag (pair, task_id)
  select tasklib._tag_pair(entry.key, entry.value), body.id
  from body, jsonb_each(body.tags) as entry
  where body.tags is not null
  on conflict do nothing;
end;
$$;
comment on function tasklib._insert_rest(uuid[], timestamptz, boolean) is
  'Internal. Rows in delayed, parked and tag for tasks whose bodies were inserted just now.';

-- Keys are taken in sorted order, so that two batches with the same keys wait for each other instead
-- of deadlocking. A key whose holder finished between the two statements is tried again.
create or replace function tasklib._take_unique_keys(specs tasklib.task_spec[], ids uuid[])
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_twins uuid[];
  v_holder uuid;
  v_spec record;
begin
  for v_spec in
    select coalesce(given.queue, type.queue, 'default') as queue, given.unique_key as key, given.n
    from unnest(specs) with ordinality as given (name, kwargs, queue, priority, delay, scheduled_at,
      max_retries, timeout_seconds, tags, unique_key, concurrency_key, headers, unique_until, backoff, n)
      left join lateral (
        select known.* from tasklib.task_type as known where known.name = given.name offset 0
      ) as type on true
    where given.unique_key is not null
    order by 1, 2, 3
  loop
    loop
      insert into tasklib.unique_key (queue, key, task_id)
      values (v_spec.queue, v_spec.key, ids[v_spec.n])
      on conflict do nothing;
      exit when found;

      select holder.task_id into v_holder
      from tasklib.unique_key as holder
      where holder.queue = v_spec.queue and holder.key = v_spec.key;
      if found then
        v_twins := coalesce(v_twins, array_fill(null::uuid, array[cardinality(ids)]));
        v_twins[v_spec.n] := v_holder;
        exit;
      end if;
    end loop;
  end loop;
  return v_twins;
end;
$$;
comment on function tasklib._take_unique_keys(tasklib.task_spec[], uuid[]) is
  'Internal. Takes the unique keys of specs; returns the holder where a key is taken, null when none is.';
