"""The command line as a user meets it: real processes, exit codes, one-line errors, JSON for machines."""

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import TypeAdapter
from tampering import change_manifest, change_rows, manifest_path, parts_of
from typer.testing import CliRunner
from warm import vgid

from vgid.cache.reader import open_cache
from vgid.cache.scratch import scratch_files
from vgid.cache.vocabulary import read_vocabulary
from vgid.data.fictitious import shipped_world
from vgid.data.strict import Seed
from vgid.pipeline.cli import app
from vgid.pipeline.cli_options import MAX_SEED

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "cache"
    done = vgid(
        "teacher", "generate", "fictitious", "--out", out, "--limit", "40", "--engine", "transformers", "--json"
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["generated"] == 40 and record["prediction"]["rows"] > 40
    return out


def test_help_teaches_every_command_with_an_example():
    for command in (
        *("teacher generate", "teacher presets", "teacher inspect", "teacher sweep", "distill", "merge", "evaluate"),
        *("sql", "data check", "demo", "run", "cache status", "cache verify", "cache erase"),
    ):
        shown = vgid(*command.split(), "--help")
        assert shown.returncode == 0 and "Example: vgid" in " ".join(shown.stdout.split())


def test_flags_are_frozen():
    """A renamed or lost flag breaks batch scripts: change this list only with a line in CHANGELOG.md."""
    from typer.main import get_command

    def flags(command, path=""):
        for name, child in getattr(command, "commands", {}).items():
            yield from flags(child, f"{path} {name}".strip())
        if not hasattr(command, "commands"):
            yield path, sorted(option for parameter in command.params for option in parameter.opts)

    assert dict(flags(get_command(app))) == {
        "teacher generate": sorted(
            [
                "recipe",
                "--out",
                "--engine",
                "--shard",
                "--limit",
                "--dry-run",
                "--rows-per-part",
                "--profile",
                "--expire-after",
                "--tensor-parallel",
                "--gpu-memory",
                "--max-model-len",
                "--window",
                "--trace-replay",
                "--set",
                "--launcher",
                "--shards",
                "--slurm",
                "--script",
                "--submit",
                "--workers",
                "--ray-address",
                "--json",
            ]
        ),
        "teacher presets": sorted(["--json"]),
        "teacher preview": sorted(
            [
                "recipe",
                "--out",
                "--examples",
                "--split",
                "--perturbation",
                "--strengths",
                "--overwrite",
                "--set",
                "--json",
            ]
        ),
        "teacher inspect": sorted(
            [
                "cache",
                "--recipe",
                "--perturbation",
                "--strength",
                "--icu",
                "--retain-only",
                "--student",
                "--strict",
                "--quarantine",
                "--out",
                "--set",
                "--json",
            ]
        ),
        "teacher sweep": sorted(
            [
                "recipe",
                "--out",
                "--strengths",
                "--icu",
                "--perturbations",
                "--subjects",
                "--engine",
                "--set",
                "--json",
            ]
        ),
        "distill": sorted(
            [
                "recipe",
                "--cache",
                "--out",
                "--allow-partial",
                "--scratch",
                "--report-to",
                "--loader-workers",
                "--set",
                "--json",
            ]
        ),
        "merge": sorted(["adapter", "--out", "--base"]),
        "evaluate": sorted(
            [
                "model",
                "--data",
                "--compare",
                "--retrained",
                "--out",
                "--engine",
                "--dtype",
                "--per-cell",
                "--set",
                "--json",
            ]
        ),
        "run": sorted(
            [
                "recipe",
                "--out",
                "--engine",
                "--retrained",
                "--train-anyway",
                "--until",
                "--loader-workers",
                "--set",
                "--json",
            ]
        ),
        "sql": sorted(["cache", "query", "--file", "--format", "--output", "--overwrite", "--timeout", "--memory"]),
        "cache erase": sorted(
            ["cache", "--subject", "--example", "--all", "--allow-absent", "--dry-run", "--yes", "--json"]
        ),
        "cache status": sorted(["cache", "--json"]),
        "cache verify": sorted(["cache", "--json"]),
        "data check": sorted(["recipe", "--json"]),
        "data fictitious": sorted(
            ["--out", "--seed", "--forget", "--retain", "--outsiders", "--instruct", "--strangers"]
        ),
        "data questions": sorted(
            ["photos", "--name", "--model", "--out", "--subject", "--engine", "--limit", "--json"]
        ),
        "data train-base": sorted(["world", "--out", "--seed", "--without"]),
        "demo": sorted(["--out", "--seed", "--from-scratch", "--set", "--json"]),
    }


def test_a_dry_run_prints_rows_tokens_and_bytes_and_writes_nothing(tmp_path):
    done = vgid("teacher", "generate", "fictitious", "--out", tmp_path / "cache", "--dry-run", "--json")
    rows = json.loads(done.stdout)
    assert rows[-1]["split"] == "all" and rows[-1]["rows"] == sum(row["rows"] for row in rows[:-1])
    assert all(row["max_tokens"] > 0 and row["predicted_bytes"] > 0 for row in rows)
    assert not (tmp_path / "cache").exists()


def test_adaptive_width_the_compat_profile_and_an_expiry_reach_the_cache(tmp_path):
    arguments = ["--limit", "12", "--engine", "transformers", "--profile", "compat", "--expire-after", "2w"]
    widths = ["--set", "teacher.num_topk=16", "--set", "teacher.top_p=0.99", "--set", "teacher.min_k=2"]
    done = vgid("teacher", "generate", "fictitious", "--out", tmp_path / "cache", *arguments, *widths)
    assert done.returncode == 0, done.stderr

    opened = open_cache(tmp_path / "cache")
    assert opened.manifest.settings.items() >= {"num_topk": 16, "top_p": 0.99, "min_k": 2}.items()
    left = datetime.fromisoformat(opened.manifest.expires or "") - datetime.now(UTC)
    assert timedelta(days=13.9) < left < timedelta(days=14)
    stored = [(row.topk_ids >= 0).sum(-1) for row in opened.iter_targets()]
    assert {2} < set(np.concatenate(stored).tolist()), "some positions need more than the fewest"
    for row, widths in zip(opened.iter_targets(), stored, strict=True):
        assert np.all((np.exp(row.tail_logprob) <= 0.01 + 1e-6) | (widths == 16))
    part = pq.ParquetFile(tmp_path / "cache" / opened.manifest.parts[0].path).metadata.row_group(0)
    encodings = {part.column(i).path_in_schema.split(".")[0]: part.column(i).encodings for i in range(part.num_columns)}
    assert "DELTA_BINARY_PACKED" in encodings["topk_ids"]
    table = read_vocabulary(opened).to_pydict()
    ends = {token_id for token_id, end in zip(table["token_id"], table["end"], strict=True) if end}
    assert all(row.token_ids[-1] in ends for row in opened.iter_targets() if row.finish_reason == "stop")


def test_sql_answers_in_every_format(cache):
    query = "SELECT split, count(*) AS n FROM targets GROUP BY split ORDER BY split"
    rows = json.loads(vgid("sql", cache, query, "--format", "json").stdout)
    assert [row["split"] for row in rows] == ["forget", "retain", "strangers"] and sum(row["n"] for row in rows) == 40
    assert vgid("sql", cache, query, "--format", "csv").stdout.splitlines()[0] == '"split","n"'
    assert "forget" in vgid("sql", cache, query).stdout


def test_data_check_says_what_the_data_holds():
    done = vgid("data", "check", "fictitious", "--json")
    assert done.returncode == 0 and not json.loads(done.stdout)["findings"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["teacher", "generate", "no-such-recipe", "--out", "X"], 2, "shipped recipe"),
        (["teacher", "generate", "fictitious", "--out", "X", "--shard", "3/3"], 2, "i/n"),
        (["teacher", "generate", "fictitious", "--out", "X", "--engine", "llama"], 2, "transformers"),
        (["teacher", "generate", "fictitious", "--out", "X", "--profile", "zip"], 2, "compat"),
        (["teacher", "generate", "fictitious", "--out", "X", "--expire-after", "soon"], 2, "90d"),
        (["teacher", "generate", "fictitious", "--out", "X", "--set", "model=./nowhere"], 2, "nowhere"),
        (["distill", "fictitious", "--cache", "X", "--out", "Y"], 1, "X"),
        (["merge", "X", "--out", "Y"], 1, "distill.export=adapter"),
        (["evaluate", "./nowhere", "--data", "shipped"], 2, "nowhere"),
        (["sql", "X", "SELECT 1"], 1, "X"),
        (["cache", "status", "X"], 1, "vgid teacher generate"),
        (["teacher", "inspect", "X"], 1, "vgid teacher generate"),
        (["teacher", "sweep", "fictitious", "--out", "X", "--strengths", "high"], 2, "0.5,1"),
        (["cache", "verify", "X"], 1, "vgid teacher generate"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(arguments, code, words, tmp_path):
    here = [str(tmp_path / a) if a in ("X", "Y") else a for a in arguments]
    done = vgid(*here)
    assert done.returncode == code, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    if "frobnicate" not in arguments:
        assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == done.stderr.splitlines()[
            -1:
        ]
    assert not (tmp_path / "X").exists() and not (tmp_path / "Y").exists()


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
@pytest.mark.parametrize("command", ["demo", "data fictitious", "data train-base WORLD"])
def test_a_seed_that_no_generator_takes_is_refused_at_once(command, seed, tmp_path):
    done = CliRunner().invoke(app, [*command.split(), "--out", str(tmp_path / "X"), "--seed", str(seed)])
    assert done.exit_code == 2 and "Invalid value for '--seed'" in done.output
    assert not (tmp_path / "X").exists()


def test_the_largest_seed_of_the_command_line_is_the_largest_of_a_recipe():
    assert TypeAdapter(Seed).validate_python(MAX_SEED) == MAX_SEED
    with pytest.raises(ValueError, match="less than"):
        TypeAdapter(Seed).validate_python(MAX_SEED + 1)


def test_status_says_what_a_cache_holds_and_what_its_plan_lacks(cache):
    found = json.loads(vgid("cache", "status", cache, "--json").stdout)
    assert found["rows"] == 40 == sum(count["rows"] for count in found["counts"])
    assert found["missing_rows"] == found["plan"]["rows"] - 40
    assert {count["view"] for count in found["counts"]} == {"noise+icu", "icu", "base"}
    shown = vgid("cache", "status", cache)
    assert shown.returncode == 0 and shown.stderr == ""
    for word in ("noise+icu", "bytes a token", "are missing", "teacher weights_fingerprint: ", "engines: transformers"):
        assert word in shown.stdout
    assert "None" not in shown.stdout


def test_status_warns_of_a_cache_that_has_expired_or_lacks_a_file(cache, tmp_path):
    shutil.copytree(cache, tmp_path / "old")
    change_manifest(tmp_path / "old", lambda body: body.update(expires="2020-01-31T12:00:00+00:00"))
    path = parts_of(cache)[0]["path"]
    (tmp_path / "old" / path).unlink()
    for form in ([], ["--json"]):
        done = vgid("cache", "status", tmp_path / "old", *form)
        assert done.returncode == 0
        assert "expired at 2020-01-31" in done.stderr and "vgid cache erase" in done.stderr
        assert (
            "1 files that the manifest names are missing" in done.stderr and parts_of(cache)[0]["path"] in done.stderr
        )


def test_verify_finds_a_real_cache_sound_and_a_broken_one_not(cache, tmp_path):
    sound = vgid("cache", "verify", cache)
    assert sound.returncode == 0 and "sound in 3 parts, 40 rows" in sound.stdout, sound.stdout
    shutil.copytree(cache, tmp_path / "broken")
    path = change_rows(tmp_path / "broken", lambda rows: [row.update(draw=-1) for row in rows], part=2)
    rows = parts_of(tmp_path / "broken")[2]["rows"]
    done = vgid("cache", "verify", tmp_path / "broken", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1 and report["counts"] == {"value": rows}
    assert {(finding["file"], finding["message"]) for finding in report["findings"]} == {(path, "draw is -1, below 0")}
    shown = vgid("cache", "verify", tmp_path / "broken")
    assert shown.returncode == 1 and f"error: {path}, row 0 (" in shown.stdout and "Traceback" not in shown.stderr
    assert shown.stdout.splitlines()[-1].endswith(f"{rows} errors in 3 parts, 40 rows, {report['tokens']} tokens")


def test_verify_of_a_cache_whose_newest_manifest_is_damaged_is_one_line_that_names_it(cache, tmp_path):
    shutil.copytree(cache, tmp_path / "broken")
    manifest_path(tmp_path / "broken").write_text("{}")
    for command in ("status", "verify"):
        done = vgid("cache", command, tmp_path / "broken")
        assert done.returncode == 1 and manifest_path(cache).name in done.stderr and "Traceback" not in done.stderr


def test_bad_sql_is_one_line(cache):
    done = vgid("sql", cache, "SELECT nothing FROM targets")
    assert done.returncode == 2 and "nothing" in done.stderr and "Traceback" not in done.stderr


def test_bad_data_exits_65_and_names_file_and_row(tmp_path):
    (tmp_path / "q.jsonl").write_text(
        '{"question": "Q?", "answer": "A.", "subject": "s", "split": "forget", "image": "missing.png"}\n'
    )
    recipe = Path("vgid/pipeline/recipes/fictitious.yaml").read_text()
    (tmp_path / "r.yaml").write_text(recipe.replace("world: shipped", "sources: [{path: q.jsonl}]"))
    for command in (["data", "check", tmp_path / "r.yaml"], ["teacher", "generate", tmp_path / "r.yaml", "--out", "X"]):
        done = vgid(*command)
        assert done.returncode == 65, done.stderr
        assert "missing.png" in done.stdout + done.stderr and "q.jsonl" in done.stdout + done.stderr


def test_another_teacher_in_the_same_cache_is_refused_and_nothing_is_lost(cache, tmp_path):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in cache.rglob("*"))
    done = vgid(
        *("teacher", "generate", "fictitious", "--out", cache, "--engine", "transformers", "--limit", "3"),
        *("--set", "model=fictitious:retrained"),
    )
    assert done.returncode == 1 and "weights_fingerprint" in done.stderr
    assert sorted((path.name, path.stat().st_mtime_ns) for path in cache.rglob("*")) == before


def test_a_cache_of_another_base_is_refused_by_distill(cache, tmp_path):
    done = vgid(
        *("distill", "fictitious", "--cache", cache, "--out", tmp_path / "student"),
        *("--set", "model=fictitious:retrained"),
    )
    assert done.returncode == 1 and "weights_fingerprint" in done.stderr and not (tmp_path / "student").exists()


def test_a_cache_that_lacks_rows_of_the_plan_is_refused_and_says_how_many(cache, tmp_path):
    done = vgid("distill", "fictitious", "--cache", cache, "--out", tmp_path / "student")
    assert done.returncode == 1 and "40 of the" in done.stderr and "--allow-partial" in done.stderr


def test_rows_of_other_settings_in_the_same_cache_do_not_train(cache, tmp_path):
    """Two recipes share a cache; each trains on its own rows alone."""
    shared = tmp_path / "shared"
    shutil.copytree(cache, shared, ignore=shutil.ignore_patterns("scratch"))
    other = ("--set", "teacher.icu=privacy-v1", "--limit", "40", "--engine", "transformers")
    assert vgid("teacher", "generate", "fictitious", "--out", shared, *other).returncode == 0
    rows = json.loads(vgid("sql", shared, "SELECT count(*) AS n FROM targets", "--format", "json").stdout)
    assert rows[0]["n"] > 40
    done = vgid(
        *("distill", "fictitious", "--cache", shared, "--out", tmp_path / "student", "--allow-partial", "--json"),
        *("--set", "distill.max_steps=1", "--set", "distill.forget_batch=2", "--set", "distill.retain_batch=2"),
        *("--scratch", tmp_path / "fast"),
    )
    assert done.returncode == 0, done.stderr
    assert [path.parents[1] for path in scratch_files(shared)] == [tmp_path / "fast"]
    assert f"using 40 of the cache's {rows[0]['n']} rows" in done.stderr
    trained = json.loads(done.stdout)["num_rows"]
    assert trained["forget"] + trained["retain"] == 40


def test_special_tokens_in_the_data_are_found_before_a_model_is_loaded(tmp_path):
    rows = [
        {"question": "Where? <|image_pad|>", "answer": "Oslo.", "subject": "a", "split": "forget", "facts": ["Oslo"]},
        {"question": "Where?", "answer": "Rome.", "subject": "b", "split": "retain", "facts": ["Rome"]},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = yaml.safe_load(Path("vgid/pipeline/recipes/fictitious.yaml").read_text())
    recipe["data"] = {"sources": [{"path": "q.jsonl"}]}
    del recipe["teacher"]["plan"]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = vgid("teacher", "generate", tmp_path / "r.yaml", "--out", tmp_path / "cache", "--dry-run")
    assert done.returncode == 65 and "<|image_pad|>" in done.stderr and "q/" in done.stderr


def test_ctrl_c_is_one_line_and_not_a_traceback(tmp_path):
    arguments = ["data", "train-base", str(shipped_world()), "--out", str(tmp_path / "base")]
    process = subprocess.Popen(
        [sys.executable, "-m", "vgid", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
        # A shell's background jobs ignore Ctrl-C and hand that down: to the test run, and from it to this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert "steps" in process.stderr.readline()  # it is at work
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "error: interrupted" in errors and "Traceback" not in errors
    assert not (tmp_path / "base").exists()
