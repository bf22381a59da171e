"""A schema as sorted text, so that two databases can be compared line by line."""

from __future__ import annotations

import re
from typing import Any

from psycopg import Connection

QUERY = r"""
with space as (select oid from pg_namespace where nspname = 'tasklib'),
relation as (
  select c.*, format('%s %s', c.relkind, c.relname) as label
  from pg_class as c where c.relnamespace in (select oid from space)
)
select format('schema owner=%s acl=%s', pg_get_userbyid(nspowner) = current_user, nspacl)
from pg_namespace where nspname = 'tasklib'
union all
select format(
  'relation %s owner=%s persistence=%s options=%s acl=%s security=%s replica=%s tablespace=%s',
  label, relowner = (select nspowner from pg_namespace where nspname = 'tasklib'), relpersistence,
  reloptions, relacl, (relrowsecurity, relforcerowsecurity), relreplident, reltablespace)
from relation
union all
select format('column %s.%s %s type=%s notnull=%s default=%s identity=%s generated=%s options=%s '
  'storage=%s statistics=%s acl=%s',
  r.label, row_number() over (partition by r.oid order by a.attnum), a.attname,
  format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
  a.attidentity, a.attgenerated, a.attoptions, a.attstorage, nullif(a.attstattarget, -1), a.attacl)
from relation as r
join pg_attribute as a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef as d on d.adrelid = r.oid and d.adnum = a.attnum
union all
select format('view %s %s', r.label, pg_get_viewdef(r.oid)) from relation as r where relkind = 'v'
union all
select format('index %s %s', pg_get_indexdef(r.oid),
  (i.indisvalid, i.indisclustered, i.indisreplident))
from relation as r join pg_index as i on i.indexrelid = r.oid
union all
select format('sequence %s %s', r.label, (s.seqtypid::regtype, s.seqstart, s.seqincrement,
  s.seqmin, s.seqmax, s.seqcache, s.seqcycle))
from relation as r join pg_sequence as s on s.seqrelid = r.oid
union all
select format('sequence %s of %s %s', r.label, d.refobjid::regclass, d.refobjsubid)
from relation as r join pg_depend as d on d.objid = r.oid and d.classid = 'pg_class'::regclass
where r.relkind = 'S' and d.deptype in ('a', 'i')
union all
select format('constraint %s on %s %s', o.conname, coalesce(r.label, o.contypid::regtype::text),
  (pg_get_constraintdef(o.oid), o.convalidated))
from pg_constraint as o left join relation as r on r.oid = o.conrelid
where o.connamespace in (select oid from space)
union all
select format('trigger %s', pg_get_triggerdef(t.oid))
from pg_trigger as t join relation as r on r.oid = t.tgrelid where not t.tgisinternal
union all
select format('function %s owner=%s acl=%s %s', p.oid::regprocedure,
  proowner = (select nspowner from pg_namespace where nspname = 'tasklib'), p.proacl,
  pg_get_functiondef(p.oid))
from pg_proc as p where p.pronamespace in (select oid from space) and p.prokind <> 'a'
union all
select format('type %s %s owner=%s acl=%s %s', t.typname, t.typtype,
  typowner = (select nspowner from pg_namespace where nspname = 'tasklib'), t.typacl,
  (format_type(nullif(t.typbasetype, 0), t.typtypmod), t.typnotnull, t.typdefault,
    array(select enumlabel::text from pg_enum where enumtypid = t.oid order by enumsortorder)))
from pg_type as t where t.typnamespace in (select oid from space) and t.typtype <> 'b'
union all
select format('policy %s %s', r.label, p.polname)
from pg_policy as p join relation as r on r.oid = p.polrelid
union all
select format('rule %s', pg_get_ruledef(w.oid))
from pg_rewrite as w join relation as r on r.oid = w.ev_class where w.rulename <> '_RETURN'
union all
select format('statistics %s', pg_get_statisticsobjdef(s.oid))
from pg_statistic_ext as s where s.stxnamespace in (select oid from space)
union all
select format('default rights %s %s', defaclobjtype, defaclacl)
from pg_default_acl where defaclnamespace in (select oid from space)
union all
select format('comment %s %s %s', named.type, named.identity, description)
from pg_description, pg_identify_object(classoid, objoid, objsubid) as named
-- whatever is in the search path; objects of the server itself have lower numbers
where objoid >= 16384 and named.identity ~ '\mtasklib\M'
union all
select format('role %s login=%s super=%s inherits=%s', r.rolname, r.rolcanlogin, r.rolsuper,
  array(select pg_get_userbyid(m.roleid) from pg_auth_members as m where m.member = r.oid
    order by 1))
from pg_roles as r
where r.rolname in ('tasklib_admin', 'tasklib_observer', 'tasklib_producer', 'tasklib_worker')
"""


def lines(conn: Connection[Any]) -> list[str]:
    """Describe everything in the schema ``tasklib``: shape, code, comments and rights."""
    return sorted(row[0] for row in conn.execute(QUERY).fetchall())


def released_migrations(script: str) -> dict[str, str]:
    """Return name and fingerprint of the migrations that an install script contains."""
    found = re.findall(r"tasklib\.migration \(name, sha256\) values \('(\w+)', '(\w+)'\)", script)
    return dict(found)
