create or replace function tasklib.cancel(id uuid, caller tasklib.caller default current_user)
  returns text
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
as $$
declare
  v_row tasklib.ready;
begin
  perform tasklib._own_task(cancel.id, cancel.caller);
  loop
    if exists (select from tasklib.done where done.task_id = cancel.id) then
      return 'finished';
    end if;
    perform from tasklib.running where running.task_id = cancel.id for update;
    if found then
      insert into tasklib.cancel_request (task_id, requested_at)
      values (cancel.id, clock_timestamp())
      on conflict do nothing;
      return 'requested';
    end if;
    v_row := tasklib._withdraw(cancel.id);
    if v_row.task_id is not null then
      perform tasklib._close(v_row.task_id, 3::smallint, row(v_row.task_id, null, null, null,
        v_row.lane, v_row.type, v_row.attempt, v_row.unique_until, null)::tasklib.running, null);
      return 'cancelled';
    end if;
    -- it moved between two of the looks: look again
  end loop;
end;
$$;
comment on function tasklib.cancel(uuid, tasklib.caller) is
  'Cancel a task. cancelled: it was not running and never will be; requested: it runs, its worker will be told, a complete still wins and anything else ends as cancelled; finished: nothing to do. Errors: TL001, TL003 no such task, or one that another role enqueued.';

create or replace function tasklib._own_task(id uuid, caller text)
  returns tasklib.task
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task tasklib.task;
begin
  if id is null then
    perform tasklib._reject('TL001', 'id must be given, got NULL', null,
      'Pass the id that enqueue returned.');
  end if;
  select task.* into v_task from tasklib.task where task.id = _own_task.id;
  if not found or v_task.enqueued_by is distinct from caller and not tasklib._is_admin(caller) then
    perform tasklib._reject('TL003', 'no task ' || _own_task.id, null,
      'It was purged, never existed, or was enqueued by another role.');
  end if;
  return v_task;
end;
$$;
comment on function tasklib._own_task(uuid, text) is
  'Internal. A task that the caller may read and change. Raises TL001 or TL003.';

-- Taking a task out of its line may let another one with its concurrency key go: tick looks.
create or replace function tasklib._withdraw(id uuid)
  returns tasklib.ready
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_row tasklib.ready;
begin
  delete from tasklib.ready where ready.task_id = _withdraw.id returning ready.* into v_row;
  if not found then
    delete from tasklib.delayed where delayed.task_id = _withdraw.id
    returning delayed.task_id, delayed.lane, null::bigint, delayed.type, delayed.attempt, false,
      delayed.unique_until, null::tid, delayed.key into v_row;
  end if;
  if not found then
    delete from tasklib.waiting where waiting.task_id = _withdraw.id
    returning waiting.task_id, waiting.lane, waiting.pos, waiting.type, waiting.attempt, false,
      waiting.unique_until, null::tid, waiting.key into v_row;
  end if;
  if not found then
    delete from tasklib.parked where parked.task_id = _withdraw.id
    returning parked.task_id, null::bigint, null::bigint, parked.type, parked.attempt, false,
      parked.unique_until, null::tid, parked.key into v_row;
  end if;
  if v_row.holds_key then
    perform tasklib._leave_gates(array[v_row.key]);
  elsif v_row.key is not null and v_row.pos is not null then
    insert into tasklib.gate_check (key) values (v_row.key);
  end if;
  return v_row;
end;
$$;
comment on function tasklib._withdraw(uuid) is
  'Internal. Takes a task out of ready, delayed, waiting or parked; a row of nulls when it is in none. pos is null unless it was ready or waiting.';
