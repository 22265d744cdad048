"""From lessons to a packed batch, and the forward pass over it: what makes the training fast on one core.

Samples of different lengths stand one after another in rows of one length, kept apart by a block-diagonal causal mask,
so that hardly any padding is computed; photos go through the vision tower as one batch; the head is applied to response
positions alone. The result equals the model's own forward (a test says to what tolerance). What this gives up: any
image size but 56x56.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vgid.data.fictitious.lessons import Lesson
from vgid.data.fictitious.portraits import SIZE
from vgid.data.fictitious.tiny_model import MERGE, PATCH

GRID = SIZE // PATCH
TOKENS_PER_IMAGE = (GRID // MERGE) ** 2
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)

# Dimension key: R rows, L positions in a row, N images, P patches of an image, S supervised positions.


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One batch, ready for `packed_logits`."""

    ids_RL: Tensor
    positions_3RL: Tensor
    """Time, height and width of Qwen2-VL's rotary positions; each sample starts anew at 0."""
    mask_R1LL: Tensor
    """True where a position may look."""
    patches_NP: Tensor
    """float32 [N, P, 1176]."""
    image_at: Tensor
    """Flat indices into R x L of the image tokens, in the order of the images."""
    predict_at: Tensor
    """Flat indices into R x L of the positions whose next token is supervised."""
    labels_S: Tensor
    weights_S: Tensor
    """Sum to 1; a sample weighs as the root of its response length, so that sentences do not drown one-word answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One sample as ids: prompt (image placeholders expanded) and response (end of turn included)."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    pixels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


class Encoder:
    """Turns lessons into ids through the chat template, remembering the texts it has seen."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.memory = tokenizer, dict[tuple[str, bool | None], tuple[int, ...]]()
        self.image_token: int = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def encode(self, lesson: Lesson) -> Encoded:
        """Encode one lesson."""
        prompt = self._ids(lesson.question, image=lesson.pixels is not None)
        return Encoded(prompt=prompt, response=self._ids(lesson.answer, image=None), pixels=lesson.pixels)

    def _ids(self, text: str, *, image: bool | None) -> tuple[int, ...]:
        key = (text, image)
        if key not in self.memory:
            self.memory[key] = tuple(self.tokenizer.encode(self._wrapped(text, image), add_special_tokens=False))
        return self.memory[key]

    def _wrapped(self, text: str, image: bool | None) -> str:
        if image is None:
            return f"{text}<|im_end|>"
        photo = f"<|vision_start|>{'<|image_pad|>' * TOKENS_PER_IMAGE}<|vision_end|>" if image else ""
        return f"<|im_start|>user\n{photo}{text}<|im_end|>\n<|im_start|>assistant\n"


def pack(samples: Sequence[Encoded], *, row_length: int, image_token: int, pad_token: int) -> Packed:
    """Lay samples into rows, longest first, each into the first row with room."""
    rows: list[list[Encoded]] = []
    room: list[int] = []
    for sample in sorted(samples, key=len, reverse=True):
        size = len(sample)
        index = next((i for i, left in enumerate(room) if left >= size), None)
        if index is None:
            rows.append([])
            room.append(max(row_length, size))
            index = len(rows) - 1
        rows[index].append(sample)
        room[index] -= size
    return _lay_out(rows, image_token=image_token, pad_token=pad_token)


