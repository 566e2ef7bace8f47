from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('marketplace', '0002_handovers'),
    ]

    operations = [
        migrations.AlterField(
            model_name='lease',
            name='state',
            field=models.CharField(choices=[('granted', 'granted'), ('running', 'running'), ('finished', 'finished'), ('settled', 'settled'), ('expired', 'expired'), ('failed', 'failed'), ('declined', 'declined'), ('rejected', 'rejected')], default='granted', max_length=10),
        ),
    ]
