create or replace function tasklib.register_worker(
  name text default null,
  lease interval default interval '60 seconds',
  task_types jsonb default null,
  info jsonb default null,
  caller tasklib.caller default current_user
)
  returns uuid
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
as $$
declare
  v_types bigint[];
  v_now timestamptz := clock_timestamp();
  v_id uuid;
  v_ruled boolean;
begin
  if register_worker.name is not null then
    perform tasklib._check_label('name', register_worker.name, 255);
  end if;
  if lease is null or lease < interval '1 second' or lease > interval '24 hours' then
    perform tasklib._reject('TL001', 'lease ' || tasklib._shown(lease::text) || ' is out of range',
      null, 'Pass an interval from 1 second to 24 hours; the worker must send heartbeats well within it.');
  end if;
  perform tasklib._check_object('info', register_worker.info, 16384);
  if caller is null then
    perform tasklib._reject('TL001', 'caller is NULL', null, 'Leave it out.');
  end if;

  v_types := tasklib._store_task_types(register_worker.task_types, v_now);
  -- locked, so that a first rule waits and then finds this worker
  select config.claim_ruled into v_ruled from tasklib.config for share;
  if v_ruled then
    perform tasklib._check_types(v_types, register_worker.task_types, register_worker.caller);
  end if;

  insert into tasklib.worker (id, registered_at, lease_until, lease, registered_by, restricted, name,
    types, info)
  values (tasklib._new_worker_id(), v_now, v_now + register_worker.lease, register_worker.lease,
    register_worker.caller, v_ruled, coalesce(register_worker.name, 'worker'), v_types,
    register_worker.info)
  returning worker.id into v_id;

  perform tasklib._unpark(1000, v_types);
  return v_id;
end;
$$;
comment on function tasklib.register_worker(text, interval, jsonb, jsonb, tasklib.caller) is
  'Begin one start of one worker process and return its id, never used again. task_types: an array of names, or of objects {"name", "queue", "priority", "max_retries", "timeout_seconds", "backoff", "max_crashes", "sensitive": ["token"]} whose options become the defaults of the name for every producer (a plain name leaves stored defaults as they are); null: it takes tasks of any name. lease: how long its tasks stay its own after its last heartbeat. Call it in a transaction of its own. Errors: TL001, TL002, TL012 its role may not claim a name, or not in the default queue that it gives it.';

