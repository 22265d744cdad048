"""The reference engine: plain transformers, full logits, batches with left padding.

Slower than vLLM by an order of magnitude, but it sees all logits (so entropy and logsumexp are exact) and runs wherever
torch runs. Rows agree with single unpadded rows to about 3e-7 in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

import torch
import transformers

from vgid.data.chat import chat_prompt, encode_prompt, image_token_ids, load_processor
from vgid.errors import TeacherError
from vgid.stage1_teacher.engines.protocol import TeacherRequest, TeacherResponse
from vgid.stage1_teacher.identity import engine_identity
from vgid.stage1_teacher.topk import stats_of_logits


class TransformersTeacher:
    """A `Teacher` on `AutoModelForImageTextToText`."""

    def __init__(
        self,
        model: Path | str,
        *,
        num_topk: int,
        dtype: str = "float32",
        head_dtype: str | None = None,
        batch_size: int = 32,
    ) -> None:
        processor = load_processor(model)
        try:
            loaded = transformers.AutoModelForImageTextToText.from_pretrained(
                str(model), dtype=getattr(torch, dtype), use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise TeacherError(f"model {str(model)!r} does not load: {str(error).splitlines()[0]}") from error
        loaded.eval().to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        if dtype == "float32":  # cuDNN would round the patch embedding's inputs to 10 bits of mantissa
            torch.backends.cudnn.allow_tf32 = False
        if head_dtype is not None:
            compute_head_in(loaded, getattr(torch, head_dtype))
        engine_id = engine_identity("transformers", dtype=dtype, head_dtype=head_dtype)
        self._take(loaded, processor, engine_id=engine_id, num_topk=num_topk, batch_size=batch_size)

    @classmethod
    def of_loaded(cls, model: Any, processor: Any, *, num_topk: int, batch_size: int = 32) -> Self:
        """Ask a model that is in memory, as it is; the caller has put it into evaluation mode."""
        teacher = cls.__new__(cls)
        teacher._take(model, processor, engine_id="transformers, loaded", num_topk=num_topk, batch_size=batch_size)
        return teacher

    def _take(self, model: Any, processor: Any, *, engine_id: str, num_topk: int, batch_size: int) -> None:
        self._model: Any = model
        self.processor, self.engine_id = processor, engine_id
        self._num_topk, self._batch_size = num_topk, batch_size
        self.vocab_size = int(self._model.get_output_embeddings().weight.shape[0])
        self._banned_ids = image_token_ids(self.processor, self._model.config)

    def run(self, requests: Iterable[TeacherRequest]) -> Iterator[TeacherResponse]:
        """Answer requests in batches; see `Teacher.run`."""
        for batch in _batched(requests, self._batch_size):
            generated = [request for request in batch if request.forced_token_ids is None]
            forced = [request for request in batch if request.forced_token_ids is not None]
            if generated:
                yield from self._generate(generated)
            if forced:
                yield from self._score(forced)

    def close(self) -> None:
        """Drop the model."""
        self._model = None

    @torch.inference_mode()
    def _generate(self, requests: list[TeacherRequest]) -> Iterator[TeacherResponse]:
        prompts = [self._encode(request) for request in requests]
        inputs = left_pad(prompts, pad_id=self._pad_id())
        config = self._generation_config(max(request.max_new_tokens for request in requests))
        width = inputs["input_ids"].shape[1]
        sampling = transformers.LogitsProcessorList([KeyedSampling(requests, prompt_width=width)])
        output = self._model.generate(
            **_to(inputs, self._model.device), generation_config=config, logits_processor=sampling
        )
        logits = torch.stack(output.logits, dim=1)  # [B, T, V], left on the device: only top-k leaves it
        stop_ids = set(config.eos_token_id)
        for row, request in enumerate(requests):
            ids = output.sequences[row, width:].tolist()[: request.max_new_tokens]
            length, reason = _cut_at_stop(ids, stop_ids)
            yield self._response(request, prompts[row], ids[:length], logits[row, :length], reason)

    @torch.inference_mode()
    def _score(self, requests: list[TeacherRequest]) -> Iterator[TeacherResponse]:
        prompts = [self._encode(request) for request in requests]
        rows = [
            append_ids(prompt, request.forced_token_ids or ())
            for prompt, request in zip(prompts, requests, strict=True)
        ]
        longest = max(len(request.forced_token_ids or ()) for request in requests)
        inputs = _to(left_pad(rows, pad_id=self._pad_id()), self._model.device)
        logits = self._model(**inputs, logits_to_keep=longest + 1).logits
        for row, request in enumerate(requests):
            ids = list(request.forced_token_ids or ())
            # The last kept position predicts the token after the response; everything is right-aligned.
            yield self._response(request, prompts[row], ids, logits[row, longest - len(ids) : longest], "forced")

    def _encode(self, request: TeacherRequest) -> dict[str, torch.Tensor]:
        prompt = chat_prompt(self.processor, request.text, image=request.image is not None)
        return append_ids(encode_prompt(self.processor, prompt, request.image), request.prefix_token_ids)

    def _response(
        self,
        request: TeacherRequest,
        prompt: dict[str, torch.Tensor],
        ids: list[int],
        logits: torch.Tensor,
        reason: Literal["stop", "length", "forced"],
    ) -> TeacherResponse:
        stats = stats_of_logits(logits, torch.tensor(ids, device=logits.device), num_topk=self._num_topk)
        return TeacherResponse(
            request_id=request.request_id,
            prompt_token_ids=tuple(prompt["input_ids"][0].tolist()),
            token_ids=torch.tensor(ids, dtype=torch.int32).numpy(),
            finish_reason=reason,
            **stats._asdict(),
        )

    def _generation_config(self, max_new_tokens: int) -> transformers.GenerationConfig:
        eos = self._model.generation_config.eos_token_id
        eos = [eos] if isinstance(eos, int) else list(eos or [self.processor.tokenizer.eos_token_id])
        return transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=eos,
            pad_token_id=self._pad_id(),
            suppress_tokens=list(self._banned_ids),
            output_logits=True,
            return_dict_in_generate=True,
        )

    def _pad_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def compute_head_in(model: Any, dtype: torch.dtype) -> None:
    """Let the last layer compute in `dtype`; its weights, which the embedding may share, stay as they are."""
    head = model.get_output_embeddings()

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        bias = None if head.bias is None else head.bias.to(dtype)
        return torch.nn.functional.linear(hidden.to(dtype), head.weight.to(dtype), bias)

    head.forward = forward


class KeyedSampling(transformers.LogitsProcessor):
    """Sampling as an argmax: nucleus, temperature and Gumbel noise keyed by each row's seed and step.

    What is sampled for a row is a function of its logits, seed and step, so batches and their padding change nothing.
    """

    def __init__(self, requests: Sequence[TeacherRequest], *, prompt_width: int) -> None:
        """Take the rows of one batch, in order."""
        self._requests, self._prompt_width = requests, prompt_width

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores whose argmax is the sample; rows at temperature 0 are left alone."""
        step = input_ids.shape[1] - self._prompt_width
        changed = scores.clone()
        for row, request in enumerate(self._requests):
            if request.temperature > 0:
                logits = (scores[row].double() / request.temperature).cpu()
                changed[row] = (_nucleus(logits, request.top_p) + _gumbel(request.seed or 0, step, logits)).to(scores)
        return changed  # type: ignore[return-value]


