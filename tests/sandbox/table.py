"""What a hostile script is refused, as a table: `make test-sandbox`. Ends with 1 where something is not refused."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from rich.console import Console
from rich.table import Table
from tests.sandbox import cells

from labapex import landlock, sandbox


def main() -> int:
    out = Console(width=None if sys.stdout.isatty() else 160)
    table, columns, gaps = Table("tried from inside"), [], 0
    for role in cells.ROLES:
        for starter in cells.STARTERS:
            if (missing := cells.missing(starter) or sandbox.available()) is not None:
                out.print(f"{role}, started by {starter}: left out, {missing}")
                continue
            table.add_column(f"{role}, by {starter}")
            columns.append(cells.run(role, starter))
    if (lacking := landlock.lacking()) is not None:
        out.print(lacking)
    for part, good in (("refused", "refused"), ("bombs", "ended")):
        for name in columns[0][part] if columns else []:
            row = [column[part][name] for column in columns]
            if name == "a bystander":
                gaps += sum(reason is not None for reason in row)
                table.add_row(name, *["lives" if reason is None else f"[red]{reason}" for reason in row])
                continue
            gaps += row.count(None)
            table.add_row(name, *[f"[red]NOT {good}" if reason is None else f"{good}: {reason}" for reason in row])
    for name in columns[0]["works"] if columns else []:
        row = [column["works"][name] for column in columns]
        gaps += sum(reason is not None for reason in row)
        table.add_row(f"needed: {name}", *["works" if reason is None else f"[red]{reason}" for reason in row])
    out.print(table)
    return 1 if gaps or not columns else 0


if __name__ == "__main__":
    sys.exit(main())
