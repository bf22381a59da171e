-- Inside a SECURITY DEFINER function current_user is the owner. Who called is the role that was set
-- last, or the login role. No SET clause, so that the planner inlines it.
create or replace function tasklib._caller()
  returns text
  language sql
  stable
as $$
  select coalesce(nullif(pg_catalog.current_setting('role', true), 'none'), session_user::pg_catalog.text)
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
