-- Ids are UUIDs of version 7 (RFC 9562): 48 bits of milliseconds, 12 bits of their fraction, random
-- bits, and in the last 16 bits the number of the shard. The function is written for the server that
-- it is installed on: PostgreSQL 18 makes them natively, in order within a session; before, the
-- fraction counts up through one call, whose ids share their random part.
do $do$
begin
  if current_setting('server_version_num')::int >= 180000 then
    create or replace function tasklib._new_ids(count int)
      returns uuid[]
      language plpgsql
      volatile
      set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_shard text := (select lpad(to_hex(config.shard), 4, '0') from tasklib.config);
    begin
      return array(
        select (left(uuidv7()::text, 32) || v_shard)::uuid
        from generate_series(1, _new_ids.count)
      );
    end;
    $$;
    create or replace function tasklib._new_id(shard int, at timestamptz)
      returns uuid
      language sql
      volatile
    as $$
      select (pg_catalog.left(pg_catalog.uuidv7()::pg_catalog.text, 32)
        || pg_catalog.lpad(pg_catalog.to_hex(shard), 4, '0'))::pg_catalog.uuid
    $$;
  else
    create or replace function tasklib._new_ids(count int)
      returns uuid[]
      language plpgsql
      volatile
      set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_tail text := substr(gen_random_uuid()::text, 20, 13)
        || (select lpad(to_hex(config.shard), 4, '0') from tasklib.config);
      v_start bigint := extract(epoch from clock_timestamp())::float8 * 4096000;
    begin
      -- 44 bits hold the milliseconds until the year 2527: the first hex digit is 0 until then
      return array(
        select ('0' || to_hex(((n >> 12) << 16) | 28672 | (n & 4095)) || v_tail)::uuid
        from generate_series(v_start + 1, v_start + _new_ids.count) as n
      );
    end;
    $$;
    create or replace function tasklib._new_id(shard int, at timestamptz)
      returns uuid
      language sql
      volatile
    as $$
      select ('0' || pg_catalog.to_hex(
          ((pg_catalog.date_part('epoch', at) * 4096000)::pg_catalog.int8 >> 12 << 16) | 28672
          | ((pg_catalog.date_part('epoch', at) * 4096000)::pg_catalog.int8 & 4095))
        || pg_catalog.substr(pg_catalog.gen_random_uuid()::pg_catalog.text, 20, 13)
        || pg_catalog.lpad(pg_catalog.to_hex(shard), 4, '0'))::pg_catalog.uuid
    $$;
  end if;
end
$do$;
comment on function tasklib._new_ids(int) is
  'Internal. count new task ids, ascending.';

comment on function tasklib._new_id(int, timestamptz) is
  'Internal. One new task id. at: now. Inlined as the functions of _hash.sql are, for the same reason.';

create or replace function tasklib._first_id(at timestamptz)
  returns uuid
  language sql
  immutable
  parallel safe
  set search_path = pg_catalog, pg_temp
as $$
  select (lpad(to_hex(greatest(0, extract(epoch from at) * 1000)::bigint), 12, '0')
    || '00000000000000000000')::uuid
$$;
comment on function tasklib._first_id(timestamptz) is
  'Internal. The lower bound of the ids made at or after a time.';

create or replace function tasklib.shard_of(id uuid)
  returns int
  language sql
  immutable
  strict
  parallel safe
  set search_path = pg_catalog, pg_temp
as $$
  select ('x' || right(id::text, 4))::bit(16)::int
$$;
comment on function tasklib.shard_of(uuid) is
  'The number of the database that made a task id (0 to 65535; 0 unless this installation was given another). Null for null.';
