"""A real server in a thread, a real Chromium, and a database that both the test and the server write to."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright
from tests.browser.stage import Story

from labapex.protocol.spec import CREDIT

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--headless=new",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
]
T = TypeVar("T")


@pytest.fixture(scope="module")  # not the session: while it lives, no asynchronous test can run in this thread
def browser(django_db_setup: None) -> Iterator[Browser]:
    if not CHROMIUM.exists():
        if os.environ.get("CI"):
            pytest.fail(f"{CHROMIUM} is missing: apt-get install chromium")
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # Playwright keeps a loop in this thread; pytest-django empties the tables from it between two tests.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def books(transactional_db: None) -> Iterator[Callable[[Callable[[], T]], T]]:
    """Runs a function on the database in a thread of its own: Playwright's loop lives in the test's thread."""
    from django.db import connections

    with ThreadPoolExecutor(1) as thread:
        yield lambda work: thread.submit(work).result()
        thread.submit(connections.close_all).result()


@dataclass
class Server:
    address: str
    stop: Callable[[], None]


@pytest.fixture
def server(books: object, home: Path, settings: Any) -> Iterator[Server]:
    """The platform on a free port, on this test's database and home."""
    from labapex_server.asgi import application

    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        settings.LABAPEX = settings.LABAPEX.model_copy(update={"public_url": f"http://127.0.0.1:{port}"})
        config = uvicorn.Config(application, ws="websockets-sansio", lifespan="off", log_level="warning")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, name="server")
        thread.start()
        while not running.started and thread.is_alive():
            time.sleep(0.01)  # a socket that already listens: this only waits for the loop to begin

        def stop() -> None:
            running.should_exit = running.force_exit = True
            thread.join(timeout=20)

        yield Server(f"http://127.0.0.1:{port}", stop)
        stop()
    # Leaving a page breaks its requests off. Django then goes on without waiting for the thread that answers one, and what that
    # thread still opens is closed by the collector alone: here, and not in some other test, which would have to answer for it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def people(books: Callable[[Callable[[], Any]], Any]) -> Any:
    """The researcher with 100 credits, and the host."""
    from labapex_server.accounts import services as accounts
    from labapex_server.ledger import services as ledger

    def make() -> Any:
        researcher = accounts.create_user("researcher", password="a long enough secret")
        host = accounts.create_user("host", password="a long enough secret")
        ledger.top_up(ledger.account_of(researcher), amount=100 * CREDIT, memo="starting credit")
        return researcher, host

    return books(make)


@pytest.fixture
def story(books: Callable[[Callable[[], Any]], Any], people: Any) -> Story:
    return Story(owner=people[0], host=people[1], began=time.time() - 300)


class Visitor:
    """A signed-in browser, and everything that it complained about."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.context, self.address, self.complaints = context, address, list[str]()
        context.set_default_timeout(15_000)
        self.page = self.open()

    def open(self) -> Page:
        page = self.context.new_page()
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        return page

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.type}: {message.text}")

    def go(self, path: str) -> Page:
        self.page.goto(self.address + path)
        return self.page


@pytest.fixture
def visit(
    browser: Browser, server: Server, people: Any, books: Callable[[Callable[[], Any]], Any]
) -> Iterator[Callable[..., Visitor]]:
    """Opens a browser that `researcher` (or another) is signed in to."""
    from django.test import Client

    opened: list[Visitor] = []

    def visitor(*, person: Any = None, **options: Any) -> Visitor:
        client = Client()
        books(lambda: client.force_login(person or people[0]))
        context = browser.new_context(viewport=options.pop("viewport", {"width": 1280, "height": 900}), **options)
        context.add_cookies([{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": server.address}])
        opened.append(Visitor(context, server.address))
        return opened[-1]

    yield visitor
    for each in opened:
        each.context.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Django's ASGI handler and whitenoise leave files to the garbage collector, and say so in our server's thread."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous:Warning"))
