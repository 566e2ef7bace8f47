from typing import Any

from django.db import migrations, models


def verified(apps: Any, schema_editor: Any) -> None:
    """A job that is verified was paid as a whole."""
    jobs = apps.get_model("jobs", "Job").objects
    for job in jobs.filter(state="verified").only("spec").iterator():
        jobs.filter(pk=job.pk).update(paid_epochs=job.spec["epochs"])


class Migration(migrations.Migration):

    dependencies = [("jobs", "0006_erasures")]

    operations = [
        migrations.AddField(model_name="job", name="paid_epochs", field=models.IntegerField(default=0)),
        migrations.RunPython(verified, migrations.RunPython.noop),
    ]
