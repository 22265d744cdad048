"""What the tests of the documentation share: the code blocks of a page and the commands in them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from warm import vgid

ROOT = Path(__file__).parent.parent


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page: Path, *, program: str = "vgid") -> list[list[str]]:
    """The lines of a page's shell blocks that call a program, without it and comments; a backslash joins lines."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [line[1:] for line in lines if line and line[0].removeprefix(".venv/bin/") == program]


def run(arguments: list[str], folder: Path, *, module: str = "vgid") -> subprocess.CompletedProcess[str]:
    """Run a command of a page in a folder."""
    if module == "vgid":
        return vgid(*arguments, folder=folder)
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
