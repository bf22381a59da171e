-- What people look at. Each place of a task is one branch with its state as a constant, so that a
-- query by state reads one place and a query by id probes each by its index. Everything else is looked
-- up by key, row by row: a join that the planner may turn reads a whole table for each row when
-- statistics are old, as they always are in a queue.
create or replace view tasklib.tasks as
select
  place.task_id as id,
  task.name,
  task.queue,
  place.state,
  case when type.sensitive is null then task.kwargs else (
    select coalesce(jsonb_object_agg(entry.key,
      case when entry.key = any (type.sensitive) then '"***"' else entry.value end), '{}')
    from jsonb_each(task.kwargs) as entry)
  end as kwargs,
  place.result,
  coalesce(place.error, last_failure.error) as error,
  greatest(0, place.attempt - 1 - coalesce(allowance.excused, 0)) as retry_count,
  coalesce(task.max_retries, type.max_retries, 3)::int as max_retries,
  place.next_retry_at,
  place.worker_id,
  worker.lease_until as locked_until,
  coalesce(place.run_at, task.scheduled_at) as scheduled_at,
  task.created_at,
  place.started_at,
  place.completed_at,
  coalesce(task.timeout_seconds, type.timeout_seconds) as timeout_seconds,
  task.priority::int as priority,
  task.tags,
  place.attempt,
  cancel_request.requested_at as cancel_requested_at,
  task.headers,
  task.unique_key,
  task.concurrency_key,
  task.enqueued_by,
  progress.fraction as progress,
  progress.message as progress_message
from (
    select done.task_id, 'completed'::text as state, done.attempt, done.worker_id, done.started_at,
      done.finished_at as completed_at, null::timestamptz as run_at,
      null::timestamptz as next_retry_at, done.result, done.error, false as held
    from tasklib.done where done.state = 1
    union all
    select done.task_id, 'failed', done.attempt, done.worker_id, done.started_at, done.finished_at,
      null, null, done.result, done.error, false
    from tasklib.done where done.state = 2
    union all
    select done.task_id, 'cancelled', done.attempt, done.worker_id, done.started_at,
      done.finished_at, null, null, done.result, done.error, false
    from tasklib.done where done.state = 3
    union all
    select running.task_id, 'running', running.attempt, running.worker_id, running.started_at, null,
      null, null, null, null, true
    from tasklib.running
    union all
    select ready.task_id, 'pending', ready.attempt, null, null, null, null, null, null, null, false
    from tasklib.ready
    union all
    select waiting.task_id, 'pending', waiting.attempt, null, null, null, null, null, null, null, false
    from tasklib.waiting
    union all
    select parked.task_id, 'pending', parked.attempt, null, null, null, null, null, null, null, false
    from tasklib.parked
    union all
    select delayed.task_id, 'pending', delayed.attempt, null, null, null, delayed.run_at, null, null,
      null, false
    from tasklib.delayed where delayed.reason <> 'r' or delayed.run_at <= clock_timestamp()
    union all
    select delayed.task_id, 'failed', delayed.attempt, null, null, null, delayed.run_at,
      delayed.run_at, null, null, false
    from tasklib.delayed where delayed.reason = 'r' and delayed.run_at > clock_timestamp()
  ) as place
  cross join lateral (
    select body.* from tasklib.task as body where body.id = place.task_id offset 0
  ) as task
  left join lateral (
    select known.* from tasklib.task_type as known where known.type = task.type offset 0
  ) as type on true
  left join lateral (
    select counted.excused from tasklib.allowance as counted
    where counted.task_id = place.task_id offset 0
  ) as allowance on true
  left join lateral (
    select told.fraction, told.message from tasklib.progress as told
    where told.task_id = place.task_id offset 0
  ) as progress on true
  left join lateral (
    select asked.requested_at from tasklib.cancel_request as asked
    where asked.task_id = place.task_id offset 0
  ) as cancel_request on true
  left join lateral (
    select holder.lease_until from tasklib.worker as holder
    where place.held and holder.id = place.worker_id offset 0
  ) as worker on true
  left join lateral (
    select failure.error from tasklib.failure
    where failure.task_id = place.task_id
      and place.attempt > 0 and place.error is null and place.state <> 'completed'
    order by failure.attempt desc limit 1
  ) as last_failure on true;
comment on view tasklib.tasks is
  'Every task: what it is, where it stands, how it ended. state failed with next_retry_at set waits to run again by itself, without it has failed for good. error is the last failure''s. worker_id and locked_until say who holds it until when.';

create or replace view tasklib.failures as
select failure.task_id, failure.attempt, failure.failed_at, failure.worker_id, failure.cause,
  failure.error, failure.retry_at as next_retry_at
