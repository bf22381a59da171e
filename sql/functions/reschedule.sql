create or replace function tasklib.reschedule(
  id uuid,
  scheduled_at timestamptz default null,
  delay interval default null,
  priority int default null,
  queue text default null,
  caller tasklib.caller default current_user
)
  returns text
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
as $$
declare
  v_task tasklib.task := tasklib._own_task(reschedule.id, reschedule.caller);
  v_was tasklib.delayed;
  v_row tasklib.ready;
  v_run_at timestamptz;
begin
  perform tasklib._check_time(reschedule.delay, reschedule.scheduled_at);
  perform tasklib._check_priority(reschedule.priority);
  if reschedule.queue is not null then
    perform tasklib._check_label('queue', reschedule.queue, 128);
  end if;
  perform tasklib._check_placing(v_task, reschedule.caller, reschedule.queue, reschedule.priority,
    coalesce(reschedule.scheduled_at, clock_timestamp() + reschedule.delay));

  select delayed.* into v_was from tasklib.delayed where delayed.task_id = reschedule.id for update;
  v_row := tasklib._withdraw(reschedule.id);
  if v_row.task_id is null then
    perform tasklib._reject('TL008', 'task ' || reschedule.id || ' is running or finished', null,
      'Only a task that waits can be rescheduled.');
  end if;
  v_run_at := coalesce(reschedule.scheduled_at, clock_timestamp() + reschedule.delay, v_was.run_at);
  v_task := tasklib._reroute(v_task, coalesce(reschedule.queue, v_task.queue),
    coalesce(reschedule.priority, v_task.priority), reschedule.queue is not null,
    reschedule.priority is not null, v_run_at);

  if v_run_at > clock_timestamp() then
    insert into tasklib.delayed (run_at, task_id, lane, type, attempt, reason, unique_until, key)
    values (v_run_at, v_task.id, tasklib._lane_of(v_task), v_task.type,
      v_row.attempt,
      case when coalesce(reschedule.scheduled_at, clock_timestamp() + reschedule.delay) is null
        then v_was.reason else 'd' end,
      v_task.unique_until, tasklib._key(v_task.queue, v_task.concurrency_key));
    perform tasklib._wake_by(v_task.queue, array[v_task.type], v_run_at);
  else
    perform tasklib._place(v_task, v_row.attempt);
  end if;
  return 'pending';
end;
$$;
comment on function tasklib.reschedule(uuid, timestamptz, interval, int, text, tasklib.caller) is
  'Change the time, the priority or the queue of a task that neither runs nor is finished; what is left out stays. A time in the past means now. Returns pending. Errors: TL001, TL002, TL003, TL008 for a running or finished task, TL009 when its unique key is taken in the new queue, TL012, TL013.';

-- The only change a body ever sees. The unique key moves with the task.
create or replace function tasklib._reroute(
  task tasklib.task,
  queue text,
  priority int,
  queue_given boolean,
  priority_given boolean,
  scheduled_at timestamptz
)
  returns tasklib.task
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task tasklib.task;
begin
  update tasklib.task as body
  set queue = _reroute.queue,
      priority = _reroute.priority,
      queue_given = body.queue_given or _reroute.queue_given,
      priority_given = body.priority_given or _reroute.priority_given,
      scheduled_at = _reroute.scheduled_at
  where body.id = task.id
  returning body.* into v_task;

  if v_task.queue <> task.queue and v_task.unique_key is not null then
    delete from tasklib.unique_key
    where unique_key.queue = task.queue and unique_key.key = task.unique_key
      and unique_key.task_id = task.id;
    if found then
      perform tasklib._retake_unique_key(v_task);
    end if;
  end if;
  return v_task;
end;
$$;
comment on function tasklib._reroute(tasklib.task, text, int, boolean, boolean, timestamptz) is
  'Internal. Moves a task to another queue, priority or time; raises TL009 when its unique key is taken there.';
