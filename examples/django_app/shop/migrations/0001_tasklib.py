"""Install the queue in the database that Django migrates, which may be one for tests.

At an upgrade of pg-tasklib, add a migration with the same operation: it does nothing where there is
nothing to do.
"""

from django.db import migrations
from psycopg.conninfo import make_conninfo

import tasklib


def install(_apps, schema_editor):
    params = schema_editor.connection.get_connection_params()
    names = ("host", "port", "user", "password", "dbname")
    tasklib.migrate(make_conninfo(**{name: params[name] for name in names if name in params}))


class Migration(migrations.Migration):
    atomic = False  # it has a connection and a transaction of its own
    dependencies = []
    operations = [migrations.RunPython(install, migrations.RunPython.noop)]
