-- Rights per queue and per task name, and limits. Nothing here runs while a database has no rules:
-- enqueue looks at config.enqueue_ruled, claim at worker.restricted, in rows that they read anyway.
--
-- A role is bound by the rules for itself, for the groups that it is a member of, and for public; what
-- one of them allows is allowed. A role that no rule covers is not bound, unless its session's login
-- role is (so SET ROLE is no way around), or it is one of the groups that everybody has to be in, or
-- the database is strict.

create or replace function tasklib._matches(pattern text, value text)
  returns boolean
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return pattern = value or right(pattern, 1) = '*' and starts_with(value, left(pattern, -1));
end;
$$;
comment on function tasklib._matches(text, text) is
  'Internal. The value is the pattern, or begins with what stands before its star.';

create or replace function tasklib._rules_for(caller text, action text)
  returns tasklib.rule[]
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_all text[];
  v_roles text[];
begin
  if tasklib._is_admin(caller) then
    return null;
  elsif caller is null then
    perform tasklib._reject('TL001', 'caller is NULL', null, 'Leave it out.');
  end if;
  v_all := array(select distinct rule.role from tasklib.rule where rule.action = _rules_for.action);
  v_roles := tasklib._covering(tasklib._bound(caller, v_all), v_all);
  if v_roles = '{}' and not (select config.strict from tasklib.config)
    and (v_all = '{}' or caller not in ('tasklib_producer', 'tasklib_worker'))
  then
    return null;
  end if;
  return array(
    select rule from tasklib.rule
    where rule.role = any (v_roles) and rule.action = _rules_for.action);
end;
$$;
comment on function tasklib._rules_for(text, text) is
  'Internal. The rules that bind a caller in this session, which may be none, so that nothing is allowed; null when it is not bound.';

create or replace function tasklib._bound(caller text, given text[])
  returns text
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case when tasklib._covering(caller, given) <@ '{public}' then session_user::text else caller end;
end;
$$;
comment on function tasklib._bound(text, text[]) is
  'Internal. Whose rules or limits hold, of those that there are for the given roles: the caller''s, or for want of any those of the login role.';

create or replace function tasklib._refuse(
  role text,
  action text,
  queue text,
  name text,
  detail text default null
)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_what text := case when _refuse.name = '*' then ' tasks of any name'
    else ' ' || tasklib._shown(_refuse.name) end;
  v_bound text := tasklib._bound(_refuse.role, array(
    select rule.role from tasklib.rule where rule.action = _refuse.action));
begin
  perform tasklib._reject('TL012',
    'role ' || tasklib._shown(_refuse.role) || ' may not ' || _refuse.action || v_what
      || coalesce(' in queue ' || tasklib._shown(_refuse.queue), ''),
    detail,
    case when _refuse.role in ('tasklib_producer', 'tasklib_worker')
      then 'Call it with a role of your own that is a member of ' || _refuse.role || '.'
      else 'An admin can allow it: select tasklib.set_rule(' || concat_ws(', ', quote_literal(v_bound),
        quote_literal(_refuse.action), 'queue => ' || quote_literal(coalesce(_refuse.queue, '*')),
        'name => ' || quote_literal(_refuse.name)) || ');' end);
end;
$$;
comment on function tasklib._refuse(text, text, text, text, text) is
  'Internal. Raises TL012, with the call that would allow it.';

-- What a task asks for is checked, and where it goes: a queue left out is the default of its name.
create or replace function tasklib._check_enqueue(
  specs tasklib.task_spec[],
  caller text,
  batch boolean,
  is_new boolean default true
)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_rules tasklib.rule[] := tasklib._rules_for(caller, 'enqueue');
  v_bad record;
begin
  if tasklib._is_admin(caller) then
    return;
  end if;
  select asked.* into v_bad
  from (
    select distinct on (1, 2) given.name, coalesce(given.queue, type.queue, 'default') as queue, given.n
    from unnest(specs) with ordinality as given (name, kwargs, queue, priority, delay, scheduled_at,
      max_retries, timeout_seconds, tags, unique_key, concurrency_key, headers, unique_until, backoff, n)
      left join tasklib.task_type as type on type.name = given.name
    order by 1, 2, 3
  ) as asked
  where v_rules is not null and not exists (
    select from unnest(v_rules) as rule
    where tasklib._matches(rule.queue, asked.queue) and tasklib._matches(rule.name, asked.name))
  order by asked.n limit 1;
  if found then
    perform tasklib._refuse(caller, 'enqueue', v_bad.queue, v_bad.name,
      tasklib._in_batch(batch, v_bad.n));
  end if;
  perform tasklib._check_limits(specs, caller, batch, is_new);
