"""docs/teacher-quality.md: its gates are the code's, and its commands run in order on fewer rows."""

import re

import pytest
from doc_pages import ROOT, commands, run

from vgid.stage1_teacher.diagnose import GATES
from vgid.stage1_teacher.diagnose.checks import CHECKS

PAGE = ROOT / "docs" / "teacher-quality.md"


def test_the_page_names_every_check_and_every_gate_with_its_threshold():
    rows = re.findall(r"^\| (D\d+) \|.*$", PAGE.read_text(), re.MULTILINE)
    assert rows == [check.name for check in CHECKS]
    stated = dict(re.findall(r"`(D\d+\.\w+)` (<= [\d.]+|>= [\d.]+)", PAGE.read_text()))
    assert {name: gate.describe()[:7] for name, gate in GATES.items()} == {k: v[:7] for k, v in stated.items()}


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_order(tmp_path):
    smaller = {"teacher generate": ["--limit", "150"], "teacher sweep": ["--strengths", "0.2,1", "--icu", "generic-v1"]}
    ran = []
    for arguments in commands(PAGE):
        name = " ".join(arguments[:2])
        here = [*arguments, *smaller.get(name, [])]
        done = run(here, tmp_path)
        assert done.returncode == 0, f"vgid {here}\n{done.stderr[-2000:]}"
        ran.append(name)
    assert {"teacher generate", "teacher inspect", "teacher sweep"} <= set(ran)
    assert (tmp_path / "runs/sweep/sweep.svg").read_text().startswith("<?xml")
