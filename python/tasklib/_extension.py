"""The same SQL as an extension: files for a server's ``share/extension`` folder.

In a script of an extension, whatever it makes becomes a part of the extension: dropped with it, and
left out of dumps, in which there is ``create extension`` instead. So the rows of its tables have to
be asked for, and `migrate` must not touch what belongs to an extension.
"""

from __future__ import annotations

from pathlib import Path

from tasklib import _migrate, _sql
from tasklib._sql import Script

NAME = "tasklib"

# Versions that can be updated from. `unpackaged` stands for an install without the extension.
RELEASES = ("0.1.0",)
UNPACKAGED = "unpackaged"

# Not trusted: then the server would run the script as its superuser, who would own all functions,
# and they run as their owner. No superuser is needed either, only the right to create a schema.
_CONTROL = """\
comment = 'A durable task queue'
default_version = '{version}'
schema = 'tasklib'
relocatable = false
superuser = false
trusted = false
encoding = 'UTF8'
"""

_HEAD = """\
\\echo Run "{command}" in the database instead of this file. \\quit
-- Made by `tasklib sql --extension` for TaskLib {version}.
"""

_REFUSE_OTHERS = """
do $tasklib$
begin
  if to_regclass('tasklib.migration') is not null then
    raise exception 'TaskLib is installed in this database already, without the extension'
      using errcode = 'TL008', hint = 'Go on with `tasklib migrate`, or take it in: '
        'create extension tasklib version ''unpackaged''; alter extension tasklib update;';
  end if;
end
$tasklib$;
"""

_RECORD_AS = """
insert into tasklib.migration (name, sha256) values ('{name}', '{sha256}');
"""

# Everything belongs to the owner of the schema, also when a superuser updates the extension or
# restores a dump: functions run as their owner, and have to reach the tables. Roles are made by who
# asked.
_AS_OWNER = """
do $tasklib$
declare
  v_owner text := (select pg_get_userbyid(nspowner) from pg_namespace where nspname = 'tasklib');
begin
  perform set_config('tasklib.role', current_setting('role'), true);
  if v_owner <> current_user then
    perform set_config('role', v_owner, true);
  end if;
exception
  when insufficient_privilege then
    raise exception 'the schema tasklib belongs to %, not to %', v_owner, current_user
      using errcode = 'TL011', hint = 'Do this as its owner, or as a superuser.';
end
$tasklib$;
"""

_AS_CALLER = """
do $tasklib$
begin
  perform set_config('role', current_setting('tasklib.role'), true);
end
$tasklib$;
"""

# Calls under way go on in the old functions, and need the helpers that this version has no more:
# these leave the extension, and `tasklib migrate` drops them when nobody uses them. See `_migrate`.
_NOTE_HELPERS = r"""
do $tasklib$
begin
  perform set_config('tasklib.helpers', (
    select string_agg(helper.oid || ' ' || helper.xmin, ',') from pg_proc as helper
    where helper.pronamespace = 'tasklib'::regnamespace and helper.proname like '\_%'), true);
end
$tasklib$;
"""

_LET_HELPERS_GO = """
do $tasklib$
declare
  v_old record;
begin
  for v_old in
    select old.oid::regprocedure as name, exists (
        select from pg_proc as new
        where new.pronamespace = old.pronamespace and new.proname = old.proname
          and new.oid <> old.oid and new.pronargs - new.pronargdefaults <= old.pronargs
          and (old.pronargs = 0 or new.proargtypes::text || ' ' like old.proargtypes::text || ' %')
      ) as is_answered
    from pg_proc as old
    where old.oid || ' ' || old.xmin = any (
      string_to_array(current_setting('tasklib.helpers', true), ','))
  loop
    execute format('alter extension tasklib drop function %s', v_old.name);
    if v_old.is_answered then
      execute format('drop function %s', v_old.name);
    else
      execute format('comment on function %s is %L', v_old.name, $label${label}$label$);
    end if;
  end loop;
end
$tasklib$;
"""

# Conditional, so that one text leads to this version from every older one.
_MIGRATE = """
do $tasklib$
begin
  if not exists (select from tasklib.migration where name = '{name}') then
    execute $tasklib_text$
{text}
$tasklib_text$;
    insert into tasklib.migration (name, sha256) values ('{name}', '{sha256}');
  end if;
end
$tasklib$;
"""

# Tables with a row that the script has made already when a dump is restored, and that say nothing
# that the restored extension does not know. (`config` has such a row, too, which gives way.)
OWN_ROWS = ("backlog_round", "housekeeping", "migration")

_KEEP_ROWS = """
create or replace function tasklib._restore_config()
  returns trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
begin
  delete from tasklib.config;
  return new;
end;
$$;
comment on function tasklib._restore_config() is
  'Internal. Lets the settings of a dump take the place of those that create extension has made.';
create or replace trigger restore_config before insert on tasklib.config
  for each row execute function tasklib._restore_config();

do $tasklib$
declare
  v_table regclass;
begin
  for v_table in
    select relation.oid
    from pg_class as relation
    where relation.relnamespace = 'tasklib'::regnamespace
      and relation.relkind in ('r', 'p', 'S')
      and relation.relname <> all ('{{{own_rows}}}')
      and relation.oid <> all (
        select unnest(coalesce(extconfig, '{{}}')) from pg_extension where extname = 'tasklib')
    order by relation.relname
  loop
    perform pg_extension_config_dump(v_table, '');
  end loop;
end
$tasklib$;
"""

