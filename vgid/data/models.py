"""Where a model's files are: a directory, one of the shipped fictitious models, or a Hugging Face id.

Everything after this file works on a local directory, so that weights can be fingerprinted before they are trusted.
"""

from __future__ import annotations

from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path

from vgid.errors import ConfigError

ADAPTER_FILE = "adapter_config.json"
SHIPPED = ("fictitious:base", "fictitious:retrained")
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def resolve_model(model: str, *, revision: str | None = None) -> Path:
    """Return the directory of a model, downloading a Hugging Face id if it is not in the local hub cache.

    Raises:
        ConfigError: no such directory or id, or the files hold no safetensors.
    """
    if model in SHIPPED:
        from vgid.data.fictitious import shipped_base, shipped_retrained

        return shipped_base() if model == "fictitious:base" else shipped_retrained()
    directory = Path(model).expanduser()
    if not directory.is_dir():
        directory = _download(model, revision)
    if (directory / ADAPTER_FILE).is_file():
        raise ConfigError(
            f"model {str(directory)!r} is an adapter without its base; make a model of the two with "
            f"`vgid merge {directory} --out DIR`"
        )
    if not (directory / "config.json").is_file():
        raise ConfigError(f"model {str(directory)!r}: no config.json inside; is it a Hugging Face model directory?")
    if not any(directory.glob("*.safetensors")):
        raise ConfigError(f"model {str(directory)!r}: no *.safetensors inside; vgid loads no pickled weights")
    return directory


def hub_commit(directory: Path) -> str | None:
    """The commit that a directory of the local hub cache holds; None for any other directory."""
    return directory.name if directory.parent.name == "snapshots" else None


def weights_fingerprint(directory: Path) -> str:
    """Hash over the sorted hashes of the model's safetensors files: the same weights give the same value anywhere."""
    hashes = []
    for path in directory.glob("*.safetensors"):
        state = path.stat()
        hashes.append(_file_sha256(path.resolve(), state.st_size, state.st_mtime_ns))
    return sha256("\n".join(sorted(hashes)).encode()).hexdigest()


@cache
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Many gigabytes, and asked for by every step; size and time stand for a file that nobody has touched."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def context_length(directory: Path | str) -> int | None:
    """Most tokens of prompt and response together that a model was made for; None where its configuration is silent."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(directory)).get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) else None


def _download(model: str, revision: str | None) -> Path:
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ConfigError(f"model {model!r}: no such directory, and not a Hugging Face id (owner/name) either")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model {model!r}: no such directory, and the hub gave none ({reason})") from error
