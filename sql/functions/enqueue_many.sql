create or replace function tasklib.enqueue_many(tasks jsonb, caller tasklib.caller default current_user)
  returns setof tasklib.enqueued
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
  v_specs tasklib.task_spec[];
begin
  if tasks is null or jsonb_typeof(tasks) <> 'array' then
    perform tasklib._reject('TL001',
      'tasks must be a JSON array, got ' || tasklib._shown(tasks::text), null,
      'Pass an array of objects such as [{"name": "app.send_email", "kwargs": {"to": "a@b.c"}}].');
  elsif jsonb_array_length(tasks) > 10000 then
    perform tasklib._reject('TL002', 'tasks has ' || jsonb_array_length(tasks) || ' elements', null,
      'At most 10000 are taken in one call: make several calls, in one transaction if need be.');
  end if;
  perform tasklib._check_element(element.value, (element.n - 1)::int)
  from jsonb_array_elements(tasks) with ordinality as element (value, n)
  where (jsonb_typeof(element.value) = 'object'
    and element.value - '{name,kwargs}'::text[] = '{}'
    and jsonb_typeof(element.value -> 'name') = 'string') is not true;

  v_specs := array(
    select (
      item ->> 'name',
      coalesce(nullif(item -> 'kwargs', 'null'), '{}'),
      item ->> 'queue',
      nullif(item -> 'priority', 'null')::int,
      case when item ? 'delay' then tasklib._interval(item -> 'delay') end,
      (item ->> 'scheduled_at')::timestamptz,
      nullif(item -> 'max_retries', 'null')::int,
      nullif(item -> 'timeout_seconds', 'null')::float8,
      nullif(item -> 'tags', 'null'),
      item ->> 'unique_key',
      item ->> 'concurrency_key',
      nullif(item -> 'headers', 'null'),
      coalesce(item ->> 'unique_until', 'finished'),
      nullif(item -> 'backoff', 'null'))::tasklib.task_spec
    from jsonb_array_elements(tasks) as item);

  if cardinality(v_specs) > 0 then
    return query
      select made.id, made.created from tasklib._insert_tasks(v_specs, true, enqueue_many.caller) as made;
  end if;
end;
$$;
comment on function tasklib.enqueue_many(jsonb, tasklib.caller) is
  'Insert an array of tasks, each an object with the argument names of enqueue as keys (delay: seconds, or an interval as text; scheduled_at: a time as text). Returns one row each, in the order of the array, with created = false where another task holds the unique key. All or nothing: an error names the index of the element. At most 10000 a call. Errors: TL001 invalid argument, TL002 limit exceeded, TL012 a rule does not allow it, TL013 limit of the role, TL014 its backlog is full.';

-- The shape of one element: known keys, and values of the JSON type that can become the argument.
create or replace function tasklib._check_element(element jsonb, index int)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_where text := 'In tasks[' || index || ']. Nothing was enqueued.';
  v_key text;
  v_value jsonb;
  v_kind text;
begin
  if jsonb_typeof(element) <> 'object' then
    perform tasklib._reject('TL001', 'a task must be a JSON object, got '
      || tasklib._shown(element::text), v_where,
      'Pass objects such as {"name": "app.send_email", "kwargs": {"to": "a@b.c"}}.');
  end if;
  for v_key, v_value in select entry.key, entry.value from jsonb_each(element) as entry loop
    v_kind := case
      when v_key in ('name', 'queue', 'unique_key', 'concurrency_key', 'unique_until') then 'string'
      when v_key in ('priority', 'max_retries', 'timeout_seconds') then 'number'
      when v_key in ('kwargs', 'tags', 'headers', 'backoff') then 'object'
      when v_key = 'delay' then case when jsonb_typeof(v_value) = 'number' then 'number' else 'string' end
      when v_key = 'scheduled_at' then 'string'
    end;
    if v_kind is null then
      perform tasklib._reject('TL001', 'a task has no option ' || tasklib._shown(v_key), v_where,
        'The options are the argument names of tasklib.enqueue.');
    elsif jsonb_typeof(v_value) not in (v_kind, 'null') then
      perform tasklib._reject('TL001', v_key || ' must be a JSON ' || v_kind || ', got '
        || tasklib._shown(v_value::text), v_where, 'See tasklib.enqueue for what ' || v_key || ' means.');
    elsif jsonb_typeof(v_value) = 'number' and not tasklib._number_fits(v_key, v_value::numeric) then
      perform tasklib._reject('TL001', v_key || ' = ' || tasklib._shown(v_value::text)
        || ' is out of range', v_where, 'See tasklib.enqueue for the range of ' || v_key || '.');
    elsif v_key in ('delay', 'scheduled_at') and jsonb_typeof(v_value) = 'string'
      and not tasklib._is_time(v_key, v_value #>> '{}')
    then
      perform tasklib._reject('TL001', v_key || ' cannot be read: ' || tasklib._shown(v_value #>> '{}'),
        v_where, 'delay takes seconds or a text such as "10 minutes", scheduled_at one such as "2030-01-31T12:00:00Z".');
    end if;
  end loop;
  if jsonb_typeof(element -> 'name') is distinct from 'string' then
    perform tasklib._reject('TL001', 'a task has no name: ' || tasklib._shown(element::text), v_where,
      'Give each object a "name".');
  end if;
end;
$$;
comment on function tasklib._check_element(jsonb, int) is
  'Internal. Raises TL001 unless the element of enqueue_many can be read as a task_spec.';

create or replace function tasklib._number_fits(argument text, value numeric)
  returns boolean
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when argument in ('priority', 'max_retries')
      then value between -2147483648 and 2147483647 and value = trunc(value)
    else value = 0 or abs(value) between 1e-9 and 1e15
  end;
end;
$$;
comment on function tasklib._number_fits(text, numeric) is
  'Internal. A number of a JSON task can be converted to the type of its argument.';

create or replace function tasklib._interval(value jsonb)
  returns interval
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case jsonb_typeof(value)
    when 'number' then make_interval(secs => greatest(least(value::numeric, 1e9), -1)::float8)
    when 'string' then (value #>> '{}')::interval
  end;
end;
$$;
comment on function tasklib._interval(jsonb) is
  'Internal. Seconds (clamped to what an interval can hold) or a text as an interval.';

-- A subtransaction, but only for tasks whose time is given as a text.
create or replace function tasklib._is_time(argument text, value text)
  returns boolean
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if argument = 'delay' then
    perform value::interval;
  else
    perform value::timestamptz;
  end if;
  return true;
exception
  when data_exception then
    return false;
end;
$$;
comment on function tasklib._is_time(text, text) is
  'Internal. The text can be read as an interval (delay) or a time (scheduled_at).';
