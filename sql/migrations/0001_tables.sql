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
