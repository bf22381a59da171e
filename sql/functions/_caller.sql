-- Two answers to the question who calls. Rights go by the caller: the role whose rights the server
-- itself checks, told by an argument of type tasklib.caller, which cannot be forged. Inside a SECURITY
-- DEFINER function that is its owner. A worker's calls after its registration go by the role of the
-- session (_caller): cheap, and enough to keep one session from using another one's worker. That function
-- has no SET clause, so that the planner inlines it.
create or replace function tasklib._caller()
  returns text
  language sql
  stable
as $$
  select coalesce(nullif(pg_catalog.current_setting('role', true), 'none'), session_user::pg_catalog.text)
$$;
comment on function tasklib._caller() is
  'Internal. The role that was set last in this session, or its login role. Proves nothing inside a function of somebody else.';

-- Not called any more. Calls of release 0.1.0 that are under way while its tables are migrated end in
-- functions of this release, and still ask for it; a later migration drops it.
create or replace function tasklib._caller_is(member_of text)
  returns boolean
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return false;
end;
$$;
comment on function tasklib._caller_is(text) is
  'Internal. False. Kept for calls of release 0.1.0 that a migration finds under way.';

-- Helpers run inside entry functions, so that current_user is the owner of the queue.
create or replace function tasklib._is_admin(caller text)
  returns boolean
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return caller = current_user
    or coalesce(pg_has_role(to_regrole(quote_ident(_is_admin.caller)),
      to_regrole('tasklib_admin'), 'member'), false)
    or exists (select from pg_roles where rolname = _is_admin.caller and rolsuper);
end;
$$;
comment on function tasklib._is_admin(text) is
  'Internal. The caller is a member of tasklib_admin, the owner of the queue, or a superuser: sees every task, and no rule binds it.';

create or replace function tasklib._covering(role text, given text[])
  returns text[]
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select distinct asked.name
    from unnest(given) as asked (name)
    where asked.name in (_covering.role, 'public')
      or pg_has_role(to_regrole(quote_ident(_covering.role)), to_regrole(quote_ident(asked.name)), 'member')
        and not exists (select from pg_roles where rolname = _covering.role and rolsuper));
end;
$$;
comment on function tasklib._covering(text, text[]) is
  'Internal. Which of the given roles a role is, or is a member of; public is everybody. Superusers are members of nothing here.';
