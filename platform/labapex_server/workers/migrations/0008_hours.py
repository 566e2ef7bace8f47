from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('workers', '0007_marks'),
    ]

    operations = [
        migrations.AddField(
            model_name='worker',
            name='hours',
            field=models.JSONField(default=list),
        ),
    ]
