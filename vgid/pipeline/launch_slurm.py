"""`--launcher slurm`: an array job of plain `vgid teacher generate … --shard i/n`, written as a script or submitted.

The tasks know nothing of each other: what makes them safe is how the cache is committed. The script adds what Slurm
leaves to a job: to hand a signal on, and to requeue a task that stopped before it was done. What it gives up: one task
is one process on one node.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vgid import __version__
from vgid.errors import ConfigError, TeacherError
from vgid.pipeline.launch import LAUNCHER_OPTIONS
from vgid.pipeline.recipe import load_recipe
from vgid.stage1_teacher.plan import NUM_BUCKETS

Directives = Mapping[str, str | None]
"""Options of sbatch by name, without the dashes; None for one that takes no value."""

_MAX_RESTARTS = 50
_OURS = {"array", "chdir", "no-requeue", "open-mode", "requeue", "signal", "wrap"}

_BODY = """
cd -- {folder} || exit 1
unset "${{!VGID_TEACHER_GENERATE_@}}" # all that a task is to do stands in its command
max_restarts={max_restarts} # of one task; when they are used up, submit this script again

child='' stopped=''
trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM

# Not under srun, which answers SIGTERM by killing its tasks on the spot.
{command} --shard "$SLURM_ARRAY_TASK_ID/{shards}" &
child=$!
wait "$child"
code=$?
while [ -n "$stopped" ]; do # a signal ends a wait early; the rows that are finished are being committed
  stopped=''
  wait "$child"
  code=$?
done

case $code in
  75 | 143) ;; # stopped cleanly, or before it had begun
  *) exit "$code" ;;
esac
if [ "${{SLURM_RESTART_COUNT:-0}}" -ge "$max_restarts" ]; then
  echo "error: stopped again after $max_restarts restarts; submit the script again to continue" >&2
  exit "$code"
