from django.db import migrations, models
from django.db.models import F


def by_age(apps, schema_editor):
    apps.get_model("jobs", "Job").objects.update(turn_at=F("created_at"))


class Migration(migrations.Migration):
    dependencies = [("jobs", "0007_paid_epochs")]

    operations = [
        migrations.RemoveIndex(model_name="job", name="job_state_created"),
        migrations.AddField(model_name="job", name="turn_at", field=models.DateTimeField(null=True)),
        migrations.RunPython(by_age, migrations.RunPython.noop),
        migrations.AlterField(model_name="job", name="turn_at", field=models.DateTimeField()),
        migrations.AddIndex(model_name="job", index=models.Index(fields=["state", "turn_at"], name="job_state_turn")),
    ]