end;
$$;
comment on function tasklib._check_enqueue(tasklib.task_spec[], text, boolean, boolean) is
  'Internal. Raises TL012 for the first task that the caller''s rules do not allow, TL013 or TL014 for a limit. is_new: they add to the backlog.';

create or replace function tasklib._in_batch(batch boolean, n bigint)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case when batch then 'In tasks[' || n - 1 || ']. Nothing was enqueued.' end;
end;
$$;
comment on function tasklib._in_batch(boolean, bigint) is
  'Internal. The detail of an error about one task of a batch; null outside of one.';

-- The nearest counts: what is set for the role itself, else the smallest of its groups, else public's.
create or replace function tasklib._limits_of(caller text)
  returns tasklib.role_limit
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_all text[] := array(select role_limit.role from tasklib.role_limit);
  v_self text := tasklib._bound(caller, v_all);
  v_roles text[] := tasklib._covering(v_self, v_all);
  v_limits tasklib.role_limit;
begin
  select (array_agg(max_bytes order by far, max_bytes) filter (where max_bytes is not null))[1],
    (array_agg(min_priority order by far, min_priority desc) filter (where min_priority is not null))[1],
    (array_agg(max_priority order by far, max_priority) filter (where max_priority is not null))[1],
    (array_agg(max_retries order by far, max_retries) filter (where max_retries is not null))[1],
    (array_agg(max_delay order by far, max_delay) filter (where max_delay is not null))[1],
    (array_agg(max_backlog order by far, max_backlog) filter (where max_backlog is not null))[1]
    into v_limits.max_bytes, v_limits.min_priority, v_limits.max_priority, v_limits.max_retries,
      v_limits.max_delay, v_limits.max_backlog
  from (
    select role_limit.*,
      case when role_limit.role = v_self then 1 when role_limit.role <> 'public' then 2 else 3 end as far
    from tasklib.role_limit where role_limit.role = any (v_roles)
  ) as near;
  return v_limits;
end;
$$;
comment on function tasklib._limits_of(text) is
  'Internal. The limits that bind a caller in this session; null where it has none.';

-- What a worker stored as the defaults of a name is not the producer's doing, and not looked at.
create or replace function tasklib._check_limits(
  specs tasklib.task_spec[],
  caller text,
  batch boolean,
  is_new boolean
)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_max tasklib.role_limit := tasklib._limits_of(caller);
  v_now timestamptz := clock_timestamp();
  v_bad record;
  v_backlog bigint;
begin
  select given.n, case
      when octet_length(given.kwargs::text) > v_max.max_bytes then
        array['kwargs has ' || octet_length(given.kwargs::text) || ' bytes as text',
          'at most ' || v_max.max_bytes]
      when given.priority < v_max.min_priority then
        array['priority ' || given.priority || ' is too low', 'at least ' || v_max.min_priority]
      when given.priority > v_max.max_priority then
        array['priority ' || given.priority || ' is too high', 'at most ' || v_max.max_priority]
      when given.max_retries > v_max.max_retries then
        array['max_retries ' || given.max_retries || ' is too high', 'at most ' || v_max.max_retries]
      when coalesce(given.scheduled_at - v_now, given.delay) > v_max.max_delay then
        array['the task would be due at ' || coalesce(given.scheduled_at, v_now + given.delay),
          'a delay of at most ' || v_max.max_delay]
    end as said
    into v_bad
  from unnest(specs) with ordinality as given (name, kwargs, queue, priority, delay, scheduled_at,
    max_retries, timeout_seconds, tags, unique_key, concurrency_key, headers, unique_until, backoff, n)
  where octet_length(given.kwargs::text) > v_max.max_bytes
    or given.priority < v_max.min_priority
    or given.priority > v_max.max_priority
    or given.max_retries > v_max.max_retries
    or coalesce(given.scheduled_at - v_now, given.delay) > v_max.max_delay
  order by given.n limit 1;
  if found then
    perform tasklib._reject('TL013', v_bad.said[1], tasklib._in_batch(batch, v_bad.n),
      'Role ' || tasklib._shown(caller) || ' is allowed ' || v_bad.said[2]
      || '. An admin can change it with tasklib.set_limit.');
  end if;

  if is_new and v_max.max_backlog is not null then
    v_backlog := coalesce((select counted from tasklib.backlog where backlog.role = caller), 0);
    if v_backlog + cardinality(specs) > v_max.max_backlog then
      perform tasklib._reject('TL014', 'role ' || tasklib._shown(caller) || ' has about ' || v_backlog
        || ' unfinished tasks, and may have ' || v_max.max_backlog, null,
        'Enqueue again when some of them are finished. An admin can change it with tasklib.set_limit.');
    end if;
  end if;
