-- Concurrency keys. A gate row exists exactly while a task of its key runs, or is ready with
-- holds_key. Nobody waits for a gate that is held: whoever finds its row locked leaves a note in
-- gate_check, and tick looks again. Only who makes a gate waits for another session that makes the same
-- one at this moment, which is why a claim is to be committed at once. So that two of them never wait for
-- each other, a transaction makes gates in ascending order of their keys: a claim takes no task out of
-- ready whose gate would come too late, and a note of such a gate stays.

-- A task may pass when nobody has the gate and nobody with the same key is before it. A row that
-- another session has picked but not committed is still seen here, so two claims cannot overtake each
-- other.
create or replace function tasklib._open_gates(picked tasklib.ready[])
  returns tasklib.ready[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_row tasklib.ready;
  v_out uuid[] := array[]::uuid[];
  v_made bigint;
begin
  for v_row in
    select pick.* from unnest(picked) as pick
    where pick.key is not null and not pick.holds_key
    order by pick.key, pick.pos
  loop
    if tasklib._open_gate(v_row) then
      v_made := v_row.key;
    else
      insert into tasklib.waiting (key, pos, task_id, lane, type, attempt, unique_until)
      values (v_row.key, v_row.pos, v_row.task_id, v_row.lane, v_row.type, v_row.attempt,
        v_row.unique_until);
      v_out := v_out || v_row.task_id;
    end if;
  end loop;
  if v_made is not null then
    perform tasklib._note_gate(v_made);
  end if;
  return coalesce((
    select array_agg(picked[n] order by n) from generate_subscripts(picked, 1) as n
    where (picked[n]).task_id <> all (v_out)
  ), array[]::tasklib.ready[]);
end;
$$;
comment on function tasklib._open_gates(tasklib.ready[]) is
  'Internal. Takes the gates of picked tasks; those that do not get theirs go to waiting and are left out.';

create or replace function tasklib._open_gate(candidate tasklib.ready)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform from tasklib.gate where gate.key = candidate.key for update skip locked;
  if found then
    return false;
  end if;
  if not exists (select from tasklib.gate where gate.key = candidate.key) then
    if exists (
      select from tasklib.waiting where waiting.key = candidate.key and waiting.pos < candidate.pos
      union all
      select from tasklib.ready where ready.key = candidate.key and ready.pos < candidate.pos
    ) then
      insert into tasklib.gate_check (key) values (candidate.key);
      return false;
    end if;
    insert into tasklib.gate (key, task_id) values (candidate.key, candidate.task_id)
    on conflict do nothing;
    if found then
      return true;
    end if;
  end if;
  insert into tasklib.gate_check (key) values (candidate.key);
  return false;
end;
$$;
comment on function tasklib._open_gate(tasklib.ready) is
  'Internal. Takes the gate of the candidate''s key; false when it has to wait.';

create or replace function tasklib._leave_gates(keys bigint[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_key bigint;
begin
  for v_key in
    select distinct given.key from unnest(keys) as given (key) where given.key is not null order by 1
  loop
    perform from tasklib.gate where gate.key = v_key for update skip locked;
    if found then
      perform tasklib._hand_over(v_key, held => true);
    else
      insert into tasklib.gate_check (key) values (v_key);
    end if;
  end loop;
end;
$$;
comment on function tasklib._leave_gates(bigint[]) is
  'Internal. The tasks that held these gates no longer run: hand each gate to the next in line.';

-- held: the caller has the gate row locked. Otherwise it found none, and another session may be making
-- one: then nothing but an insert is safe. When the first in line is still ready, the gate opens and its
-- claim takes it; the note stays, as that claim may be undone or the task cancelled.
create or replace function tasklib._hand_over(key bigint, held boolean)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_next tasklib.waiting;
  v_open boolean := true;
begin
  select waiting.* into v_next
  from tasklib.waiting
  where waiting.key = _hand_over.key
  order by waiting.key, waiting.pos limit 1
  for update skip locked;

  if v_next.task_id is not null and not exists (
    select from tasklib.ready where ready.key = _hand_over.key and ready.pos < v_next.pos
  ) then
    if held then
      update tasklib.gate set task_id = v_next.task_id where gate.key = _hand_over.key;
    else
      insert into tasklib.gate (key, task_id) values (_hand_over.key, v_next.task_id)
      on conflict do nothing;
    end if;
    v_open := not found;
  end if;
  if v_open then
    if held then
      delete from tasklib.gate where gate.key = _hand_over.key;
    end if;
    insert into tasklib.gate_check (key)
    select _hand_over.key
    where exists (select from tasklib.waiting where waiting.key = _hand_over.key);
    return false;
  end if;
  delete from tasklib.waiting where waiting.key = v_next.key and waiting.pos = v_next.pos;
  insert into tasklib.ready (task_id, lane, type, attempt, holds_key, unique_until, key)
  values (v_next.task_id, v_next.lane, v_next.type, v_next.attempt, true, v_next.unique_until, v_next.key);
  return true;
end;
$$;
comment on function tasklib._hand_over(bigint, boolean) is
  'Internal. Gives the gate of a key to the first waiting task, or opens it. True when a task became ready.';

-- A note is settled when the gate's holder runs or is ready with the gate, or when the gate was handed
-- over here.
create or replace function tasklib._check_gates(max_rows int)
  returns int
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_key bigint;
  v_holder uuid;
  v_count int := 0;
  v_last bigint := tasklib._last_gate();
  v_made bigint := v_last;
begin
  for v_key in
    with noted as (
      delete from tasklib.gate_check
      where gate_check.ctid = any (array(
        select note.ctid from tasklib.gate_check as note limit max_rows for update skip locked))
      returning gate_check.key
    )
    select distinct noted.key from noted order by 1
  loop
    select gate.task_id into v_holder from tasklib.gate where gate.key = v_key for update skip locked;
    if not found and (v_key <= v_last or exists (select from tasklib.gate where gate.key = v_key)) then
      insert into tasklib.gate_check (key) values (v_key);
    elsif v_holder is null
      or not exists (select from tasklib.running where running.task_id = v_holder)
        and not exists (select from tasklib.ready where ready.task_id = v_holder and ready.holds_key)
    then
      if tasklib._hand_over(v_key, held => v_holder is not null) then
        v_count := v_count + 1;
        v_made := case when v_holder is null then v_key else v_made end;
      end if;
    end if;
    v_holder := null;
  end loop;
  if v_made is distinct from v_last then
    perform tasklib._note_gate(v_made);
  end if;
  return v_count;
end;
$$;
comment on function tasklib._check_gates(int) is
  'Internal. Looks again at gates that were locked when they should have been handed over; returns how many tasks became ready.';

-- A setting, as it is undone with the gates: by a rollback, also to a savepoint. Anybody may set it for
-- the own session; then the own tasks wait.
-- Inlined as the functions of _hash.sql are, for the same reason.
create or replace function tasklib._last_gate()
  returns bigint
  language sql
  stable
as $$
  select case when pg_catalog.current_setting('tasklib.last_gate', true) ~ '^[0-9a-f]{16}$'
    then ('x' || pg_catalog.current_setting('tasklib.last_gate', true))::pg_catalog.bit(64)::pg_catalog.int8 end
$$;
comment on function tasklib._last_gate() is
  'Internal. The greatest key of the gates that this transaction has made; null when it made none.';

create or replace function tasklib._note_gate(key bigint)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform set_config('tasklib.last_gate', lpad(to_hex(key), 16, '0'), true);
end;
$$;
comment on function tasklib._note_gate(bigint) is
  'Internal. Notes for this transaction how far it has come in making gates.';
