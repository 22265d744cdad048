"""What `vgid cache status`, `verify` and `erase` do and say, between the command line and `vgid.cache`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from vgid.cache.erase import Erasure, Found, Selection, erase, find
from vgid.cache.reader import open_cache
from vgid.cache.status import Files, Status, cache_status
from vgid.cache.verify import Finding, Report, verify_cache
from vgid.errors import ConfigError
from vgid.pipeline.console import confirm, human_bytes, progress, say, table


def status(cache: str) -> Status:
    """Count what a cache holds, and warn of what somebody should see to.

    Raises:
        CacheError: no cache there, or its manifest is damaged.
    """
    found = cache_status(open_cache(cache))
    if found.expired:
        say(f"warning: this cache expired at {found.expires}; remove it with `vgid cache erase {cache} --all`")
    if found.missing_files:
        say(
            f"warning: {len(found.missing_files):,} files that the manifest names are missing, first "
            f"{found.missing_files[0]}; restore them from a copy"
        )
    return found


def status_text(status: Status) -> str:
    """The status for people: a table of rows by kind, then a line for each thing to know."""
    counts = [
        (count.split, count.view, count.modality, count.response_kind, count.rows, count.tokens)
        for count in status.counts
    ]
    counts.append(("all", None, None, None, status.rows, status.tokens))
    lines = {
        "cache": f"{status.location}, manifest {status.manifest} of format {status.format_version}",
        "size": _size(status),
        "plan": _plan(status),
        **{f"teacher {name}": value for name, value in sorted(status.teacher.items())},
        "engines": ", ".join(status.engines),
        "settings": ", ".join(f"{name} {value}" for name, value in sorted(status.settings.items())),
        "token table": status.vocabulary and f"{status.vocabulary:,} tokens",
        "expires": status.expires and f"{status.expires}{' (past)' if status.expired else ''}",
        "erased": status.tombstones and f"{status.tombstones:,} tombstones of subjects or examples",
        "not named": _files(status.unnamed, "never read; adopted if `vgid teacher generate` makes the same rows again"),
        "temporary": _files(status.temporary, "never read; removed by `vgid teacher generate` once a day old"),
        "scratch": _files(status.scratch, "decoded copies for training; removed by `vgid cache erase`"),
    }
    names = ("split", "view", "modality", "response_kind", "rows", "tokens")
    told = [(name, value) for name, value in lines.items() if value]
    return "\n".join([table(names, counts), "", *(f"{name}: {value}" for name, value in told)])


def verify(cache: str) -> Report:
    """Check everything in a cache, with a progress display.

    Raises:
        CacheError: no cache there, or its newest manifest is damaged.
    """
    with progress("verify") as report:
        return verify_cache(open_cache(cache), progress=lambda done, total: report(done, total, "parts"))


def report_text(report: Report) -> str:
    """Findings for people, one a line, then what was looked at."""
    verdict = f"{report.num_errors:,} errors" if report.num_errors else "sound"
    seen = f"{report.parts:,} parts, {report.rows:,} rows, {report.tokens:,} tokens"
    last = f"{report.location}, manifest {report.manifest}: {verdict} in {seen}"
    return "\n".join([*map(_line, report.findings), *_unlisted(report), last])


def select(subjects: Sequence[str], examples: Sequence[str], *, everything: bool) -> Selection:
    """What the options of `vgid cache erase` mean together.

    Raises:
        ConfigError: nothing is selected, or everything and something.
    """
    if everything == bool(subjects or examples):
        raise ConfigError("say whom to erase: --subject ID or --example ID, as often as needed, or --all")
    if "" in (*subjects, *examples):
        raise ConfigError("--subject and --example need a name; an empty one was given")
    return Selection(subjects=frozenset(subjects), examples=frozenset(examples), everything=everything)


def find_rows(cache: str, selection: Selection, *, allow_absent: bool) -> Found:
    """Look up what would be erased, and refuse names that may be misspelt.

    Raises:
        ConfigError: a name has no row and no tombstone, and `allow_absent` is not set.
        CacheError: no cache there, or it is damaged.
    """
    opened = open_cache(cache)
    found = find(opened, selection)
    if found.absent and not allow_absent:
        kind, _, name = found.absent[0].partition(" ")
        near = get_close_matches(name, opened.rows([f"{kind}_id"])[0].unique().to_pylist(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(
            f"cache {cache} holds no rows of {kind} {name!r}{hint}; nothing was erased. To keep later ones out, "
            "add --allow-absent"
        )
    return found


def confirm_erasure(cache: str, found: Found, *, yes: bool) -> bool:
    """Ask before what cannot be undone.

    Raises:
        ConfigError: there is nobody to ask.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError("erasing cannot be undone: look with --dry-run, then add --yes")
    return confirm(f"Erase {_rows(found)} from cache {cache}? This cannot be undone.")


