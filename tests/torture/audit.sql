-- What the database saw, beside the queue's tables and in the same transactions. A sequence numbers the
-- events: of one task, whose rows only one transaction at a time can move, they are in order.
create schema torture;

create table torture.event (
  seq bigint generated always as identity primary key,
  kind text not null,
  task_id uuid,
  worker_id uuid,
  attempt int,
  at timestamptz not null default clock_timestamp(),
  detail text
);
create index on torture.event (task_id);

-- What transactional tasks write. Nothing here keeps a task from writing twice.
create table torture.effect (
  task_id uuid not null,
  attempt int not null,
  mark text not null
);

create function torture.granted() returns trigger language plpgsql as $$
begin
  insert into torture.event (kind, task_id, worker_id, attempt, detail)
  select 'granted', task_id, worker_id, attempt, key::text from fresh;
  return null;
end $$;
create trigger granted after insert on tasklib.running
  referencing new table as fresh for each statement execute function torture.granted();

create function torture.ended() returns trigger language plpgsql as $$
begin
  insert into torture.event (kind, task_id, worker_id, attempt)
  select 'ended', task_id, worker_id, attempt from gone;
  return null;
end $$;
create trigger ended after delete on tasklib.running
  referencing old table as gone for each statement execute function torture.ended();

create function torture.done() returns trigger language plpgsql as $$
begin
  insert into torture.event (kind, task_id, worker_id, attempt, detail)
  select 'done', task_id, worker_id, attempt, state::text from fresh;
  return null;
end $$;
create trigger done after insert on tasklib.done
  referencing new table as fresh for each statement execute function torture.done();

create function torture.undone() returns trigger language plpgsql as $$
begin
  insert into torture.event (kind, task_id, attempt, detail)
  select 'undone', task_id, attempt, left(current_query(), 200) from gone;
  return null;
end $$;
create trigger undone after delete on tasklib.done
  referencing old table as gone for each statement execute function torture.undone();

create function torture.changed() returns trigger language plpgsql as $$
begin
  insert into torture.event (kind, task_id, detail)
  values ('changed', new.task_id, tg_table_name || ': ' || left(current_query(), 200));
  return null;
end $$;
create trigger changed after update on tasklib.done for each row execute function torture.changed();
create trigger changed after update on tasklib.running for each row execute function torture.changed();

create function torture.failed() returns trigger language plpgsql as $$
begin
  insert into torture.event (kind, task_id, worker_id, attempt, detail)
  select 'failed', task_id, worker_id, attempt,
    case when error like 'released more than % times' then 'given back' else cause end
  from fresh;
  return null;
end $$;
create trigger failed after insert on tasklib.failure
  referencing new table as fresh for each statement execute function torture.failed();

create function torture.key_taken() returns trigger language plpgsql as $$
begin
  insert into torture.event (kind, task_id, detail)
  select 'key', task_id, queue || '/' || key from fresh;
  return null;
end $$;
create trigger key_taken after insert on tasklib.unique_key
  referencing new table as fresh for each statement execute function torture.key_taken();

-- Who ends a registration in order clears it in the same statement; housekeeping does not.
create function torture.lost() returns trigger language plpgsql as $$
begin
  insert into torture.event (kind, worker_id, detail)
  values ('lost', new.id, case
    when new.cleared_at is not null then 'ended'
    when old.lease_until > clock_timestamp() then 'early, by ' || (old.lease_until - clock_timestamp())
    else 'late' end);
  return null;
end $$;
create trigger lost after update of lost_at on tasklib.worker
  for each row when (old.lost_at is null and new.lost_at is not null)
  execute function torture.lost();

create role torture_producer login in role tasklib_producer;
create role torture_worker login in role tasklib_worker;
grant usage on schema torture to torture_producer, torture_worker;
grant insert on torture.effect to torture_worker;
-- For those who use leases that are no longer theirs: they look for them here.
grant select on torture.event, tasklib.running, tasklib.worker to torture_worker;
grant select (id, name, created_at) on tasklib.task to torture_producer;
