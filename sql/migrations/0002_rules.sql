-- Rights per queue and per task name, limits per role, and a caller that cannot be forged.

-- One table that every enqueue reads and one that every claim locks are altered. A session that holds
-- one and wants the other must not be taken for a deadlock (which is looked for after 1 s): give way
-- before, and let migrate try again.
set local lock_timeout = '500ms';

alter table tasklib.config add column strict boolean not null default false;
alter table tasklib.config add column enqueue_ruled boolean not null default false;
alter table tasklib.config add column claim_ruled boolean not null default false;
comment on column tasklib.config.strict is
  'Roles without a rule may do nothing. Without it they may do everything that their functions allow.';
comment on column tasklib.config.enqueue_ruled is
  'There are rules or limits for producers. Follows from strict, rule and role_limit; enqueue reads this row anyway, and looks at those only then.';
comment on column tasklib.config.claim_ruled is
  'There are rules for workers; also in each worker''s row, which claim reads anyway.';

alter table tasklib.worker add column restricted boolean not null default false;
comment on column tasklib.worker.restricted is
  'As config.claim_ruled: claim has to look at the rules.';

create table tasklib.rule (
  role text not null,
  action text not null,
  queue text not null,
  name text not null,
  set_by text not null,
  set_at timestamptz not null,
  constraint rule_pkey primary key (role, action, queue, name),
  constraint rule_action_check check (action in ('enqueue', 'claim'))
);
comment on table tasklib.rule is
  'What a role (or every role: public) may enqueue or claim, once there is a rule for it. By name, as roles are dumped and restored.';
comment on column tasklib.rule.queue is 'A queue, or the beginning of names of queues and a star.';
comment on column tasklib.rule.name is 'A task name, or the beginning of task names and a star.';

create table tasklib.role_limit (
  role text not null,
  max_bytes int,
  min_priority int,
  max_priority int,
  max_retries int,
  max_delay interval,
  max_backlog int,
  set_by text not null,
  set_at timestamptz not null,
  constraint role_limit_pkey primary key (role)
);
comment on table tasklib.role_limit is
  'How much a role (or every role: public) may ask for when it enqueues; null: as much as anybody.';
comment on column tasklib.role_limit.max_bytes is 'Of kwargs as text.';
comment on column tasklib.role_limit.max_backlog is 'Unfinished tasks of the role, as tick counted them last.';

create table tasklib.backlog (
  role text not null,
  counting bigint not null default 0,
  counted bigint not null default 0,
  constraint backlog_pkey primary key (role)
);
comment on table tasklib.backlog is
  'Unfinished tasks by the role that enqueued them: roughly, and only while some limit asks for it. tick counts a part of them at each call.';
comment on column tasklib.backlog.counting is 'Found in this round so far.';
comment on column tasklib.backlog.counted is 'Found in the last whole round.';

create table tasklib.backlog_round (
  only_row boolean not null default true,
  place int not null default 1,
  block bigint not null default 0,
  constraint backlog_round_pkey primary key (only_row),
  constraint backlog_round_one_row check (only_row)
);
insert into tasklib.backlog_round default values;
comment on table tasklib.backlog_round is 'How far the counting has come, one row.';
comment on column tasklib.backlog_round.place is
  'Which table: 1 ready, 2 delayed, 3 waiting, 4 parked, 5 running.';

-- Inside a SECURITY DEFINER function nothing tells who called it: session_user and the setting role name
-- the session, which may be a superuser's while somebody else's code runs in it. But the default of an
-- argument is filled in, and this check made, by the caller and with the caller's rights.
create domain tasklib.caller as text
  -- squawk-ignore ban-create-domain-with-constraint
  constraint caller_is_current_user check (value is not null and value = current_user);
comment on domain tasklib.caller is
  'The role that calls: an argument of this type is left out, and can be given no other value. Nobody may make a column or a function of it, so that no value outlives its call.';

-- These get that argument. (A fresh database has none of them yet: functions are applied after
-- migrations. Helpers that hand it on are dropped by migrate, when calls under way need them no more.)
-- squawk-ignore ban-drop-function
drop function if exists
  tasklib.enqueue(text, jsonb, text, int, interval, timestamptz, int, float8, jsonb, text, text, jsonb, text, jsonb),
  tasklib.enqueue_many(jsonb),
  tasklib.get(uuid),
  tasklib.list(text, text, text, jsonb, int, uuid),
  tasklib.cancel(uuid),
  tasklib.retry(uuid),
  tasklib.reschedule(uuid, timestamptz, interval, int, text),
  tasklib.register_worker(text, interval, jsonb, jsonb),
  tasklib.claim(uuid, text[], int),
  tasklib.complete(uuid, uuid, int, jsonb),
  tasklib.fail(uuid, uuid, int, text, boolean, interval, text),
  tasklib.finish(uuid, uuid[], int[], jsonb),
  tasklib.release(uuid, uuid[], int[]),
  tasklib.snooze(uuid, uuid, int, interval),
  tasklib.heartbeat(uuid),
  tasklib.set_progress(uuid, uuid, int, float8, text),
  tasklib.idle(uuid, text[], interval, boolean),
  tasklib.deregister_worker(uuid, boolean);
