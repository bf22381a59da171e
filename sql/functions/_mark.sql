-- Low-water marks. A mark says: no row of the lane lies below it, and none can come to lie there. So a
-- claim may start at the mark, however many dead rows a long snapshot keeps below it.
--
-- Why that can be proven. Every transaction takes its id before it draws a position or reads the clock
-- for a due time (_insert_tasks asks for it; everything else has deleted a row by then). tick reads the
-- last position S and the clock T, then looks for an id X above all that are in use, and notes (X, S, T).
-- A transaction that drew a position up to S had its id by then, so either it has ended or its id is below
-- X. Once every transaction below X has ended, nothing at or below S can appear any more. Readers have no
-- id and do not hold this up. (The id of the ticking transaction will not do for X: it may be older than S.)

-- Nothing new can appear at or below pos, or due before at.
create or replace function tasklib._safe(out pos bigint, out at timestamptz)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_pos bigint;
  v_at timestamptz;
  v_xid xid8;
  v_oldest xid8;
begin
  select case when is_called then last_value else last_value - 1 end into v_pos from tasklib.position;
  v_at := clock_timestamp();
  v_xid := pg_current_xact_id();
  -- two notes a second are enough, however many tick: under a held snapshot they all stay
  insert into tasklib.horizon (xid, pos, at)
  select tasklib._unused_id(v_xid), v_pos, v_at
  where not exists (
    select from (select note.* from tasklib.horizon as note order by note.xid desc limit 1) as newest
    where newest.at > v_at - interval '500 milliseconds' and newest.pos > v_pos - 1000)
  on conflict do nothing;

  v_oldest := pg_snapshot_xmin(pg_current_snapshot());
  select note.pos, note.at into _safe.pos, _safe.at
  from tasklib.horizon as note where note.xid <= v_oldest order by note.xid desc limit 1;

  -- a long transaction holds it up: does it write to the queue at all?
  if _safe.at is null or v_pos - _safe.pos > 1000 or v_at - _safe.at > interval '5 seconds' then
    v_oldest := tasklib._oldest_writer(v_xid);
    select note.pos, note.at into _safe.pos, _safe.at
    from tasklib.horizon as note where note.xid <= v_oldest order by note.xid desc limit 1;
  end if;

  delete from tasklib.horizon as note
  where note.xid < (
    select kept.xid from tasklib.horizon as kept where kept.pos <= _safe.pos and kept.at <= _safe.at
    order by kept.xid desc limit 1);
end;
$$;
comment on function tasklib._safe() is
  'Internal. Notes where positions and time stand, and returns the newest note that every transaction which could still write below it has outlived: nothing new can appear at or below pos, or due before at. Nulls while there is none.';

create or replace function tasklib._last_note()
  returns timestamptz
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (select note.at from tasklib.horizon as note order by note.xid desc limit 1);
end;
$$;
comment on function tasklib._last_note() is
  'Internal. When tick last noted where positions stand; null when it never did.';

-- Whoever has an id holds a lock on it, from before it can draw a position until it has ended. pg_locks
-- shows the last 32 bits of ids; half a circle either way from our own one makes them whole.
create or replace function tasklib._whole_id(shown xid, own xid8)
  returns xid8
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select (own::text::numeric - 2147483648
    + (shown::text::numeric - own::text::numeric % 4294967296 + 6442450944) % 4294967296)::text::xid8
$$;
comment on function tasklib._whole_id(xid, xid8) is
  'Internal. The transaction id of which pg_locks shows 32 bits; own is the caller''s.';

create or replace function tasklib._unused_id(own xid8)
  returns xid8
  language sql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
  select (max(tasklib._whole_id(holder.transactionid, own)::text::numeric) + 1)::text::xid8
  from pg_locks as holder
  where holder.locktype = 'transactionid' and holder.mode = 'ExclusiveLock' and holder.granted
$$;
comment on function tasklib._unused_id(xid8) is
  'Internal. An id above those of all transactions that have one now; own is the caller''s.';

-- The lock on a table that a transaction has written to is held until it has ended, so that one which
-- is not seen here has ended, and a later snapshot sees what it did.
create or replace function tasklib._oldest_writer(own xid8)
  returns xid8
  language sql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(min(tasklib._whole_id(holder.transactionid, own)::text::numeric)::text::xid8, own)
  from pg_locks as writer
    join pg_locks as holder using (virtualtransaction)
  where writer.locktype = 'relation'
    and writer.database = (select oid from pg_database where datname = current_database())
    and writer.relation in (
      'tasklib.ready'::regclass, 'tasklib.delayed'::regclass, 'tasklib.running'::regclass)
    and writer.mode = 'RowExclusiveLock'
    and holder.locktype = 'transactionid'
    and holder.mode = 'ExclusiveLock'
    and holder.granted
    and holder.pid is distinct from pg_backend_pid()
