-- Who calls is the role whose rights the server itself checks: the login role, the one that was set, or
-- inside a SECURITY DEFINER function its owner. An entry function is told by its argument of type
-- tasklib.caller, which cannot be forged (but a query without a row makes it null, which is nobody).

-- Helpers run inside entry functions, so that current_user is the owner of the queue.
create or replace function tasklib._is_admin(caller text)
  returns boolean
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(caller = current_user
    or pg_has_role(to_regrole(quote_ident(_is_admin.caller)), to_regrole('tasklib_admin'), 'member')
    or exists (select from pg_roles where rolname = _is_admin.caller and rolsuper), false);
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
