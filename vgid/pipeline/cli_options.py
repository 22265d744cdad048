"""What the commands share: arguments that look alike everywhere, how their text is read, how results are printed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from vgid.errors import ConfigError
from vgid.pipeline.console import human_bytes, table

RecipeArg = Annotated[
    str, typer.Argument(help="A recipe: path of a YAML file, or the name of a shipped one.", metavar="RECIPE")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override one setting, e.g. --set distill.alpha=2.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
CacheArg = Annotated[str, typer.Argument(help="Path or URL of a cache.", metavar="CACHE")]
EngineOption = Annotated[str, typer.Option("--engine", help="vllm, or transformers (slow, the reference).")]
LoaderWorkersOption = Annotated[
    int,
    typer.Option(
        "--loader-workers",
        min=0,
        help="Processes that make the next batches while a step is computed; 0 makes them in between.",
    ),
]
MAX_SEED = 2**32 - 1
"""That of `vgid.data.strict.Seed`, without what a recipe has to import."""


def parse_engine(name: str) -> Any:
    """An engine by name, or an error that names the engines."""
    if name not in ("vllm", "transformers"):
        raise ConfigError(f"--engine {name!r} is unknown; choose vllm or transformers")
    return name


def parse_dtype(name: str | None) -> str | None:
    """A compute type by name, or an error that names the types."""
    if name not in (None, "float32", "bfloat16", "float16"):
        raise ConfigError(f"--dtype {name!r} is unknown; choose float32, bfloat16 or float16")
    return name


def parse_profile(name: str) -> Any:
    """An encoding profile by name, or an error that names them."""
    if name not in ("default", "compat"):
        raise ConfigError(f"--profile {name!r} is unknown; choose default or compat")
    return name


def parse_expiry(text: str | None) -> str | None:
    """`90d` or `12w` from now, as ISO 8601 in UTC."""
    if text is None:
        return None
    days = {"d": 1, "w": 7}.get(text[-1:], 0)
    if not (text[:-1].isdecimal() and days and int(text[:-1])):
        raise ConfigError(f"--expire-after {text!r}: expected a number of days or weeks, for example 90d or 12w")
    expires = datetime.now(UTC) + timedelta(days=int(text[:-1]) * days)
    return expires.isoformat(timespec="seconds")


def parse_shard(text: str) -> tuple[int, int]:
    """`i/n` as two numbers."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"--shard {text!r}: expected i/n with 0 <= i < n, for example 3/32")
    return int(index), int(count)


def parse_names(text: str | None) -> list[str]:
    """`a,b` as a list; nothing for None."""
    return [] if text is None else [name.strip() for name in text.split(",") if name.strip()]


def parse_numbers(text: str, *, option: str) -> list[float]:
    """`0.5,1` as numbers."""
    try:
        numbers = [float(name) for name in parse_names(text)]
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}: expected numbers with commas between them, for example 0.5,1") from error
    if not numbers:
        raise ConfigError(f"{option} {text!r}: expected at least one number, for example 0.5,1")
    return numbers


def print_rows(rows: list[dict[str, Any]], *, as_json: bool, columns: list[str]) -> None:
    """Records of one kind: as a table for people, or as JSON."""
    if as_json:
        print(json.dumps(rows))
        return
    shown = [[human_bytes(row[name]) if name.endswith("_bytes") else row[name] for name in columns] for row in rows]
    print(table(columns, shown))


def print_record(record: dict[str, Any], *, as_json: bool) -> None:
    """One record: a line for each value that people read, or JSON."""
    if as_json:
        print(json.dumps(record, default=str))
        return
    flat = [(key, value) for key, value in record.items() if not isinstance(value, dict)]
    flat += [
        (f"{key}.{name}", value)
        for key, group in record.items()
        if isinstance(group, dict)
        for name, value in group.items()
    ]
    print(
        "\n".join(f"{key}: {value}" for key, value in flat if value is not None and not isinstance(value, list | tuple))
    )