$$;
comment on function tasklib._oldest_writer(xid8) is
  'Internal. The oldest transaction that has written, or may write, to ready, delayed or running; own when there is none.';

-- One position in 127 leaves a note of its lane, so that tick knows which lanes see traffic and a lane
-- with little of it costs claims nothing. _pick_between asks for it when one was among those picked. A
-- note is a mark that claims no more than the last one did.
create or replace function tasklib._note_lanes(lanes bigint[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  insert into tasklib.mark (lane, low_pos, noted_at)
  select busy.lane, coalesce(newest.low_pos, 0), v_now
  from (select distinct given.lane from unnest(lanes) as given (lane)) as busy
    left join lateral (
      select mark.low_pos, mark.noted_at from tasklib.mark
      where mark.lane = busy.lane
      order by mark.lane, mark.low_pos desc, mark.noted_at desc limit 1
    ) as newest on true
  where newest.noted_at is null or newest.noted_at < v_now - interval '5 seconds';
end;
$$;
comment on function tasklib._note_lanes(bigint[]) is
  'Internal. Notes that much was taken from these lanes, at most once in 5 s for each.';

-- Marks are appended and old ones deleted: the newest is the first entry of its lane, which a row
-- updated in place under a held snapshot would not be. A mark costs every claim that passes its lane two
-- descents, so it goes when nothing needs it: the lane is empty, was not noted for a while (the
-- statistics of dead rows are a second late), and vacuum has removed what was below it.
create or replace function tasklib._move_marks(safe_pos bigint)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_mark tasklib.mark;
  v_lane bigint := -9223372036854775808;
  v_first bigint;
  v_low bigint;
begin
  loop
    select mark.* into v_mark from tasklib.mark
    where mark.lane > v_lane order by mark.lane, mark.low_pos desc, mark.noted_at desc limit 1;
    exit when not found;
    v_lane := v_mark.lane;

    v_first := (
      select ready.pos from tasklib.ready
      where ready.lane = v_lane and ready.pos >= v_mark.low_pos
      order by ready.lane, ready.pos limit 1);
    v_low := least(v_first, safe_pos + 1);

    if v_first is null and v_mark.noted_at < clock_timestamp() - interval '10 seconds'
      and pg_stat_get_dead_tuples('tasklib.ready'::regclass) < 5000
    then
      delete from tasklib.mark where mark.lane = v_lane;
    elsif v_low > v_mark.low_pos + 200 then
      insert into tasklib.mark (lane, low_pos, noted_at) values (v_lane, v_low, v_mark.noted_at);
      delete from tasklib.mark where mark.lane = v_lane and mark.low_pos < v_low;
    end if;
  end loop;
end;
$$;
comment on function tasklib._move_marks(bigint) is
  'Internal. Moves the low-water marks of all lanes up to their first task, at most to safe_pos + 1.';

-- A claim walks over all that was taken since the mark of its lane was moved: under a held snapshot that
-- costs more than the tasks when a second's worth of a fast queue lies there.
create or replace function tasklib._follow(lane bigint, pos bigint)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if pos - tasklib._low_pos(lane) < 4000 or current_setting('transaction_isolation') <> 'read committed' then
    return;
  end if;
  perform from tasklib.housekeeping for update skip locked;
  if found then
    perform tasklib._move_marks(safe.pos) from tasklib._safe() as safe where safe.pos is not null;
  end if;
end;
$$;
comment on function tasklib._follow(bigint, bigint) is
  'Internal. Moves marks between two ticks, when a claim has come 4000 positions or more beyond that of its lane.';

create or replace function tasklib._low_time(kind text)
  returns timestamptz
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce((
    select time_mark.low from tasklib.time_mark where time_mark.kind = _low_time.kind
    order by time_mark.kind desc, time_mark.low desc limit 1), '-infinity');
end;
$$;
comment on function tasklib._low_time(text) is
  'Internal. The low-water mark of delayed (kind delayed) or of running deadlines (kind deadline).';

create or replace function tasklib._move_time_mark(kind text, first timestamptz, safe_at timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_low timestamptz := case when safe_at is not null then least(first, safe_at) end;
begin
  -- -infinity plus 5 seconds is -infinity
  if v_low > tasklib._low_time(_move_time_mark.kind) + interval '5 seconds' then
    insert into tasklib.time_mark (kind, low) values (_move_time_mark.kind, v_low);
    delete from tasklib.time_mark
    where time_mark.kind = _move_time_mark.kind and time_mark.low < v_low;
  end if;
end;
$$;
comment on function tasklib._move_time_mark(text, timestamptz, timestamptz) is
  'Internal. Moves a time mark to the first entry, at most to safe_at.';
