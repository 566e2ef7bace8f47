from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SEEN = """
import json, os, sys
import bar, shown
assert shown.WHO == "host" and bar.PART == "host"
from labapex.proof import packages
packages.admit()
packages.admit()
import bar, shown, stray, json.decoder
at = sys.path.index(os.environ["LABAPEX_PACKAGES"])
print(json.dumps({
    "bar": bar.PART, "shown": shown.WHO, "stray": stray.WHO, "json": json.__file__,
    "host": sys.path.index(os.environ["LABAPEX_SITE_PACKAGES"]) - at, "count": sys.path.count(sys.path[at]),
    "before": all(p not in sys.path[at:] for p in sys.path if p.endswith(("lib-dynload", ".zip"))),
    "pth": hasattr(sys, "pth_was_run"),
}))
"""


def seen(tmp_path: Path) -> dict[str, object]:
    """What a process finds in which the host's `bar` and `shown` were imported before the job's packages were let in."""
    job, host = tmp_path / "job", tmp_path / "host"
    for folder, who in ((job, "job"), (host, "host")):
        (folder / "bar").mkdir(parents=True)
        (folder / "bar" / "__init__.py").write_text("from bar.part import PART\n")
        (folder / "bar" / "part.py").write_text(f"PART = {who!r}\n")
        (folder / "stray.py").write_text(f"WHO = {who!r}\n")
    (host / "shown.py").write_text("WHO = 'host'\n")
    (job / "json.py").write_text("raise ImportError\n")
    (job / "sys.py").write_text("raise ImportError\n")
    (job / "run.pth").write_text("import sys; sys.pth_was_run = True\n")
    line = [sys.executable, "-c", "import sys, os; sys.path.append(os.environ['LABAPEX_SITE_PACKAGES'])\n" + SEEN]
    environment = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "LABAPEX_PACKAGES": str(job),
        "LABAPEX_SITE_PACKAGES": str(host),
    }
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_jobs_packages_come_after_the_standard_library_and_before_the_hosts(tmp_path: Path) -> None:
    found = seen(tmp_path)
    assert (found["host"], found["count"], found["before"]) == (1, 1, True)
    assert Path(str(found["json"])).parent.name == "json"
    assert found["stray"] == "job"
    assert found["pth"] is False


def test_a_script_gets_its_own_package_where_the_hosts_was_imported_before(tmp_path: Path) -> None:
    found = seen(tmp_path)
    assert (found["bar"], found["shown"]) == ("job", "host")
