import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    """Apart from 0004: PostgreSQL alters no table whose rows were changed in the same transaction."""

    dependencies = [("accounts", "0004_organisations")]
    operations = [
        migrations.AlterField(
            model_name="token",
            name="made_by",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
    ]
