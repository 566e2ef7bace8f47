from django.db import migrations

from labapex_server.transparency import guard


def _up(apps, schema_editor):
    for statement in guard.create(schema_editor.connection.vendor):
        schema_editor.execute(statement)


def _down(apps, schema_editor):
    for statement in guard.drop(schema_editor.connection.vendor):
        schema_editor.execute(statement)


class Migration(migrations.Migration):
    """Log and tree become append-only in the database itself."""

    dependencies = [("transparency", "0001_initial")]

    operations = [migrations.RunPython(_up, _down)]
