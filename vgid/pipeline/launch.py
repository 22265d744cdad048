"""`--launcher`: which options of `vgid teacher generate` go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vgid.errors import ConfigError

LAUNCHER_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "here": (),
    "slurm": ("shards", "slurm", "script", "submit"),
    "ray": ("workers", "ray_address"),
}
"""By launcher, the names of the options that it alone takes."""


def check_launcher(values: Mapping[str, Any]) -> None:
    """Refuse options that do not go together, before anything is read.

    Args:
        values: Of `vgid teacher generate`, by name.

    Raises:
        ConfigError: naming the option.
    """
    launcher = values["launcher"]
    if launcher not in LAUNCHER_OPTIONS:
        raise ConfigError(f"--launcher {launcher!r} is unknown; choose here, slurm or ray")
    for owner, names in LAUNCHER_OPTIONS.items():
        for name in names:
            if values[name] not in (None, False, [], ()) and owner != launcher:
                raise ConfigError(f"--{name.replace('_', '-')} needs --launcher {owner}")
    if launcher != "here" and values["shard"] != "0/1":
        raise ConfigError(f"--shard {values['shard']}: --launcher {launcher} cuts the plan itself; leave --shard out")
    if launcher == "slurm" and values["shards"] is None:
        raise ConfigError("--launcher slurm: say how many tasks the array job has, for example --shards 8")
    if launcher != "here" and values["limit"] is not None:
        raise ConfigError(f"--limit {values['limit']}: a pilot is one small run; leave --launcher {launcher} out")
