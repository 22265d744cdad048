"""Make torchvision import beside a CPU torch, in every process of this environment: `.venv/bin/python THIS_FILE`.

PyPI's torchvision is a CUDA build. Beside `torch+cpu` its compiled library does not load, and then `import torchvision`
fails with "operator torchvision::nms does not exist", which takes transformers' video processors and vLLM with it.
Declaring the two operators before torchvision asks for them is enough: its Python transforms work, and calling the
operators fails as it should. vLLM imports torchvision in subprocesses as well, so the declaration is made by a `.pth`
file, which every interpreter of the environment reads at start.

torchaudio and torchcodec are built for CUDA too. vLLM does without them, but not with broken ones, so those that do not
import are removed (`pip check` complains from then on; nothing else does).

Does nothing where everything imports. Exits with 1 if torchvision does not import in the end.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

HOOK_NAME = "_torchvision_cpu_operators"

# Runs inside `import torchvision`, after torch and after torchvision's own attempt to load its operators, so that it
# costs an interpreter nothing and keeps out of the way of a torchvision that brings its operators.
HOOK = '''"""Declares what a CUDA torchvision lacks beside a CPU torch; from vgid's scripts/repair_torchvision.py."""

import sys


class DeclareOperators:
    """Sees every import, acts on one, finds nothing."""

    def find_spec(self, name, path=None, target=None):
        """Declare the missing operators when torchvision is about to describe them."""
        if name == "torchvision._meta_registrations":
            import torch

            if not hasattr(torch.ops.torchvision, "nms"):
                self.library = torch.library.Library("torchvision", "DEF")
                for operator in ("nms", "qnms"):
                    self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, DeclareOperators())
'''

# Names of the installed libraries that do not import, tried in a fresh interpreter.
PROBE = """
import importlib, importlib.util, sys
for name in sys.argv[1:]:
    if importlib.util.find_spec(name):
        try:
            importlib.import_module(name)
        except Exception:
            print(name)
"""


def find_broken(names: list[str]) -> list[str]:
    """Names of those installed libraries that a fresh interpreter cannot import."""
    probe = subprocess.run([sys.executable, "-c", PROBE, *names], capture_output=True, text=True, check=True)
    return probe.stdout.split()


def write_hook(site_packages: Path) -> None:
    """Put the declaration into every interpreter of the environment (the `.pth` last: it must find its module)."""
    (site_packages / f"{HOOK_NAME}.py").write_text(HOOK)
    (site_packages / f"{HOOK_NAME}.pth").write_text(f"import {HOOK_NAME}\n")


def imports_in_a_subprocess_of_a_subprocess(name: str) -> bool:
    """Whether an interpreter started by a fresh interpreter imports the library, as vLLM's model registry does."""
    inner = [sys.executable, "-c", f"import {name}"]
    outer = f"import subprocess, sys, {name}; sys.exit(subprocess.run({inner!r}).returncode)"
    return subprocess.run([sys.executable, "-c", outer], check=False).returncode == 0


def main() -> int:
    """Repair what is broken, check the repair, say what was done."""
    broken = find_broken(["torchvision", "torchaudio", "torchcodec"])
    if unwanted := [name for name in broken if name != "torchvision"]:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *unwanted], check=True)
        print(f"removed, since they do not import: {', '.join(unwanted)}")
    if "torchvision" not in broken:
        return 0
    write_hook(Path(sysconfig.get_path("purelib")))
    if not imports_in_a_subprocess_of_a_subprocess("torchvision"):
        print("error: torchvision does not import even with its operators declared; see above", file=sys.stderr)
        return 1
    print("torchvision repaired: its compiled operators are declared, not implemented")
    return 0


if __name__ == "__main__":
    sys.exit(main())
