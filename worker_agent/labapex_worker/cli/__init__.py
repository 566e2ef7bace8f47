"""`labapex-worker`: what the owner of a host types."""

from __future__ import annotations

from labapex_worker.cli.program import app, main

__all__ = ["app", "main"]
