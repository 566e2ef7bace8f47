"""Write the sources of some of Python's own library modules, about 300 KB of text, to data/input.txt."""

import sysconfig
from pathlib import Path

MODULES = ["argparse", "ast", "calendar", "dataclasses", "datetime", "difflib", "heapq", "random", "statistics"]

library = Path(sysconfig.get_path("stdlib"))
text = "\n".join((library / f"{name}.py").read_text(encoding="utf-8") for name in MODULES)
text = text.encode("ascii", "ignore").decode()[:300_000]

folder = Path(__file__).parent / "data"
folder.mkdir(exist_ok=True)
(folder / "input.txt").write_text(text, encoding="ascii")
print(f"wrote {folder / 'input.txt'}: {len(text):,} characters, {len(set(text))} different")
