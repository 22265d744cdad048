"""What can be found wrong with a teacher pass before a model is loaded: minutes here, or hours into a job.

Everything is measured with the model's own tokenizer, chat template and processor; nothing is guessed from its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image as PIL

from vgid.data.chat import chat_prompt, encode_prompt, image_token_id, tokenize_prompt
from vgid.data.images import image_size
from vgid.errors import ConfigError, TeacherError
from vgid.stage1_teacher.generate import answer_token_ids, prompt_text
from vgid.stage1_teacher.options import EngineOptions
from vgid.stage1_teacher.plan import PlannedTarget
from vgid.stage1_teacher.settings import TeacherSettings

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def check_model(directory: Path, processor: Any, *, num_topk: int, vocab_size: int) -> None:
    """Refuse a model that cannot be the teacher.

    Args:
        directory: Where its files are.
        processor: Its processor.
        num_topk: Candidates asked for per position.
        vocab_size: Width of its logits.

    Raises:
        ConfigError: it writes no text about images, its chat template places no image, or it has fewer logits than
            `num_topk`.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(directory))
    if type(config) not in transformers.AutoModelForImageTextToText._model_mapping:  # pyright: ignore[reportPrivateUsage]
        raise ConfigError(
            f"model {str(directory)!r} is a {config.model_type}, which writes no text about images; vgid needs a "
            "multimodal language model, such as LLaVA or Qwen2-VL"
        )
    if processor.chat_template is None:
        raise ConfigError(f"model {str(directory)!r} has no chat template; add chat_template.jinja to its directory")
    placed = tokenize_prompt(processor, chat_prompt(processor, "?", image=True)).count(image_token_id(processor))
    if placed != 1:
        raise ConfigError(
            f"model {str(directory)!r}: its chat template places {placed} image tokens for one image; vgid needs a "
            "template that takes content parts of type image"
        )
    if num_topk > vocab_size:
        raise ConfigError(f"teacher.num_topk {num_topk} is above the model's vocabulary of {vocab_size:,} tokens")


def check_lengths(plan: Iterable[PlannedTarget], settings: TeacherSettings, processor: Any, *, limit: int) -> None:
    """Refuse a plan with a prompt that leaves no room for its response.

    Args:
        plan: What will be asked.
        settings: Stage one's part of the recipe.
        processor: The teacher's.
        limit: Longest prompt plus response, in tokens.

    Raises:
        ConfigError: naming the longest one and how many there are.
    """
    image_tokens: dict[tuple[int, int], int] = {}
    sizes: dict[str, tuple[int, int]] = {}
    too_long: list[tuple[int, PlannedTarget]] = []
    for planned in plan:
        example = planned.example
        tokens = len(tokenize_prompt(processor, chat_prompt(processor, prompt_text(planned), image=False)))
        if example.image is not None and planned.image_sha256 is not None:
            if planned.image_sha256 not in sizes:
                sizes[planned.image_sha256] = image_size(example.image, where=f"example {example.example_id}")
            size = sizes[planned.image_sha256]
            if size not in image_tokens:
                image_tokens[size] = _image_tokens(processor, size)
            tokens += image_tokens[size]
        if planned.response_kind == "reference":
            tokens += len(answer_token_ids(processor.tokenizer, example.answer)) + 1
        else:
            tokens += settings.max_new_tokens
        if tokens > limit:
            too_long.append((tokens, planned))
    if too_long:
        tokens, planned = max(too_long, key=lambda pair: pair[0])
        size = sizes.get(planned.image_sha256 or "")
        picture = "" if size is None else f", {image_tokens[size]:,} of them its picture of {size[0]}x{size[1]} pixels"
        raise ConfigError(
            f"{len(too_long):,} rows are longer than the {limit:,} tokens of the engine, the longest is example "
            f"{planned.example.example_id} with {tokens:,}, response included{picture}; scale pictures down, shorten "
            "the text or raise --max-model-len"
        )


def check_memory(directory: Path, *, dtype: str, options: EngineOptions) -> None:
    """Refuse a model whose weights alone do not fit.

    Raises:
        TeacherError: with what is needed and what is free.
    """
    needed = weight_bytes(directory, dtype=dtype)
    free, device = free_memory(options)
    if needed > free:
        raise TeacherError(
            f"model {str(directory)!r} takes {needed / 2**30:.1f} GiB in {dtype} and {device} has {free / 2**30:.1f} "
            "GiB free; stop what else runs there, take a larger one, or share the model over several GPUs with "
            "--tensor-parallel"
        )


def weight_bytes(directory: Path, *, dtype: str) -> int:
    """Bytes of a model's weights once loaded as `dtype`, from the headers of its safetensors files."""
    total = 0
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                count = 1
                for side in tensor["shape"]:
                    count *= side
                total += count * _BYTES[dtype]
    return total


def free_memory(options: EngineOptions) -> tuple[int, str]:
    """Bytes that the engine may still take, and where: on the GPUs it will use, or in this machine without one."""
    import torch

    if not torch.cuda.is_available():
        return available_memory(), "this machine"
    count = min(options.tensor_parallel, torch.cuda.device_count())
    found = [torch.cuda.mem_get_info(device) for device in range(count)]
    free = sum(min(left, int(total * options.gpu_memory)) for left, total in found)
    return free, f"{count} x {torch.cuda.get_device_name(0)}"


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that a program may take without swapping: what is free, and what Linux would drop from its caches."""
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _image_tokens(processor: Any, size: tuple[int, int]) -> int:
    """Tokens that a picture of this size adds to a prompt, by making one."""
    prompt = chat_prompt(processor, "?", image=True)
    without = tokenize_prompt(processor, chat_prompt(processor, "?", image=False))
    return encode_prompt(processor, prompt, PIL.new("RGB", size))["input_ids"].shape[1] - len(without)
