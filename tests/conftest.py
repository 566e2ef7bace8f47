"""What every test gets: a database of its own and a platform home of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.nvml.stub import nvml_library, play

__all__ = ["nvml_library", "play"]

WRITTEN_BY_MIGRATE = {"django_content_type", "auth_permission"}  # the same for every test


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> Iterator[None]:
    """SQLite in a file (threads and child processes may open it), or PostgreSQL by LABAPEX_TEST_DATABASE_URL."""
    from django.conf import settings
    from django.db import connections

    from labapex_server.lib.config import Config

    with tempfile.TemporaryDirectory(prefix="labapex-test-") as folder:
        config = Config(home=Path(folder), database_url=os.environ.get("LABAPEX_TEST_DATABASE_URL", ""))
        database: dict[str, Any] = config.database()
        own = f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{os.getpid()}"
        sqlite = "sqlite3" in database["ENGINE"]
        database["TEST"] = {"NAME": str(Path(folder) / f"{own}.sqlite3") if sqlite else f"test_labapex_{own}"}
        database["OPTIONS"] = (  # a test database need not survive a power cut
            {**database["OPTIONS"], "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"}
            if sqlite
            else {"options": "-c synchronous_commit=off"}
        )
        database["CONN_MAX_AGE"] = 0  # a thread's connection ends with its work, or the database could not be dropped
        settings.DATABASES = {"default": database}
        connections.settings = connections.configure_settings(settings.DATABASES)
        del connections["default"]
        yield


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """How a database is emptied between two tests: Django's own way fails, since the transparency log refuses it, and takes a
    second and a half on PostgreSQL, where TRUNCATE makes each table's files anew."""
    from django.db import connection, transaction
    from django.db.backends.base.operations import BaseDatabaseOperations

    from labapex_server.transparency import guard

    flush = BaseDatabaseOperations.execute_sql_flush

    def run(statements: list[str]) -> None:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def delete(_: BaseDatabaseOperations, __: list[str]) -> None:
        tables = set(connection.introspection.django_table_names(only_existing=True)) - WRITTEN_BY_MIGRATE
        with transaction.atomic():  # neither foreign keys nor the log's guard are asked
            run(["SET LOCAL session_replication_role = replica", *(f"DELETE FROM {table}" for table in tables)])

    def unguarded(operations: BaseDatabaseOperations, statements: list[str]) -> None:
        run(guard.drop(connection.vendor))
        flush(operations, statements)
        run(guard.create(connection.vendor))

    with pytest.MonkeyPatch.context() as patch:
        empty = delete if connection.vendor == "postgresql" else unguarded
        patch.setattr(BaseDatabaseOperations, "execute_sql_flush", empty)
        yield


@pytest.fixture
def home(tmp_path: Path, settings: Any) -> Path:
    """A fresh platform home: keys, blobs and opened states of this test lie there."""
    folder = tmp_path / "platform"
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"home": folder})
    settings.LABAPEX.private_folder()
    return folder
