"""The workers' socket, as Channels mounts it.

Channels' own consumers hop to a thread and back for each message to tidy database connections. Data frames come by the
thousand and touch no database here, so this consumer takes the socket as it is.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from channels.consumer import AsyncConsumer

from labapex_server.gateway.connection import Connection, Receive, Send
from labapex_server.lib import metrics

log = logging.getLogger(__name__)


class WorkerConsumer(AsyncConsumer):  # type: ignore[misc]
    """One connection of one agent."""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        event = await receive()
        if event["type"] != "websocket.connect":
            return
        await send({"type": "websocket.accept"})
        try:
            with metrics.CONNECTIONS.labels("worker").track_inprogress():
                await Connection(receive, send).run()
        except Exception:
            log.exception("a worker's connection broke")
            await send({"type": "websocket.close", "code": 1011})
