-- TaskLib 0.1.0: installs the schema tasklib.
-- Run it in one transaction: psql --single-transaction -v ON_ERROR_STOP=1 -f this-file

do $$
begin
  if to_regclass('tasklib.migration') is not null then
    raise exception 'TaskLib is installed in this database already'
      using errcode = 'TL008', hint = 'Run `tasklib migrate` to bring it up to date.';
  end if;
end
$$;

create schema tasklib;
comment on schema tasklib is
  'TaskLib, a durable task queue: call its functions, look at its views; its tables are private.';

create table tasklib.migration (
  name text not null,
  sha256 text not null,
  applied_at timestamptz not null default clock_timestamp(),
  constraint migration_pkey primary key (name)
);
comment on table tasklib.migration is
  'The migrations that ran in this database; the last name is the version of the schema.';
comment on column tasklib.migration.name is
  'File name without its ending, such as 0001_tables.';
comment on column tasklib.migration.sha256 is
  'Fingerprint of the text that ran; a released migration never changes.';
comment on column tasklib.migration.applied_at is 'When it ran.';

-- migrations/0001_tables.sql
-- The tables of the queue. Where a task lives is what it is doing: its body stays in `task` from the
-- first day to the last, and one narrow row moves from table to table beside it.
--
--   enqueue ──► ready | delayed | parked
--   ready ──► running            claim
--         ──► waiting            claim, when another task holds the concurrency key
--         ──► parked             tick, when no live worker knows the name
--   running ──► done             complete, fail for good, cancelled
--           ──► delayed          fail with a retry, snooze
--           ──► ready            release
--   delayed, waiting, parked ──► ready
--
-- No foreign keys, triggers or enums: each would add locks or work to the hot path. Narrow tables
-- keep one row of less than 100 bytes a task; only `task`, `done` and `failure` carry what users wrote.

create sequence tasklib.position as bigint cache 1;
comment on sequence tasklib.position is
  'Order in which tasks became ready. CACHE 1 is load-bearing: with a larger cache a session could commit a position below a low-water mark that was proven safe.';

create sequence tasklib.asleep_until as bigint minvalue 0 start 0;
comment on sequence tasklib.asleep_until is
  'A flag that costs one page read and no transaction: milliseconds since 1970 until which some worker sleeps and wants to be notified.';

create sequence tasklib.notified_at as bigint minvalue 0 start 0;
comment on sequence tasklib.notified_at is
  'Milliseconds since 1970 of the last wake-up sent, times 1048576, and two bits for each queue it was sent for since; 0 when a worker has gone to sleep since, or has come. Keeps busy commits from notifying.';

create table tasklib.config (
  only_row boolean not null default true,
  shard int not null default 0,
  constraint config_pkey primary key (only_row),
  constraint config_one_row check (only_row),
  constraint config_shard_check check (shard between 0 and 65535)
);
insert into tasklib.config default values;
comment on table tasklib.config is 'Settings of this installation, one row.';
comment on column tasklib.config.shard is 'Number put into the last 16 bits of every id made here; see shard_of(id).';

create table tasklib.task (
  id uuid not null,
  type bigint not null,
  created_at timestamptz not null,
  scheduled_at timestamptz,
  timeout_seconds float8,
  priority smallint not null,
  max_retries smallint,
  queue_given boolean not null,
  priority_given boolean not null,
  name text not null,
  queue text not null,
  enqueued_by text not null,
  kwargs jsonb not null,
  tags jsonb,
  headers jsonb,
  backoff jsonb,
  unique_key text,
  concurrency_key text,
  unique_until "char",
  constraint task_pkey primary key (id)
);
create index task_type_idx on tasklib.task (type, id);
comment on table tasklib.task is 'The body of a task: inserted once, changed by reschedule (and by routing a name first seen later) alone.';
comment on column tasklib.task.type is 'Hash of the name, see _type_of(name).';
comment on column tasklib.task.queue_given is 'False when the queue came from a default; then the defaults of a name registered later may still move it.';
comment on column tasklib.task.enqueued_by is 'Role that enqueued it: that role may read and cancel it.';
comment on column tasklib.task.unique_until is 'f: the unique key is held until finished, s: until started; null without a key.';
comment on index tasklib.task_type_idx is 'list(name => …): newest tasks of a name.';

create table tasklib.ready (
  task_id uuid not null,
  lane bigint not null,
  pos bigint not null default nextval('tasklib.position'),
  type bigint not null,
  attempt int not null,
  holds_key boolean not null default false,
  unique_until "char",
  place tid,
  key bigint,
  constraint ready_pkey primary key (lane, pos)
);
create unique index ready_task_idx on tasklib.ready (task_id);
create index ready_key_idx on tasklib.ready (key, pos) where key is not null;
comment on table tasklib.ready is 'Who is next: tasks that may be claimed now, in the order (lane, pos).';
comment on column tasklib.ready.lane is 'Queue and priority in one number that sorts as claim wants it, see _lane(queue, priority).';
comment on column tasklib.ready.pos is 'Drawn when the task became ready.';
comment on column tasklib.ready.place is 'Where the body was put (its ctid), so that a claim finds it in one step however long the history is; looked up by id when null or no longer true.';
comment on column tasklib.ready.key is 'Hash of queue and concurrency key; null without one.';
comment on column tasklib.ready.holds_key is 'The gate of the key was handed to this task by the one before it.';
comment on index tasklib.ready_task_idx is 'A task is ready once; cancel, reschedule and get find it by id.';
comment on index tasklib.ready_key_idx is 'Is somebody with the same concurrency key before me?';

create table tasklib.delayed (
  run_at timestamptz not null,
  task_id uuid not null,
  lane bigint,
  type bigint not null,
  attempt int not null,
  reason "char" not null,
  unique_until "char",
  key bigint,
  constraint delayed_pkey primary key (run_at, task_id),
  constraint delayed_reason_check check (reason in ('d', 'r', 's'))
);
create unique index delayed_task_idx on tasklib.delayed (task_id);
comment on table tasklib.delayed is 'Not before run_at: d delayed at enqueue or rescheduled, r waits for its retry, s snoozed.';
comment on column tasklib.delayed.lane is 'Null while nobody ever registered the name: the lane is decided when it is due.';
comment on index tasklib.delayed_task_idx is 'A task is delayed once; found by id.';

create table tasklib.waiting (
  key bigint not null,
  pos bigint not null,
  task_id uuid not null,
  lane bigint not null,
  type bigint not null,
  attempt int not null,
  unique_until "char",
  constraint waiting_pkey primary key (key, pos)
);
create unique index waiting_task_idx on tasklib.waiting (task_id);
comment on table tasklib.waiting is 'Behind its concurrency key: the first of a key gets the gate when it opens.';
comment on index tasklib.waiting_task_idx is 'A task waits once; found by id.';

create table tasklib.parked (
  type bigint not null,
  task_id uuid not null,
  attempt int not null,
  unique_until "char",
  key bigint,
  constraint parked_pkey primary key (type, task_id)
);
create unique index parked_task_idx on tasklib.parked (task_id);
comment on table tasklib.parked is 'Due, but no live worker knows its name; out of the way of claims until one registers it.';
comment on index tasklib.parked_task_idx is 'A task is parked once; found by id.';

create table tasklib.running (
  task_id uuid not null,
  worker_id uuid not null,
  started_at timestamptz not null,
  deadline timestamptz,
  lane bigint not null,
  type bigint not null,
  attempt int not null,
  unique_until "char",
  key bigint,
  constraint running_pkey primary key (task_id)
);
create index running_deadline_idx on tasklib.running (deadline) where deadline is not null;
comment on table tasklib.running is 'Handed out: (worker_id, attempt) is the lease, the right to finish.';
comment on column tasklib.running.deadline is 'started_at plus the timeout; the worker ends the attempt, tick does when the worker did not.';
comment on index tasklib.running_deadline_idx is 'Overdue attempts, for tick.';

create table tasklib.done (
  task_id uuid not null,
  worker_id uuid,
  started_at timestamptz,
  finished_at timestamptz not null,
  attempt int not null,
  state smallint not null,
  result jsonb,
  error text,
  constraint done_pkey primary key (task_id),
  constraint done_state_check check (state in (1, 2, 3))
);
create index done_not_completed_idx on tasklib.done (state, task_id) where state > 1;
comment on table tasklib.done is 'How a task ended: 1 completed, 2 failed for good, 3 cancelled. Inserted once.';
comment on index tasklib.done_not_completed_idx is 'Newest failed and cancelled tasks.';

create table tasklib.failure (
  task_id uuid not null,
  attempt int not null,
  failed_at timestamptz not null,
  worker_id uuid,
  retry_at timestamptz,
  cause text not null,
  error text,
  constraint failure_pkey primary key (task_id, attempt)
);
comment on table tasklib.failure is 'Every failed attempt with its traceback; kept when the task is retried.';
comment on column tasklib.failure.cause is 'error, timeout, crashed (the worker died of it) or lost (the worker went silent).';
comment on column tasklib.failure.retry_at is 'When the next attempt was due; null when this failure was final.';

create table tasklib.allowance (
  task_id uuid not null,
  excused int not null default 0,
  releases int not null default 0,
  crashes int not null default 0,
  constraint allowance_pkey primary key (task_id)
);
comment on table tasklib.allowance is 'What the attempt counter does not say, for the few tasks that need it: attempts not charged, releases, crashes since the last retry().';

create table tasklib.progress (
  task_id uuid not null,
  updated_at timestamptz not null,
  fraction float8,
  message text,
  constraint progress_pkey primary key (task_id)
) with (fillfactor = 70);
comment on table tasklib.progress is 'How far a running task says it is.';

create table tasklib.tag (
  pair bigint not null,
  task_id uuid not null,
  constraint tag_pkey primary key (pair, task_id)
);
comment on table tasklib.tag is 'One row for each key and value of a task''s tags, so that list(tags => …) reads newest first from an index. pair is a hash, see _tag_pair(key, value).';

create table tasklib.cancel_request (
  task_id uuid not null,
  requested_at timestamptz not null,
  constraint cancel_request_pkey primary key (task_id)
);
comment on table tasklib.cancel_request is 'Running tasks that were asked to stop.';

create table tasklib.unique_key (
  queue text not null,
  key text not null,
  task_id uuid not null,
  constraint unique_key_pkey primary key (queue, key)
);
comment on table tasklib.unique_key is 'Which unfinished (or unstarted) task holds a unique key of a queue.';

create table tasklib.gate (
  key bigint not null,
  task_id uuid not null,
  constraint gate_pkey primary key (key)
);
comment on table tasklib.gate is 'Which task may run with a concurrency key: it is running, or ready with holds_key.';

create table tasklib.gate_check (
  key bigint not null
);
comment on table tasklib.gate_check is 'Keys whose gate could not be handed over at once because another session had it locked; tick looks at them.';

create table tasklib.worker (
  id uuid not null default gen_random_uuid(),
  registered_at timestamptz not null,
  lease_until timestamptz not null,
  lost_at timestamptz,
  cleared_at timestamptz,
  lease interval not null,
  asleep_until timestamptz,
  graced boolean not null default false,
  crashed boolean not null default false,
  registered_by text not null,
  name text not null,
  types bigint[],
  queues text[],
  info jsonb,
  constraint worker_pkey primary key (id)
) with (fillfactor = 50);
comment on table tasklib.worker is 'One start of one worker process. Heartbeats move lease_until: the only hot update, within its page.';
comment on column tasklib.worker.lost_at is 'Its registration has ended: by deregister_worker, or by tick after its lease ran out.';
comment on column tasklib.worker.cleared_at is 'Everything that it held has been given back.';
comment on column tasklib.worker.asleep_until is 'It has been idle for a while and sleeps until then unless a notification names it; null while it is awake. Written once in a quarter of a lease at most, so that a held snapshot costs nothing.';
comment on column tasklib.worker.queues is 'The queues that it asked for when it went to sleep.';
comment on column tasklib.worker.graced is 'Its lease was renewed by tick, not by a heartbeat.';
comment on column tasklib.worker.crashed is 'Somebody saw its process die, and ended its registration.';
comment on column tasklib.worker.types is 'Hashes of the task names it runs; null: any name.';

create table tasklib.task_type (
  type bigint not null,
  updated_at timestamptz not null,
  timeout_seconds float8,
  max_retries smallint,
  priority smallint,
  max_crashes smallint,
  name text not null,
  queue text,
  backoff jsonb,
  constraint task_type_pkey primary key (type)
);
create unique index task_type_name_idx on tasklib.task_type (name);
comment on index tasklib.task_type_name_idx is 'enqueue finds the defaults of a name.';
comment on table tasklib.task_type is 'Names that workers registered, with their defaults. Type 0, with an empty name, stands for a live worker that takes any name.';

create table tasklib.queue (
  name text not null,
  paused boolean not null default false,
  notify boolean not null default true,
  max_crashes smallint,
  retention interval,
  purge_from uuid,
  constraint queue_pkey primary key (name)
);
comment on table tasklib.queue is 'Queues that differ from the defaults; a queue needs no row to be used.';
comment on column tasklib.queue.retention is 'Finished tasks older than this are deleted by tick; null keeps them for ever.';
comment on column tasklib.queue.purge_from is 'Where tick goes on deleting; null starts again from the oldest.';

create table tasklib.mark (
  lane bigint not null,
  low_pos bigint not null,
  noted_at timestamptz not null
);
create index mark_lane_idx on tasklib.mark (lane, low_pos desc, noted_at desc);
comment on table tasklib.mark is 'Low-water marks: no row of the lane is or can ever come to be below low_pos. Appended, the newest counts, so that a held snapshot costs nothing.';
comment on column tasklib.mark.noted_at is 'When somebody last noted that much was taken from the lane.';
comment on index tasklib.mark_lane_idx is 'The newest mark of a lane is its first entry.';

create table tasklib.time_mark (
  kind text not null,
  low timestamptz not null,
  constraint time_mark_pkey primary key (kind, low)
);
comment on table tasklib.time_mark is 'The same for delayed.run_at (kind delayed) and running.deadline (kind deadline).';

create table tasklib.horizon (
  xid xid8 not null,
  pos bigint not null,
  at timestamptz not null,
  constraint horizon_pkey primary key (xid)
);
comment on table tasklib.horizon is 'Notes of tick: every transaction that drew a position up to pos, or read the clock before at, has an id below xid.';

create table tasklib.housekeeping (
  only_row boolean not null default true,
  constraint housekeeping_pkey primary key (only_row),
  constraint housekeeping_one_row check (only_row)
);
insert into tasklib.housekeeping default values;
comment on table tasklib.housekeeping is 'Its one row is locked by whoever ticks.';

-- Narrow tables turn over completely many times a day: vacuum them by count, not by share of a size
-- that means nothing, and never take the exclusive lock that truncation needs.
alter table tasklib.ready set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000, vacuum_truncate = off);
alter table tasklib.running set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000, vacuum_truncate = off);
alter table tasklib.delayed set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000, vacuum_truncate = off);
alter table tasklib.waiting set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000, vacuum_truncate = off);
alter table tasklib.gate set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000, vacuum_truncate = off);
alter table tasklib.unique_key set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000, vacuum_truncate = off);
alter table tasklib.mark set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
alter table tasklib.time_mark set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
alter table tasklib.horizon set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
alter table tasklib.worker set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);

create type tasklib.task_spec as (
  name text,
  kwargs jsonb,
  queue text,
  priority int,
  delay interval,
  scheduled_at timestamptz,
  max_retries int,
  timeout_seconds float8,
  tags jsonb,
  unique_key text,
  concurrency_key text,
  headers jsonb,
  unique_until text,
  backoff jsonb
);
comment on type tasklib.task_spec is 'The arguments of enqueue as one value.';

create type tasklib.enqueued as (id uuid, created boolean);
comment on type tasklib.enqueued is 'One row of enqueue_many: the task, and whether this call made it (false: another task holds its unique key).';

create type tasklib.claimed as (
  id uuid,
  attempt int,
  name text,
  queue text,
  kwargs jsonb,
  priority int,
  retry_count int,
  max_retries int,
  timeout_seconds float8,
  tags jsonb,
  headers jsonb,
  created_at timestamptz,
  started_at timestamptz
);
comment on type tasklib.claimed is 'One row of claim: a task to run, with everything its worker needs.';

create type tasklib.failed as (state text, next_retry_at timestamptz);
comment on type tasklib.failed is 'What became of a failed attempt: failed with the time of the next one, failed for good, or cancelled.';

create type tasklib.ticked as (
  promoted int,
  reclaimed int,
  timed_out int,
  parked int,
  unparked int,
  handed_over int,
  purged int,
  more boolean
);
comment on type tasklib.ticked is 'What one tick did; more: call again at once, there is more to do.';

-- A table that was never analyzed counts as ten full pages. Nine of those in one view look so costly that
-- the server compiles the query, which takes longer than the query.
analyze
  tasklib.config, tasklib.task, tasklib.ready, tasklib.delayed, tasklib.waiting, tasklib.parked,
  tasklib.running, tasklib.done, tasklib.failure, tasklib.allowance, tasklib.progress,
  tasklib.tag, tasklib.cancel_request, tasklib.unique_key, tasklib.gate, tasklib.gate_check,
  tasklib.worker, tasklib.task_type, tasklib.queue, tasklib.mark, tasklib.time_mark,
  tasklib.horizon, tasklib.housekeeping;

insert into tasklib.migration (name, sha256) values ('0001_tables', '54c7d8611b985d1780f3732b087dadebae5487ca715c53905d82f485441d627d');

-- views.sql
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
  task.kwargs,
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

-- _caller.sql
-- Inside a SECURITY DEFINER function current_user is the owner. Who called is the role that was set
-- last, or the login role.
create or replace function tasklib._caller()
  returns text
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(nullif(current_setting('role', true), 'none'), session_user::text);
end;
$$;
comment on function tasklib._caller() is
  'Internal. The role on whose behalf the running function was called.';

create or replace function tasklib._caller_is(member_of text)
  returns boolean
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select tasklib._caller() = current_user
    or exists (
      select
      from pg_roles as granted, pg_roles as caller
      where granted.rolname = _caller_is.member_of
        and caller.rolname = tasklib._caller()
        and pg_has_role(caller.oid, granted.oid, 'member')
    )
    or exists (select from pg_roles where rolname = tasklib._caller() and rolsuper)
$$;
comment on function tasklib._caller_is(text) is
  'Internal. The caller is a member of the role, the owner of the queue, or a superuser.';

-- _check_spec.sql
-- Everything that enqueue refuses, in the order of its arguments.
create or replace function tasklib._check_spec(spec tasklib.task_spec, index int)
  returns boolean
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_where text := case when _check_spec.index is not null
    then 'In tasks[' || _check_spec.index || ']. Nothing was enqueued.' else 'Nothing was enqueued.' end;
