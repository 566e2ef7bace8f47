from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('workers', '0005_lacks_torch'),
    ]

    operations = [
        migrations.AddField(
            model_name='worker',
            name='room',
            field=models.JSONField(null=True),
        ),
    ]
