"""A recipe of a few people of the shipped world that `vgid run` takes from data to results in seconds."""

from __future__ import annotations

import os
import sys
from hashlib import sha256
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml
from small_pass import write_pass

from vgid.pipeline import cli

HEAVY = ("vgid.pipeline.run", "vgid.stage2_distill.trainer", "vgid.stage1_teacher.engines.transformers", "pandas")
_server = get_context("forkserver")
_server.set_forkserver_preload([*HEAVY, "transformers.models.auto.modeling_auto", "small_run"])


def write_run(folder: Path, **changes: Any) -> Path:
    """Data and recipe; gives the recipe. `changes` are settings to lay over its groups."""
    path = write_pass(folder, photos=2, questions=2)
    recipe = yaml.safe_load(path.read_text())
    recipe["distill"] |= {"targets": recipe["distill"]["targets"][:3], "max_steps": 4, "save_steps": 1}
    recipe["distill"] |= {"forget_batch": 2, "retain_batch": 2}
    recipe["evaluate"] = {"max_new_tokens": 16}
    for group, values in changes.items():
        recipe[group] = recipe.get(group, {}) | values
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(recipe: Path, out: Path, *, stderr: Path, **environment: str) -> BaseProcess:
    """`vgid run` with engine transformers, as its own `main`, in a fork of a process that has read the libraries."""
    process: BaseProcess = _server.Process(target=_main, args=(recipe, out, stderr, environment))
    process.start()
    return process


def _main(recipe: Path, out: Path, stderr: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["vgid", "run", str(recipe), "--out", str(out), "--engine", "transformers"]
    cli.main()


def files_of(folder: Path) -> dict[str, str]:
    """Every file under a folder, hashed."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}