def _nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Logits with everything outside the smallest set of probability `top_p` at -inf."""
    ordered, order = logits.sort(descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    return logits.index_fill(0, order[before >= top_p], -torch.inf)


def _gumbel(seed: int, step: int, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed ^ (step << 32))
    uniform = torch.rand(like.shape, generator=generator, dtype=like.dtype).clamp_min(1e-300)
    return -torch.log(-torch.log(uniform))


def append_ids(inputs: dict[str, torch.Tensor], ids: Iterable[int]) -> dict[str, torch.Tensor]:
    """Extend one unpadded row ([1, P] tensors) by text tokens."""
    tail = torch.tensor([list(ids)], dtype=torch.int64)
    if tail.numel() == 0:
        return inputs
    extended = dict(inputs)
    extended["input_ids"] = torch.cat([inputs["input_ids"], tail], dim=1)
    extended["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(tail)], dim=1)
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        extended["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(tail, dtype=types.dtype)], dim=1)
    return extended


_SEQUENCE_KEYS = {"input_ids", "attention_mask", "mm_token_type_ids"}


def left_pad(rows: list[dict[str, torch.Tensor]], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Join unpadded rows: sequences padded on the left to [B, P], pixels of all images one after the other."""
    width = max(row["input_ids"].shape[1] for row in rows)
    batch = {}
    for key in {key for row in rows for key in row}:
        if key in _SEQUENCE_KEYS:
            fill = pad_id if key == "input_ids" else 0
            parts = [_pad_row(row.get(key, torch.zeros_like(row["input_ids"])), width, fill) for row in rows]
        else:
            parts = [row[key] for row in rows if key in row]
        batch[key] = torch.cat(parts, dim=0)
    return batch


def _pad_row(row: torch.Tensor, width: int, fill: int) -> torch.Tensor:
    return torch.nn.functional.pad(row, (width - row.shape[1], 0), value=fill)


def _cut_at_stop(ids: list[int], stop_ids: set[int]) -> tuple[int, Literal["stop", "length"]]:
    for index, token in enumerate(ids):
        if token in stop_ids:
            return index + 1, "stop"
    return len(ids), "length"


def _to(inputs: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {key: value.to(device) for key, value in inputs.items()}


def _batched(requests: Iterable[TeacherRequest], size: int) -> Iterator[list[TeacherRequest]]:
    iterator = iter(requests)
    while batch := list(islice(iterator, size)):
        yield batch
