"""Entry of `python -m labapex_runner` and of the frozen runner; all else lives in `labapex_runner.app`."""

from __future__ import annotations

import sys

from labapex_runner.app import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
