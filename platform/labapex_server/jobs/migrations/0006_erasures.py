from __future__ import annotations

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("jobs", "0005_handovers")]

    operations = [
        migrations.AddField(
            model_name="blob",
            name="wanted_at",
            field=models.DateTimeField(db_index=True, default=django.utils.timezone.now),  # of those that are here: now
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="job", name="erase_after", field=models.DateTimeField(db_index=True, null=True)
        ),
        migrations.AlterField(model_name="job", name="ended_at", field=models.DateTimeField(db_index=True, null=True)),
        migrations.CreateModel(
            name="KeptWheel",
            fields=[
                ("sha256", models.CharField(max_length=64, primary_key=True, serialize=False)),
                ("wanted_at", models.DateTimeField(db_index=True)),
            ],
        ),
        migrations.CreateModel(
            name="Erasure",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "what",
                    models.CharField(
                        choices=[("files", "files"), ("states", "states"), ("results", "results")], max_length=10
                    ),
                ),
                ("reason", models.TextField()),
                ("at", models.DateTimeField()),
                (
                    "job",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="erasures", to="jobs.job"
                    ),
                ),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("job", "what"), name="one_erasure_per_part")]
            },
        ),
    ]