-- Sorted by name, so that two workers that start at once wait for each other instead of deadlocking.
create or replace function tasklib._store_task_types(task_types jsonb, now timestamptz)
  returns bigint[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_types bigint[] := array[]::bigint[];
  v_item record;
  v_new tasklib.task_type;
begin
  if task_types is null then
    insert into tasklib.task_type (type, updated_at, name)
    values (0, _store_task_types.now, '')
    on conflict do nothing;
    return null;
  end if;
  if jsonb_typeof(task_types) <> 'array' or jsonb_array_length(task_types) > 10000 then
    perform tasklib._reject('TL001', 'task_types must be a JSON array of at most 10000 names, got '
      || tasklib._shown(task_types::text), null,
      'Pass ["app.send_email"] or [{"name": "app.send_email", "max_retries": 5}], or null for any name.');
  end if;
  for v_item in
    select jsonb_typeof(entry.value) = 'string' as plain,
      case jsonb_typeof(entry.value) when 'string' then entry.value #>> '{}'
        else entry.value ->> 'name' end as name,
      case jsonb_typeof(entry.value) when 'string' then jsonb_build_object('name', entry.value)
        else jsonb_strip_nulls(entry.value) end as options
    from jsonb_array_elements(task_types) as entry
    order by 2
  loop
    perform tasklib._check_task_type(v_item.name, v_item.options);
    v_new := row(tasklib._type_of(v_item.name), _store_task_types.now,
      (v_item.options -> 'timeout_seconds')::float8, (v_item.options -> 'max_retries')::int,
      (v_item.options -> 'priority')::int, (v_item.options -> 'max_crashes')::int, v_item.name,
      v_item.options ->> 'queue', v_item.options -> 'backoff',
      case when v_item.options ? 'sensitive'
        then array(select jsonb_array_elements_text(v_item.options -> 'sensitive')) end);
    -- not `on conflict (type) do update`: a worker that stores the same name at the same moment would
    -- still be an error of the other unique index
    insert into tasklib.task_type select v_new.* on conflict do nothing;
    if not found and not v_item.plain then
      update tasklib.task_type as known
      set updated_at = v_new.updated_at,
          queue = v_new.queue,
          priority = v_new.priority,
          max_retries = v_new.max_retries,
          timeout_seconds = v_new.timeout_seconds,
          max_crashes = v_new.max_crashes,
          backoff = v_new.backoff,
          -- a worker that says nothing about it, an old one say, does not uncover anything
          sensitive = coalesce(v_new.sensitive, known.sensitive)
      where known.type = v_new.type
        and (known.queue, known.priority, known.max_retries, known.timeout_seconds, known.max_crashes,
          known.backoff, known.sensitive)
        is distinct from (v_new.queue, v_new.priority, v_new.max_retries, v_new.timeout_seconds,
          v_new.max_crashes, v_new.backoff, coalesce(v_new.sensitive, known.sensitive));
    end if;
    v_types := v_types || tasklib._type_of(v_item.name);
  end loop;
  return v_types;
end;
$$;
comment on function tasklib._store_task_types(jsonb, timestamptz) is
  'Internal. Stores names with their defaults; returns their numbers, null for any name.';

create or replace function tasklib._check_task_type(name text, options jsonb)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_where text := 'In the task type ' || tasklib._shown(options::text) || '. Nothing was registered.';
  v_key text;
  v_value jsonb;
  v_kind text;
begin
  if jsonb_typeof(options) <> 'object' then
    perform tasklib._reject('TL001', 'a task type must be a name or an object, got '
      || tasklib._shown(options::text), null, 'Pass ["app.send_email"] or [{"name": "app.send_email"}].');
  end if;
  perform tasklib._check_label('name', _check_task_type.name, 128, v_where);
  for v_key, v_value in select entry.key, entry.value from jsonb_each(options) as entry loop
    v_kind := case
      when v_key in ('name', 'queue') then 'string'
      when v_key in ('priority', 'max_retries', 'timeout_seconds', 'max_crashes') then 'number'
      when v_key = 'backoff' then 'object'
      when v_key = 'sensitive' then 'array'
    end;
    if v_kind is null or jsonb_typeof(v_value) <> v_kind
      or v_kind = 'number'
        and not tasklib._number_fits(replace(v_key, 'max_crashes', 'max_retries'), v_value::numeric)
    then
      perform tasklib._reject('TL001', 'a task type does not take ' || tasklib._shown(v_key) || ' = '
        || tasklib._shown(v_value::text), v_where,
        'The options are queue, priority, max_retries, timeout_seconds, backoff, max_crashes and sensitive.');
    end if;
  end loop;
  if options ->> 'queue' is not null then
    perform tasklib._check_label('queue', options ->> 'queue', 128, v_where);
  end if;
  perform tasklib._check_priority((options -> 'priority')::int, v_where);
  perform tasklib._check_options((options -> 'max_retries')::int,
    (options -> 'timeout_seconds')::float8, options -> 'backoff', v_where);
  if jsonb_array_length(options -> 'sensitive') > 100
    or options -> 'sensitive' @? '$[*] ? (@.type() != "string")'
  then
    perform tasklib._reject('TL001', 'sensitive must be at most 100 names of arguments, got '
      || tasklib._shown(options ->> 'sensitive'), v_where, 'Pass ["token"].');
  end if;
  if (options -> 'max_crashes')::int not between 1 and 1000 then
    perform tasklib._reject('TL001', 'max_crashes ' || (options -> 'max_crashes')::text
      || ' is out of range', v_where, 'Pass 1 to 1000.');
  end if;
end;
$$;
comment on function tasklib._check_task_type(text, jsonb) is
  'Internal. Raises TL001 or TL002 for a task type that register_worker does not take.';
