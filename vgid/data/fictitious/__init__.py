"""The fictitious benchmark: people who do not exist, and a tiny model that knows them.

Shipped with the package: the default world, its base model, and the *retrained* model (the same training without the
forget people). `vgid_base.json` in a model's directory says which command, seed and world made it.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["shipped_base", "shipped_retrained", "shipped_world"]

_ASSETS = Path(__file__).parent / "assets"


def shipped_world() -> Path:
    """Directory of the default world."""
    return _ASSETS / "world"


def shipped_base() -> Path:
    """Model directory of the base that knows everybody in the default world."""
    return _ASSETS / "base"


def shipped_retrained() -> Path:
    """Model directory of the same training without the forget people."""
    return _ASSETS / "retrained"
