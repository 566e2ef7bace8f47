"""`python -m labapex_worker.cli`."""

from __future__ import annotations

from labapex_worker.cli.program import main

main()
