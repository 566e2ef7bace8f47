"""The command line on a real terminal: in a folder with nothing but a script it asks, writes, submits and follows."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 60.0
CHILD = """
import functools, json, sys
from pathlib import Path
from tests.labapex.memory_platform import TOKEN, URL, MemoryPlatform
from labapex.cli import options
from labapex.cli.main import main
from labapex.client import Client, credentials

platform = MemoryPlatform()
login = credentials.Login(username="ada", token=TOKEN)
credentials.save(credentials.Logins(current=URL, platforms={URL: login}))
options.Client = functools.partial(Client, transport=platform.transport, sleep=lambda seconds: None)
sys.argv = ["labapex", "run"]
try:
    main()
finally:
    specs = [job.view.spec.model_dump(mode="json") for job in platform.jobs.values()]
    Path("submitted.json").write_text(json.dumps(specs))
"""


class Terminal:
    """A process on a terminal of its own, and a person who reads before typing."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.master, slave = pty.openpty()
        root = Path(__file__).parents[3]
        path = os.pathsep.join([str(root), str(root / "client_sdk")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "PYTHONPATH": path, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "COLUMNS": "200"},
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def sees(self, text: str) -> None:
        """Read until it is there, behind what was seen before."""
        until = time.monotonic() + PATIENCE
        while text not in self.shown:
            assert select.select([self.master], [], [], max(0, until - time.monotonic()))[0], self.shown
            try:
                new = os.read(self.master, 65536)
            except OSError:  # Linux says so when the other end is closed
                new = b""
            assert new, f"ended before {text!r}: {self.shown}"
            self.shown += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", new.decode(errors="replace"))
        self.shown = self.shown.partition(text)[2]

    def types(self, line: str) -> None:
        os.write(self.master, f"{line}\n".encode())

    def ends(self) -> int:
        try:
            while os.read(self.master, 65536):
                pass
        except OSError:
            pass  # closed by the process's end
        os.close(self.master)
        return self.process.wait(PATIENCE)


def test_run_in_a_folder_with_nothing_but_a_script(tmp_path: Path) -> None:
    folder, home = tmp_path / "digits", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    (folder / "train.py").write_text("import torch, einops\nepochs = 3\n")
    terminal = Terminal(folder, home)
    terminal.sees("Write one for train.py? [Y/n]")
    terminal.types("")
    terminal.sees("Name [digits]")
    terminal.types("")
    terminal.sees("Data folder ('none' for none) [none]")
    terminal.types("")
    terminal.sees("Packages besides torch, with spaces between ('none' for none) [einops]")
    terminal.types("einops>=0.8")
    terminal.sees("Epochs [3]")
    terminal.types("0")
    terminal.sees("greater than or equal to 1")
    terminal.sees("Epochs [3]")
    terminal.types("2")
    terminal.sees("train.py has no option for its epochs")
    terminal.sees("Budget in credits [10]")
    terminal.types("2.5")
    terminal.sees("Submit? [Y/n]")
    terminal.types("y")
    terminal.sees("Live page:")
    terminal.sees("verified")
    assert terminal.ends() == 0
    (spec,) = json.loads((folder / "submitted.json").read_text())
    assert spec["name"] == "digits"
    assert (spec["epochs"], spec["budget"], spec["requirements"]) == (2, "2.5", ["einops>=0.8"])
    assert "einops>=0.8" in (folder / "labapex.yaml").read_text()


def test_whoever_says_no_has_submitted_nothing(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import torch\n")
    terminal = Terminal(tmp_path, tmp_path)
    terminal.sees("Write one for train.py? [Y/n]")
    terminal.types("n")
    terminal.sees("nothing was submitted")
    assert terminal.ends() == 2
    assert not (tmp_path / "labapex.yaml").exists()
    assert json.loads((tmp_path / "submitted.json").read_text()) == []