begin
  perform tasklib._check_label('name', spec.name, 128, v_where);
  perform tasklib._check_object('kwargs', spec.kwargs, 1048576, v_where);
  if spec.kwargs is null then
    perform tasklib._reject('TL001', 'kwargs must be a JSON object, got NULL', v_where,
      'Leave kwargs out for a task without arguments.');
  end if;
  if spec.queue is not null then
    perform tasklib._check_label('queue', spec.queue, 128, v_where);
  end if;
  perform tasklib._check_priority(spec.priority, v_where);
  perform tasklib._check_time(spec.delay, spec.scheduled_at, v_where);
  perform tasklib._check_options(spec.max_retries, spec.timeout_seconds, spec.backoff, v_where);
  perform tasklib._check_object('tags', spec.tags, 16384, v_where);
  perform tasklib._check_object('headers', spec.headers, 16384, v_where);
  if spec.unique_key is not null then
    perform tasklib._check_label('unique_key', spec.unique_key, 255, v_where);
  end if;
  if spec.concurrency_key is not null then
    perform tasklib._check_label('concurrency_key', spec.concurrency_key, 255, v_where);
  end if;
  if spec.unique_until is null or spec.unique_until not in ('finished', 'started') then
    perform tasklib._reject('TL001', 'unknown unique_until ' || tasklib._shown(spec.unique_until),
      v_where, 'Pass ''finished'' (the default) or ''started''.');
  end if;
  return spec.unique_key is not null;
end;
$$;
comment on function tasklib._check_spec(tasklib.task_spec, int) is
  'Internal. Raises TL001 or TL002 for what enqueue does not take; index names the element of a batch. True when the spec has a unique key.';

create or replace function tasklib._check_label(
  argument text,
  value text,
  max_bytes int,
  detail text default null
)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if value is null or value = '' or value ~ '[[:cntrl:]]' then
    perform tasklib._reject('TL001',
      argument || ' must be a text without control characters, got ' || tasklib._shown(value),
      detail, 'Pass 1 to ' || max_bytes || ' bytes, such as ''default'' or ''app.send_email''.');
  elsif octet_length(value) > max_bytes then
    perform tasklib._reject('TL002',
      argument || ' has ' || octet_length(value) || ' bytes: ' || tasklib._shown(value),
      detail, 'At most ' || max_bytes || ' bytes are allowed: use a shorter text, or a hash of it.');
  end if;
end;
$$;
comment on function tasklib._check_label(text, text, int, text) is
  'Internal. Raises unless value is a short printable text.';

create or replace function tasklib._check_object(
  argument text,
  value jsonb,
  max_bytes int,
  detail text default null
)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_text text := value::text;
begin
  if value is null then
    return;
  end if;
  if jsonb_typeof(value) <> 'object' then
    perform tasklib._reject('TL001',
      argument || ' must be a JSON object, got ' || tasklib._shown(v_text),
      detail, 'Pass an object such as {"to": "a@b.c"}: the names are the parameters of the task.');
  elsif octet_length(v_text) > max_bytes then
    perform tasklib._reject('TL002', argument || ' has ' || octet_length(v_text) || ' bytes as text',
      detail, 'At most ' || max_bytes || ' bytes are allowed: store large data elsewhere and pass a reference.');
  elsif jsonb_path_exists(value, 'strict $.**{65}') then
    perform tasklib._reject('TL002', argument || ' is nested deeper than 64 levels',
      detail, 'Flatten the value, or pass it as a text that the task parses.');
  end if;
end;
$$;
comment on function tasklib._check_object(text, jsonb, int, text) is
  'Internal. Raises unless value is null or a JSON object within its limits.';

create or replace function tasklib._check_priority(priority int, detail text default null)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if priority not between -1000 and 1000 then
    perform tasklib._reject('TL001', 'priority ' || priority || ' is out of range',
      detail, 'Pass -1000 to 1000; a higher one goes first, 0 is the default.');
  end if;
end;
$$;
comment on function tasklib._check_priority(int, text) is
  'Internal. Raises unless priority is null or within -1000 and 1000.';

create or replace function tasklib._check_time(
  delay interval,
  scheduled_at timestamptz,
  detail text default null
)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if delay is not null and scheduled_at is not null then
    perform tasklib._reject('TL001', 'both delay ' || tasklib._shown(delay::text)
      || ' and scheduled_at ' || tasklib._shown(scheduled_at::text) || ' are given',
      detail, 'Pass one of them.');
  elsif delay < interval '0' or delay > interval '5 years' then
    perform tasklib._reject('TL001', 'delay ' || tasklib._shown(delay::text) || ' is out of range',
      detail, 'Pass an interval from 0 to 5 years, such as interval ''10 minutes''.');
  elsif not isfinite(scheduled_at) or scheduled_at > clock_timestamp() + interval '5 years' then
    perform tasklib._reject('TL001',
      'scheduled_at ' || tasklib._shown(scheduled_at::text) || ' is out of range',
      detail, 'Pass a finite time at most 5 years ahead; a time in the past means now.');
  end if;
end;
$$;
comment on function tasklib._check_time(interval, timestamptz, text) is
  'Internal. Raises unless at most one of delay and scheduled_at is given, and is within 5 years.';

create or replace function tasklib._check_options(
  max_retries int,
  timeout_seconds float8,
  backoff jsonb,
  detail text default null
)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_key text;
  v_value jsonb;
  v_max numeric;
begin
  if max_retries not between 0 and 1000 then
    perform tasklib._reject('TL001', 'max_retries ' || max_retries || ' is out of range',
      detail, 'Pass 0 to 1000; 0 means one attempt.');
  end if;
  if not timeout_seconds between 0.001 and 604800 then
    perform tasklib._reject('TL001', 'timeout_seconds ' || timeout_seconds || ' is out of range',
      detail, 'Pass 0.001 to 604800 seconds (7 days), or leave it out for no timeout.');
  end if;
  if backoff is null then
    return;
  end if;
  perform tasklib._check_object('backoff', backoff, 1024, detail);
  for v_key, v_value in select entry.key, entry.value from jsonb_each(backoff) as entry loop
    v_max := case v_key when 'base_seconds' then 31536000 when 'cap_seconds' then 31536000
      when 'multiplier' then 100 when 'jitter' then 1 end;
    if v_max is null or jsonb_typeof(v_value) <> 'number' then
      perform tasklib._reject('TL001', 'backoff has no number ' || tasklib._shown(v_key)
        || ' = ' || tasklib._shown(v_value::text), detail,
        'The keys are base_seconds, multiplier, cap_seconds and jitter; all are numbers.');
    end if;
    if v_value::numeric <> 0 and not v_value::numeric between 0.001 and v_max then
      perform tasklib._reject('TL001', 'backoff ' || v_key || ' = ' || tasklib._shown(v_value::text)
        || ' is out of range', detail, 'Pass 0, or 0.001 to ' || v_max || '.');
    end if;
  end loop;
end;
$$;
comment on function tasklib._check_options(int, float8, jsonb, text) is
  'Internal. Raises unless retries, timeout and backoff are null or within their limits.';

-- _clamp.sql
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

-- _gate.sql
-- Concurrency keys. A gate row exists exactly while a task of its key runs, or is ready with
-- holds_key. Nobody waits for a gate that is held: whoever finds its row locked leaves a note in
-- gate_check, and tick looks again. (Only two claims that make the same gate at the same moment wait
-- for each other, which is why a claim is to be committed at once.) Keys are visited in ascending order.

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
begin
  for v_row in
    select pick.* from unnest(picked) as pick
    where pick.key is not null and not pick.holds_key
    order by pick.key, pick.pos
  loop
    if not tasklib._open_gate(v_row) then
      insert into tasklib.waiting (key, pos, task_id, lane, type, attempt, unique_until)
      values (v_row.key, v_row.pos, v_row.task_id, v_row.lane, v_row.type, v_row.attempt,
        v_row.unique_until);
      v_out := v_out || v_row.task_id;
    end if;
  end loop;
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
    if not found and exists (select from tasklib.gate where gate.key = v_key) then
      insert into tasklib.gate_check (key) values (v_key);
    elsif v_holder is null
      or not exists (select from tasklib.running where running.task_id = v_holder)
        and not exists (select from tasklib.ready where ready.task_id = v_holder and ready.holds_key)
    then
      v_count := v_count + tasklib._hand_over(v_key, held => v_holder is not null)::int;
    end if;
    v_holder := null;
  end loop;
  return v_count;
end;
$$;
comment on function tasklib._check_gates(int) is
  'Internal. Looks again at gates that were locked when they should have been handed over; returns how many tasks became ready.';

-- _hash.sql
-- Names, queues and keys become numbers without a table to look them up in, so that enqueue takes no
-- lock for a name it sees first. SHA-256 because it is stable over versions and machines, and because
-- nobody can choose a queue name that falls on another one's lane. These functions have no SET clause
-- and only immutable parts (a cast with doubled backslashes, as convert_to is not), so that the planner
-- inlines them: a call would cost far more than the hash.
create or replace function tasklib._hash(value text)
  returns bigint
  language sql
  immutable
  parallel safe
