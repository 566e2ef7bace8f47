"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="The worker's folder.  [env: LABAPEX_WORKER_HOME]", show_default=False)
]
RootKeyOption = Annotated[
    str,
    typer.Option(
        "--root-key",
        help="Fingerprint of the platform's root key, from the portal; another one is refused.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
