"""A reader of proof folders that shares no line with Lab Apex: written after docs/proof-folder.md, standard library alone.

    python -m tests.vectors.independent.reader DIR

It goes as far as one gets without running the script: `form`, `log` and `shown`. Which states a nonce gives is not drawn again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.vectors.independent.folder import Folder
from tests.vectors.independent.log import check_log
from tests.vectors.independent.refused import Refused
from tests.vectors.independent.shown import check_shown


def read(place: Path) -> Folder:
    """All that can be known without the script. Raises `Refused`."""
    folder = Folder(place)
    check_log(folder)
    check_shown(folder)
    return folder


if __name__ == "__main__":
    try:
        read(Path(sys.argv[1]))
    except Refused as refused:
        sys.exit(str(refused))
