create or replace function tasklib.set_rule(
  role text,
  action text,
  queue text default '*',
  name text default '*',
  caller tasklib.caller default current_user
)
  returns void
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform tasklib._check_role(set_rule.role);
  perform tasklib._check_action(set_rule.action);
  perform tasklib._check_label('queue', set_rule.queue, 128);
  perform tasklib._check_label('name', set_rule.name, 128);
  perform tasklib._lock_rules();
  insert into tasklib.rule (role, action, queue, name, set_by, set_at)
  values (set_rule.role, set_rule.action, set_rule.queue, set_rule.name, set_rule.caller,
    clock_timestamp())
  on conflict on constraint rule_pkey do update
    set set_by = excluded.set_by, set_at = excluded.set_at;
  perform tasklib._apply_rules();
end;
$$;
comment on function tasklib.set_rule(text, text, text, text, tasklib.caller) is
  'Allow a role, and those who are members of it, to enqueue or claim (action) tasks of a name in a queue. queue and name: as they are, or their beginning and a star; * alone is any. role public is everybody. As soon as a rule for an action covers a role, it may do no more of it than its rules say. They bind at once, also workers that run. Errors: TL001, TL002.';

create or replace function tasklib.drop_rule(
  role text,
  action text default null,
  queue text default null,
  name text default null
)
  returns int
  language plpgsql
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_count int;
begin
  perform tasklib._check_label('role', drop_rule.role, 63);
  if action is not null then
    perform tasklib._check_action(drop_rule.action);
  end if;
  perform tasklib._lock_rules();
  delete from tasklib.rule
  where rule.role = drop_rule.role
    and (drop_rule.action is null or rule.action = drop_rule.action)
    and (drop_rule.queue is null or rule.queue = drop_rule.queue)
    and (drop_rule.name is null or rule.name = drop_rule.name);
  get diagnostics v_count = row_count;
  perform tasklib._apply_rules();
  return v_count;
end;
$$;
comment on function tasklib.drop_rule(text, text, text, text) is
  'Take rules of a role back: those with exactly this action, queue and name, where null means any. Returns how many. A role that no rule covers any more is free again, unless the database is strict. Errors: TL001, TL002.';

create or replace function tasklib._check_role(role text)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform tasklib._check_label('role', _check_role.role, 63);
  if _check_role.role <> 'public'
    and not exists (select from pg_roles where rolname = _check_role.role)
  then
    perform tasklib._reject('TL001', 'there is no role ' || tasklib._shown(_check_role.role), null,
      'Pass a role of this server as pg_roles shows it, or ''public'' for all of them.');
  end if;
end;
$$;
comment on function tasklib._check_role(text) is
  'Internal. Raises TL001 or TL002 unless there is such a role, or it is public.';

create or replace function tasklib._check_action(action text)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if action is null or action not in ('enqueue', 'claim') then
    perform tasklib._reject('TL001', 'unknown action ' || tasklib._shown(action), null,
      'Pass ''enqueue'' or ''claim''.');
  end if;
end;
$$;
comment on function tasklib._check_action(text) is
  'Internal. Raises TL001 unless rules know the action.';

-- Taken before anything is changed, so that what follows from all rules is worked out from all of them;
-- register_worker holds the row too, so that no worker slips through.
create or replace function tasklib._lock_rules()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform from tasklib.config for no key update;
end;
$$;
comment on function tasklib._lock_rules() is
  'Internal. One change of rules, limits and strictness at a time.';

create or replace function tasklib._apply_rules()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_enqueue boolean;
  v_claim boolean;
begin
  select config.strict or exists (select from tasklib.rule where rule.action = 'enqueue')
      or exists (select from tasklib.role_limit),
    config.strict or exists (select from tasklib.rule where rule.action = 'claim')
    into v_enqueue, v_claim
  from tasklib.config;
  update tasklib.config set enqueue_ruled = v_enqueue, claim_ruled = v_claim
  where (enqueue_ruled, claim_ruled) is distinct from (v_enqueue, v_claim);
  update tasklib.worker set restricted = v_claim where worker.restricted <> v_claim;
end;
$$;
comment on function tasklib._apply_rules() is
  'Internal. Tells enqueue and claim whether there is anything to look at.';
