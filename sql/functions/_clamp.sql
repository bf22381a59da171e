-- Nothing that a worker reports may fail here, so numbers are clamped: negative and absurd ones too.
create or replace function tasklib._seconds(seconds numeric)
  returns interval
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return make_interval(secs => case
    when seconds = 'NaN' then 0
    when seconds is not null then round(greatest(0, least(seconds, 157680000)), 6)
  end::float8);
end;
$$;
comment on function tasklib._seconds(numeric) is
  'Internal. Seconds as an interval, clamped to 0 and 5 years (157,680,000 s).';

create or replace function tasklib._clamp(delay interval)
  returns interval
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case when delay is not null then greatest(interval '0', least(delay, interval '5 years')) end;
end;
$$;
comment on function tasklib._clamp(interval) is
  'Internal. A delay within 0 and 5 years. Null stays null.';

create or replace function tasklib._clip(message text)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when octet_length(message) <= 65536 then message
    else left(message, 8000) || E'\n… cut …\n' || right(message, 8000)
  end;
end;
$$;
comment on function tasklib._clip(text) is
  'Internal. An error text of at most 64 kB: of a longer one its beginning and its end.';

-- Inlined as the functions of _hash.sql are, for the same reason; stable, because date_part is, and
-- what claims more than its parts is not inlined.
create or replace function tasklib._milliseconds(at timestamptz)
  returns bigint
  language sql
  stable
  parallel safe
as $$
  select (pg_catalog.date_part('epoch', at) * 1000)::pg_catalog.int8
$$;
comment on function tasklib._milliseconds(timestamptz) is
  'Internal. A time as milliseconds since 1970, which is what a sequence can hold.';