from tasklib.failure;
comment on view tasklib.failures is
  'Every failed attempt: when, by which worker, why (error, timeout, crashed, lost), with its traceback.';

-- Counts by lane, of which there are few, and asks one task of each for the name of its queue.
create or replace view tasklib.queue_stats as
with lanes as (
  select ready.lane, count(*) as ready, 0::bigint as waiting, 0::bigint as running,
    0::bigint as scheduled, 0::bigint as retrying, min(ready.pos) as pos,
    (array_agg(ready.task_id))[1] as sample
  from tasklib.ready group by ready.lane
  union all
  select waiting.lane, 0, count(*), 0, 0, 0, null, (array_agg(waiting.task_id))[1]
  from tasklib.waiting group by waiting.lane
  union all
  select running.lane, 0, 0, count(*), 0, 0, null, (array_agg(running.task_id))[1]
  from tasklib.running group by running.lane
  union all
  select delayed.lane, 0, 0, 0, count(*) filter (where delayed.reason <> 'r'),
    count(*) filter (where delayed.reason = 'r'), null, (array_agg(delayed.task_id))[1]
  from tasklib.delayed where delayed.lane is not null group by delayed.lane
),
counts as (
  select task.queue, lanes.ready, lanes.waiting, lanes.running, lanes.scheduled, lanes.retrying,
    0::bigint as parked, 0::bigint as failed, coalesce(head.scheduled_at, head.created_at) as ready_since
  from lanes
    join tasklib.task on task.id = lanes.sample
    left join tasklib.ready as first on first.lane = lanes.lane and first.pos = lanes.pos
    left join tasklib.task as head on head.id = first.task_id
  union all
  select task.queue, 0, 0, 0, 0, 0, count(*), 0, null
  from tasklib.parked join tasklib.task on task.id = parked.task_id group by task.queue
  union all
  select task.queue, 0, 0, 0, count(*), 0, 0, 0, null
  from tasklib.delayed join tasklib.task on task.id = delayed.task_id
  where delayed.lane is null group by task.queue
  union all
  select task.queue, 0, 0, 0, 0, 0, 0, count(*), null
  from tasklib.done join tasklib.task on task.id = done.task_id
  where done.state = 2 group by task.queue
  union all
  select queue.name, 0, 0, 0, 0, 0, 0, 0, null from tasklib.queue
)
select
  counts.queue,
  coalesce(bool_or(settings.paused), false) as paused,
  sum(counts.ready)::bigint as ready,
  sum(counts.waiting)::bigint as waiting,
  sum(counts.scheduled)::bigint as scheduled,
  sum(counts.parked)::bigint as parked,
  sum(counts.running)::bigint as running,
  sum(counts.retrying)::bigint as retrying,
  sum(counts.failed)::bigint as failed,
  extract(epoch from clock_timestamp() - min(counts.ready_since))::float8 as oldest_ready_seconds
from counts
  left join tasklib.queue as settings on settings.name = counts.queue
group by counts.queue;
comment on view tasklib.queue_stats is
  'Depth of each queue: ready; waiting for a concurrency key; scheduled for later; parked because no live worker knows the name; running; retrying (failed, will run again) and failed for good. oldest_ready_seconds: how long the first ready task has waited.';

-- The last 24 hours: ids begin with their time, so this reads the newest end of the index.
create or replace view tasklib.task_stats as
select
  task.name,
  count(*) filter (where done.state = 1) as completed,
  count(*) filter (where done.state = 2) as failed,
  count(*) filter (where done.state = 3) as cancelled,
  count(*) filter (where done.attempt > 1) as retried,
  avg(extract(epoch from done.finished_at - done.started_at))::float8 as mean_seconds,
  percentile_cont(0.5) within group (
    order by extract(epoch from done.finished_at - done.started_at)) as p50_seconds,
  percentile_cont(0.95) within group (
    order by extract(epoch from done.finished_at - done.started_at)) as p95_seconds,
  max(extract(epoch from done.finished_at - done.started_at))::float8 as max_seconds,
  max(done.finished_at) as last_finished_at
from tasklib.done
  join tasklib.task on task.id = done.task_id
where done.task_id >= (
  lpad(to_hex((extract(epoch from statement_timestamp() - interval '24 hours') * 1000)::bigint), 12, '0')
  || '00000000000000000000')::uuid
group by task.name;
comment on view tasklib.task_stats is
  'By name, tasks enqueued in the last 24 hours that are finished: how they ended and how long their last attempt ran.';

