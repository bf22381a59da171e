-- Applied last, every time. PUBLIC gets nothing; nobody gets rights on tables; each role gets the
-- functions of its trade, and loses what an older release gave it. Roles belong to the whole cluster, and
-- making them needs CREATEROLE: where that is missing, a DBA makes the four roles and this file is
-- applied again.
do $do$
declare
  v_role text;
begin
  foreach v_role in array
    array['tasklib_producer', 'tasklib_worker', 'tasklib_observer', 'tasklib_admin']
  loop
    begin
      if not exists (select from pg_catalog.pg_roles where rolname = v_role) then
        case v_role
          when 'tasklib_producer' then create role tasklib_producer nologin;
          when 'tasklib_worker' then create role tasklib_worker nologin;
          when 'tasklib_observer' then create role tasklib_observer nologin;
          when 'tasklib_admin' then create role tasklib_admin nologin;
        end case;
      end if;
    exception
      when insufficient_privilege then
        raise notice 'role % does not exist and could not be made: ask a DBA for "create role % nologin" and migrate again', v_role, v_role;
      when duplicate_object or unique_violation then
        null; -- another database of the cluster made it just now
    end;
  end loop;
end
$do$;

revoke all on schema tasklib from public;
revoke all on all tables in schema tasklib from public;
revoke all on all sequences in schema tasklib from public;
revoke all on all functions in schema tasklib from public;
-- A value of caller must not be kept (see there), and a column of the others would hold up migrations.
revoke all on type tasklib.caller, tasklib.task_spec, tasklib.enqueued, tasklib.claimed, tasklib.failed,
  tasklib.ticked, tasklib.pick from public;

-- First what an older version granted, and this one does not.
do $do$
begin
  if exists (select from pg_catalog.pg_roles where rolname = 'tasklib_producer') then
    revoke all on schema tasklib from tasklib_producer;
    revoke all on all tables in schema tasklib from tasklib_producer;
    revoke all on all sequences in schema tasklib from tasklib_producer;
    revoke all on all functions in schema tasklib from tasklib_producer;
    grant usage on schema tasklib to tasklib_producer;
    grant execute on function
      tasklib.enqueue(text, jsonb, text, int, interval, timestamptz, int, float8, jsonb, text, text, jsonb, text, jsonb, tasklib.caller),
      tasklib.enqueue_many(jsonb, tasklib.caller),
      tasklib.get(uuid, tasklib.caller),
      tasklib.list(text, text, text, jsonb, int, uuid, tasklib.caller),
      tasklib.cancel(uuid, tasklib.caller),
      tasklib.retry(uuid, tasklib.caller),
      tasklib.reschedule(uuid, timestamptz, interval, int, text, tasklib.caller),
      tasklib.shard_of(uuid),
      tasklib.version()
    to tasklib_producer;
  end if;
  if exists (select from pg_catalog.pg_roles where rolname = 'tasklib_worker') then
    revoke all on schema tasklib from tasklib_worker;
    revoke all on all tables in schema tasklib from tasklib_worker;
    revoke all on all sequences in schema tasklib from tasklib_worker;
    revoke all on all functions in schema tasklib from tasklib_worker;
    grant usage on schema tasklib to tasklib_worker;
    grant execute on function
      tasklib.register_worker(text, interval, jsonb, jsonb, tasklib.caller),
      tasklib.heartbeat(uuid, tasklib.caller),
      tasklib.cancel_requests(uuid),
      tasklib.claim(uuid, text[], int, tasklib.caller),
      tasklib.idle(uuid, text[], interval, boolean, tasklib.caller),
      tasklib.offer(uuid, text[], text, tasklib.caller),
      tasklib.complete(uuid, uuid, int, jsonb, tasklib.caller),
      tasklib.fail(uuid, uuid, int, text, boolean, interval, text, tasklib.caller),
      tasklib.finish(uuid, uuid[], int[], jsonb, tasklib.caller),
      tasklib.release(uuid, uuid[], int[], tasklib.caller),
      tasklib.snooze(uuid, uuid, int, interval, tasklib.caller),
      tasklib.set_progress(uuid, uuid, int, float8, text, tasklib.caller),
      tasklib.deregister_worker(uuid, boolean, uuid[], tasklib.caller),
      tasklib.tick(int),
      tasklib.sweep(),
      tasklib.shard_of(uuid),
      tasklib.version()
    to tasklib_worker;
  end if;
  if exists (select from pg_catalog.pg_roles where rolname = 'tasklib_observer') then
    revoke all on schema tasklib from tasklib_observer;
    revoke all on all tables in schema tasklib from tasklib_observer;
    revoke all on all sequences in schema tasklib from tasklib_observer;
    revoke all on all functions in schema tasklib from tasklib_observer;
    grant usage on schema tasklib to tasklib_observer;
    grant select on tasklib.queue_stats, tasklib.task_stats, tasklib.worker_health,
      tasklib.stuck_tasks, tasklib.tick_health, tasklib.rules, tasklib.limits to tasklib_observer;
    grant select (id, name, queue, state, retry_count, max_retries, next_retry_at, worker_id,
      locked_until, scheduled_at, created_at, started_at, completed_at, timeout_seconds, priority,
      attempt, cancel_requested_at, enqueued_by, progress) on tasklib.tasks to tasklib_observer;
    grant select (task_id, attempt, failed_at, worker_id, cause, next_retry_at) on tasklib.failures
      to tasklib_observer;
    grant execute on function tasklib.shard_of(uuid), tasklib.version() to tasklib_observer;
  end if;
  if exists (select from pg_catalog.pg_roles where rolname = 'tasklib_admin') then
    revoke all on schema tasklib from tasklib_admin;
    revoke all on all tables in schema tasklib from tasklib_admin;
    revoke all on all sequences in schema tasklib from tasklib_admin;
    revoke all on all functions in schema tasklib from tasklib_admin;
    grant usage on schema tasklib to tasklib_admin;
    grant select on tasklib.tasks, tasklib.failures, tasklib.queue_stats, tasklib.task_stats,
      tasklib.worker_health, tasklib.stuck_tasks, tasklib.tick_health, tasklib.rules,
      tasklib.limits to tasklib_admin;
    grant execute on function
      tasklib.get(uuid, tasklib.caller),
      tasklib.list(text, text, text, jsonb, int, uuid, tasklib.caller),
      tasklib.cancel(uuid, tasklib.caller),
      tasklib.retry(uuid, tasklib.caller),
      tasklib.reschedule(uuid, timestamptz, interval, int, text, tasklib.caller),
      tasklib.purge(interval, text, int),
      tasklib.set_queue(text, interval, int, boolean),
      tasklib.pause(text),
      tasklib.resume(text),
      tasklib.set_rule(text, text, text, text, tasklib.caller),
      tasklib.drop_rule(text, text, text, text),
      tasklib.set_limit(text, int, int, int, int, interval, int, tasklib.caller),
      tasklib.drop_limit(text),
      tasklib.set_strict(boolean),
      tasklib.deregister_worker(uuid, boolean, uuid[], tasklib.caller),
      tasklib.tick(int),
      tasklib.sweep(),
      tasklib.shard_of(uuid),
      tasklib.version()
    to tasklib_admin;
  end if;
end
$do$;
