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
        if sqlite:  # a test database need not survive a power cut
            database["OPTIONS"]["init_command"] = "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
        database["CONN_MAX_AGE"] = 0  # a thread's connection ends with its work, or the database could not be dropped
        settings.DATABASES = {"default": database}
        connections.settings = connections.configure_settings(settings.DATABASES)
        del connections["default"]
        yield


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """The transparency log refuses to be emptied, which a test's database has to be between two tests."""
    from django.db import connection
    from django.db.backends.base.operations import BaseDatabaseOperations

    from labapex_server.transparency import guard

    def execute(statements: list[str]) -> None:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    empty = BaseDatabaseOperations.execute_sql_flush

    def unguarded(operations: BaseDatabaseOperations, statements: list[str]) -> None:
        execute(guard.drop(connection.vendor))
        empty(operations, statements)
        execute(guard.create(connection.vendor))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseDatabaseOperations, "execute_sql_flush", unguarded)
        yield


@pytest.fixture
def home(tmp_path: Path, settings: Any) -> Path:
    """A fresh platform home: keys, blobs and opened states of this test lie there."""
    folder = tmp_path / "platform"
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"home": folder})
    settings.LABAPEX.private_folder()
    return folder