as $$
  select ('x' || pg_catalog.encode(pg_catalog.substring(pg_catalog.sha256(
    pg_catalog.replace(value, '\', '\\')::pg_catalog.bytea), 1, 8), 'hex'))
    ::pg_catalog.bit(64)::pg_catalog.int8
$$;
comment on function tasklib._hash(text) is 'Internal. First 64 bits of the SHA-256 of a text.';

create or replace function tasklib._type_of(name text)
  returns bigint
  language sql
  immutable
  parallel safe
as $$
  select tasklib._hash(name)
$$;
comment on function tasklib._type_of(text) is 'Internal. The number of a task name.';

-- 52 bits of the queue, then 12 bits in which a higher priority is a smaller number: the lanes of a
-- queue lie together, best first.
create or replace function tasklib._lane(queue text, priority int)
  returns bigint
  language sql
  immutable
  parallel safe
as $$
  select (tasklib._hash(queue) & (-4096)::pg_catalog.int8) + 1024 - priority
$$;
comment on function tasklib._lane(text, int) is
  'Internal. The lane of a queue and a priority (-1000 to 1000). Priority 1024 gives the lower bound of the queue''s lanes, -3071 the upper one.';

create or replace function tasklib._key(queue text, key text)
  returns bigint
  language sql
  immutable
  parallel safe
as $$
  select tasklib._hash(pg_catalog.length(queue)::pg_catalog.text || ':' || queue || key)
$$;
comment on function tasklib._key(text, text) is
  'Internal. The number of a concurrency key in a queue; null without a key. Two keys with one number would only wait for each other.';

create or replace function tasklib._tag_pair(key text, value jsonb)
  returns bigint
  language sql
  immutable
  parallel safe
as $$
  select tasklib._hash(pg_catalog.length(key)::pg_catalog.text || ':' || key || value::text)
$$;
comment on function tasklib._tag_pair(text, jsonb) is 'Internal. The number of one tag, see table tag.';

-- _ids.sql
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
    create or replace function tasklib._new_id(shard int)
      returns uuid
      language plpgsql
      volatile
      set search_path = pg_catalog, pg_temp
    as $$
    begin
      return (left(uuidv7()::text, 32) || lpad(to_hex(shard), 4, '0'))::uuid;
    end;
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
    create or replace function tasklib._new_id(shard int)
      returns uuid
      language plpgsql
      volatile
      set search_path = pg_catalog, pg_temp
    as $$
    declare
      v_now bigint := extract(epoch from clock_timestamp())::float8 * 4096000;
    begin
      return ('0' || to_hex(((v_now >> 12) << 16) | 28672 | (v_now & 4095))
        || substr(gen_random_uuid()::text, 20, 13) || lpad(to_hex(shard), 4, '0'))::uuid;
    end;
    $$;
  end if;
end
$do$;
comment on function tasklib._new_ids(int) is
  'Internal. count new task ids, ascending.';

comment on function tasklib._new_id(int) is
  'Internal. One new task id.';

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

-- _mark.sql
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
-- with little of it costs claims nothing. _pick_lanes asks for it when one was among those picked. A
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

-- _park.sql
-- Names that no live worker knows go out of the way of claims, so that a claim never walks past rows
-- which it may not take. While no worker lives at all nobody is in anybody's way.

create or replace function tasklib._live_types()
  returns bigint[]
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(array_agg(distinct known.type), '{}')
  from tasklib.worker cross join lateral unnest(worker.types) as known (type)
  where worker.lost_at is null
$$;
comment on function tasklib._live_types() is 'Internal. Names that live workers registered.';

create or replace function tasklib._park(max_rows int)
  returns int
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_types bigint[];
  v_lane bigint;
  v_parked bigint[];
  v_keys bigint[];
  v_count int := 0;
  v_look int;
begin
  if not exists (select from tasklib.worker where worker.lost_at is null)
    or exists (select from tasklib.worker where worker.lost_at is null and worker.types is null)
  then
    return 0;
  end if;
  v_types := tasklib._live_types();

  v_lane := tasklib._first_lane(-9223372036854775808, 9223372036854775807, null);
  while v_lane is not null and v_count < max_rows loop
    v_look := 20;
    loop
      with head as materialized (
        select candidate.ctid as place, candidate.type
        from tasklib.ready as candidate
        where candidate.lane = v_lane and candidate.pos >= tasklib._low_pos(v_lane)
        order by candidate.lane, candidate.pos limit v_look
      ),
      gone as (
        delete from tasklib.ready
        where ready.ctid = any (array(
          select candidate.ctid from tasklib.ready as candidate
          where candidate.ctid = any (array(
              select head.place from head where head.type <> all (v_types)))
          for update skip locked))
        returning ready.*
      ),
      moved as (
        insert into tasklib.parked (type, task_id, attempt, unique_until, key)
        select gone.type, gone.task_id, gone.attempt, gone.unique_until, gone.key from gone
      )
      select array_agg(gone.type), array_agg(gone.key) filter (where gone.key is not null)
        into v_parked, v_keys from gone;

      exit when v_parked is null;
      if cardinality(v_parked) >= 100 then
        perform tasklib._note_lanes(array[v_lane]);
      end if;
      v_count := v_count + cardinality(v_parked);
      insert into tasklib.gate_check (key) select distinct unnest(v_keys);
      exit when v_count >= max_rows;
      v_look := max_rows - v_count;
    end loop;
    v_lane := tasklib._first_lane(v_lane + 1, 9223372036854775807, null);
  end loop;
  return v_count;
end;
$$;
comment on function tasklib._park(int) is
  'Internal. Moves tasks at the head of their lanes whose name no live worker knows from ready to parked.';

create or replace function tasklib._low_pos(lane bigint)
  returns bigint
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce((
    select mark.low_pos from tasklib.mark where mark.lane = _low_pos.lane
    order by mark.lane desc, mark.low_pos desc limit 1), 0);
end;
$$;
comment on function tasklib._low_pos(bigint) is 'Internal. The low-water mark of a lane.';

-- Only a name that was not known when its task was enqueued can still change where the task goes, and
-- only in what the producer left open.
create or replace function tasklib._unpark(max_rows int, types bigint[] default null)
  returns int
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_types bigint[] := types;
  v_any_name boolean := exists (
    select from tasklib.worker where worker.lost_at is null and worker.types is null);
  v_known bigint[] := array[]::bigint[];
  v_type bigint;
  v_row record;
  v_count int := 0;
begin
  select parked.type into v_type from tasklib.parked order by parked.type, parked.task_id limit 1;
  if v_type is not null and v_types is null and not v_any_name then
    v_types := tasklib._live_types();
  end if;
  while v_type is not null loop
    if v_any_name or v_type = any (v_types) then
      v_known := v_known || v_type;
    end if;
    v_type := (
      select parked.type from tasklib.parked where parked.type > v_type
      order by parked.type, parked.task_id limit 1);
  end loop;
  if v_known = array[]::bigint[] then
    return 0;
  end if;

  -- of all these names together, in the order in which they were enqueued
  for v_row in
    with oldest as materialized (
      select candidate.place
      from unnest(v_known) as known (type)
        cross join lateral (
          select parked.ctid as place, parked.task_id from tasklib.parked
          where parked.type = known.type
          order by parked.type, parked.task_id limit max_rows
        ) as candidate
      order by candidate.task_id limit max_rows
    ),
    gone as (
      delete from tasklib.parked
      where parked.ctid = any (array(
        select candidate.ctid from tasklib.parked as candidate
        where candidate.ctid = any (array(select oldest.place from oldest))
        for update skip locked))
      returning parked.task_id, parked.attempt
    )
    select gone.task_id, gone.attempt from gone order by gone.task_id
  loop
    perform tasklib._route(v_row.task_id, v_row.attempt);
    v_count := v_count + 1;
  end loop;
  return v_count;
end;
$$;
comment on function tasklib._unpark(int, bigint[]) is
  'Internal. Makes parked tasks ready whose name a live worker knows (or one of types).';

create or replace function tasklib._route(task_id uuid, attempt int)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task tasklib.task;
  v_type tasklib.task_type;
  v_queue text;
  v_priority int;
begin
  select task.* into v_task from tasklib.task where task.id = _route.task_id;
  select task_type.* into v_type from tasklib.task_type where task_type.type = v_task.type;
  v_queue := case when v_task.queue_given then v_task.queue else coalesce(v_type.queue, v_task.queue) end;
  v_priority := case when v_task.priority_given then v_task.priority
    else coalesce(v_type.priority, v_task.priority) end;

  if v_queue <> v_task.queue and v_task.unique_key is not null and exists (
    select from tasklib.unique_key where unique_key.queue = v_queue and unique_key.key = v_task.unique_key
  ) then
    v_queue := v_task.queue;
  end if;
  if (v_queue, v_priority) is distinct from (v_task.queue, v_task.priority::int) then
    v_task := tasklib._reroute(v_task, v_queue, v_priority, false, false, v_task.scheduled_at);
  end if;
  insert into tasklib.ready (task_id, lane, type, attempt, unique_until, key)
  values (v_task.id, tasklib._lane(v_queue, v_priority), v_task.type, _route.attempt,
    v_task.unique_until, tasklib._key(v_queue, v_task.concurrency_key));
end;
$$;
comment on function tasklib._route(uuid, int) is
  'Internal. Makes a parked task ready, in the queue and with the priority that its name''s defaults say.';

-- _registration.sql
-- The row lock is what makes claim and the reaper exclude each other: a worker is not declared lost
-- while one of its claims is open, and a claim of a lost worker finds out.
create or replace function tasklib._registration(worker_id uuid, lock boolean default false)
  returns tasklib.worker
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_worker tasklib.worker;
begin
  if lock then
    select worker.* into v_worker from tasklib.worker
    where worker.id = _registration.worker_id and worker.lost_at is null
    for key share;
  else
    select worker.* into v_worker from tasklib.worker
    where worker.id = _registration.worker_id and worker.lost_at is null;
  end if;
  if not found then
    perform tasklib._reject('TL007', 'worker ' || tasklib._shown(worker_id::text) || ' is not registered',
      'It never was, it deregistered, or its lease ran out and its tasks were given to others.',
      'Drop what it runs and call register_worker again.');
  elsif v_worker.registered_by <> tasklib._caller() and not tasklib._caller_is('tasklib_admin') then
    perform tasklib._reject('TL011', 'worker ' || worker_id || ' was registered by another role', null,
      'Call register_worker with the role that claims and finishes.');
  end if;
  return v_worker;
end;
$$;
comment on function tasklib._registration(uuid, boolean) is
  'Internal. The live registration of a worker, locked on demand. Raises TL007, or TL011 for another role''s worker.';

-- _reject.sql
-- The one place where bad input becomes an error. It returns boolean, never does, and so can stand in
-- an expression.
create or replace function tasklib._reject(
  code text,
  problem text,
  detail text,
  hint text
)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using
    errcode = _reject.code,
    message = coalesce(_reject.problem, 'an argument is NULL'),
    detail = coalesce(_reject.detail, 'Nothing was changed.'),
    hint = coalesce(_reject.hint, 'Pass a value.');
end;
$$;
comment on function tasklib._reject(text, text, text, text) is
  'Internal. Raises problem with the SQLSTATE code, a detail and a hint.';

create or replace function tasklib._shown(value text)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when value is null then 'NULL'
    when length(value) > 80 then '"' || left(value, 80) || '…"'
    else '"' || value || '"'
  end;
end;
$$;
comment on function tasklib._shown(text) is
  'Internal. A value as an error message quotes it: at most 80 characters.';

-- _wake.sql
-- A commit that notifies takes a lock that every other notifying commit of the cluster waits for. So
-- only the first enqueue after a worker went to sleep, or came, notifies, and at most one each 50 ms
-- after it.
-- Each queue for itself: a busy one must not hush the others, whose workers do not come for its tasks.
-- notified_at has in its upper bits when such 50 ms began, and in its last 20 bits who notified since, two
-- of them for each queue. Two queues may have the same ones, but hardly ever, and not the next time.

create or replace function tasklib._may_notify(queue text, now timestamptz)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now bigint := tasklib._milliseconds(now);
  v_last bigint;
begin
  if (select last_value from tasklib.asleep_until) <= v_now then
    return false;
  end if;
  v_last := (select last_value from tasklib.notified_at);
  return v_last >> 20 <= v_now - 50
    or (~v_last) & tasklib._queue_bits(_may_notify.queue, v_last >> 20) <> 0;
end;
$$;
comment on function tasklib._may_notify(text, timestamptz) is
  'Internal. Some worker sleeps, and nobody has notified of this queue since it fell asleep or within 50 ms.';

create or replace function tasklib._queue_bits(queue text, began bigint)
  returns bigint
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_hash int := (hashtextextended(queue, began) & 1048575)::int;
begin
  return (1::bigint << v_hash % 20) | (1::bigint << (v_hash + 1 + v_hash / 20 % 19) % 20);
end;
$$;
comment on function tasklib._queue_bits(text, bigint) is
  'Internal. Which two of the last 20 bits of notified_at are those of a queue.';

create or replace function tasklib._wake(queue text, types bigint[], now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if tasklib._may_notify(queue, now) and not exists (
    select from tasklib.queue as settings where settings.name = _wake.queue and not settings.notify)
  then
    perform tasklib._notify(queue, types, now);
  end if;
end;
$$;
comment on function tasklib._wake(text, bigint[], timestamptz) is
  'Internal. Notifies sleeping workers of tasks of these types in a queue, when there are any.';

create or replace function tasklib._wake_by(queue text, types bigint[], run_at timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if tasklib._milliseconds(run_at) < (select last_value from tasklib.asleep_until) then
    perform tasklib._wake(queue, types, clock_timestamp());
  end if;
end;
$$;
comment on function tasklib._wake_by(text, bigint[], timestamptz) is
  'Internal. Notifies sleeping workers of a task that will be due while they mean to sleep.';

create or replace function tasklib._wake_for(specs tasklib.task_spec[], now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_asleep_until bigint := (select last_value from tasklib.asleep_until);
  v_new record;
begin
  for v_new in
    select coalesce(spec.queue, type.queue, 'default') as queue,
      array_agg(distinct coalesce(type.type, tasklib._type_of(spec.name))) as types
    from unnest(specs) as spec
      left join tasklib.task_type as type on type.name = spec.name
    where tasklib._milliseconds(
        coalesce(spec.scheduled_at, _wake_for.now + coalesce(spec.delay, '0'))) < v_asleep_until
    group by 1
  loop
    perform tasklib._wake(v_new.queue, v_new.types, now);
  end loop;
end;
$$;
comment on function tasklib._wake_for(tasklib.task_spec[], timestamptz) is
  'Internal. The same for tasks of several queues, of which some are for later.';

-- Two are named, as the first may have died in its sleep. Any is as good as another: random, so that
-- one which does not answer is not asked again and again.
create or replace function tasklib._notify(queue text, types bigint[], now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now bigint := tasklib._milliseconds(now);
  v_last bigint := (select last_value from tasklib.notified_at);
begin
  if v_last >> 20 <= v_now - 50 then
    v_last := v_now << 20;
  end if;
  perform setval('tasklib.notified_at', v_last | tasklib._queue_bits(_notify.queue, v_last >> 20));
  perform pg_notify('tasklib', coalesce((
    select string_agg(sleeper.id::text, ' ') from (
      select worker.id from tasklib.worker
      where worker.asleep_until > _notify.now and worker.lost_at is null
        and _notify.queue = any (worker.queues)
        and (_notify.types && worker.types) is not false
      order by random() limit 2
    ) as sleeper), ''));
end;
$$;
comment on function tasklib._notify(text, bigint[], timestamptz) is
  'Internal. Sends a notification that names up to two workers which have slept for long and know one of types (null: any); others that sleep look at any.';

-- cancel.sql
create or replace function tasklib.cancel(id uuid)
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
  perform tasklib._own_task(cancel.id);
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
comment on function tasklib.cancel(uuid) is
  'Cancel a task. cancelled: it was not running and never will be; requested: it runs, its worker will be told, a complete still wins and anything else ends as cancelled; finished: nothing to do. Errors: TL001, TL003 no such task, or one that another role enqueued.';

create or replace function tasklib._own_task(id uuid)
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
  if not found or v_task.enqueued_by <> tasklib._caller() and not tasklib._caller_is('tasklib_admin') then
    perform tasklib._reject('TL003', 'no task ' || _own_task.id, null,
      'It was purged, never existed, or was enqueued by another role.');
  end if;
  return v_task;
end;
$$;
comment on function tasklib._own_task(uuid) is
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

-- claim.sql
-- Here, as in the other functions of the hot path, settings, lookups by ctid and `offset 0` in lateral
-- joins leave the planner one plan. In a queue its statistics are always of another moment, and the plan
-- that it would choose with them reads whole tables.
create or replace function tasklib.claim(
  worker_id uuid,
  queues text[] default '{default}',
  max_tasks int default 1
)
  returns setof tasklib.claimed
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set enable_sort = off
  set enable_bitmapscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
  set plan_cache_mode = force_generic_plan
as $$
declare
  v_worker tasklib.worker;
  v_picked tasklib.ready[];
  v_now timestamptz;
begin
  perform tasklib._check_queues(claim.queues);
  perform tasklib._check_max_tasks(claim.max_tasks);
  v_worker := tasklib._registration(claim.worker_id, lock => true);

  v_picked := tasklib._take(v_worker, claim.queues, claim.max_tasks);
  if cardinality(v_picked) = 0 then
    return;
  end if;

  -- From ready rows to running ones. Reads each body once, at its place when that is still right: for the
  -- timeout of the row that it inserts and for the row that it returns. Nothing in the plan can change
  -- the order of the picks.
  v_now := clock_timestamp();
  return query
    with started as materialized (
      select pick.task_id, pick.lane, pick.type, pick.unique_until, pick.key, pick.attempt + 1 as attempt,
        body.name, body.queue, body.kwargs, body.priority, body.tags, body.headers, body.created_at,
        coalesce(body.max_retries, type.max_retries, 3)::int as max_retries,
        coalesce(body.timeout_seconds, type.timeout_seconds) as timeout_seconds
      from unnest(v_picked)
          as pick (task_id, lane, pos, type, attempt, holds_key, unique_until, place, key)
        cross join lateral (
          (select task.* from tasklib.task
            where task.ctid = pick.place and task.id = pick.task_id)
          union all
          (select task.* from tasklib.task where task.id = pick.task_id)
          limit 1
        ) as body
        left join lateral (
          select known.* from tasklib.task_type as known where known.type = pick.type offset 0
        ) as type on true
    ),
    running as (
      insert into tasklib.running (task_id, worker_id, started_at, deadline, lane, type, attempt,
        unique_until, key)
      select started.task_id, claim.worker_id, v_now,
        v_now + make_interval(secs => started.timeout_seconds),
        started.lane, started.type, started.attempt, started.unique_until, started.key
      from started
    )
    select started.task_id, started.attempt, started.name, started.queue, started.kwargs,
      started.priority::int,
      case when started.attempt = 1 then 0
        else tasklib._retry_count(started.task_id, started.attempt) end,
      started.max_retries, started.timeout_seconds, started.tags, started.headers,
      started.created_at, v_now
    from started;

  -- not before they run: housekeeping takes the gate of a task that is nowhere for one that was left
  if cardinality(v_picked) < claim.max_tasks then
    perform tasklib._keep_house(look_again => false);
  end if;
end;
$$;
comment on function tasklib.claim(uuid, text[], int) is
  'Hand out up to max_tasks due tasks of names that the worker registered: by priority, then queue in the order given, then the order in which they became ready. Rows that other sessions hold are skipped. Each row is an attempt that must be ended by complete, fail, finish, release or snooze with (id, worker_id, attempt). Finding too little, it does some housekeeping first. Commit at once: until then nobody sees that the tasks run. Errors: TL001, TL007 the worker is not registered, TL011.';

create or replace function tasklib._check_max_tasks(max_tasks int)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if max_tasks is null or max_tasks not between 1 and 10000 then
    perform tasklib._reject('TL001', 'max_tasks ' || tasklib._shown(max_tasks::text)
      || ' is out of range', null, 'Pass 1 to 10000: as many tasks as can start soon.');
  end if;
end;
$$;
comment on function tasklib._check_max_tasks(int) is
  'Internal. Raises TL001 unless a claim may ask for so many.';

create or replace function tasklib._take(worker tasklib.worker, queues text[], max_tasks int)
  returns tasklib.ready[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_picked tasklib.ready[] := tasklib._pick(worker.types, queues, max_tasks);
begin
  if cardinality(v_picked) = 0 and tasklib._keep_house(look_again => true) then
    v_picked := tasklib._pick(worker.types, queues, max_tasks);
  end if;
  if cardinality(v_picked) = 0 then
    return v_picked;
  end if;
  if cardinality(v_picked) = max_tasks or worker.asleep_until is not null then
    perform tasklib._rouse(worker, queues, cardinality(v_picked) = max_tasks);
  end if;
  return v_picked;
end;
$$;
comment on function tasklib._take(tasklib.worker, text[], int) is
  'Internal. Takes up to max_tasks of the best ready tasks out of ready, for this worker to run.';

-- A worker that took all it had room for passes the notification on while there is more: so one task
-- wakes one worker, and a thousand wake all. One that was called does so at once, for it may come again
-- only when its tasks have ended.
create or replace function tasklib._rouse(worker tasklib.worker, queues text[], is_full boolean)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_was_asleep boolean := worker.asleep_until is not null;
  v_queue text;
begin
  if v_was_asleep then
    update tasklib.worker as sleeper set asleep_until = null where sleeper.id = _rouse.worker.id;
    -- it has answered the call: the next task is somebody else's
    perform setval('tasklib.notified_at', 0);
  end if;
  if is_full and (select last_value from tasklib.asleep_until) > tasklib._milliseconds(v_now) then
    select asked.name into v_queue
    from unnest(queues) as asked (name)
      left join tasklib.queue as settings on settings.name = asked.name
    where coalesce(settings.notify and not settings.paused, true)
      and (v_was_asleep or tasklib._may_notify(asked.name, v_now))
      and tasklib._first_lane(tasklib._lane(asked.name, 1024), tasklib._lane(asked.name, -3071),
        _rouse.worker.types) is not null
    limit 1;
    if found then
      perform tasklib._notify(v_queue, _rouse.worker.types, v_now);
    end if;
  end if;
end;
$$;
comment on function tasklib._rouse(tasklib.worker, text[], boolean) is
  'Internal. The worker is awake: it took tasks. is_full: perhaps there is more than it has room for.';

create or replace function tasklib._check_queues(queues text[])
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if queues is null or array_ndims(queues) is distinct from 1
    or cardinality(queues) not between 1 and 1000
    or array_position(queues, null) is not null
  then
    perform tasklib._reject('TL001', 'queues must be a list of 1 to 1000 names, got '
      || tasklib._shown(queues::text), null, 'Pass queues => ''{default,mail}''.');
  end if;
end;
$$;
comment on function tasklib._check_queues(text[]) is
  'Internal. Raises TL001 unless queues is a flat, filled list of names.';

-- Best first over several queues: of the queues that still have something, the one whose first task
-- has the highest priority goes on, up to the priority at which another queue is before it. Lanes
-- sort by priority within a queue; their last 12 bits compare between queues. A rank is those bits, then
-- the place in the list (1024, as a list has at most 1000).
create or replace function tasklib._pick(types bigint[], queues text[], max_tasks int)
  returns tasklib.ready[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_picked tasklib.ready[] := array[]::tasklib.ready[];
  v_next bigint[];
  v_last bigint[];
  v_rank bigint[];
  v_best int;
  v_bound bigint;
begin
  if cardinality(queues) = 1 then
    if exists (select from tasklib.queue where queue.name = queues[1] and queue.paused) then
      return v_picked;
    end if;
    return tasklib._pick_lanes(types, tasklib._lane(queues[1], 1024), tasklib._lane(queues[1], -3071),
      max_tasks);
  end if;

  select array_agg(tasklib._lane(asked.name, 1024)), array_agg(tasklib._lane(asked.name, -3071))
    into v_next, v_last
  from (
    select name, min(n) as n from unnest(queues) with ordinality as given (name, n)
    where not exists (select from tasklib.queue where queue.name = given.name and queue.paused)
    group by name order by min(n)
  ) as asked;

  while cardinality(v_next) > 1 and cardinality(v_picked) < max_tasks loop
    -- where each queue stands: priority of its first task, then place in the list
    select array_agg((tasklib._first_lane(v_next[i], v_last[i], types) & 4095) * 1024 + i order by i)
      into v_rank
    from generate_subscripts(v_next, 1) as i;
    select i into v_best from generate_subscripts(v_rank, 1) as i
    where v_rank[i] is not null order by v_rank[i] limit 1;
    if not found then
      return v_picked;
    end if;
    -- up to, or without, the best priority of the others
    v_bound := (select least(v_last[v_best], (v_last[v_best] & -4096)
        + min(v_rank[i] / 1024 - (i < v_best)::int))
      from generate_subscripts(v_rank, 1) as i where i <> v_best and v_rank[i] is not null);
    v_bound := coalesce(v_bound, v_last[v_best]);
    v_picked := v_picked || tasklib._pick_lanes(types, v_next[v_best], v_bound,
      max_tasks - cardinality(v_picked));
    v_next[v_best] := v_bound + 1;
  end loop;

  if cardinality(v_next) = 1 then
    v_picked := tasklib._pick_lanes(types, v_next[1], v_last[1], max_tasks);
  end if;
  return v_picked;
end;
$$;
comment on function tasklib._pick(bigint[], text[], int) is
  'Internal. Takes the best ready tasks of the queues out of ready, in the order in which they go.';

-- One scan from mark to mark: below the low-water mark of a lane there is nothing, however many dead
-- rows a held snapshot keeps there. ctid, because a join by key may flip to a plan that reads the
-- whole table when statistics were taken at the wrong moment; the subquery has locked the pick.
create or replace function tasklib._pick_lanes(
  types bigint[],
  first_lane bigint,
  last_lane bigint,
  max_tasks int
)
  returns tasklib.ready[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_all tasklib.ready[] := array[]::tasklib.ready[];
  v_picked tasklib.ready[];
  v_mark record;
  v_lane bigint := first_lane;
  v_pos bigint := 0;
  v_stop bigint;
  v_budget int := max_tasks + 1000;
  v_asked int;
  v_got int;
  v_noted bigint[];
  v_keyed boolean;
  v_starting boolean;
begin
  loop
    select mark.lane, mark.low_pos into v_mark
    from tasklib.mark
    where mark.lane >= v_lane + (v_pos > 0)::int and mark.lane <= last_lane
    order by mark.lane, mark.low_pos desc limit 1;
    v_stop := coalesce(v_mark.lane - 1, last_lane);

    -- again while some of what was picked had to wait for its concurrency key
    while v_lane <= v_stop and cardinality(v_all) < max_tasks and v_budget > 0 loop
      v_asked := max_tasks - cardinality(v_all);
      with picked as materialized (
        select candidate.ctid as place, candidate as task
        from tasklib.ready as candidate
        where (candidate.lane, candidate.pos) >= (v_lane, v_pos)
          and candidate.lane <= v_stop
          and (types is null or candidate.type = any (types))
        order by candidate.lane, candidate.pos
        limit v_asked
        for update skip locked
      ),
      gone as (
        delete from tasklib.ready where ready.ctid = any (array(select picked.place from picked))
      )
      select array_agg(picked.task),
          array_agg((picked.task).lane) filter (where (picked.task).pos % 127 = 0),
          bool_or((picked.task).key is not null),
          bool_or((picked.task).unique_until = 's')
        into v_picked, v_noted, v_keyed, v_starting
      from picked;
      exit when v_picked is null;
      v_got := cardinality(v_picked);
      v_budget := v_budget - v_got;
      if v_noted is not null then
        perform tasklib._note_lanes(v_noted);
      end if;
      if v_keyed then
        v_picked := tasklib._open_gates(v_picked);
      end if;
      if v_starting then
        perform tasklib._free_unique_keys((
          select array_agg(pick.task_id) from unnest(v_picked) as pick where pick.unique_until = 's'));
      end if;
      v_all := v_all || v_picked;
      exit when v_got < v_asked;
    end loop;

    exit when v_mark.lane is null or cardinality(v_all) >= max_tasks or v_budget <= 0;
    v_lane := v_mark.lane;
    v_pos := greatest(v_mark.low_pos, 1);
  end loop;
  return v_all;
end;
$$;
comment on function tasklib._pick_lanes(bigint[], bigint, bigint, int) is
  'Internal. Takes up to max_tasks rows of lanes first_lane to last_lane out of ready.';

create or replace function tasklib._first_lane(first_lane bigint, last_lane bigint, types bigint[])
  returns bigint
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_mark record;
  v_lane bigint := first_lane;
  v_pos bigint := 0;
  v_found bigint;
begin
  loop
    select mark.lane, mark.low_pos into v_mark
    from tasklib.mark
    where mark.lane >= v_lane + (v_pos > 0)::int and mark.lane <= last_lane
    order by mark.lane, mark.low_pos desc limit 1;

    select ready.lane into v_found
    from tasklib.ready
    where (ready.lane, ready.pos) >= (v_lane, v_pos)
      and ready.lane <= coalesce(v_mark.lane - 1, last_lane)
      and (types is null or ready.type = any (types))
    order by ready.lane, ready.pos limit 1;

    exit when v_found is not null or v_mark.lane is null;
    v_lane := v_mark.lane;
    v_pos := greatest(v_mark.low_pos, 1);
  end loop;
  return v_found;
end;
$$;
comment on function tasklib._first_lane(bigint, bigint, bigint[]) is
  'Internal. The lane of the first task between two lanes; null when there is none.';

create or replace function tasklib._retry_count(task_id uuid, attempt int)
  returns int
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return greatest(0, _retry_count.attempt - 1 - coalesce((
    select allowance.excused from tasklib.allowance where allowance.task_id = _retry_count.task_id), 0));
end;
$$;
comment on function tasklib._retry_count(uuid, int) is
  'Internal. Attempts that were charged, less one.';

-- complete.sql
create or replace function tasklib.complete(
  id uuid,
  worker_id uuid,
  attempt int,
  result jsonb default null
)
  returns void
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
declare
  v_run tasklib.running;
begin
  if octet_length(complete.result::text) > 1048576 then
    perform tasklib._reject('TL002', 'result has ' || octet_length(complete.result::text)
      || ' bytes as text', null, 'At most 1048576 are stored: keep large results elsewhere and return a reference.');
  end if;
  v_run := tasklib._hold(complete.id, complete.worker_id, complete.attempt, 'completed');
  insert into tasklib.done (task_id, worker_id, started_at, finished_at, attempt, state, result)
  values (v_run.task_id, v_run.worker_id, v_run.started_at, clock_timestamp(), v_run.attempt, 1,
    complete.result);
  delete from tasklib.cancel_request where cancel_request.task_id = complete.id;
  perform tasklib._let_go(array[v_run.key],
    case when v_run.unique_until = 'f' then array[v_run.task_id] end);
end;
$$;
comment on function tasklib.complete(uuid, uuid, int, jsonb) is
  'running to completed. Made to be the last statement of the transaction that did the work: it raises when the lease is not held, so that the work is rolled back. Errors: TL003 no such task, TL004 the lease is another''s, TL005 this attempt completed before, TL006 cancelled, TL007 the worker is not registered, TL002, TL011.';

create or replace function tasklib._hold(id uuid, worker_id uuid, attempt int, outcome text)
  returns tasklib.running
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run tasklib.running;
begin
  perform tasklib._check_lease(_hold.id, _hold.worker_id, _hold.attempt);
  perform tasklib._registration(_hold.worker_id);
  v_run := tasklib._take_run(_hold.id, _hold.worker_id, _hold.attempt);
  if v_run.task_id is null then
    perform tasklib._lost(_hold.worker_id, _hold.id, _hold.attempt, _hold.outcome);
  end if;
  return v_run;
end;
$$;
comment on function tasklib._hold(uuid, uuid, int, text) is
  'Internal. Takes an attempt out of running; raises TL001 or TL003 to TL007 when the lease is not held.';

create or replace function tasklib._check_lease(id uuid, worker_id uuid, attempt int)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if id is null or worker_id is null or attempt is null then
    perform tasklib._reject('TL001', 'id, worker_id and attempt must be given, got '
      || tasklib._shown(id::text) || ', ' || tasklib._shown(worker_id::text) || ' and '
      || tasklib._shown(attempt::text), null, 'Pass id and attempt as claim returned them.');
  end if;
end;
$$;
comment on function tasklib._check_lease(uuid, uuid, int) is
  'Internal. Raises TL001 unless all three parts of a lease are given.';

create or replace function tasklib._lost(worker_id uuid, id uuid, attempt int, outcome text)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  case tasklib._explain(_lost.worker_id, _lost.id, _lost.attempt, _lost.outcome)
    when 'gone' then
      perform tasklib._reject('TL003', 'no task ' || _lost.id, null,
        'It was purged, or never existed. Drop what was done for it.');
    when 'already' then
      perform tasklib._reject('TL005', 'attempt ' || _lost.attempt || ' of task ' || _lost.id
        || ' was ' || _lost.outcome || ' before', 'What was stored then stays.',
        'A repeated call after a lost connection may take this as success.');
    when 'cancelled' then
      perform tasklib._reject('TL006', 'task ' || _lost.id || ' was cancelled', null,
        'Roll back, or drop what was done for it.');
    else
      perform tasklib._reject('TL004', 'attempt ' || _lost.attempt || ' of task ' || _lost.id
        || ' is not held by worker ' || _lost.worker_id,
        'Another attempt runs or ran, or the attempt ended otherwise. Nothing was changed.',
        'Roll back, or drop what was done: the task belongs to somebody else.');
  end case;
end;
$$;
comment on function tasklib._lost(uuid, uuid, int, text) is
  'Internal. Raises why a lease is not held: TL003, TL004, TL005 or TL006.';

-- deregister_worker.sql
create or replace function tasklib.deregister_worker(worker_id uuid, crashed boolean default false)
  returns int
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
declare
  v_run tasklib.running;
  v_count int := 0;
begin
  -- waits for an open claim of this worker, whose tasks must be given back too
  perform from tasklib.worker where worker.id = deregister_worker.worker_id for update;
  perform tasklib._registration(deregister_worker.worker_id);
  update tasklib.worker
  set lost_at = clock_timestamp(), cleared_at = clock_timestamp(),
    crashed = deregister_worker.crashed is true
  where worker.id = deregister_worker.worker_id and worker.lost_at is null;

  for v_run in
    delete from tasklib.running where running.worker_id = deregister_worker.worker_id
    returning running.*
  loop
    if crashed then
      perform tasklib._fail(v_run, 'the worker process died', true, null, 'crashed');
    else
      perform tasklib._release(v_run);
    end if;
    v_count := v_count + 1;
  end loop;
  perform tasklib._forget_any_name();
  return v_count;
end;
$$;
comment on function tasklib.deregister_worker(uuid, boolean) is
  'End a worker''s registration. What it still holds is given back: released, or failed as crashed when a supervisor saw its process die. Returns how many tasks that were. Errors: TL007, TL011.';

create or replace function tasklib._forget_any_name()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  delete from tasklib.task_type
  where task_type.type = 0
    and not exists (select from tasklib.worker where worker.lost_at is null and worker.types is null);
end;
$$;
comment on function tasklib._forget_any_name() is
  'Internal. Removes the task type that stands for any name when no live worker takes any name.';

-- enqueue.sql
create or replace function tasklib.enqueue(
  name text,
  kwargs jsonb default '{}',
  queue text default null,
  priority int default null,
  delay interval default null,
  scheduled_at timestamptz default null,
  max_retries int default null,
  timeout_seconds float8 default null,
  tags jsonb default null,
  unique_key text default null,
  concurrency_key text default null,
  headers jsonb default null,
  unique_until text default 'finished',
  backoff jsonb default null
)
  returns uuid
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
  set plan_cache_mode = force_generic_plan
as $$
declare
  v_spec tasklib.task_spec := row(
    enqueue.name, enqueue.kwargs, enqueue.queue, enqueue.priority, enqueue.delay,
    enqueue.scheduled_at, enqueue.max_retries, enqueue.timeout_seconds, enqueue.tags,
    enqueue.unique_key, enqueue.concurrency_key, enqueue.headers, enqueue.unique_until,
    enqueue.backoff);
  v_task tasklib.enqueued;
begin
  if enqueue.delay is null and enqueue.scheduled_at is null and enqueue.tags is null
    and enqueue.unique_key is null
  then
    return tasklib._insert_task(v_spec);
  end if;

  select made.id, made.created into v_task from tasklib._insert_tasks(array[v_spec], false) as made;
  if not v_task.created then
    raise notice 'task % holds unique_key %: nothing was enqueued', v_task.id,
      tasklib._shown(enqueue.unique_key);
  end if;
  return v_task.id;
end;
$$;
comment on function tasklib.enqueue(
  text, jsonb, text, int, interval, timestamptz, int, float8, jsonb, text, text, jsonb, text, jsonb
) is
  'Insert one task in the caller''s transaction and return its id; the task exists when that transaction commits. An option left out (or null) is taken from the defaults that a worker registered for the name, when it is needed. When an unfinished task of the queue holds unique_key, nothing is inserted and its id is returned with a notice. Errors: TL001 invalid argument, TL002 limit exceeded.';

-- One task that can go at once: what nearly every call of enqueue is. It does what _insert_tasks does, in
-- statements so plain that they take a third of the time; everything else goes there.
create or replace function tasklib._insert_task(spec tasklib.task_spec)
  returns uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_known record;
  v_id uuid;
  v_queue text;
  v_priority int;
  v_type bigint;
  v_key bigint;
  v_place tid;
begin
  if tasklib._is_plain(spec) is not true then
    perform tasklib._check_spec(spec, null);
  end if;
  select known.type, known.queue, known.priority, config.shard,
    (select last_value from tasklib.asleep_until) as asleep_until,
    known.type is not null or exists (select from tasklib.task_type where task_type.type = 0) as is_known
    into v_known
  from tasklib.config left join tasklib.task_type as known on known.name = spec.name;
  v_id := tasklib._new_id(v_known.shard);
  v_queue := coalesce(spec.queue, v_known.queue, 'default');
  v_priority := coalesce(spec.priority, v_known.priority, 0);
  v_type := coalesce(v_known.type, tasklib._type_of(spec.name));

  insert into tasklib.task (id, type, created_at, timeout_seconds, priority, max_retries, queue_given,
    priority_given, name, queue, enqueued_by, kwargs, headers, backoff, concurrency_key)
  values (v_id, v_type, v_now, spec.timeout_seconds, v_priority, spec.max_retries,
    spec.queue is not null, spec.priority is not null, spec.name, v_queue, tasklib._caller(),
    spec.kwargs, spec.headers, spec.backoff, spec.concurrency_key)
  returning task.ctid into v_place;
  v_key := tasklib._key(v_queue, spec.concurrency_key);
  -- the body has taken the transaction id, the plan takes the lock on ready: both before the position
  if v_known.is_known then
    insert into tasklib.ready (task_id, lane, type, attempt, place, key)
    values (v_id, tasklib._lane(v_queue, v_priority), v_type, 0, v_place, v_key);
  else
    insert into tasklib.parked (type, task_id, attempt, key) values (v_type, v_id, 0, v_key);
  end if;

  if v_known.asleep_until > tasklib._milliseconds(v_now) then
    perform tasklib._wake(v_queue, array[v_type], v_now);
  end if;
  return v_id;
end;
$$;
comment on function tasklib._insert_task(tasklib.task_spec) is
  'Internal. Checks and inserts one task without unique key, tags and time.';

create or replace function tasklib._is_plain(spec tasklib.task_spec)
  returns boolean
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return spec.name !~ '[[:cntrl:]]'
    and octet_length(spec.name) between 1 and 128
    and jsonb_typeof(spec.kwargs) = 'object'
    and octet_length(spec.kwargs::text) <= 1048576
    and not jsonb_path_exists(spec.kwargs, 'strict $.**{65}')
    and spec.unique_until = 'finished'
    and coalesce(spec.queue, spec.unique_key, spec.concurrency_key) is null
    and coalesce(spec.tags, spec.headers, spec.backoff) is null
    and coalesce(spec.priority, spec.max_retries, spec.timeout_seconds) is null
    and spec.delay is null
    and spec.scheduled_at is null;
end;
$$;
comment on function tasklib._is_plain(tasklib.task_spec) is
  'Internal. A name and a few arguments, within the limits, and nothing else: needs no further look.';

-- Any number of tasks of any kind. Rows are inserted in the order of specs: ids and positions ascend
-- with it. The transaction id and the locks that show tick a writer are taken before the clock (for
-- tasks of later) and before any position: the proof of the low-water marks (see _safe) rests on that.
create or replace function tasklib._insert_tasks(specs tasklib.task_spec[], batch boolean)
  returns setof tasklib.enqueued
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz;
  v_caller text := tasklib._caller();
  v_ids uuid[] := tasklib._new_ids(cardinality(specs));
  v_twins uuid[];
  v_any_name boolean := exists (select from tasklib.task_type where task_type.type = 0);
  v_default_lane bigint := tasklib._lane('default', 0);
  v_not_ready boolean;
begin
  perform pg_current_xact_id();
  lock table tasklib.ready, tasklib.delayed in row exclusive mode;
  v_now := clock_timestamp();

  if tasklib._check_specs(specs, batch) then
    v_twins := tasklib._take_unique_keys(specs, v_ids);
  end if;

  with spec as materialized (
    select given.n,
      v_ids[given.n] as id,
      coalesce(type.type, tasklib._type_of(given.name)) as type,
      coalesce(given.scheduled_at, v_now + given.delay) as run_at,
      coalesce(given.queue, type.queue, 'default') as queue,
      coalesce(given.priority, type.priority, 0) as priority,
      given.queue is not null as queue_given,
      given.priority is not null as priority_given,
      type.type is not null or v_any_name as known,
      case when given.unique_key is not null then left(given.unique_until, 1)::"char" end as until,
      given.name, given.kwargs, given.timeout_seconds, given.max_retries, given.tags, given.headers,
      given.backoff, given.unique_key, given.concurrency_key
    from unnest(specs) with ordinality as given (name, kwargs, queue, priority, delay, scheduled_at,
      max_retries, timeout_seconds, tags, unique_key, concurrency_key, headers, unique_until, backoff, n)
      left join lateral (
        select known.* from tasklib.task_type as known where known.name = given.name offset 0
      ) as type on true
    where v_twins is null or v_twins[given.n] is null
  ),
  body as (
    insert into tasklib.task (id, type, created_at, scheduled_at, timeout_seconds, priority,
      max_retries, queue_given, priority_given, name, queue, enqueued_by, kwargs, tags, headers,
      backoff, unique_key, concurrency_key, unique_until)
    select spec.id, spec.type, v_now, spec.run_at, spec.timeout_seconds, spec.priority,
      spec.max_retries, spec.queue_given, spec.priority_given, spec.name, spec.queue, v_caller,
      spec.kwargs, spec.tags, spec.headers, spec.backoff, spec.unique_key, spec.concurrency_key,
      spec.until
    from spec
    returning task.ctid as place, task.id, task.type, task.queue, task.priority, task.scheduled_at,
      task.concurrency_key, task.unique_until
  ),
  ready as (
    insert into tasklib.ready (task_id, lane, type, attempt, unique_until, place, key)
    select body.id,
      case when body.queue = 'default' and body.priority = 0 then v_default_lane
        else tasklib._lane(body.queue, body.priority) end,
      body.type, 0, body.unique_until, body.place,
      case when body.concurrency_key is not null
        then tasklib._key(body.queue, body.concurrency_key) end
    from body
    where (body.scheduled_at > v_now) is not true
  )
  select bool_or(not spec.known or spec.run_at > v_now or spec.tags is not null) into v_not_ready
  from spec;

  if v_not_ready then
    perform tasklib._insert_rest(v_ids, v_now, v_any_name);
  end if;
  if (select last_value from tasklib.asleep_until) > extract(epoch from v_now)::float8 * 1000 then
    perform tasklib._wake_for(specs, v_now);
  end if;
  return query
    select coalesce(v_twins[n], v_ids[n]), v_twins is null or v_twins[n] is null
    from generate_series(1, cardinality(specs)) as n;
end;
$$;
comment on function tasklib._insert_tasks(tasklib.task_spec[], boolean) is
  'Internal. Checks and inserts tasks, in order; one row each. batch: errors name the index.';

-- Most tasks are a name and a few arguments: those need no further look. The others go through a loop,
-- so that an error quotes one short line of context and not this statement.
create or replace function tasklib._check_specs(specs tasklib.task_spec[], batch boolean)
  returns boolean
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_odd record;
  v_has_unique_key boolean := false;
begin
  for v_odd in
    select (spec.name, spec.kwargs, spec.queue, spec.priority, spec.delay, spec.scheduled_at,
        spec.max_retries, spec.timeout_seconds, spec.tags, spec.unique_key, spec.concurrency_key,
        spec.headers, spec.unique_until, spec.backoff)::tasklib.task_spec as spec,
      case when batch then spec.n - 1 end::int as index
    from unnest(specs) with ordinality as spec (name, kwargs, queue, priority, delay, scheduled_at,
      max_retries, timeout_seconds, tags, unique_key, concurrency_key, headers, unique_until, backoff, n)
    where (
        spec.name !~ '[[:cntrl:]]'
        and octet_length(spec.name) between 1 and 128
        and jsonb_typeof(spec.kwargs) = 'object'
        and octet_length(spec.kwargs::text) <= 1048576
        and not jsonb_path_exists(spec.kwargs, 'strict $.**{65}')
        and spec.unique_until = 'finished'
        and coalesce(spec.queue, spec.unique_key, spec.concurrency_key) is null
        and coalesce(spec.tags, spec.headers, spec.backoff) is null
        and coalesce(spec.priority, spec.max_retries, spec.timeout_seconds) is null
        and spec.delay is null
        and spec.scheduled_at is null
      ) is not true
  loop
    v_has_unique_key := tasklib._check_spec(v_odd.spec, v_odd.index) or v_has_unique_key;
  end loop;
  return v_has_unique_key;
end;
$$;
comment on function tasklib._check_specs(tasklib.task_spec[], boolean) is
  'Internal. Raises TL001 or TL002 for the first task that enqueue does not take. True when one has a unique key.';

-- What _insert_tasks leaves for a second look, as most batches have none of it: tasks for later, tags,
-- and names that nobody registered, which are ready already and go to parked.
create or replace function tasklib._insert_rest(ids uuid[], now timestamptz, any_name boolean)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  with body as materialized (
    select task.id, task.type, task.scheduled_at, task.queue, task.priority, task.unique_until,
      task.tags, tasklib._key(task.queue, task.concurrency_key) as key,
      any_name or exists (select from tasklib.task_type where task_type.type = task.type) as known
    from unnest(ids) with ordinality as given (id, n)
      cross join lateral (select made.* from tasklib.task as made where made.id = given.id offset 0) as task
    order by given.n
  ),
  later as (
    insert into tasklib.delayed (run_at, task_id, lane, type, attempt, reason, unique_until, key)
    select body.scheduled_at, body.id,
      case when body.known then tasklib._lane(body.queue, body.priority) end,
      body.type, 0, 'd', body.unique_until, body.key
    from body
    where body.scheduled_at > _insert_rest.now
  ),
  unknown as (
    delete from tasklib.ready
    where ready.ctid = any (array(
      select candidate.place
      from body cross join lateral (
        select made.ctid as place from tasklib.ready as made where made.task_id = body.id offset 0
      ) as candidate
      where not body.known))
    returning ready.*
  ),
  gone as (
    insert into tasklib.parked (type, task_id, attempt, unique_until, key)
    select unknown.type, unknown.task_id, 0, unknown.unique_until, unknown.key from unknown
  )
  insert into tasklib.tag (pair, task_id)
  select tasklib._tag_pair(entry.key, entry.value), body.id
  from body, jsonb_each(body.tags) as entry
  where body.tags is not null
  on conflict do nothing;
end;
$$;
comment on function tasklib._insert_rest(uuid[], timestamptz, boolean) is
  'Internal. Rows in delayed, parked and tag for tasks whose bodies were inserted just now.';

-- Keys are taken in sorted order, so that two batches with the same keys wait for each other instead
-- of deadlocking. A key whose holder finished between the two statements is tried again.
create or replace function tasklib._take_unique_keys(specs tasklib.task_spec[], ids uuid[])
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_twins uuid[];
  v_holder uuid;
  v_spec record;
begin
  for v_spec in
    select coalesce(given.queue, type.queue, 'default') as queue, given.unique_key as key, given.n
    from unnest(specs) with ordinality as given (name, kwargs, queue, priority, delay, scheduled_at,
      max_retries, timeout_seconds, tags, unique_key, concurrency_key, headers, unique_until, backoff, n)
      left join lateral (
        select known.* from tasklib.task_type as known where known.name = given.name offset 0
      ) as type on true
    where given.unique_key is not null
    order by 1, 2, 3
  loop
    loop
      insert into tasklib.unique_key (queue, key, task_id)
      values (v_spec.queue, v_spec.key, ids[v_spec.n])
      on conflict do nothing;
      exit when found;

      select holder.task_id into v_holder
      from tasklib.unique_key as holder
      where holder.queue = v_spec.queue and holder.key = v_spec.key;
      if found then
        v_twins := coalesce(v_twins, array_fill(null::uuid, array[cardinality(ids)]));
        v_twins[v_spec.n] := v_holder;
        exit;
      end if;
    end loop;
  end loop;
  return v_twins;
end;
$$;
comment on function tasklib._take_unique_keys(tasklib.task_spec[], uuid[]) is
  'Internal. Takes the unique keys of specs; returns the holder where a key is taken, null when none is.';

-- enqueue_many.sql
create or replace function tasklib.enqueue_many(tasks jsonb)
  returns setof tasklib.enqueued
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
  set plan_cache_mode = force_generic_plan
as $$
declare
  v_specs tasklib.task_spec[];
begin
  if tasks is null or jsonb_typeof(tasks) <> 'array' then
    perform tasklib._reject('TL001',
      'tasks must be a JSON array, got ' || tasklib._shown(tasks::text), null,
      'Pass an array of objects such as [{"name": "app.send_email", "kwargs": {"to": "a@b.c"}}].');
  elsif jsonb_array_length(tasks) > 10000 then
    perform tasklib._reject('TL002', 'tasks has ' || jsonb_array_length(tasks) || ' elements', null,
      'At most 10000 are taken in one call: make several calls, in one transaction if need be.');
  end if;
  perform tasklib._check_element(element.value, (element.n - 1)::int)
  from jsonb_array_elements(tasks) with ordinality as element (value, n)
  where (jsonb_typeof(element.value) = 'object'
    and element.value - '{name,kwargs}'::text[] = '{}'
    and jsonb_typeof(element.value -> 'name') = 'string') is not true;

  v_specs := array(
    select (
      item ->> 'name',
      coalesce(nullif(item -> 'kwargs', 'null'), '{}'),
      item ->> 'queue',
      nullif(item -> 'priority', 'null')::int,
      case when item ? 'delay' then tasklib._interval(item -> 'delay') end,
      (item ->> 'scheduled_at')::timestamptz,
      nullif(item -> 'max_retries', 'null')::int,
      nullif(item -> 'timeout_seconds', 'null')::float8,
      nullif(item -> 'tags', 'null'),
      item ->> 'unique_key',
      item ->> 'concurrency_key',
      nullif(item -> 'headers', 'null'),
      coalesce(item ->> 'unique_until', 'finished'),
      nullif(item -> 'backoff', 'null'))::tasklib.task_spec
    from jsonb_array_elements(tasks) as item);

  if cardinality(v_specs) > 0 then
    return query select made.id, made.created from tasklib._insert_tasks(v_specs, true) as made;
  end if;
end;
$$;
comment on function tasklib.enqueue_many(jsonb) is
  'Insert an array of tasks, each an object with the argument names of enqueue as keys (delay: seconds, or an interval as text; scheduled_at: a time as text). Returns one row each, in the order of the array, with created = false where another task holds the unique key. All or nothing: an error names the index of the element. At most 10000 a call. Errors: TL001 invalid argument, TL002 limit exceeded.';

-- The shape of one element: known keys, and values of the JSON type that can become the argument.
create or replace function tasklib._check_element(element jsonb, index int)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_where text := 'In tasks[' || index || ']. Nothing was enqueued.';
  v_key text;
  v_value jsonb;
  v_kind text;
begin
  if jsonb_typeof(element) <> 'object' then
    perform tasklib._reject('TL001', 'a task must be a JSON object, got '
      || tasklib._shown(element::text), v_where,
      'Pass objects such as {"name": "app.send_email", "kwargs": {"to": "a@b.c"}}.');
  end if;
  for v_key, v_value in select entry.key, entry.value from jsonb_each(element) as entry loop
    v_kind := case
      when v_key in ('name', 'queue', 'unique_key', 'concurrency_key', 'unique_until') then 'string'
      when v_key in ('priority', 'max_retries', 'timeout_seconds') then 'number'
      when v_key in ('kwargs', 'tags', 'headers', 'backoff') then 'object'
      when v_key = 'delay' then case when jsonb_typeof(v_value) = 'number' then 'number' else 'string' end
      when v_key = 'scheduled_at' then 'string'
    end;
    if v_kind is null then
      perform tasklib._reject('TL001', 'a task has no option ' || tasklib._shown(v_key), v_where,
        'The options are the argument names of tasklib.enqueue.');
    elsif jsonb_typeof(v_value) not in (v_kind, 'null') then
      perform tasklib._reject('TL001', v_key || ' must be a JSON ' || v_kind || ', got '
        || tasklib._shown(v_value::text), v_where, 'See tasklib.enqueue for what ' || v_key || ' means.');
    elsif jsonb_typeof(v_value) = 'number' and not tasklib._number_fits(v_key, v_value::numeric) then
      perform tasklib._reject('TL001', v_key || ' = ' || tasklib._shown(v_value::text)
        || ' is out of range', v_where, 'See tasklib.enqueue for the range of ' || v_key || '.');
    elsif v_key in ('delay', 'scheduled_at') and jsonb_typeof(v_value) = 'string'
      and not tasklib._is_time(v_key, v_value #>> '{}')
    then
      perform tasklib._reject('TL001', v_key || ' cannot be read: ' || tasklib._shown(v_value #>> '{}'),
        v_where, 'delay takes seconds or a text such as "10 minutes", scheduled_at one such as "2030-01-31T12:00:00Z".');
    end if;
  end loop;
  if jsonb_typeof(element -> 'name') is distinct from 'string' then
    perform tasklib._reject('TL001', 'a task has no name: ' || tasklib._shown(element::text), v_where,
      'Give each object a "name".');
  end if;
end;
$$;
comment on function tasklib._check_element(jsonb, int) is
  'Internal. Raises TL001 unless the element of enqueue_many can be read as a task_spec.';

create or replace function tasklib._number_fits(argument text, value numeric)
  returns boolean
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when argument in ('priority', 'max_retries')
      then value between -2147483648 and 2147483647 and value = trunc(value)
    else value = 0 or abs(value) between 1e-9 and 1e15
  end;
end;
$$;
comment on function tasklib._number_fits(text, numeric) is
  'Internal. A number of a JSON task can be converted to the type of its argument.';

create or replace function tasklib._interval(value jsonb)
  returns interval
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case jsonb_typeof(value)
    when 'number' then make_interval(secs => greatest(least(value::numeric, 1e9), -1)::float8)
    when 'string' then (value #>> '{}')::interval
  end;
end;
$$;
comment on function tasklib._interval(jsonb) is
  'Internal. Seconds (clamped to what an interval can hold) or a text as an interval.';

-- A subtransaction, but only for tasks whose time is given as a text.
create or replace function tasklib._is_time(argument text, value text)
  returns boolean
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if argument = 'delay' then
    perform value::interval;
  else
    perform value::timestamptz;
  end if;
  return true;
exception
  when data_exception then
    return false;
end;
$$;
comment on function tasklib._is_time(text, text) is
  'Internal. The text can be read as an interval (delay) or a time (scheduled_at).';

-- fail.sql
create or replace function tasklib.fail(
  id uuid,
  worker_id uuid,
  attempt int,
  error text default null,
  retry boolean default true,
  retry_in interval default null,
  cause text default 'error'
)
  returns tasklib.failed
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
begin
  if cause is null or cause not in ('error', 'timeout', 'crashed', 'lost') then
    perform tasklib._reject('TL001', 'unknown cause ' || tasklib._shown(fail.cause), null,
      'Pass ''error'', ''timeout'', ''crashed'' or ''lost''.');
  end if;
  return tasklib._fail(
    tasklib._hold(fail.id, fail.worker_id, fail.attempt, 'failed'), fail.error,
    coalesce(fail.retry, true), tasklib._clamp(fail.retry_in), fail.cause);
end;
$$;
comment on function tasklib.fail(uuid, uuid, int, text, boolean, interval, text) is
  'running to failed: with the time of the next attempt, after least(cap, base * multiplier ^ (charged attempts - 1)) or retry_in, while retries are left; else for good. The error is clipped to 64 kB. cause crashed or lost also counts towards max_crashes. A task that was asked to cancel ends as cancelled. Returns (state, next_retry_at). Errors: TL001, TL003 to TL007, TL011.';

-- The run is out of `running` already. The clock is read after that, so that run_at is above the time
-- of every note in horizon that this transaction is not covered by.
create or replace function tasklib._fail(
  run tasklib.running,
  error text,
  retry boolean,
  retry_in interval,
  cause text
)
  returns tasklib.failed
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_rules record;
  v_crashes int := 0;
  v_charged int;
  v_retry_at timestamptz;
  v_asked boolean := exists (select from tasklib.cancel_request where cancel_request.task_id = run.task_id);
begin
  select body.queue,
    coalesce(body.max_retries, type.max_retries, 3) as max_retries,
    coalesce(body.backoff, type.backoff, '{}') as backoff,
    coalesce(type.max_crashes, settings.max_crashes, 3) as max_crashes
    into v_rules
  from tasklib.task as body
    left join tasklib.task_type as type on type.type = run.type
    left join tasklib.queue as settings on settings.name = body.queue
  where body.id = run.task_id;

  if cause in ('crashed', 'lost') then
    v_crashes := (tasklib._count(run.task_id, 0, 0, 1)).crashes;
  end if;
  v_charged := 1 + tasklib._retry_count(run.task_id, run.attempt);

  if retry and not v_asked and v_charged <= v_rules.max_retries and v_crashes < v_rules.max_crashes then
    v_retry_at := v_now + coalesce(retry_in, tasklib._backoff(v_rules.backoff, v_charged));
  end if;
  insert into tasklib.failure (task_id, attempt, failed_at, worker_id, retry_at, cause, error)
  values (run.task_id, run.attempt, v_now, run.worker_id, v_retry_at, _fail.cause, tasklib._clip(_fail.error))
  on conflict do nothing;

  if v_retry_at is null then
    perform tasklib._close(run.task_id, case when v_asked then 3 else 2 end::smallint, run, _fail.error);
    return row(case when v_asked then 'cancelled' else 'failed' end, null::timestamptz)::tasklib.failed;
  end if;
  insert into tasklib.delayed (run_at, task_id, lane, type, attempt, reason, unique_until, key)
  values (v_retry_at, run.task_id, run.lane, run.type, run.attempt, 'r', run.unique_until, run.key);
  perform tasklib._let_go(array[run.key], null);
  if cause <> 'error' then
    -- its worker may be no more, or not know; after an error it knows when to look again
    perform tasklib._wake_by(v_rules.queue, array[run.type], v_retry_at);
  end if;
  return row('failed', v_retry_at)::tasklib.failed;
end;
$$;
comment on function tasklib._fail(tasklib.running, text, boolean, interval, text) is
  'Internal. What becomes of a failed attempt.';

-- The exponent and the product are clamped before they can overflow. jitter j moves the delay by up to
-- j of itself, either way.
create or replace function tasklib._backoff(backoff jsonb, charged int)
  returns interval
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return tasklib._seconds((
    least(
      coalesce((backoff ->> 'cap_seconds')::float8, 3600),
      coalesce((backoff ->> 'base_seconds')::float8, 5)
        * power(coalesce((backoff ->> 'multiplier')::float8, 2), least(charged - 1, 60)::float8))
    * (1 + coalesce((backoff ->> 'jitter')::float8, 0) * (2 * random() - 1)))::numeric);
end;
$$;
comment on function tasklib._backoff(jsonb, int) is
  'Internal. least(cap, base * multiplier ^ (charged - 1)) seconds, with jitter; 5 s, x 2, 1 h and no jitter by default.';

create or replace function tasklib._count(task_id uuid, excused int, releases int, crashes int)
  returns tasklib.allowance
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_allowance tasklib.allowance;
begin
  insert into tasklib.allowance (task_id, excused, releases, crashes)
  values (_count.task_id, _count.excused, _count.releases, _count.crashes)
  on conflict on constraint allowance_pkey do update
    set excused = allowance.excused + excluded.excused,
        releases = allowance.releases + excluded.releases,
        crashes = allowance.crashes + excluded.crashes
  returning allowance.* into v_allowance;
  return v_allowance;
end;
$$;
comment on function tasklib._count(uuid, int, int, int) is
  'Internal. Adds to the counters of a task that attempt alone does not say; returns them.';

-- finish.sql
create or replace function tasklib.finish(
  worker_id uuid,
  ids uuid[],
  attempts int[],
  outcomes jsonb default null
)
  returns setof text
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set enable_bitmapscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
  set plan_cache_mode = force_generic_plan
as $$
declare
  v_all_completed boolean;
  v_status text[];
begin
  perform tasklib._check_batch(ids, attempts);
  v_all_completed := tasklib._check_outcomes(outcomes, cardinality(ids));
  perform tasklib._registration(finish.worker_id);

  v_status := tasklib._complete_many(finish.worker_id, ids, attempts, outcomes);
  if not v_all_completed then
    v_status := tasklib._end_others(finish.worker_id, ids, attempts, outcomes, v_status);
  end if;
  if array_position(v_status, null) is not null then
    v_status := tasklib._explain_many(finish.worker_id, ids, attempts, outcomes, v_status);
  end if;
  return query select unnest(v_status);
end;
$$;
comment on function tasklib.finish(uuid, uuid[], int[], jsonb) is
  'End many attempts of one worker. outcomes: null when all completed without a result, else an array as long as ids, each element null (completed) or {"state": "completed", "result": …}, {"state": "failed", "error": "…", "retry": true, "retry_in": seconds, "cause": "error"}, {"state": "released"}, {"state": "snoozed", "seconds": n} or {"state": "cancelled", "error": "…"}. Returns one status a row, in the order of ids: ok; already (this attempt had the same outcome before: a repeated call); stale (the lease is another''s); cancelled; gone. Errors: TL001, TL002, TL007, TL011.';

create or replace function tasklib._check_batch(ids uuid[], attempts int[])
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if ids is null or attempts is null or cardinality(ids) <> cardinality(attempts)
    or array_ndims(ids) > 1 or array_ndims(attempts) > 1
    or array_position(ids, null) is not null or array_position(attempts, null) is not null
  then
    perform tasklib._reject('TL001', 'ids and attempts must be lists of the same length without NULL, got '
      || tasklib._shown(ids::text) || ' and ' || tasklib._shown(attempts::text), null,
      'Pass the id and the attempt of each task as claim returned them.');
  elsif cardinality(ids) > 10000 then
    perform tasklib._reject('TL002', 'ids has ' || cardinality(ids) || ' elements', null,
      'At most 10000 are taken in one call.');
  end if;
end;
$$;
comment on function tasklib._check_batch(uuid[], int[]) is
  'Internal. Raises TL001 or TL002 unless ids and attempts are parallel lists without NULL.';

create or replace function tasklib._check_twice(ids uuid[])
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_twice uuid := (select id from unnest(ids) as id group by id having count(*) > 1 limit 1);
begin
  if v_twice is not null then
    perform tasklib._reject('TL001', 'ids names task ' || v_twice || ' twice', null, 'Pass each task once.');
  end if;
end;
$$;
comment on function tasklib._check_twice(uuid[]) is
  'Internal. Raises TL001 when an id occurs twice.';

-- Nearly all elements say that the task completed: those need one look. A result is as long as its text
-- at most, so that the texts of a short batch need not be measured one by one.
create or replace function tasklib._check_outcomes(outcomes jsonb, count int)
  returns boolean
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_short boolean := octet_length(outcomes::text) <= 1048576;
  v_others boolean := false;
  v_odd record;
begin
  if outcomes is null then
    return true;
  end if;
  if jsonb_typeof(outcomes) <> 'array' or jsonb_array_length(outcomes) <> count then
    perform tasklib._reject('TL001', 'outcomes must be a JSON array of ' || count || ' elements, got '
      || tasklib._shown(outcomes::text), null, 'Pass one element for each id, or leave outcomes out.');
  end if;
  for v_odd in
    select outcome.value, (outcome.n - 1)::int as index
    from jsonb_array_elements(outcomes) with ordinality as outcome (value, n)
    where not (v_short and jsonb_typeof(outcome.value) = 'object'
      and outcome.value - 'result' = '{"state": "completed"}')
  loop
    if not coalesce(tasklib._is_outcome(v_odd.value), false) then
      perform tasklib._reject(
        case when octet_length((v_odd.value -> 'result')::text) > 1048576 then 'TL002' else 'TL001' end,
        'outcomes[' || v_odd.index || '] is not an outcome: ' || tasklib._shown(v_odd.value::text), null,
        'See tasklib.finish for the five forms; a result has at most 1048576 bytes as text.');
    end if;
    v_others := v_others or v_odd.value ->> 'state' <> 'completed';
  end loop;
  return not v_others;
end;
$$;
comment on function tasklib._check_outcomes(jsonb, int) is
  'Internal. Raises TL001 or TL002 unless outcomes is null or has count well-formed elements. True when all completed.';

create or replace function tasklib._is_outcome(outcome jsonb)
  returns boolean
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when jsonb_typeof(outcome) = 'null' then true
    when jsonb_typeof(outcome) <> 'object' then false
    else case outcome ->> 'state'
      when 'completed' then outcome - '{state,result}'::text[] = '{}'
        and octet_length((outcome -> 'result')::text) <= 1048576 is not false
      when 'failed' then outcome - '{state,error,retry,retry_in,cause}'::text[] = '{}'
        and coalesce(jsonb_typeof(outcome -> 'error'), 'null') in ('string', 'null')
        and coalesce(jsonb_typeof(outcome -> 'retry'), 'null') in ('boolean', 'null')
        and coalesce(jsonb_typeof(outcome -> 'retry_in'), 'null') in ('number', 'null')
        and coalesce(outcome ->> 'cause', 'error') in ('error', 'timeout', 'crashed', 'lost')
      when 'released' then outcome - 'state' = '{}'
      when 'snoozed' then outcome - '{state,seconds}'::text[] = '{}'
        and jsonb_typeof(outcome -> 'seconds') = 'number'
      when 'cancelled' then outcome - '{state,error}'::text[] = '{}'
        and coalesce(jsonb_typeof(outcome -> 'error'), 'null') in ('string', 'null')
    end
  end;
end;
$$;
comment on function tasklib._is_outcome(jsonb) is
  'Internal. Whether finish takes this element of outcomes; null when it has no known state.';

-- The common case in one statement, and nothing in it that a planner could turn: ids are looked up one
-- by one, and the rows are deleted by their place, in one order for all batches that overlap.
create or replace function tasklib._complete_many(
  worker_id uuid,
  ids uuid[],
  attempts int[],
  outcomes jsonb
)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_status text[] := array_fill('ok'::text, array[cardinality(ids)]);
  v_ended bigint[];
  v_keys bigint[];
  v_unique uuid[];
  v_n int;
begin
  with ended as (
    delete from tasklib.running
    using (
      select held.place, given.outcome, given.n
      from rows from (unnest(ids), unnest(attempts), jsonb_array_elements(outcomes)) with ordinality
          as given (id, attempt, outcome, n)
        cross join lateral (
          select candidate.ctid as place
          from tasklib.running as candidate
          where candidate.task_id = given.id
            and candidate.attempt = given.attempt
            and candidate.worker_id = _complete_many.worker_id
          offset 0
        ) as held
      where coalesce(given.outcome ->> 'state', 'completed') = 'completed'
      order by held.place
      offset 0
    ) as completed
    where running.ctid = completed.place
    returning running.task_id, running.attempt, running.started_at, running.key,
      running.unique_until, completed.n, completed.outcome
  ),
  kept as (
    insert into tasklib.done (task_id, worker_id, started_at, finished_at, attempt, state, result)
    select ended.task_id, _complete_many.worker_id, ended.started_at, clock_timestamp(),
      ended.attempt, 1, ended.outcome -> 'result'
    from ended
  )
  select array_agg(ended.n), array_agg(ended.key) filter (where ended.key is not null),
    array_agg(ended.task_id) filter (where ended.unique_until = 'f')
    into v_ended, v_keys, v_unique
  from ended;

  if exists (select from tasklib.cancel_request) then
    delete from tasklib.cancel_request
    where cancel_request.task_id = any (array(select ids[n] from unnest(v_ended) as n));
  end if;
  perform tasklib._let_go(v_keys, v_unique);

  if cardinality(v_ended) is distinct from cardinality(ids) then
    -- only here can a task have been named twice
    perform tasklib._check_twice(ids);
    v_status := array_fill(null::text, array[cardinality(ids)]);
    foreach v_n in array coalesce(v_ended, '{}') loop
      v_status[v_n] := 'ok';
    end loop;
  end if;
  return v_status;
end;
$$;
comment on function tasklib._complete_many(uuid, uuid[], int[], jsonb) is
  'Internal. Completes what the worker holds of ids; ok for those, null for the others.';

create or replace function tasklib._end_others(
  worker_id uuid,
  ids uuid[],
  attempts int[],
  outcomes jsonb,
  status text[]
)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_status text[] := status;
  v_run tasklib.running;
  v_given record;
begin
  for v_given in
    select given.id, given.attempt, given.n, outcomes -> (given.n - 1)::int as outcome
    from unnest(ids, attempts) with ordinality as given (id, attempt, n)
    where outcomes -> (given.n - 1)::int ->> 'state' <> 'completed'
    order by given.id
  loop
    v_run := tasklib._take_run(v_given.id, _end_others.worker_id, v_given.attempt);
    if v_run.task_id is not null then
      perform tasklib._end(v_run, v_given.outcome);
      v_status[v_given.n] := 'ok';
    end if;
  end loop;
  return v_status;
end;
$$;
comment on function tasklib._end_others(uuid, uuid[], int[], jsonb, text[]) is
  'Internal. Ends those attempts of finish that did not complete.';

create or replace function tasklib._take_run(task_id uuid, worker_id uuid, attempt int)
  returns tasklib.running
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run tasklib.running;
begin
  delete from tasklib.running
  where running.task_id = _take_run.task_id
    and running.worker_id = _take_run.worker_id
    and running.attempt = _take_run.attempt
  returning running.* into v_run;
  return v_run;
end;
$$;
comment on function tasklib._take_run(uuid, uuid, int) is
  'Internal. Takes an attempt out of running when the lease (worker_id, attempt) is held; else a row of nulls.';

create or replace function tasklib._end(run tasklib.running, outcome jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  case outcome ->> 'state'
    when 'failed' then
      perform tasklib._fail(run, outcome ->> 'error', coalesce((outcome ->> 'retry')::boolean, true),
        tasklib._seconds(nullif(outcome -> 'retry_in', 'null')::numeric),
        coalesce(outcome ->> 'cause', 'error'));
    when 'released' then
      perform tasklib._release(run);
    when 'snoozed' then
      perform tasklib._snooze(run, tasklib._seconds((outcome -> 'seconds')::numeric));
    when 'cancelled' then
      perform tasklib._close(run.task_id, 3::smallint, run, outcome ->> 'error');
  end case;
end;
$$;
comment on function tasklib._end(tasklib.running, jsonb) is
  'Internal. Ends an attempt that was taken out of running as an outcome of finish says.';

-- The end of a task that did not complete: failed for good or cancelled.
create or replace function tasklib._close(
  task_id uuid,
  state smallint,
  run tasklib.running,
  error text
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into tasklib.done (task_id, worker_id, started_at, finished_at, attempt, state, error)
  values (_close.task_id, run.worker_id, run.started_at, clock_timestamp(), coalesce(run.attempt, 0),
    _close.state, tasklib._clip(_close.error));
  delete from tasklib.cancel_request where cancel_request.task_id = _close.task_id;
  -- also a key held until started, for the task may never have been
  perform tasklib._let_go(array[run.key],
    case when run.unique_until is not null then array[_close.task_id] end);
end;
$$;
comment on function tasklib._close(uuid, smallint, tasklib.running, text) is
  'Internal. Writes how a task ended and frees its keys.';

create or replace function tasklib._let_go(keys bigint[], unique_ids uuid[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if unique_ids is not null then
    perform tasklib._free_unique_keys(unique_ids);
  end if;
  if array_position(keys, null) is distinct from 1 and keys is not null then
    perform tasklib._leave_gates(keys);
  end if;
end;
$$;
comment on function tasklib._let_go(bigint[], uuid[]) is
  'Internal. Frees the unique keys of unique_ids and leaves the gates of keys; null means none.';

create or replace function tasklib._free_unique_keys(ids uuid[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task record;
begin
  for v_task in
    select body.id, body.queue, body.unique_key
    from unnest(ids) as given (id)
      cross join lateral (select task.* from tasklib.task where task.id = given.id offset 0) as body
    order by body.queue, body.unique_key
  loop
    delete from tasklib.unique_key
    where unique_key.queue = v_task.queue
      and unique_key.key = v_task.unique_key
      and unique_key.task_id = v_task.id;
  end loop;
end;
$$;
comment on function tasklib._free_unique_keys(uuid[]) is
  'Internal. Gives up the unique keys that these tasks hold, in key order.';

-- Why a lease is not held.
create or replace function tasklib._explain(
  worker_id uuid,
  id uuid,
  attempt int,
  outcome text
)
  returns text
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_done tasklib.done;
  v_failure tasklib.failure;
begin
  if not exists (select from tasklib.task where task.id = _explain.id) then
    return 'gone';
  end if;
  select done.* into v_done from tasklib.done where done.task_id = _explain.id;
  select failure.* into v_failure from tasklib.failure
  where failure.task_id = _explain.id and failure.attempt = _explain.attempt
    and failure.worker_id = _explain.worker_id;

  return case
    when outcome = 'failed' and v_failure.task_id is not null then 'already'
    when v_done.worker_id = _explain.worker_id and v_done.attempt = _explain.attempt
      and v_done.state = case outcome when 'completed' then 1 when 'failed' then 2 when 'cancelled' then 3 end
      and (outcome <> 'failed' or v_failure.task_id is not null) then 'already'
    when v_done.state = 3 then 'cancelled'
    when outcome = 'released' and exists (select from tasklib.ready where ready.task_id = _explain.id
      and ready.attempt = _explain.attempt) and v_failure.task_id is null then 'already'
    when outcome = 'snoozed' and exists (select from tasklib.delayed where delayed.task_id = _explain.id
      and delayed.attempt = _explain.attempt and delayed.reason = 's') then 'already'
    else 'stale'
  end;
end;
$$;
comment on function tasklib._explain(uuid, uuid, int, text) is
  'Internal. The status of an attempt that is not running: already, stale, cancelled or gone.';

create or replace function tasklib._explain_many(
  worker_id uuid,
  ids uuid[],
  attempts int[],
  outcomes jsonb,
  status text[]
)
  returns text[]
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select array_agg(coalesce(given.status, tasklib._explain(_explain_many.worker_id, given.id,
      given.attempt, coalesce(outcomes -> (given.n - 1)::int ->> 'state', 'completed'))) order by given.n)
  from unnest(ids, attempts, status) with ordinality as given (id, attempt, status, n)
$$;
comment on function tasklib._explain_many(uuid, uuid[], int[], jsonb, text[]) is
  'Internal. Fills the statuses that finish could not settle.';

-- get.sql
create or replace function tasklib.get(id uuid)
  returns setof tasklib.tasks
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
as $$
begin
  return query
    select tasks.* from tasklib.tasks
    where tasks.id = get.id
      and (tasks.enqueued_by = tasklib._caller() or tasklib._caller_is('tasklib_admin'));
end;
$$;
comment on function tasklib.get(uuid) is
  'One task as the view tasks shows it; no row when there is none, or when another role enqueued it (tasklib_admin sees all).';

-- heartbeat.sql
create or replace function tasklib.heartbeat(worker_id uuid)
  returns setof uuid
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
begin
  perform tasklib._registration(heartbeat.worker_id);
  update tasklib.worker
  set lease_until = clock_timestamp() + worker.lease, graced = false
  where worker.id = heartbeat.worker_id and worker.lost_at is null;
  if not found then
    perform tasklib._registration(heartbeat.worker_id);
  end if;
  return query select asked.id from tasklib._cancel_requests(heartbeat.worker_id) as asked (id);
end;
$$;
comment on function tasklib.heartbeat(uuid) is
  'Renew the lease of everything the worker holds. Returns the ids of its tasks that shall be cancelled. Errors: TL007 when it is no longer registered (its tasks are others'' now), TL011.';

create or replace function tasklib.cancel_requests(worker_id uuid)
  returns setof uuid
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
begin
  return query select asked.id from tasklib._cancel_requests(cancel_requests.worker_id) as asked (id);
end;
$$;
comment on function tasklib.cancel_requests(uuid) is
  'The ids of the worker''s tasks that shall be cancelled. Reads one page when there are none: made to be asked each second while something runs.';

create or replace function tasklib._cancel_requests(worker_id uuid)
  returns setof uuid
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select running.task_id
    from tasklib.cancel_request
      cross join lateral (
        select candidate.* from tasklib.running as candidate
        where candidate.task_id = cancel_request.task_id
        offset 0
      ) as running
    where running.worker_id = _cancel_requests.worker_id;
end;
$$;
comment on function tasklib._cancel_requests(uuid) is
  'Internal. Tasks of a worker that were asked to stop.';

-- idle.sql
create or replace function tasklib.idle(
  worker_id uuid,
  queues text[] default '{default}',
  max_wait interval default interval '10 seconds',
  for_long boolean default false
)
  returns float8
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
declare
  v_now timestamptz;
  v_until timestamptz;
begin
  perform tasklib._check_queues(idle.queues);
  perform tasklib._registration(idle.worker_id);
  if max_wait is null or max_wait < interval '0' or max_wait > interval '1 hour' then
    perform tasklib._reject('TL001', 'max_wait ' || tasklib._shown(idle.max_wait::text)
      || ' is out of range', null, 'Pass 0 to 1 hour.');
  end if;
  -- first, so that what it makes due, or due soon, counts
  perform tasklib._keep_house(look_again => false);
  v_now := clock_timestamp();
  v_until := v_now + idle.max_wait;
  if for_long then
    update tasklib.worker
    set lease_until = v_now + worker.lease, graced = false,
      asleep_until = v_until, queues = idle.queues
    where worker.id = idle.worker_id and worker.lost_at is null;
    if not found then
      perform tasklib._registration(idle.worker_id);
    end if;
  end if;
  perform setval('tasklib.asleep_until', greatest(
    (select last_value from tasklib.asleep_until), tasklib._milliseconds(v_until)));
  perform setval('tasklib.notified_at', 0);
  -- least ignores the null of an empty table
  return greatest(0, extract(epoch from least(v_until, tasklib._next_due(), (
    select min(worker.lease_until) from tasklib.worker where worker.lost_at is null)) - v_now)::float8);
end;
$$;
comment on function tasklib.idle(uuid, text[], interval, boolean) is
  'A worker that found nothing goes to sleep. Until it wakes (max_wait at most) an enqueue sends NOTIFY on the channel tasklib. Returns the seconds to sleep: until max_wait, until a delayed task is due, or until the lease of a worker runs out that sends no more heartbeats, whichever is first. LISTEN, call idle, claim once more, then sleep. for_long: it has been idle for a while; this counts as a heartbeat, and the worker needs to look only when the payload of a notification has its id, so that not all run for one task. Any other worker that sleeps looks at every notification. Errors: TL001, TL007, TL011.';

create or replace function tasklib._next_due()
  returns timestamptz
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select delayed.run_at from tasklib.delayed
    where delayed.run_at >= tasklib._low_time('delayed')
    order by delayed.run_at, delayed.task_id limit 1);
end;
$$;
comment on function tasklib._next_due() is
  'Internal. When the next delayed task is due; null when there is none.';

-- list.sql
-- Each branch walks one index downward and looks at a task only when it is its turn: the newest fifty
-- of a million cost fifty looks. Tags lead, then the name, then the state: the narrower first.
create or replace function tasklib.list(
  state text default null,
  name text default null,
  queue text default null,
  tags jsonb default null,
  max_rows int default 50,
  before uuid default null
)
  returns setof tasklib.tasks
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
  set enable_bitmapscan = off
  set enable_sort = off
as $$
declare
  v_before uuid := coalesce(list.before, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
  v_all boolean := tasklib._caller_is('tasklib_admin');
  v_caller text := tasklib._caller();
  v_pair bigint;
  v_ids refcursor;
  v_id uuid;
  v_task tasklib.tasks;
  v_left int := max_rows;
begin
  perform tasklib._check_list(list.state, list.tags, list.max_rows);
  v_pair := (select tasklib._tag_pair(entry.key, entry.value) from jsonb_each(list.tags) as entry limit 1);

  if v_pair is not null then
    open v_ids no scroll for
      select tag.task_id from tasklib.tag where tag.pair = v_pair and tag.task_id < v_before
      order by tag.pair desc, tag.task_id desc;
  elsif list.name is not null then
    open v_ids no scroll for
      select task.id from tasklib.task
      where task.type = tasklib._type_of(list.name) and task.id < v_before
      order by task.type desc, task.id desc;
  elsif list.state = 'completed' then
    open v_ids no scroll for
      select done.task_id from tasklib.done where done.task_id < v_before and done.state = 1
      order by done.task_id desc;
  elsif list.state = 'cancelled' then
    open v_ids no scroll for
      select done.task_id from tasklib.done where done.state = 3 and done.task_id < v_before
      order by done.state desc, done.task_id desc;
  elsif list.state = 'failed' then
    open v_ids no scroll for
      (select done.task_id from tasklib.done where done.state = 2 and done.task_id < v_before
        order by done.task_id desc)
      union all
      (select delayed.task_id from tasklib.delayed
        where delayed.reason = 'r' and delayed.task_id < v_before order by delayed.task_id desc)
      order by 1 desc;
  elsif list.state = 'running' then
    open v_ids no scroll for
      select running.task_id from tasklib.running where running.task_id < v_before
      order by running.task_id desc;
  elsif list.state = 'pending' then
    open v_ids no scroll for
      (select ready.task_id from tasklib.ready where ready.task_id < v_before order by ready.task_id desc)
      union all
      (select delayed.task_id from tasklib.delayed where delayed.task_id < v_before
        order by delayed.task_id desc)
      union all
      (select waiting.task_id from tasklib.waiting where waiting.task_id < v_before
        order by waiting.task_id desc)
      union all
      (select parked.task_id from tasklib.parked where parked.task_id < v_before
        order by parked.task_id desc)
      order by 1 desc;
  else
    open v_ids no scroll for
      select task.id from tasklib.task where task.id < v_before order by task.id desc;
  end if;

  while v_left > 0 loop
    fetch v_ids into v_id;
    exit when not found;
    select tasks.* into v_task from tasklib.tasks
    where tasks.id = v_id
      and (v_all or tasks.enqueued_by = v_caller)
      and (list.state is null or tasks.state = list.state)
      and (list.name is null or tasks.name = list.name)
      and (list.queue is null or tasks.queue = list.queue)
      and (list.tags is null or tasks.tags @> list.tags);
    if found then
      v_left := v_left - 1;
      return next v_task;
    end if;
  end loop;
  close v_ids;
end;
$$;
comment on function tasklib.list(text, text, text, jsonb, int, uuid) is
  'The newest tasks that match all that is given, newest first, at most max_rows (1 to 1000). tags: an object whose pairs the task has. before: the last id of the page before. A role sees what it enqueued, tasklib_admin all. Fast by state, by name and by tags however many tasks are finished; queue alone, or a rare combination, walks from the newest on. Errors: TL001.';

create or replace function tasklib._check_list(state text, tags jsonb, max_rows int)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if state not in ('pending', 'running', 'completed', 'failed', 'cancelled') then
    perform tasklib._reject('TL001', 'unknown state ' || tasklib._shown(state), null,
      'The states are pending, running, completed, failed and cancelled.');
  elsif max_rows is null or max_rows not between 1 and 1000 then
    perform tasklib._reject('TL001', 'max_rows ' || tasklib._shown(max_rows::text) || ' is out of range',
      null, 'Pass 1 to 1000, and the last id of a page as before to get the next one.');
  end if;
  perform tasklib._check_object('tags', tags, 16384);
end;
$$;
comment on function tasklib._check_list(text, jsonb, int) is
  'Internal. Raises TL001 for arguments that list does not take.';

-- pause.sql
create or replace function tasklib.pause(queue text)
  returns void
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform tasklib._check_label('queue', pause.queue, 128);
  insert into tasklib.queue (name, paused) values (pause.queue, true)
  on conflict on constraint queue_pkey do update set paused = true;
end;
$$;
comment on function tasklib.pause(text) is
  'Hand out no more tasks of a queue; those that run go on, and enqueue works. Errors: TL001, TL002.';

create or replace function tasklib.resume(queue text)
  returns void
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform tasklib._check_label('queue', resume.queue, 128);
  update tasklib.queue set paused = false where queue.name = resume.queue;
  if (select last_value from tasklib.asleep_until) > extract(epoch from clock_timestamp()) * 1000 then
    perform pg_notify('tasklib', '');
  end if;
end;
$$;
comment on function tasklib.resume(text) is
  'End the pause of a queue. Errors: TL001, TL002.';

-- purge.sql
create or replace function tasklib.purge(
  older_than interval,
  state text default null,
  max_rows int default 10000
)
  returns int
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
as $$
declare
  v_until timestamptz;
  v_ids uuid[];
begin
  if older_than is null or older_than < interval '0' or older_than > interval '1000 years' then
    perform tasklib._reject('TL001', 'older_than ' || tasklib._shown(older_than::text)
      || ' is out of range', null, 'Pass an interval such as interval ''30 days''.');
  elsif state not in ('completed', 'failed', 'cancelled') then
    perform tasklib._reject('TL001', 'tasks in state ' || tasklib._shown(state)
      || ' cannot be purged', null, 'Pass completed, failed or cancelled, or null for all three.');
  elsif max_rows is null or max_rows not between 1 and 100000 then
    perform tasklib._reject('TL001', 'max_rows ' || tasklib._shown(max_rows::text) || ' is out of range',
      null, 'Pass 1 to 100000, and call again while it returns that many.');
  end if;
  v_until := clock_timestamp() - older_than;
  v_ids := array(
    select done.task_id from tasklib.done
    where done.task_id < tasklib._first_id(v_until)
      and done.finished_at < v_until
      and (purge.state is null
        or done.state = case purge.state when 'completed' then 1 when 'failed' then 2 else 3 end)
    order by done.task_id limit purge.max_rows
    for update skip locked);
  return tasklib._erase(v_ids);
end;
$$;
comment on function tasklib.purge(interval, text, int) is
  'Delete finished tasks with all that belongs to them, oldest first, at most max_rows a call; returns how many. Pending and running tasks are never touched. Errors: TL001.';

create or replace function tasklib._erase(ids uuid[])
  returns int
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if cardinality(ids) = 0 then
    return 0;
  end if;
  delete from tasklib.tag
  using tasklib.task, jsonb_each(task.tags) as entry
  where task.id = any (ids)
    and task.tags is not null
    and tag.pair = tasklib._tag_pair(entry.key, entry.value)
    and tag.task_id = task.id;
  delete from tasklib.failure where failure.task_id = any (ids);
  delete from tasklib.allowance where allowance.task_id = any (ids);
  delete from tasklib.progress where progress.task_id = any (ids);
  delete from tasklib.task where task.id = any (ids);
  delete from tasklib.done where done.task_id = any (ids);
  return cardinality(ids);
end;
$$;
comment on function tasklib._erase(uuid[]) is
  'Internal. Deletes finished tasks, whose done rows the caller has locked; returns how many.';

-- Goes from the oldest to the retention time and then starts again: what finished late is found on the
-- next round.
create or replace function tasklib._retain(max_rows int)
  returns int
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue tasklib.queue;
  v_last uuid;
  v_seen int;
  v_count int := 0;
  v_ids uuid[];
begin
  for v_queue in
    select queue.* from tasklib.queue where queue.retention is not null order by queue.name
  loop
    exit when v_count >= max_rows;
    select count(*), (array_agg(old.task_id order by old.task_id desc))[1],
      coalesce(array_agg(old.task_id) filter (where old.expired), '{}')
      into v_seen, v_last, v_ids
    from (
      select done.task_id,
        done.finished_at < clock_timestamp() - v_queue.retention and body.queue = v_queue.name as expired
      from tasklib.done
        cross join lateral (select task.* from tasklib.task where task.id = done.task_id offset 0) as body
      where done.task_id > coalesce(v_queue.purge_from, '00000000-0000-0000-0000-000000000000')
        and done.task_id < tasklib._first_id(clock_timestamp() - v_queue.retention)
      order by done.task_id limit max_rows - v_count
      for update of done skip locked
    ) as old;
    v_count := v_count + tasklib._erase(v_ids);
    if v_seen > 0 or v_queue.purge_from is not null then
      update tasklib.queue set purge_from = v_last where queue.name = v_queue.name;
    end if;
  end loop;
  return v_count;
end;
$$;
comment on function tasklib._retain(int) is
  'Internal. Looks at up to max_rows finished tasks and deletes those past the retention of their queue; returns how many.';

-- register_worker.sql
create or replace function tasklib.register_worker(
  name text default null,
  lease interval default interval '60 seconds',
  task_types jsonb default null,
  info jsonb default null
)
  returns uuid
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
as $$
declare
  v_types bigint[];
  v_now timestamptz := clock_timestamp();
  v_id uuid;
begin
  if register_worker.name is not null then
    perform tasklib._check_label('name', register_worker.name, 255);
  end if;
  if lease is null or lease < interval '1 second' or lease > interval '24 hours' then
    perform tasklib._reject('TL001', 'lease ' || tasklib._shown(lease::text) || ' is out of range',
      null, 'Pass an interval from 1 second to 24 hours; the worker must send heartbeats well within it.');
  end if;
  perform tasklib._check_object('info', register_worker.info, 16384);

  v_types := tasklib._store_task_types(register_worker.task_types, v_now);

  insert into tasklib.worker (registered_at, lease_until, lease, registered_by, name, types, info)
  values (v_now, v_now + register_worker.lease, register_worker.lease, tasklib._caller(),
    coalesce(register_worker.name, 'worker'), v_types, register_worker.info)
  returning worker.id into v_id;

  perform tasklib._unpark(1000, v_types);
  return v_id;
end;
$$;
comment on function tasklib.register_worker(text, interval, jsonb, jsonb) is
  'Begin one start of one worker process and return its id, never used again. task_types: an array of names, or of objects {"name", "queue", "priority", "max_retries", "timeout_seconds", "backoff", "max_crashes"} whose options become the defaults of the name for every producer (a plain name leaves stored defaults as they are); null: it takes tasks of any name. lease: how long its tasks stay its own after its last heartbeat. Call it in a transaction of its own. Errors: TL001, TL002.';

-- Sorted by name, so that two workers that start at once wait for each other instead of deadlocking.
create or replace function tasklib._store_task_types(task_types jsonb, now timestamptz)
  returns bigint[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_types bigint[] := array[]::bigint[];
  v_item record;
  v_new tasklib.task_type;
begin
  if task_types is null then
    insert into tasklib.task_type (type, updated_at, name)
    values (0, _store_task_types.now, '')
    on conflict do nothing;
    return null;
  end if;
  if jsonb_typeof(task_types) <> 'array' or jsonb_array_length(task_types) > 10000 then
    perform tasklib._reject('TL001', 'task_types must be a JSON array of at most 10000 names, got '
      || tasklib._shown(task_types::text), null,
      'Pass ["app.send_email"] or [{"name": "app.send_email", "max_retries": 5}], or null for any name.');
  end if;
  for v_item in
    select jsonb_typeof(entry.value) = 'string' as plain,
      case jsonb_typeof(entry.value) when 'string' then entry.value #>> '{}'
        else entry.value ->> 'name' end as name,
      case jsonb_typeof(entry.value) when 'string' then jsonb_build_object('name', entry.value)
        else jsonb_strip_nulls(entry.value) end as options
    from jsonb_array_elements(task_types) as entry
    order by 2
  loop
    perform tasklib._check_task_type(v_item.name, v_item.options);
    v_new := row(tasklib._type_of(v_item.name), _store_task_types.now,
      (v_item.options -> 'timeout_seconds')::float8, (v_item.options -> 'max_retries')::int,
      (v_item.options -> 'priority')::int, (v_item.options -> 'max_crashes')::int, v_item.name,
      v_item.options ->> 'queue', v_item.options -> 'backoff');
    -- not `on conflict (type) do update`: a worker that stores the same name at the same moment would
    -- still be an error of the other unique index
    insert into tasklib.task_type select v_new.* on conflict do nothing;
    if not found and not v_item.plain then
      update tasklib.task_type as known
      set updated_at = v_new.updated_at,
          queue = v_new.queue,
          priority = v_new.priority,
          max_retries = v_new.max_retries,
          timeout_seconds = v_new.timeout_seconds,
          max_crashes = v_new.max_crashes,
          backoff = v_new.backoff
      where known.type = v_new.type
        and (known.queue, known.priority, known.max_retries, known.timeout_seconds, known.max_crashes,
          known.backoff)
        is distinct from (v_new.queue, v_new.priority, v_new.max_retries, v_new.timeout_seconds,
          v_new.max_crashes, v_new.backoff);
    end if;
    v_types := v_types || tasklib._type_of(v_item.name);
  end loop;
  return v_types;
end;
$$;
comment on function tasklib._store_task_types(jsonb, timestamptz) is
  'Internal. Stores names with their defaults; returns their numbers, null for any name.';

create or replace function tasklib._check_task_type(name text, options jsonb)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_where text := 'In the task type ' || tasklib._shown(options::text) || '. Nothing was registered.';
  v_key text;
  v_value jsonb;
  v_kind text;
begin
  if jsonb_typeof(options) <> 'object' then
    perform tasklib._reject('TL001', 'a task type must be a name or an object, got '
      || tasklib._shown(options::text), null, 'Pass ["app.send_email"] or [{"name": "app.send_email"}].');
  end if;
  perform tasklib._check_label('name', _check_task_type.name, 128, v_where);
  for v_key, v_value in select entry.key, entry.value from jsonb_each(options) as entry loop
    v_kind := case
      when v_key in ('name', 'queue') then 'string'
      when v_key in ('priority', 'max_retries', 'timeout_seconds', 'max_crashes') then 'number'
      when v_key = 'backoff' then 'object'
    end;
    if v_kind is null or jsonb_typeof(v_value) <> v_kind
      or v_kind = 'number'
        and not tasklib._number_fits(replace(v_key, 'max_crashes', 'max_retries'), v_value::numeric)
    then
      perform tasklib._reject('TL001', 'a task type does not take ' || tasklib._shown(v_key) || ' = '
        || tasklib._shown(v_value::text), v_where,
        'The options are queue, priority, max_retries, timeout_seconds, backoff and max_crashes.');
    end if;
  end loop;
  if options ->> 'queue' is not null then
    perform tasklib._check_label('queue', options ->> 'queue', 128, v_where);
  end if;
  perform tasklib._check_priority((options -> 'priority')::int, v_where);
  perform tasklib._check_options((options -> 'max_retries')::int,
    (options -> 'timeout_seconds')::float8, options -> 'backoff', v_where);
  if (options -> 'max_crashes')::int not between 1 and 1000 then
    perform tasklib._reject('TL001', 'max_crashes ' || (options -> 'max_crashes')::text
      || ' is out of range', v_where, 'Pass 1 to 1000.');
  end if;
end;
$$;
comment on function tasklib._check_task_type(text, jsonb) is
  'Internal. Raises TL001 or TL002 for a task type that register_worker does not take.';

-- release.sql
create or replace function tasklib.release(worker_id uuid, ids uuid[], attempts int[])
  returns setof text
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform tasklib._check_batch(ids, attempts);
  return query
    select * from tasklib.finish(release.worker_id, release.ids, release.attempts, (
      select coalesce(jsonb_agg('{"state": "released"}'::jsonb), '[]')
      from generate_series(1, cardinality(release.ids))));
end;
$$;
comment on function tasklib.release(uuid, uuid[], int[]) is
  'Give back what was not started: ready again, behind those that are ready now, and not charged (the eleventh release of a task counts as a failed attempt). Returns a status a row, as finish does. Errors: TL001, TL002, TL007, TL011.';

create or replace function tasklib._release(run tasklib.running)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from tasklib.cancel_request where cancel_request.task_id = run.task_id) then
    perform tasklib._close(run.task_id, 3::smallint, run, null);
  elsif (tasklib._count(run.task_id, 0, 1, 0)).releases > 10 then
    perform tasklib._fail(run, 'released more than 10 times', true, null, 'error');
  else
    perform tasklib._count(run.task_id, 1, 0, 0);
    insert into tasklib.ready (task_id, lane, type, attempt, unique_until, key)
    values (run.task_id, run.lane, run.type, run.attempt, run.unique_until, run.key);
    perform tasklib._let_go(array[run.key], null);
    perform tasklib._wake((select task.queue from tasklib.task where task.id = run.task_id),
      array[run.type], clock_timestamp());
  end if;
end;
$$;
comment on function tasklib._release(tasklib.running) is
  'Internal. Puts a run back among the ready tasks, excused, and wakes a worker for it.';

-- reschedule.sql
create or replace function tasklib.reschedule(
  id uuid,
  scheduled_at timestamptz default null,
  delay interval default null,
  priority int default null,
  queue text default null
)
  returns text
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
as $$
declare
  v_task tasklib.task := tasklib._own_task(reschedule.id);
  v_was tasklib.delayed;
  v_row tasklib.ready;
  v_run_at timestamptz;
begin
  perform tasklib._check_time(reschedule.delay, reschedule.scheduled_at);
  perform tasklib._check_priority(reschedule.priority);
  if reschedule.queue is not null then
    perform tasklib._check_label('queue', reschedule.queue, 128);
  end if;

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
comment on function tasklib.reschedule(uuid, timestamptz, interval, int, text) is
  'Change the time, the priority or the queue of a task that neither runs nor is finished; what is left out stays. A time in the past means now. Returns pending. Errors: TL001, TL003, TL008 for a running or finished task, TL009 when its unique key is taken in the new queue.';

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

-- retry.sql
create or replace function tasklib.retry(id uuid)
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
    v_task := tasklib._own_task(retry.id);
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
comment on function tasklib.retry(uuid) is
  'Make a failed or cancelled task pending again under its id: its outcome goes, its failures stay, the attempt counter goes on, the retries start afresh. A task that waits for its retry becomes due now; any other pending one stays as it is. Returns pending. Errors: TL003, TL008 for a completed or running task, TL009 while another unfinished task holds its unique key.';

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
    perform tasklib._wake(task.queue, array[task.type], clock_timestamp());
  else
    insert into tasklib.parked (type, task_id, attempt, unique_until, key)
    values (task.type, task.id, _place.attempt, task.unique_until,
      tasklib._key(task.queue, task.concurrency_key));
  end if;
end;
$$;
comment on function tasklib._place(tasklib.task, int) is
  'Internal. Puts a due task into ready, or into parked when its name was never registered, and wakes a worker for it.';

-- set_progress.sql
create or replace function tasklib.set_progress(
  id uuid,
  worker_id uuid,
  attempt int,
  fraction float8,
  message text default null
)
  returns void
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
begin
  perform tasklib._check_lease(set_progress.id, set_progress.worker_id, set_progress.attempt);
  perform tasklib._registration(set_progress.worker_id);
  if not exists (
    select from tasklib.running
    where running.task_id = set_progress.id and running.worker_id = set_progress.worker_id
      and running.attempt = set_progress.attempt
  ) then
    perform tasklib._lost(set_progress.worker_id, set_progress.id, set_progress.attempt, 'reported');
  end if;
  if not set_progress.fraction between 0 and 1 then
    perform tasklib._reject('TL001', 'fraction ' || set_progress.fraction || ' is out of range', null,
      'Pass 0 to 1, or null when it is not known.');
  end if;
  insert into tasklib.progress (task_id, updated_at, fraction, message)
  values (set_progress.id, clock_timestamp(), set_progress.fraction, left(set_progress.message, 1000))
  on conflict on constraint progress_pkey do update
    set updated_at = excluded.updated_at, fraction = excluded.fraction, message = excluded.message;
end;
$$;
comment on function tasklib.set_progress(uuid, uuid, int, float8, text) is
  'Say how far a running task is: a fraction from 0 to 1 (or null) and a message, of which 1000 characters are kept. Shown in tasklib.tasks. Errors: TL001, TL003, TL004, TL006, TL007, TL011.';

-- set_queue.sql
create or replace function tasklib.set_queue(
  name text,
  retention interval default null,
  max_crashes int default null,
  notify boolean default true
)
  returns void
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform tasklib._check_label('name', set_queue.name, 128);
  if retention < interval '0' or retention > interval '1000 years' then
    perform tasklib._reject('TL001', 'retention ' || tasklib._shown(retention::text)
      || ' is out of range', null, 'Pass an interval such as interval ''30 days'', or null to keep finished tasks for ever.');
  elsif max_crashes not between 1 and 1000 then
    perform tasklib._reject('TL001', 'max_crashes ' || max_crashes || ' is out of range', null,
      'Pass 1 to 1000, or null for 3.');
  elsif notify is null then
    perform tasklib._reject('TL001', 'notify must be true or false, got NULL', null,
      'Pass false for producers that use prepared transactions, which NOTIFY does not allow.');
  end if;
  insert into tasklib.queue (name, retention, max_crashes, notify)
  values (set_queue.name, set_queue.retention, set_queue.max_crashes, set_queue.notify)
  on conflict on constraint queue_pkey do update
    set retention = excluded.retention,
        max_crashes = excluded.max_crashes,
        notify = excluded.notify,
        purge_from = null;
end;
$$;
comment on function tasklib.set_queue(text, interval, int, boolean) is
  'Make the settings of a queue exactly these. retention: finished tasks older than this are deleted by tick; null keeps them for ever. max_crashes: how many dead workers a task may leave behind before it has failed for good (3; a task type may say otherwise). notify: false never wakes sleeping workers, which then poll. A pause stays as it is. Errors: TL001, TL002.';

-- snooze.sql
create or replace function tasklib.snooze(id uuid, worker_id uuid, attempt int, delay interval)
  returns timestamptz
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set plan_cache_mode = force_generic_plan
as $$
begin
  if snooze.delay is null then
    perform tasklib._reject('TL001', 'delay must be given, got NULL', null,
      'Pass an interval such as interval ''10 minutes''.');
  end if;
  perform tasklib._check_time(snooze.delay, null);
  return tasklib._snooze(
    tasklib._hold(snooze.id, snooze.worker_id, snooze.attempt, 'snoozed'), snooze.delay);
end;
$$;
comment on function tasklib.snooze(uuid, uuid, int, interval) is
  'Put off a running task: it runs again after delay, and the attempt is not charged. Returns when. Errors: TL001, TL003 to TL007, TL011.';

create or replace function tasklib._snooze(run tasklib.running, delay interval)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run_at timestamptz := clock_timestamp() + delay;
begin
  if exists (select from tasklib.cancel_request where cancel_request.task_id = run.task_id) then
    perform tasklib._close(run.task_id, 3::smallint, run, null);
    return null;
  end if;
  perform tasklib._count(run.task_id, 1, 0, 0);
  insert into tasklib.delayed (run_at, task_id, lane, type, attempt, reason, unique_until, key)
  values (v_run_at, run.task_id, run.lane, run.type, run.attempt, 's', run.unique_until, run.key);
  perform tasklib._let_go(array[run.key], null);
  return v_run_at;
end;
$$;
comment on function tasklib._snooze(tasklib.running, interval) is
  'Internal. Delays a run, excused; null when it was asked to cancel and so ends.';

-- sweep.sql
create or replace function tasklib.sweep()
  returns int
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_hidden int;
  v_late int;
  v_lost int := 0;
  v_stuck int;
  v_run tasklib.running;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    perform tasklib._reject('TL010', 'sweep needs READ COMMITTED, not '
      || upper(current_setting('transaction_isolation')), null,
      'Call it in a transaction of its own with that isolation level.');
  end if;
  perform from tasklib.housekeeping for update;

  with hidden as (
    delete from tasklib.ready
    using (select mark.lane, max(mark.low_pos) as low_pos from tasklib.mark group by mark.lane) as newest
    where ready.lane = newest.lane and ready.pos < newest.low_pos
    returning ready.*
  ),
  shown as (
    insert into tasklib.ready (task_id, lane, type, attempt, holds_key, unique_until, key)
    select hidden.task_id, hidden.lane, hidden.type, hidden.attempt, hidden.holds_key,
      hidden.unique_until, hidden.key
    from hidden order by hidden.pos
  )
  select count(*) into v_hidden from hidden;

  select count(*) into v_late from (
    select from tasklib.delayed where delayed.run_at < tasklib._low_time('delayed')
    union all
    select from tasklib.running where running.deadline < tasklib._low_time('deadline')
  ) as late;
  if v_late > 0 then
    delete from tasklib.time_mark;
  end if;

  for v_run in
    delete from tasklib.running
    where not exists (
      select from tasklib.worker where worker.id = running.worker_id and worker.cleared_at is null)
    returning running.*
  loop
    perform tasklib._fail(v_run, 'its worker is not registered', true, null, 'lost');
    v_lost := v_lost + 1;
  end loop;

  insert into tasklib.gate_check (key)
  select stuck.key from (
    select waiting.key from tasklib.waiting
    where not exists (select from tasklib.gate where gate.key = waiting.key)
      and not exists (select from tasklib.ready where ready.key = waiting.key)
    union
    select gate.key from tasklib.gate
    where not exists (select from tasklib.running where running.task_id = gate.task_id)
      and not exists (select from tasklib.ready where ready.task_id = gate.task_id and ready.holds_key)
  ) as stuck
  where not exists (select from tasklib.gate_check where gate_check.key = stuck.key);
  get diagnostics v_stuck = row_count;
  perform tasklib._check_gates(100000);

  return v_hidden + v_late + v_lost + v_stuck;
end;
$$;
comment on function tasklib.sweep() is
  'The safety net: reads the narrow tables whole and mends what no rule should ever let happen (a task below a low-water mark, a run without a worker, a gate that nobody holds). Returns how many it found, which should be 0: anything else is a bug, or a clock or sequence that was set back. Call it now and then. Errors: TL010.';

-- tick.sql
create or replace function tasklib.tick(max_rows int default 1000)
  returns setof tasklib.ticked
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
  set jit = off
  set enable_seqscan = off
  set enable_sort = off
  set enable_bitmapscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off
  set plan_cache_mode = force_generic_plan
as $$
declare
  v_did tasklib.ticked;
begin
  if max_rows is null or max_rows not between 1 and 100000 then
    perform tasklib._reject('TL001', 'max_rows ' || tasklib._shown(max_rows::text) || ' is out of range',
      null, 'Pass 1 to 100000: how much of each kind of work this call may do.');
  end if;
  if current_setting('transaction_isolation') <> 'read committed' then
    perform tasklib._reject('TL010', 'tick needs READ COMMITTED, not '
      || upper(current_setting('transaction_isolation')),
      'With an older snapshot a low-water mark could pass tasks that it does not show.',
      'Call it in a transaction of its own with that isolation level.');
  end if;
  perform from tasklib.housekeeping for update skip locked;
  if not found then
    return;
  end if;
  v_did := tasklib._tick(tick.max_rows);
  return next v_did;
end;
$$;
comment on function tasklib.tick(int) is
  'Housekeeping, at most max_rows of each kind a call: due tasks become ready, tasks of dead workers and overdue attempts are failed, names that nobody knows are parked and come back, gates, low-water marks, retention. Workers call it each second; pg_cron or anybody granted may. No row when another session is at it. more: call again at once. Errors: TL001, TL010 in another isolation level than READ COMMITTED.';

create or replace function tasklib._tick(max_rows int)
  returns tasklib.ticked
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_did tasklib.ticked;
  v_safe record;
begin
  perform tasklib._reset_marks();
  perform tasklib._grant_grace();
  select safe.pos, safe.at into v_safe from tasklib._safe() as safe;

  v_did.promoted := tasklib._promote(max_rows, v_safe.at);
  v_did.reclaimed := tasklib._reclaim(max_rows);
  v_did.timed_out := tasklib._time_out(max_rows, v_safe.at);
  v_did.parked := tasklib._park(max_rows);
  v_did.unparked := tasklib._unpark(max_rows);
  v_did.handed_over := tasklib._check_gates(max_rows);
  v_did.purged := tasklib._retain(max_rows);
  if v_safe.pos is not null then
    perform tasklib._move_marks(v_safe.pos);
  end if;
  v_did.more := greatest(v_did.promoted, v_did.reclaimed, v_did.timed_out, v_did.parked,
    v_did.unparked, v_did.handed_over, v_did.purged) >= max_rows;
  return v_did;
end;
$$;
comment on function tasklib._tick(int) is
  'Internal. One round of housekeeping; the caller has locked its row.';

-- For consumers without housekeeping of their own: claim calls it when it found too little. A full tick
-- when the last one is two seconds old; in between only what lets a task that is due go at once.
create or replace function tasklib._keep_house(look_again boolean)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_did tasklib.ticked;
  v_count int := 0;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    return false;
  end if;
  if tasklib._last_note() > clock_timestamp() - interval '2 seconds' then
    if look_again then
      v_count := tasklib._promote(100, null);
      if v_count > 0 then
        v_count := v_count + tasklib._unpark(100);
      end if;
      v_count := v_count + tasklib._check_gates(100);
    end if;
    return v_count > 0;
  end if;
  perform from tasklib.housekeeping for update skip locked;
  if not found then
    return false;
  end if;
  v_did := tasklib._tick(100);
  return v_did.promoted + v_did.reclaimed + v_did.timed_out + v_did.unparked + v_did.handed_over > 0;
end;
$$;
comment on function tasklib._keep_house(boolean) is
  'Internal. A bounded tick from within claim; true when tasks may have become ready. look_again: the claim found nothing and will look again.';

-- Nobody could send heartbeats while the server was down, and nobody looked while nobody ticked. Once
-- between two heartbeats, or a dead worker would be spared by every tick of a slow ticker.
create or replace function tasklib._grant_grace()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_last timestamptz := tasklib._last_note();
begin
  if v_last < pg_postmaster_start_time() or v_last < clock_timestamp() - interval '30 seconds' then
    update tasklib.worker
    set lease_until = clock_timestamp() + worker.lease, graced = true
    where worker.lost_at is null and not worker.graced
      and worker.lease_until < clock_timestamp() + worker.lease;
  end if;
end;
$$;
comment on function tasklib._grant_grace() is
  'Internal. After a server start or 30 s without a tick every lease begins anew, once for each heartbeat.';

-- Positions and transaction ids go back when a dump is restored, or the sequence was not replicated.
create or replace function tasklib._reset_marks()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_note tasklib.horizon;
begin
  select note.* into v_note from tasklib.horizon as note order by note.xid desc limit 1;
  if v_note.pos > (select position.last_value from tasklib.position)
    or v_note.xid::text::numeric > pg_snapshot_xmax(pg_current_snapshot())::text::numeric + 100000
  then
    delete from tasklib.mark;
    delete from tasklib.time_mark;
    delete from tasklib.horizon;
    perform setval('tasklib.position', greatest(
      (select position.last_value from tasklib.position),
      v_note.pos,
      (select max(ready.pos) from tasklib.ready),
      (select max(waiting.pos) from tasklib.waiting)));
  end if;
end;
$$;
comment on function tasklib._reset_marks() is
  'Internal. Forgets all marks when the sequence of positions, or the counter of transactions, lags behind them, and moves the sequence past the positions in use.';

create or replace function tasklib._promote(max_rows int, safe_at timestamptz)
  returns int
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_low timestamptz := tasklib._low_time('delayed');
  v_now timestamptz := clock_timestamp();
  v_count int;
begin
  with due as (
    delete from tasklib.delayed
    where delayed.ctid = any (array(
      select candidate.ctid from tasklib.delayed as candidate
      where candidate.run_at >= v_low and candidate.run_at <= v_now
      order by candidate.run_at, candidate.task_id limit max_rows
      for update skip locked))
    returning delayed.*
  ),
  unrouted as (
    insert into tasklib.parked (type, task_id, attempt, unique_until, key)
    select due.type, due.task_id, due.attempt, due.unique_until, due.key
    from due where due.lane is null
  ),
  routed as (
    insert into tasklib.ready (task_id, lane, type, attempt, unique_until, key)
    select due.task_id, due.lane, due.type, due.attempt, due.unique_until, due.key
    from due where due.lane is not null
    order by due.run_at, due.task_id
  )
  select count(*) into v_count from due;

  perform tasklib._move_time_mark('delayed', (
    select delayed.run_at from tasklib.delayed where delayed.run_at >= v_low
    order by delayed.run_at, delayed.task_id limit 1), safe_at);
  return v_count;
end;
$$;
comment on function tasklib._promote(int, timestamptz) is
  'Internal. Delayed tasks whose time has come become ready, in the order of their times.';

create or replace function tasklib._reclaim(max_rows int)
  returns int
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_worker uuid;
  v_run tasklib.running;
  v_count int := 0;
begin
  -- a worker with an open claim is locked, and spared
  update tasklib.worker set lost_at = clock_timestamp()
  where worker.ctid = any (array(
    select late.ctid from tasklib.worker as late
    where late.lost_at is null and late.lease_until < clock_timestamp()
    for update skip locked));

  for v_worker in
    select worker.id from tasklib.worker
    where worker.lost_at is not null and worker.cleared_at is null order by worker.id
  loop
    for v_run in
      delete from tasklib.running
      where running.ctid = any (array(
        select lost.ctid from tasklib.running as lost where lost.worker_id = v_worker
        limit max_rows - v_count for update skip locked))
      returning running.*
    loop
      perform tasklib._fail(v_run, 'worker ' || v_worker || ' went silent: no heartbeat within its lease',
        true, null, 'lost');
      v_count := v_count + 1;
    end loop;
    exit when v_count >= max_rows;
    if not exists (select from tasklib.running where running.worker_id = v_worker) then
      update tasklib.worker set cleared_at = clock_timestamp() where worker.id = v_worker;
    end if;
  end loop;

  delete from tasklib.worker where worker.cleared_at < clock_timestamp() - interval '1 day';
  perform tasklib._forget_any_name();
  return v_count;
end;
$$;
comment on function tasklib._reclaim(int) is
  'Internal. Ends the registrations whose lease ran out, and fails what those workers held as lost.';

-- Ten seconds for the worker to end the attempt itself.
create or replace function tasklib._time_out(max_rows int, safe_at timestamptz)
  returns int
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_low timestamptz := tasklib._low_time('deadline');
  v_limit timestamptz := clock_timestamp() - interval '10 seconds';
  v_run tasklib.running;
  v_count int := 0;
begin
  for v_run in
    delete from tasklib.running
    where running.ctid = any (array(
      select late.ctid from tasklib.running as late
      where late.deadline >= v_low and late.deadline < v_limit
      order by late.deadline limit max_rows
      for update skip locked))
    returning running.*
  loop
    perform tasklib._fail(v_run, 'timed out: it ran from ' || v_run.started_at || ' to '
      || v_run.deadline || ', and its worker did not end it', true, null, 'timeout');
    v_count := v_count + 1;
  end loop;

  perform tasklib._move_time_mark('deadline', (
    select running.deadline from tasklib.running where running.deadline >= v_low
    order by running.deadline limit 1), safe_at);
  return v_count;
end;
$$;
comment on function tasklib._time_out(int, timestamptz) is
  'Internal. Fails attempts that are 10 s past their deadline.';

-- version.sql
create or replace function tasklib.version()
  returns text
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (select max(migration.name) from tasklib.migration);
end;
$$;
comment on function tasklib.version() is
  'The version of the schema: the name of the last migration, such as 0001_tables.';

-- grants.sql
-- Applied last, every time. PUBLIC gets nothing; nobody gets rights on tables; each role gets the
-- functions of its trade. Roles belong to the whole cluster, and making them needs CREATEROLE: where
-- that is missing, a DBA makes the four roles and this file is applied again.
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

do $do$
begin
  if exists (select from pg_catalog.pg_roles where rolname = 'tasklib_producer') then
    grant usage on schema tasklib to tasklib_producer;
    grant execute on function
      tasklib.enqueue(text, jsonb, text, int, interval, timestamptz, int, float8, jsonb, text, text, jsonb, text, jsonb),
      tasklib.enqueue_many(jsonb),
      tasklib.get(uuid),
      tasklib.list(text, text, text, jsonb, int, uuid),
      tasklib.cancel(uuid),
      tasklib.retry(uuid),
      tasklib.reschedule(uuid, timestamptz, interval, int, text),
      tasklib.shard_of(uuid),
      tasklib.version()
    to tasklib_producer;
  end if;
  if exists (select from pg_catalog.pg_roles where rolname = 'tasklib_worker') then
    grant usage on schema tasklib to tasklib_worker;
    grant execute on function
      tasklib.register_worker(text, interval, jsonb, jsonb),
      tasklib.heartbeat(uuid),
      tasklib.cancel_requests(uuid),
      tasklib.claim(uuid, text[], int),
      tasklib.idle(uuid, text[], interval, boolean),
      tasklib.complete(uuid, uuid, int, jsonb),
      tasklib.fail(uuid, uuid, int, text, boolean, interval, text),
      tasklib.finish(uuid, uuid[], int[], jsonb),
      tasklib.release(uuid, uuid[], int[]),
      tasklib.snooze(uuid, uuid, int, interval),
      tasklib.set_progress(uuid, uuid, int, float8, text),
      tasklib.deregister_worker(uuid, boolean),
      tasklib.tick(int),
      tasklib.sweep(),
      tasklib.shard_of(uuid),
      tasklib.version()
    to tasklib_worker;
  end if;
  if exists (select from pg_catalog.pg_roles where rolname = 'tasklib_observer') then
    grant usage on schema tasklib to tasklib_observer;
    grant select on tasklib.queue_stats, tasklib.task_stats, tasklib.worker_health,
      tasklib.stuck_tasks, tasklib.tick_health to tasklib_observer;
    grant select (id, name, queue, state, retry_count, max_retries, next_retry_at, worker_id,
      locked_until, scheduled_at, created_at, started_at, completed_at, timeout_seconds, priority,
      attempt, cancel_requested_at, enqueued_by, progress) on tasklib.tasks to tasklib_observer;
    grant select (task_id, attempt, failed_at, worker_id, cause, next_retry_at) on tasklib.failures
      to tasklib_observer;
    grant execute on function tasklib.shard_of(uuid), tasklib.version() to tasklib_observer;
  end if;
  if exists (select from pg_catalog.pg_roles where rolname = 'tasklib_admin') then
    grant usage on schema tasklib to tasklib_admin;
    grant select on tasklib.tasks, tasklib.failures, tasklib.queue_stats, tasklib.task_stats,
      tasklib.worker_health, tasklib.stuck_tasks, tasklib.tick_health to tasklib_admin;
    grant execute on function
      tasklib.get(uuid),
      tasklib.list(text, text, text, jsonb, int, uuid),
      tasklib.cancel(uuid),
      tasklib.retry(uuid),
      tasklib.reschedule(uuid, timestamptz, interval, int, text),
      tasklib.purge(interval, text, int),
      tasklib.set_queue(text, interval, int, boolean),
      tasklib.pause(text),
      tasklib.resume(text),
      tasklib.deregister_worker(uuid, boolean),
      tasklib.tick(int),
      tasklib.sweep(),
      tasklib.shard_of(uuid),
      tasklib.version()
    to tasklib_admin;
  end if;
end
$do$;