end;
$$;
comment on function tasklib._check_limits(tasklib.task_spec[], text, boolean, boolean) is
  'Internal. Raises TL013 for the first task that asks for more than the caller may, TL014 when the caller has too many unfinished ones.';

create or replace function tasklib._check_placing(
  task tasklib.task,
  caller text,
  queue text default null,
  priority int default null,
  run_at timestamptz default null,
  is_new boolean default false
)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if (select config.enqueue_ruled from tasklib.config) then
    perform tasklib._check_enqueue(array[row(task.name, '{}', coalesce(_check_placing.queue, task.queue),
      _check_placing.priority, null, run_at, null, null, null, null, null, null, null, null
      )::tasklib.task_spec], caller, false, is_new);
  end if;
end;
$$;
comment on function tasklib._check_placing(tasklib.task, text, text, int, timestamptz, boolean) is
  'Internal. The same for a task that exists, and shall wait in this queue, with this priority, until run_at.';

-- A task of a name first seen later goes where that name's worker says, if its producer may.
create or replace function tasklib._may_move(task tasklib.task, queue text)
  returns boolean
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_rules tasklib.rule[];
begin
  if not (select config.enqueue_ruled from tasklib.config) then
    return true;
  end if;
  v_rules := tasklib._rules_for(task.enqueued_by, 'enqueue');
  return v_rules is null or exists (
    select from unnest(v_rules) as rule
    where tasklib._matches(rule.queue, _may_move.queue) and tasklib._matches(rule.name, task.name));
end;
$$;
comment on function tasklib._may_move(tasklib.task, text) is
  'Internal. The role that enqueued a task might have done so in this queue.';

-- Not before they are stored, as only then their form has been checked; an error undoes that.
create or replace function tasklib._check_types(types bigint[], task_types jsonb, caller text)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_rules tasklib.rule[] := tasklib._rules_for(caller, 'claim');
  v_bad record;
begin
  if v_rules is null then
    return;
  end if;
  select asked.name, asked.queue into v_bad
  from (
    select '*' as name, null as queue where types is null
    union all
    select case jsonb_typeof(entry.value) when 'string' then entry.value #>> '{}'
        else entry.value ->> 'name' end,
      case jsonb_typeof(entry.value) when 'object' then entry.value ->> 'queue' end
    from jsonb_array_elements(task_types) as entry
  ) as asked
  where not exists (
    select from unnest(v_rules) as rule
    where tasklib._matches(rule.name, asked.name)
      and (asked.queue is null or tasklib._matches(rule.queue, asked.queue)))
  order by 1, 2 limit 1;
  if found then
    perform tasklib._refuse(caller, 'claim', v_bad.queue, v_bad.name,
      case when types is null then 'Nothing was registered. A worker without task types takes any.'
        else 'Nothing was registered.' end);
  end if;
end;
$$;
comment on function tasklib._check_types(bigint[], jsonb, text) is
  'Internal. Raises TL012 for a name that the caller may claim in no queue, or for a default queue in which it may not claim that name.';

create or replace function tasklib._check_claim(worker tasklib.worker, queues text[])
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_role text := worker.registered_by;
  v_rules tasklib.rule[] := tasklib._rules_for(v_role, 'claim');
  v_queue text;
  v_patterns text[];
  v_name text;
begin
  if v_rules is null then
    return;
  end if;
  foreach v_queue in array queues loop
    v_patterns := array(
      select rule.name from unnest(v_rules) as rule where tasklib._matches(rule.queue, v_queue));
    continue when '*' = any (v_patterns);
    select asked.name into v_name
    from (
      select '*' as name where worker.types is null
      union all
      select known.name from tasklib.task_type as known where known.type = any (worker.types)
    ) as asked
    where not exists (
      select from unnest(v_patterns) as pattern where tasklib._matches(pattern, asked.name))
    order by 1 limit 1;
    if found then
      perform tasklib._refuse(v_role, 'claim', v_queue, v_name);
    end if;
  end loop;
end;
$$;
comment on function tasklib._check_claim(tasklib.worker, text[]) is
  'Internal. Raises TL012 unless the worker''s role may claim all names that it registered in all of these queues.';
