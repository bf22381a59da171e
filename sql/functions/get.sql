create or replace function tasklib.get(id uuid, caller tasklib.caller default current_user)
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
      and (tasks.enqueued_by = get.caller or tasklib._is_admin(get.caller));
end;
$$;
comment on function tasklib.get(uuid, tasklib.caller) is
  'One task as the view tasks shows it; no row when there is none, or when another role enqueued it (tasklib_admin sees all).';
