from __future__ import annotations

import pytest
from channels_redis.core import RedisChannelLayer

from labapex.errors import UsageError
from labapex_server.celery import make
from labapex_server.lib.config import Config


def test_with_nothing_set_all_of_it_lives_on_one_machine() -> None:
    config = Config()
    assert config.embedded()
    assert config.database()["ENGINE"].endswith("sqlite3")


def test_a_database_url_is_read_with_its_escapes() -> None:
    database = Config(database_url="postgresql://u%40x:p%2Fw@db:5433/apex").database()
    assert (database["USER"], database["PASSWORD"], database["HOST"], database["PORT"]) == ("u@x", "p/w", "db", "5433")
    assert database["NAME"] == "apex"


def test_an_unknown_database_is_named_in_the_error() -> None:
    with pytest.raises(UsageError, match="LABAPEX_DATABASE_URL"):
        Config(database_url="mysql://x").database()


def test_a_quiet_channel_layer_is_not_taken_for_a_dead_one() -> None:
    """A wait for a message that lasted as long as the limit for an answer ended in an error each time."""
    (host,) = RedisChannelLayer(**Config(channel_url="redis://localhost/1").channel_layer()["CONFIG"]).hosts
    assert host["socket_timeout"] > RedisChannelLayer.brpop_timeout


@pytest.mark.parametrize("url", ["memory://", "redis://localhost/1", "amqp://guest:guest@localhost//"])
def test_on_every_broker_a_task_is_acknowledged_after_it_is_done(url: str) -> None:
    app = make(url, longest=100, sweep_seconds=2)
    assert app.conf.task_acks_late
    assert app.conf.task_reject_on_worker_lost
    assert app.conf.worker_prefetch_multiplier == 1
    assert not app.conf.task_always_eager
    if url.startswith("redis"):
        assert app.conf.broker_transport_options["visibility_timeout"] >= 2 * 100
    if url.startswith("amqp"):
        assert app.conf.task_queues[0].queue_arguments["x-queue-type"] == "quorum"
