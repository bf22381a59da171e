-- The row lock is what makes claim and the reaper exclude each other: a worker is not declared lost
-- while one of its claims is open, and a claim of a lost worker finds out. (The default of caller is for
-- calls of release 0.1.0 that a migration finds under way.)
create or replace function tasklib._registration(
  worker_id uuid,
  lock boolean default false,
  caller text default tasklib._caller()
)
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
  elsif v_worker.registered_by is distinct from caller then
    perform tasklib._reject('TL011', 'worker ' || worker_id || ' was registered by another role', null,
      'Call register_worker with the role that claims and finishes.');
  end if;
  return v_worker;
end;
$$;
comment on function tasklib._registration(uuid, boolean, text) is
  'Internal. The live registration of a worker, locked on demand. Raises TL007, or TL011 for another role''s worker.';
