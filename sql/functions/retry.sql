create or replace function tasklib.retry(id uuid, caller tasklib.caller default current_user)
  returns text
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
as $$
declare
  v_task tasklib.task;
  v_done tasklib.done;
  v_row tasklib.ready;
begin
  loop
    v_task := tasklib._own_task(retry.id, retry.caller);
    perform tasklib._check_placing(v_task, retry.caller, is_new => true);
    select done.* into v_done from tasklib.done where done.task_id = retry.id for update;
    if v_done.state > 1 then
      perform tasklib._retake_unique_key(v_task);
      delete from tasklib.done where done.task_id = retry.id;
      insert into tasklib.allowance (task_id, excused) values (retry.id, v_done.attempt)
      on conflict on constraint allowance_pkey do update
        set excused = excluded.excused, releases = 0, crashes = 0;
      perform tasklib._place(v_task, v_done.attempt);
      return 'pending';
    elsif v_done.state = 1 or exists (select from tasklib.running where running.task_id = retry.id) then
      perform tasklib._reject('TL008', 'task ' || retry.id || ' is '
        || case when v_done.state = 1 then 'completed' else 'running' end, null,
        'Only failed and cancelled tasks can be retried: enqueue a new one.');
    elsif exists (
      select from tasklib.delayed where delayed.task_id = retry.id and delayed.reason = 'r'
    ) then
      v_row := tasklib._withdraw(retry.id);
      if v_row.task_id is not null then
        perform tasklib._place(v_task, v_row.attempt);
        return 'pending';
      end if;
    elsif tasklib._is_pending(retry.id) then
      return 'pending';
    end if;
    -- it moved between two of the looks: look again
  end loop;
end;
$$;
comment on function tasklib.retry(uuid, tasklib.caller) is
  'Make a failed or cancelled task pending again under its id: its outcome goes, its failures stay, the attempt counter goes on, the retries start afresh. A task that waits for its retry becomes due now; any other pending one stays as it is. Returns pending. Errors: TL001, TL003, TL008 for a completed or running task, TL009 while another unfinished task holds its unique key, TL012, TL014.';

create or replace function tasklib._is_pending(id uuid)
  returns boolean
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (select from tasklib.ready where ready.task_id = _is_pending.id)
    or exists (select from tasklib.delayed where delayed.task_id = _is_pending.id)
    or exists (select from tasklib.waiting where waiting.task_id = _is_pending.id)
    or exists (select from tasklib.parked where parked.task_id = _is_pending.id);
end;
$$;
comment on function tasklib._is_pending(uuid) is
  'Internal. The task waits for its turn, its time, its key or a worker.';

create or replace function tasklib._retake_unique_key(task tasklib.task)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_holder uuid;
begin
  if task.unique_key is null then
    return;
  end if;
  insert into tasklib.unique_key (queue, key, task_id) values (task.queue, task.unique_key, task.id)
  on conflict do nothing;
  if not found then
    select holder.task_id into v_holder from tasklib.unique_key as holder
    where holder.queue = task.queue and holder.key = task.unique_key;
    if v_holder is distinct from task.id then
      perform tasklib._reject('TL009', 'unique_key ' || tasklib._shown(task.unique_key)
        || ' of queue ' || tasklib._shown(task.queue) || ' is held by task '
        || coalesce(v_holder::text, 'of another transaction'), null,
        'Wait until that task is finished, or cancel it.');
    end if;
  end if;
end;
$$;
comment on function tasklib._retake_unique_key(tasklib.task) is
  'Internal. Takes the unique key of a task again. Raises TL009 when another task holds it.';

-- Null while nobody ever registered the name: what it registers may still decide queue and priority.
create or replace function tasklib._lane_of(task tasklib.task)
  returns bigint
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from tasklib.task_type where task_type.type in (task.type, 0)) then
    return tasklib._lane(task.queue, task.priority);
  end if;
  return null;
end;
$$;
comment on function tasklib._lane_of(tasklib.task) is
  'Internal. The lane of a task; null when nobody ever registered its name.';

-- Where a task that is due belongs.
create or replace function tasklib._place(task tasklib.task, attempt int)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_lane bigint := tasklib._lane_of(task);
begin
  if v_lane is not null then
    insert into tasklib.ready (task_id, lane, type, attempt, unique_until, key)
    values (task.id, v_lane, task.type, _place.attempt, task.unique_until,
      tasklib._key(task.queue, task.concurrency_key));
    perform tasklib._wake_by(task.queue, array[task.type], clock_timestamp());
  else
    insert into tasklib.parked (type, task_id, attempt, unique_until, key)
    values (task.type, task.id, _place.attempt, task.unique_until,
      tasklib._key(task.queue, task.concurrency_key));
  end if;
end;
$$;
comment on function tasklib._place(tasklib.task, int) is
  'Internal. Puts a due task into ready, or into parked when its name was never registered, and wakes a worker for it.';