fi
# Only if it still counts as running: a plain requeue would bring a cancelled task back.
scontrol requeue Incomplete "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
exit "$code"
"""


def launch(parameters: Sequence[Any], values: Mapping[str, Any]) -> str:
    """Write or submit an array job that does what a `vgid teacher generate` was asked for.

    Args:
        parameters: Of the command, as Typer has them.
        values: What they came to, by name.

    Returns:
        What to print: the job's id, the path of the script, or its text.

    Raises:
        ConfigError: the recipe or an option is wrong, or there is no sbatch.
        TeacherError: sbatch refuses.
    """
    load_recipe(values["recipe"], overrides=values["overrides"] or [])  # an error here is better than one in every task
    shards, folder = values["shards"], Path.cwd()
    directives = directives_for(values["slurm"] or [], shards=shards, folder=folder, num_gpus=values["tensor_parallel"])
    own = {"shard", "launcher", *(name for names in LAUNCHER_OPTIONS.values() for name in names)}
    text = array_script(
        task_command(parameters, values, leave_out=own), shards=shards, folder=folder, directives=directives
    )
    script = values["script"] and Path(values["script"])
    if script:
        write_script(text, script)
    if values["submit"]:
        return submit(text)
    return str(script) if script else text


def array_script(command: Sequence[str], *, shards: int, folder: Path, directives: Directives) -> str:
    """The text of an array job.

    Args:
        command: What a task runs, less its `--shard`.
        shards: Tasks.
        folder: Where relative paths of the command start from, and logs go; the same on every node.
        directives: From `directives_for`.
    """
    lines = [
        "#!/bin/bash",
        f"# A teacher pass in {shards} tasks, written by `vgid teacher generate --launcher slurm` ({__version__}).",
        "# Submitting it again is harmless: a task whose rows are all in the cache ends at once.",
        *(_directive(name, value) for name, value in directives.items()),
    ]
    body = _BODY.format(
        folder=shlex.quote(str(folder)), max_restarts=_MAX_RESTARTS, command=shlex.join(command), shards=shards
    )
    return "\n".join(lines) + "\n" + body


def directives_for(options: Sequence[str], *, shards: int, folder: Path, num_gpus: int) -> Directives:
    """The script's `#SBATCH` lines: those that make it safe, then the user's, or a default.

    Args:
        options: KEY=VALUE, or KEY for one without a value; names as in sbatch.
        shards: Tasks.
        folder: Where the job runs.
        num_gpus: GPUs of a task, unless the options name some.

    Raises:
        ConfigError: an option is malformed, or one that the script sets itself, or there are more shards than buckets.
    """
    if not str(folder).isprintable():
        raise ConfigError(f"folder {str(folder)!r}: a job script cannot name it; start from another one")
    if shards > NUM_BUCKETS:
        raise ConfigError(
            f"--shards {shards}: a plan has {NUM_BUCKETS} buckets, so more tasks would find nothing to do"
        )
    asked = dict(_parse(option) for option in options)
    names_gpus = any(name == "gres" or name.startswith("gpus") for name in asked)
    usual = {"job-name": "vgid-teacher", "output": "vgid-teacher-%A_%a.log"}
    usual |= {} if names_gpus else {"gres": f"gpu:{num_gpus}"}
    fixed = {"array": f"0-{shards - 1}", "chdir": str(folder), "open-mode": "append", "requeue": None}
    return {**fixed, "signal": "B:TERM@120", **usual, **asked}


def task_command(parameters: Sequence[Any], values: Mapping[str, Any], *, leave_out: Collection[str]) -> list[str]:
    """A `vgid teacher generate` that does what the one being run was asked for, less some options.

    Args:
        parameters: Of the command, as Typer has them; an option added there is passed on without a word here.
        values: What they came to, by name.
        leave_out: Names.
    """
    command = [sys.executable, "-P", "-m", "vgid", "teacher", "generate"]
    for parameter in parameters:
        value = values.get(parameter.name)
        if parameter.name not in leave_out and value not in (None, [], ()) and value != parameter.default:
            command += _words(parameter, value)
    return command


def write_script(text: str, path: Path) -> None:
    """Write a new file that its owner alone may read, write and run.

    Raises:
        ConfigError: there is one already, or it cannot be made.
    """
    try:
        with open(path, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o700)) as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"--script {path}: exists already; remove it or give another name") from None
    except OSError as error:
        raise ConfigError(f"--script {path}: cannot be written ({error.strerror})") from error


def submit(text: str) -> str:
    """Give a script to sbatch; gives the job's id.

    Raises:
        ConfigError: there is no sbatch here.
        TeacherError: sbatch refuses.
    """
    try:
        done = subprocess.run(["sbatch", "--parsable"], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError(
            "--submit: there is no sbatch on the PATH; run this on a login node of the cluster, or write the script "
            "with --script FILE and submit it there"
        ) from None
    if done.returncode:
        raise TeacherError(f"sbatch refuses the job (exit code {done.returncode}): {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]  # "id;cluster" where there are several


def _parse(option: str) -> tuple[str, str | None]:
    name, has_value, value = option.removeprefix("--").partition("=")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or not value.isprintable():
        raise ConfigError(
            f"--slurm {option!r}: expected an option of sbatch by its long name, for example partition=gpu"
        )
    if name in _OURS:
        raise ConfigError(f"--slurm {option!r}: the script sets {name} itself; write it with --script FILE and edit it")
    return name, value if has_value else None


def _directive(name: str, value: str | None) -> str:
    return f"#SBATCH --{name}" + ("" if value is None else f"={shlex.quote(value)}")


def _words(parameter: Any, value: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return [str(value)]
    if isinstance(value, bool):
        return [(parameter.opts if value else parameter.secondary_opts)[0]]
    values = value if isinstance(value, list | tuple) else [value]
    return [word for each in values for word in (parameter.opts[0], str(each))]