def _lay_out(rows: Sequence[Sequence[Encoded]], *, image_token: int, pad_token: int) -> Packed:
    length = max(sum(len(sample) for sample in row) for row in rows)
    ids = np.full((len(rows), length), pad_token)
    owner = np.zeros((len(rows), length), dtype=np.int64)
    positions = np.zeros((3, len(rows), length), dtype=np.int64)
    predict, labels, weights, photos, image_at = [], [], [], [], []
    for r, row in enumerate(rows):
        start = 0
        for number, sample in enumerate(row, start=1):
            end = start + len(sample)
            ids[r, start:end] = sample.prompt + sample.response
            owner[r, start:end] = number
            positions[:, r, start:end] = rotary_positions(ids[r, start:end], image_token=image_token)
            first = r * length + start + len(sample.prompt) - 1
            predict.append(np.arange(first, first + len(sample.response)))
            labels.extend(sample.response)
            weights.extend([len(sample.response) ** -0.5] * len(sample.response))
            if sample.pixels is not None:
                photos.append(sample.pixels)
                image_at.append(r * length + start + np.flatnonzero(np.array(sample.prompt) == image_token))
            start = end
    causal = np.tril(np.ones((length, length), dtype=bool))
    mask = (owner[:, :, None] == owner[:, None, :]) & causal
    return Packed(
        ids_RL=torch.from_numpy(ids),
        positions_3RL=torch.from_numpy(positions),
        mask_R1LL=torch.from_numpy(mask[:, None]),
        patches_NP=patchify(np.stack(photos)) if photos else torch.zeros(0, GRID * GRID, 3 * 2 * PATCH * PATCH),
        image_at=torch.from_numpy(np.concatenate(image_at) if image_at else np.zeros(0, dtype=np.int64)),
        predict_at=torch.from_numpy(np.concatenate(predict)),
        labels_S=torch.tensor(labels),
        weights_S=torch.tensor(weights) / sum(weights),
    )


def rotary_positions(ids: np.ndarray, *, image_token: int) -> np.ndarray:
    """Qwen2-VL's positions of one sample with at most one image, int [3, len(ids)]."""
    positions = np.tile(np.arange(len(ids)), (3, 1))
    at = np.flatnonzero(ids == image_token)
    if len(at):
        side, start = GRID // MERGE, int(at[0])
        positions[0, at] = start
        positions[1, at] = start + np.repeat(np.arange(side), side)
        positions[2, at] = start + np.tile(np.arange(side), side)
        positions[:, at[-1] + 1 :] -= TOKENS_PER_IMAGE - side
    return positions


def patchify(pixels: np.ndarray) -> Tensor:
    """Do what Qwen2-VL's image processor does, to 3e-7: uint8 [N, 56, 56, 3] to float32 [N, 16, 1176], merge order."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    images = (images - _MEAN) / _STD
    count, side = len(images), GRID // MERGE
    grid = images.view(count, 3, side, MERGE, PATCH, side, MERGE, PATCH)
    patches = grid.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(count, GRID * GRID, 3, 1, PATCH * PATCH)
    return patches.expand(-1, -1, -1, 2, -1).reshape(count, GRID * GRID, -1)


def packed_logits(model: Any, batch: Packed) -> Tensor:
    """Logits of the supervised positions, float32 [S, vocabulary]."""
    decoder = model.model.language_model
    embeds = decoder.embed_tokens(batch.ids_RL)
    rows, length, width = embeds.shape
    if len(batch.patches_NP):
        seen = encode_images(model.model.visual, batch.patches_NP).view(-1, width)
        embeds = embeds.view(-1, width).index_copy(0, batch.image_at, seen).view(rows, length, width)
    hidden = decoder(
        inputs_embeds=embeds, attention_mask=batch.mask_R1LL, position_ids=batch.positions_3RL, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden.view(-1, width)[batch.predict_at])


def encode_images(visual: Any, patches_NP: Tensor) -> Tensor:
    """Run the vision tower on all images at once (the model's own forward loops over them on CPU)."""
    count, size, _ = patches_NP.shape
    hidden = functional.linear(patches_NP, visual.patch_embed.proj.weight.view(visual.patch_embed.embed_dim, -1))
    cos, sin = _vision_rotation(visual, hidden)
    for block in visual.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden)).view(count, size, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key = (_rotate(part, cos, sin) for part in (qkv[0], qkv[1]))
        mixed = functional.scaled_dot_product_attention(query, key, qkv[2]).transpose(1, 2).reshape(count, size, -1)
        hidden = hidden + attention.proj(mixed)
        hidden = hidden + block.mlp(block.norm2(hidden))
    return visual.merger(hidden.view(count * size, -1))


def _vision_rotation(visual: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    side = GRID // MERGE
    cells = torch.arange(GRID * GRID).view(GRID, GRID).view(side, MERGE, side, MERGE).permute(0, 2, 1, 3).reshape(-1)
    return visual.rotary_pos_emb(hidden, torch.stack((cells // GRID, cells % GRID), dim=-1))


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-right, left), dim=-1) * sin