create or replace view tasklib.worker_health as
select
  worker.id as worker_id,
  worker.name,
  worker.registered_by,
  worker.registered_at,
  worker.lease_until - worker.lease as last_heartbeat_at,
  worker.lease_until,
  worker.lost_at is null and worker.lease_until >= clock_timestamp() as alive,
  case
    when worker.crashed then 'crashed'
    when worker.lost_at > worker.lease_until then 'lost'
    when worker.lost_at is not null then 'ended'
    when worker.lease_until < clock_timestamp() then 'silent'
    else 'alive'
  end as status,
  coalesce(held.running, 0) as running,
  held.oldest_started_at,
  cardinality(worker.types) as task_types,
  worker.lost_at,
  worker.info
from tasklib.worker
  left join (
    select running.worker_id, count(*) as running, min(running.started_at) as oldest_started_at
    from tasklib.running group by running.worker_id
  ) as held on held.worker_id = worker.id;
comment on view tasklib.worker_health is
  'Every worker of the last day: alive, silent (its lease ran out, tick will give its tasks to others), lost (tick did), crashed (its keeper saw it die and handed them back) or ended (it said so); how much it runs, and since when. task_types is null for a worker that takes any name.';

create or replace view tasklib.stuck_tasks as
select parked.task_id, task.name, task.queue, 'no live worker knows the name' as reason,
  'Start a worker that registers ' || task.name || '.' as hint,
  coalesce(task.scheduled_at, task.created_at) as since
from tasklib.parked join tasklib.task on task.id = parked.task_id
union all
select running.task_id, task.name, task.queue, 'its worker is silent',
  'Nothing to do: the next tick gives it to another worker. Is anybody ticking?', worker.lease_until
from tasklib.running
  join tasklib.task on task.id = running.task_id
  join tasklib.worker on worker.id = running.worker_id
where worker.lost_at is not null or worker.lease_until < clock_timestamp()
union all
select running.task_id, task.name, task.queue, 'it is past its timeout',
  'The next tick ends it. Is anybody ticking?', running.deadline
from tasklib.running join tasklib.task on task.id = running.task_id
where running.deadline < clock_timestamp() - interval '10 seconds'
union all
select ready.task_id, task.name, task.queue, 'its queue is paused',
  'select tasklib.resume(' || quote_literal(task.queue) || ');',
  coalesce(task.scheduled_at, task.created_at)
from tasklib.ready
  join tasklib.task on task.id = ready.task_id
  join tasklib.queue on queue.name = task.queue and queue.paused
union all
select delayed.task_id, task.name, task.queue, 'it is due, and nobody ticks',
  'Start a worker, or let pg_cron call tasklib.tick() each second.', delayed.run_at
from tasklib.delayed join tasklib.task on task.id = delayed.task_id
where delayed.run_at < clock_timestamp() - interval '10 seconds'
union all
select waiting.task_id, task.name, task.queue,
  'it waits for its concurrency key, held by ' || coalesce('task ' || gate.task_id, 'nobody'),
  'It goes on when that task is finished.', coalesce(task.scheduled_at, task.created_at)
from tasklib.waiting
  join tasklib.task on task.id = waiting.task_id
  left join tasklib.gate on gate.key = waiting.key;
comment on view tasklib.stuck_tasks is
  'Tasks that wait for something other than their turn, with the reason and what to do.';

create or replace view tasklib.tick_health as
select newest.at as last_tick_at,
  extract(epoch from clock_timestamp() - newest.at)::float8 as seconds_since_tick
from (
  select (select note.at from tasklib.horizon as note order by note.xid desc limit 1) as at
) as newest;
comment on view tasklib.tick_health is
  'When housekeeping was last done, in one row; nulls when it never was. Workers tick each second: more than a minute means that nobody promotes delayed tasks or takes tasks from dead workers.';

create or replace view tasklib.rules as
select rule.role, rule.action, rule.queue, rule.name,
  rule.role = 'public' or exists (select from pg_catalog.pg_roles where rolname = rule.role) as role_exists,
  rule.set_by, rule.set_at
from tasklib.rule;
comment on view tasklib.rules is
  'Who may enqueue or claim what: roles that a rule covers may do no more than their rules say. A star stands for any ending. role_exists is false when the role was dropped or renamed since. set_by: who set the rule last.';

create or replace view tasklib.limits as
select role_limit.role, role_limit.max_bytes, role_limit.min_priority, role_limit.max_priority,
  role_limit.max_retries, role_limit.max_delay, role_limit.max_backlog,
  coalesce(backlog.counted, 0) as backlog,
  role_limit.role = 'public'
    or exists (select from pg_catalog.pg_roles where rolname = role_limit.role) as role_exists,
  role_limit.set_by, role_limit.set_at
from tasklib.role_limit
  left join tasklib.backlog on backlog.role = role_limit.role;
comment on view tasklib.limits is
  'What a role may ask for when it enqueues; null: as much as anybody. backlog: about how many unfinished tasks the role itself has, counted only while some limit has a max_backlog.';
