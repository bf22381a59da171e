-- Nothing that a worker reports may fail here, so numbers are clamped: negative and absurd ones too.
create or replace function tasklib._seconds(seconds numeric)
  returns interval
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select make_interval(secs => case
    when seconds = 'NaN' then 0
    when seconds is not null then round(greatest(0, least(seconds, 157680000)), 6)
  end::float8)
$$;
comment on function tasklib._seconds(numeric) is
  'Internal. Seconds as an interval, clamped to 0 and 5 years (157,680,000 s).';

create or replace function tasklib._clamp(delay interval)
  returns interval
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select case when delay is not null then greatest(interval '0', least(delay, interval '5 years')) end
$$;
comment on function tasklib._clamp(interval) is
  'Internal. A delay within 0 and 5 years. Null stays null.';

create or replace function tasklib._clip(message text)
  returns text
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select case
    when octet_length(message) <= 65536 then message
    else left(message, 8000) || E'\n… cut …\n' || right(message, 8000)
  end
$$;
comment on function tasklib._clip(text) is
  'Internal. An error text of at most 64 kB: of a longer one its beginning and its end.';

create or replace function tasklib._milliseconds(at timestamptz)
  returns bigint
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select (extract(epoch from at)::float8 * 1000)::bigint
$$;
comment on function tasklib._milliseconds(timestamptz) is
  'Internal. A time as milliseconds since 1970, which is what a sequence can hold.';
