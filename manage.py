#!/usr/bin/env python
"""The platform's commands: `python manage.py serve` starts all of it, `python manage.py help` lists the rest."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main() -> None:
    for source_root in ("platform", "worker_agent", "client_sdk"):  # so that a checkout runs without an installation
        sys.path.insert(0, str(ROOT / source_root))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "labapex_server.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
