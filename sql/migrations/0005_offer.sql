-- A lone task goes to a worker that sleeps with the commit that enqueues it: see functions/_sleeper.sql.

-- Every claim locks a row of it: give way to who holds it, and let migrate try again.
set local lock_timeout = '500ms';

alter table tasklib.worker add column channel text;
comment on column tasklib.worker.channel is
  'Where it listens for tasks that are handed over to it: a name that nobody can guess, as arguments are sent there. Null: it takes none.';

create sequence tasklib.offer as bigint minvalue 0 start 0;
comment on sequence tasklib.offer is
  'The worker that takes the next lone task, in the upper bits the number that _worker_number(id) gives, in the last 20 bits from which queues; 0: nobody does. Like asleep_until a flag that costs one page read.';

create table tasklib.handover (
  task_id uuid not null,
  type bigint not null,
  queue text not null,
  constraint handover_pkey primary key (task_id)
);
comment on table tasklib.handover is
  'Tasks that the commit of their transaction is to hand over, if a worker still offers to take one. Empty but for open transactions.';
alter table tasklib.handover set (
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_cost_delay = 0,
  vacuum_truncate = off
);

-- What it does is in functions/_sleeper.sql, which is applied after this.
create function tasklib._hand_to_sleeper()
  returns trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
begin
  return null;
end;
$$;

-- Deferred: until the commit, the task is as ready as any, and may be cancelled or put off; and nothing
-- of the worker is locked for longer than a claim locks it.
create constraint trigger hand_over
  after insert on tasklib.handover
  deferrable initially deferred
  for each row execute function tasklib._hand_to_sleeper();
-- A session that replicates enqueues, too.
alter table tasklib.handover enable always trigger hand_over;
comment on trigger hand_over on tasklib.handover is
  'Hands the task over at the commit, or wakes a worker for it.';
