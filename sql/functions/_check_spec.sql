-- Everything that enqueue refuses, in the order of its arguments.
create or replace function tasklib._check_spec(spec tasklib.task_spec, index int)
  returns boolean
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_where text := case when _check_spec.index is not null
    then 'In tasks[' || _check_spec.index || ']. Nothing was enqueued.' else 'Nothing was enqueued.' end;
begin
  perform tasklib._check_label('name', spec.name, 128, v_where);
  perform tasklib._check_object('kwargs', spec.kwargs, 1048576, v_where);
  if spec.kwargs is null then
    perform tasklib._reject('TL001', 'kwargs must be a JSON object, got NULL', v_where,
      'Leave kwargs out for a task without arguments.');
  end if;
  if spec.queue is not null then
    perform tasklib._check_label('queue', spec.queue, 128, v_where);
  end if;
  perform tasklib._check_priority(spec.priority, v_where);
  perform tasklib._check_time(spec.delay, spec.scheduled_at, v_where);
  perform tasklib._check_options(spec.max_retries, spec.timeout_seconds, spec.backoff, v_where);
  perform tasklib._check_object('tags', spec.tags, 16384, v_where);
  perform tasklib._check_object('headers', spec.headers, 16384, v_where);
  if spec.unique_key is not null then
    perform tasklib._check_label('unique_key', spec.unique_key, 255, v_where);
  end if;
  if spec.concurrency_key is not null then
    perform tasklib._check_label('concurrency_key', spec.concurrency_key, 255, v_where);
  end if;
  if spec.unique_until is null or spec.unique_until not in ('finished', 'started') then
    perform tasklib._reject('TL001', 'unknown unique_until ' || tasklib._shown(spec.unique_until),
      v_where, 'Pass ''finished'' (the default) or ''started''.');
  end if;
  return spec.unique_key is not null;
end;
$$;
comment on function tasklib._check_spec(tasklib.task_spec, int) is
  'Internal. Raises TL001 or TL002 for what enqueue does not take; index names the element of a batch. True when the spec has a unique key.';

create or replace function tasklib._check_label(
  argument text,
  value text,
  max_bytes int,
  detail text default null
)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if value is null or value = '' or value ~ '[[:cntrl:]]' then
    perform tasklib._reject('TL001',
      argument || ' must be a text without control characters, got ' || tasklib._shown(value),
      detail, 'Pass 1 to ' || max_bytes || ' bytes, such as ''default'' or ''app.send_email''.');
  elsif octet_length(value) > max_bytes then
    perform tasklib._reject('TL002',
      argument || ' has ' || octet_length(value) || ' bytes: ' || tasklib._shown(value),
      detail, 'At most ' || max_bytes || ' bytes are allowed: use a shorter text, or a hash of it.');
  end if;
end;
$$;
comment on function tasklib._check_label(text, text, int, text) is
  'Internal. Raises unless value is a short printable text.';

create or replace function tasklib._check_object(
  argument text,
  value jsonb,
  max_bytes int,
  detail text default null
)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_text text := value::text;
begin
  if value is null then
    return;
  end if;
  if jsonb_typeof(value) <> 'object' then
    perform tasklib._reject('TL001',
      argument || ' must be a JSON object, got ' || tasklib._shown(v_text),
      detail, 'Pass an object such as {"to": "a@b.c"}: the names are the parameters of the task.');
  elsif octet_length(v_text) > max_bytes then
    perform tasklib._reject('TL002', argument || ' has ' || octet_length(v_text) || ' bytes as text',
      detail, 'At most ' || max_bytes || ' bytes are allowed: store large data elsewhere and pass a reference.');
  elsif jsonb_path_exists(value, 'strict $.**{65}') then
    perform tasklib._reject('TL002', argument || ' is nested deeper than 64 levels',
      detail, 'Flatten the value, or pass it as a text that the task parses.');
  end if;
end;
$$;
comment on function tasklib._check_object(text, jsonb, int, text) is
  'Internal. Raises unless value is null or a JSON object within its limits.';

create or replace function tasklib._check_priority(priority int, detail text default null)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if priority not between -1000 and 1000 then
    perform tasklib._reject('TL001', 'priority ' || priority || ' is out of range',
      detail, 'Pass -1000 to 1000; a higher one goes first, 0 is the default.');
  end if;
end;
$$;
comment on function tasklib._check_priority(int, text) is
  'Internal. Raises unless priority is null or within -1000 and 1000.';

create or replace function tasklib._check_time(
  delay interval,
  scheduled_at timestamptz,
  detail text default null
)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if delay is not null and scheduled_at is not null then
    perform tasklib._reject('TL001', 'both delay ' || tasklib._shown(delay::text)
      || ' and scheduled_at ' || tasklib._shown(scheduled_at::text) || ' are given',
      detail, 'Pass one of them.');
  elsif delay < interval '0' or delay > interval '5 years' then
    perform tasklib._reject('TL001', 'delay ' || tasklib._shown(delay::text) || ' is out of range',
      detail, 'Pass an interval from 0 to 5 years, such as interval ''10 minutes''.');
  elsif not isfinite(scheduled_at) or scheduled_at > clock_timestamp() + interval '5 years' then
    perform tasklib._reject('TL001',
      'scheduled_at ' || tasklib._shown(scheduled_at::text) || ' is out of range',
      detail, 'Pass a finite time at most 5 years ahead; a time in the past means now.');
  end if;
end;
$$;
comment on function tasklib._check_time(interval, timestamptz, text) is
  'Internal. Raises unless at most one of delay and scheduled_at is given, and is within 5 years.';

create or replace function tasklib._check_options(
  max_retries int,
  timeout_seconds float8,
  backoff jsonb,
  detail text default null
)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_key text;
  v_value jsonb;
  v_max numeric;
begin
  if max_retries not between 0 and 1000 then
    perform tasklib._reject('TL001', 'max_retries ' || max_retries || ' is out of range',
      detail, 'Pass 0 to 1000; 0 means one attempt.');
  end if;
  if not timeout_seconds between 0.001 and 604800 then
    perform tasklib._reject('TL001', 'timeout_seconds ' || timeout_seconds || ' is out of range',
      detail, 'Pass 0.001 to 604800 seconds (7 days), or leave it out for no timeout.');
  end if;
  if backoff is null then
    return;
  end if;
  perform tasklib._check_object('backoff', backoff, 1024, detail);
  for v_key, v_value in select entry.key, entry.value from jsonb_each(backoff) as entry loop
    v_max := case v_key when 'base_seconds' then 31536000 when 'cap_seconds' then 31536000
      when 'multiplier' then 100 when 'jitter' then 1 end;
    if v_max is null or jsonb_typeof(v_value) <> 'number' then
      perform tasklib._reject('TL001', 'backoff has no number ' || tasklib._shown(v_key)
        || ' = ' || tasklib._shown(v_value::text), detail,
        'The keys are base_seconds, multiplier, cap_seconds and jitter; all are numbers.');
    end if;
    if v_value::numeric <> 0 and not v_value::numeric between 0.001 and v_max then
      perform tasklib._reject('TL001', 'backoff ' || v_key || ' = ' || tasklib._shown(v_value::text)
        || ' is out of range', detail, 'Pass 0, or 0.001 to ' || v_max || '.');
    end if;
  end loop;
end;
$$;
comment on function tasklib._check_options(int, float8, jsonb, text) is
  'Internal. Raises unless retries, timeout and backoff are null or within their limits.';
