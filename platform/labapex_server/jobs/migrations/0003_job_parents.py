
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0002_rung_at'),
    ]

    operations = [
        migrations.AddField(
            model_name='job',
            name='parents',
            field=models.JSONField(default=list),
        ),
    ]
