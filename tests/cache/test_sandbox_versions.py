"""The sandbox on the oldest and the newest DuckDB that the project allows: what DuckDB adds may be a way out of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def pip(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip {arguments[0]} found no package index: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def allowed() -> list[Version]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (requirement,) = [r for r in map(Requirement, project["dependencies"]) if r.name == "duckdb"]
    listed = re.search(r"Available versions: (.*)", pip("index", "versions", "duckdb"))
    assert listed is not None
    return sorted(Version(each) for each in requirement.specifier.filter(listed[1].split(", ")))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_every_probe_is_refused_by_every_duckdb_that_is_allowed(which, tmp_path):
    versions = allowed()
    if which == "newest" and len(versions) == 1:
        pytest.skip(f"the newest DuckDB that is allowed is the oldest, {versions[0]}")
    version = str(versions[0] if which == "oldest" else versions[-1])
    pip("install", "--quiet", "--no-deps", "--target", str(tmp_path / "duckdb"), f"duckdb=={version}")
    # In front of the installed one, for this process and those that it starts.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "duckdb"), str(ROOT)])}

    code = "import duckdb; print(duckdb.__version__, duckdb.__file__)"
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [version, str(tmp_path / "duckdb" / "duckdb" / "__init__.py")]
    files = [str(Path(__file__).with_name(name)) for name in ("test_sandbox.py", "test_views.py", "test_sql.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *files],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
