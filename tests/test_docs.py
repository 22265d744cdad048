"""The docs cannot rot: the reference is generated, every command in them is run, every file they name is there."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer.main
import yaml
from doc_pages import ROOT, blocks, commands, run
from small_pass import write_pass
from sound_targets import sound_target, write_sound

from vgid.data.fictitious import shipped_base, shipped_world
from vgid.pipeline.cli import app

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
HUB_MODEL = "Qwen/Qwen2-VL-2B-Instruct"


def test_the_command_reference_is_what_the_app_says():
    """To renew it: make docs."""
    command = [
        sys.executable,
        "-m",
        "typer",
        "vgid.pipeline.cli",
        "utils",
        "docs",
        "--name",
        "vgid",
        "--title",
        "Commands",
    ]
    fresh = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "cli.md").read_text().strip() == fresh.strip(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_has_the_options_it_names(page):
    """What `make test` can afford of every page; that they run is shown page by page, in part by the slow tests."""

    def parse(command: Any, arguments: list[str]) -> None:
        context = command.make_context(command.name, list(arguments))
        if hasattr(command, "commands"):
            _, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            parse(inner, rest)

    root = typer.main.get_command(app)
    with pytest.raises(Exception, match="No such option"):
        parse(root, ["cache", "status", "cache", "--no-such-option"])
    for arguments in commands(page):
        parse(root, arguments)


def own_data(folder: Path) -> None:
    """A user's table in the README's own format, filled with a few people of the shipped world."""
    (example,) = [json.loads(block) for block in blocks(ROOT / "README.md", "json")]
    (folder / "faces").mkdir(exist_ok=True)
    rows = []
    for split in ("forget", "retain"):
        table = pq.read_table(shipped_world() / split / "train-00000-of-00001.parquet").to_pylist()
        for number, person in enumerate(table[:12]):
            image = folder / "faces" / f"{split}{number}.png"
            image.write_bytes(person["image"]["bytes"])
            for item in json.loads(person["metadata"]):
                if item["Task"] != "facts" or item["Phrasing"] != "trained":
                    continue
                values = {
                    "image": f"faces/{image.name}" if item["Type"] == "Image_Textual" else "",
                    "question": item["Question"],
                    "answer": item["Answer"],
                    "subject": person["ID"],
                    "split": split,
                    "facts": item["Facts"],
                }
                assert values.keys() == example.keys(), "the README's example row has other keys"
                rows.append(values)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def own_recipe(folder: Path, page: Path, name: str) -> None:
    """The page's recipe word for word, but for the base (no hub here) and its size (this is a test)."""
    recipe = next(yaml.safe_load(block) for block in blocks(page, "yaml") if HUB_MODEL in block)
    assert recipe["model"] == HUB_MODEL
    recipe["model"] = str(shipped_base())
    recipe["teacher"]["dtype"] = recipe["distill"]["dtype"] = "float32"
    del recipe["distill"]["epochs"]
    recipe["distill"] |= {"max_steps": 3, "learning_rate": 1e-4}
    recipe["evaluate"] = {"per_cell": 1}
    (folder / name).write_text(yaml.safe_dump(recipe))


@pytest.mark.parametrize("page", ["README.md", pytest.param("docs/guide.md", marks=pytest.mark.slow)])
def test_the_commands_of_a_page_run_in_order_on_a_users_own_table(page, tmp_path):
    own_data(tmp_path)
    own_recipe(tmp_path, ROOT / page, "my-recipe.yaml")
    ran = []
    for arguments in commands(ROOT / page):
        if arguments[0] == "demo":
            continue  # tests/pipeline/test_demo.py runs it
        here = [word.replace(HUB_MODEL, str(shipped_base())).replace("runs/demo/cache", "cache") for word in arguments]
        if arguments[:2] == ["data", "train-base"]:
            continue  # minutes; tests/data/fictitious runs the training
        done = run(here, tmp_path)
        assert done.returncode == 0, f"vgid {shlex.join(here)}\n{done.stderr[-2000:]}"
        ran.append(arguments[0])
    assert {"data", "teacher", "distill", "evaluate", "sql"} <= set(ran)


def test_the_commands_of_the_page_on_erasing_run_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("VGID_ERASE_KEY", str(tmp_path / "erase.key"))
    write_sound(tmp_path / "cache", [replace(sound_target(index), subject_id="mara") for index in range(3)])
    (command,) = blocks(ROOT / "docs/erasing.md", "bash")

    for arguments in commands(ROOT / "docs/erasing.md"):
        done = run(arguments, tmp_path)
        assert done.returncode == 0, f"vgid {shlex.join(arguments)}\n{done.stderr[-2000:]}"
        if "--dry-run" in arguments:
            assert "would erase 3 rows" in done.stdout

    first = json.loads((tmp_path / "cache/audit/000001.json").read_text())["erased"]
    shell = command.replace("~/.config/vgid/erase.key", str(tmp_path / "erase.key"))
    shown = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert shown.split()[-1] == first[0]["mark"]


@pytest.mark.slow
def test_the_shards_of_the_page_on_many_machines_make_one_cache_and_its_job_script_is_sound(tmp_path):
    write_pass(tmp_path, photos=4, questions=2).rename(tmp_path / "my-recipe.yaml")
    for arguments in commands(ROOT / "docs/many-machines.md"):
        if not {"--shard", "slurm"} & set(arguments):
            continue
        done = run([*arguments, "--engine", "transformers"], tmp_path)
        assert done.returncode == 0, f"vgid {shlex.join(arguments)}\n{done.stderr[-2000:]}"
        if "2/3" in arguments:
            assert "whole.missing: 0" in done.stdout
    script = tmp_path / "teacher.sbatch"
    assert "#SBATCH --array=0-7\n" in script.read_text()
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