# Everything in the schema, if it belongs to its owner: nobody else's object may get in.
_ADOPT = """
do $tasklib$
declare
  v_object record;
  v_owner regrole := (select nspowner from pg_namespace where nspname = 'tasklib');
begin
  if to_regclass('tasklib.migration') is null then
    raise exception 'there is no TaskLib in this database to be taken into the extension'
      using errcode = 'TL008', hint = 'create extension tasklib;';
  end if;
  for v_object in
    select named.type as word, named.identity, objects.owner
    from (
      select 'pg_class'::regclass, oid, relowner, relnamespace, true from pg_class
      where relkind in ('r', 'p', 'S', 'v')
      union all
      select 'pg_proc'::regclass, oid, proowner, pronamespace, true from pg_proc
      union all
      -- tables have types, too, which belong to them
      select 'pg_type'::regclass, pg_type.oid, typowner, typnamespace,
        coalesce(pg_class.relkind = 'c', true)
      from pg_type left join pg_class on pg_class.oid = typrelid where typtype in ('c', 'd', 'e')
    ) as objects(class, id, owner, space, is_own),
      pg_identify_object(objects.class, objects.id, 0) as named
    where objects.space = 'tasklib'::regnamespace and objects.is_own
    order by 1, 2
  loop
    if v_object.owner <> v_owner then
      raise exception '% % belongs to %, the schema to %',
        v_object.word, v_object.identity, v_object.owner::regrole, v_owner
        using errcode = 'TL011', hint = 'Drop it, or give it to the owner of the schema.';
    end if;
    execute format('alter extension tasklib add %s %s', v_object.word, v_object.identity);
  end loop;
end
$tasklib$;
"""


def files(version: str, *, sql: Path | None = None) -> dict[str, str]:
    """Return the extension's files by name.

    Args:
        version: What ``create extension`` installs.
        sql: The folder with the SQL; the package's own by default.
    """
    sql = sql or _sql.folder()
    migrations, behaviour = _sql.migrations(sql), _sql.behaviour(sql)
    made = {
        f"{NAME}.control": _CONTROL.format(version=version),
        f"{NAME}--{version}.sql": _install(version, migrations, behaviour),
        f"{NAME}--{UNPACKAGED}.sql": _head("create extension", version) + _ADOPT,
    }
    update = _update(version, migrations, behaviour)
    for older in (*RELEASES, UNPACKAGED):
        if older != version:
            made[f"{NAME}--{older}--{version}.sql"] = update
    return made


def write(folder: Path) -> list[Path]:
    """Write the files of this version into a folder; return their paths.

    Raises:
        OSError: The folder is not there, or not to be written to.
    """
    made = files(_migrate.version())
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o644)
    return [folder / name for name in made]


def from_script(script: str, version: str) -> str:
    """Make a frozen release's install script into that of the extension at this version."""
    _, _, rest = script.partition("create schema tasklib;\n")
    body, mark, grants = rest.partition("\n-- grants.sql\n")
    return _script("create extension", version, [body], [mark, grants])


def _install(version: str, migrations: list[Script], behaviour: list[Script]) -> str:
    body: list[str] = [_migrate.SCHEMA_COMMENT, _migrate.RECORD]
    for script in migrations:
        body += [script.text, _RECORD_AS.format(name=script.name, sha256=script.sha256)]
    return _script("create extension", version, body, _texts(behaviour))


def _update(version: str, migrations: list[Script], behaviour: list[Script]) -> str:
    body = [
        _MIGRATE.format(name=script.name, sha256=script.sha256, text=script.text.rstrip())
        for script in migrations
    ]
    *definitions, grants = _texts(behaviour)
    before, after = _NOTE_HELPERS, _LET_HELPERS_GO.format(label=_migrate.LEFT_OVER)
    return _script("alter extension", version, [before, *body], [*definitions, after + grants])


def _texts(behaviour: list[Script]) -> list[str]:
    """Return views and functions, and grants, which come last."""
    return [script.text for script in behaviour]


def _script(command: str, version: str, body: list[str], behaviour: list[str]) -> str:
    *definitions, grants = behaviour
    refusal = [_REFUSE_OTHERS] if command.startswith("create") else []
    before = [_head(command, version), *refusal, _AS_OWNER]
    return "".join([*before, *body, *definitions, _keep_rows(), _AS_CALLER, grants])


def _head(command: str, version: str) -> str:
    words = f"{command} {NAME}" + (" update" if command.startswith("alter") else "")
    return _HEAD.format(command=words, version=version)


def _keep_rows() -> str:
    return _KEEP_ROWS.format(own_rows=",".join(OWN_ROWS))
