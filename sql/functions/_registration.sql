-- The row lock is what makes claim and the reaper exclude each other: a worker is not declared lost
-- while one of its claims is open, and a claim of a lost worker finds out.
create or replace function tasklib._registration(worker_id uuid, caller text, lock boolean default false)
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
    if found and (right(worker_id::text, 8) <> tasklib._server()
      or v_worker.lease_until < clock_timestamp() + v_worker.lease / 10)
    then
      perform tasklib._check_server(worker_id), tasklib._renew_late(v_worker);
    end if;
  else
    select worker.* into v_worker from tasklib.worker
    where worker.id = _registration.worker_id and worker.lost_at is null;
  end if;
  if not found then
    perform tasklib._reject('TL007', 'worker ' || tasklib._shown(worker_id::text) || ' is not registered',
      'It never was, it deregistered, or its lease ran out and its tasks were given to others.',
      'Drop what it runs and call register_worker again.');
  elsif v_worker.registered_by is distinct from caller then
    perform tasklib._reject('TL011', 'worker ' || worker_id || ' was registered by another role', null,
      'Call register_worker with the role that claims and finishes.');
  end if;
  return v_worker;
end;
$$;
comment on function tasklib._registration(uuid, text, boolean) is
  'Internal. The live registration of a worker; lock: for a claim, which locks and renews it. Raises TL007, or TL011 for another role''s worker.';

-- A failover to an asynchronous standby, and a crash with synchronous_commit off, take back what was
-- committed last. What a worker was handed out then is handed out again, with the same attempt: under the
-- same registration nothing could tell the two leases apart. So a registration claims only on the server
-- that made it, and until that one is started anew; leases that it holds stay what they are. Ids of
-- version 8 end with the server that made them; others are of releases before 0.2.
create or replace function tasklib._new_worker_id()
  returns uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (overlay(left(gen_random_uuid()::text, 28) placing '8' from 15) || tasklib._server())::uuid;
end;
$$;
comment on function tasklib._new_worker_id() is
  'Internal. An id for a registration: random, but for the last 8 digits, which are those of the server.';

create or replace function tasklib._server()
  returns text
  language sql
  stable
as $$
  select pg_catalog.lpad(pg_catalog.to_hex(pg_catalog.hashint8(
    (pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time()) * 1000000)::pg_catalog.int8)), 8, '0')
$$;
comment on function tasklib._server() is
  'Internal. 8 digits that are others on another server, and after each start of this one.';

create or replace function tasklib._check_server(worker_id uuid)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if right(worker_id::text, 8) <> tasklib._server() and substr(worker_id::text, 15, 1) = '8' then
    perform tasklib._reject('TL007', 'worker ' || worker_id
      || ' is registered, but not since this server was started',
      'What was handed out to it before may not be known here any more, and would be handed out twice.',
      'Call register_worker again and claim under the new id. If heartbeat still takes the old one, what runs under it may be ended under it.');
  end if;
end;
$$;
comment on function tasklib._check_server(uuid) is
  'Internal. Raises TL007 when a registration was made on another server, or before this one was started.';