def run_erase(cache: str, selection: Selection) -> Erasure:
    """Erase, with a progress display.

    Raises:
        CacheError: see `vgid.cache.erase.erase`.
    """
    with progress("erase") as report:
        return erase(open_cache(cache).store, selection, progress=lambda done, total: report(done, total, "parts"))


def found_text(found: Found) -> str:
    """What would be erased, for people."""
    lines = [f"would erase {_rows(found)}", *(f"{name}: no rows, only a tombstone" for name in found.absent)]
    return "\n".join(lines)


def erasure_text(erasure: Erasure) -> str:
    """What was erased and what is left to do, for people."""
    removed = f"{erasure.files_removed:,} files and {erasure.scratch_removed:,} decoded copies removed"
    return "\n".join(
        [
            f"erased {erasure.rows:,} rows from {erasure.cache}: {erasure.parts_rewritten:,} parts rewritten, "
            f"{erasure.parts_dropped:,} dropped, {removed}",
            f"manifest {erasure.manifest}, with {erasure.tombstones:,} tombstones; log {erasure.audit}",
            f"key {erasure.key}: keep it, nothing can be generated into this cache without it",
            "not reached, see to these yourself:",
            *(f"- {copy}" for copy in erasure.copies),
        ]
    )


def _rows(found: Found) -> str:
    by_split = ", ".join(f"{rows:,} of {split}" for split, rows in sorted(found.rows.items()))
    return f"{sum(found.rows.values()):,} rows ({by_split})" if by_split else "0 rows"


def _line(finding: Finding) -> str:
    place = [finding.file] if finding.file else []
    place += [f"row {finding.row} ({finding.target_id})"] if finding.row is not None else []
    place += [f"token {finding.position}"] if finding.position is not None else []
    return f"{finding.severity}: {', '.join(place)}{': ' if place else ''}{finding.message} [{finding.rule}]"


def _unlisted(report: Report) -> Iterable[str]:
    for rule, count in sorted(report.counts.items()):
        listed = sum(finding.rule == rule for finding in report.findings)
        if count > listed:
            yield f"and {count - listed:,} more [{rule}]"


def _size(status: Status) -> str:
    per_token = "" if status.bytes_per_token is None else f", {status.bytes_per_token:.1f} bytes a token"
    return f"{human_bytes(status.bytes)} in {status.parts:,} parts{per_token}"


def _plan(status: Status) -> str | None:
    planned = status.plan.get("rows")
    if status.missing_rows is None:
        return None
    if status.missing_rows:
        return (
            f"{planned:,} rows; the cache holds {status.rows:,} (rows of other plans included), so at least "
            f"{status.missing_rows:,} are missing{' or erased' if status.tombstones else ''}"
        )
    return f"{planned:,} rows, and the cache holds {status.rows:,} (rows of other plans included)"


def _files(files: Files, fate: str) -> str | None:
    return f"{files.files:,} files, {human_bytes(files.bytes)}: {fate}" if files.files else None
