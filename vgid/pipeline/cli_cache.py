"""`vgid cache …`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from vgid.pipeline.cli_options import CacheArg, JsonOption

app = typer.Typer(help="Look after a cache of targets.", no_args_is_help=True)


@app.command("status")
def cache_status(cache: CacheArg, as_json: JsonOption = False) -> None:
    """Say what a cache holds and how far it has come; opens no part, so it answers at once.

    Example: vgid cache status runs/cache
    """
    from vgid.pipeline import cache_commands

    found = cache_commands.status(cache)
    print(json.dumps(asdict(found)) if as_json else cache_commands.status_text(found))


@app.command("verify")
def cache_verify(cache: CacheArg, as_json: JsonOption = False) -> None:
    """Check every file, hash and row of a cache; exit code 1 if anything is wrong.

    Example: vgid cache verify runs/cache
    """
    from vgid.pipeline import cache_commands

    report = cache_commands.verify(cache)
    print(json.dumps(asdict(report)) if as_json else cache_commands.report_text(report))
    if report.num_errors:
        raise typer.Exit(1)


@app.command("erase")
def cache_erase(
    cache: CacheArg,
    subject: Annotated[
        list[str] | None, typer.Option("--subject", help="Erase all rows of this subject_id; repeatable.")
    ] = None,
    example: Annotated[
        list[str] | None, typer.Option("--example", help="Erase all rows of this example_id; repeatable.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Erase every row; the cache can take none again.")] = False,
    allow_absent: Annotated[
        bool, typer.Option("--allow-absent", help="Also for names without rows, to keep later ones out.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be erased; erase nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Erase subjects, examples or everything from a cache and every copy of it that vgid made, for good.

    Writers that run again leave them out; a keyed log in the cache says when it was done, but not who. What cannot be
    reached (backups, students, other people's copies) is listed. Run it again when writers that ran meanwhile are done.

    Example: vgid cache erase runs/cache --subject forget-3 --dry-run
    """
    from vgid.pipeline import cache_commands

    selection = cache_commands.select(subject or [], example or [], everything=everything)
    found = cache_commands.find_rows(cache, selection, allow_absent=allow_absent)
    if dry_run:
        print(json.dumps({"cache": cache, **asdict(found)}) if as_json else cache_commands.found_text(found))
        return
    if not cache_commands.confirm_erasure(cache, found, yes=yes):
        raise typer.Exit(1)
    done = cache_commands.run_erase(cache, selection)
    print(json.dumps(asdict(done)) if as_json else cache_commands.erasure_text(done))
