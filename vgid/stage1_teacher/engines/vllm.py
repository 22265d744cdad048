"""The vLLM engine: streaming requests with a bounded window, flat log-probabilities, no detokenisation.

The only file that imports vllm. vLLM accepts malformed input without a word (a placeholder without an image, a stray
image token, one id twice), so every request is checked here first. What it gives up: vLLM returns no full-vocabulary
entropy or logsumexp, so those are None.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vgid.data.chat import chat_prompt, image_token_id, image_token_ids, load_processor, tokenize_prompt
from vgid.errors import ConfigError, TeacherError
from vgid.stage1_teacher.engines.protocol import TeacherRequest, TeacherResponse
from vgid.stage1_teacher.identity import engine_identity

_WINDOW = 256
_KV_CACHE_BYTES = 512 << 20


class VllmTeacher:
    """A `Teacher` on vLLM's engine, in this process; one per GPU (or CPU machine)."""

    def __init__(
        self, model: Path | str, *, num_topk: int, dtype: str = "float32", max_model_len: int | None = None
    ) -> None:
        _prepare_environment()
        try:
            import torch
            import vllm
            from vllm.engine.arg_utils import EngineArgs
        except ImportError as error:
            raise ConfigError(
                f"engine vllm is not installed ({error}); pip install 'vgid[vllm]' on a GPU node, 'vgid[cpu]' elsewhere"
            ) from error

        self.processor = load_processor(model)
        self._num_topk = num_topk
        on_gpu = torch.cuda.is_available()
        arguments: dict[str, Any] = {
            "model": str(model),
            "dtype": dtype,
            "max_model_len": max_model_len or _model_length(model),
            "max_logprobs": num_topk,
            "logprobs_mode": "raw_logprobs",
            "limit_mm_per_prompt": {"image": 1, "video": 0},
            "mm_processor_cache_gb": 0,
            "mm_device_do_normalize": False,
            "enable_prefix_caching": False,
            "generation_config": "vllm",
            "seed": 0,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }
        if not on_gpu:
            arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": _KV_CACHE_BYTES, "skip_mm_profiling": True}
            # Even with enforce_eager vLLM compiles a helper for ranks: 12 s and a C++ compiler that nobody asked for.
            torch._dynamo.config.disable = True  # pyright: ignore[reportPrivateUsage]
        # Options come and go between vLLM releases; those it does not know had no effect there to switch off.
        known = {field.name for field in dataclasses.fields(EngineArgs)}
        try:
            self._llm = vllm.LLM(**{key: value for key, value in arguments.items() if key in known})
        except (ValueError, RuntimeError, OSError) as error:
            raise TeacherError(f"model {str(model)!r} does not load in vLLM: {str(error).splitlines()[0]}") from error
        config = self._llm.llm_engine.model_config
        self.engine_id = engine_identity("vllm", dtype=dtype)
        self.vocab_size = int(config.get_vocab_size())
        self._max_model_len = int(config.max_model_len)
        self._image_id = image_token_id(self.processor)
        self._banned_ids = image_token_ids(self.processor, config.hf_config)

    def run(self, requests: Iterable[TeacherRequest]) -> Iterator[TeacherResponse]:
        """Answer requests, at most `_WINDOW` in flight; see `Teacher.run`."""
        engine = self._llm.llm_engine
        waiting = iter(requests)
        pending: dict[str, TeacherRequest] = {}
        try:
            while True:
                for request in islice(waiting, _WINDOW - len(pending)):
                    if request.request_id in pending:
                        raise TeacherError(f"request id {request.request_id!r} is used twice")
                    prompt = self._prompt(request)
                    try:
                        engine.add_request(request.request_id, prompt, self._sampling_params(request))
                    except (ValueError, RuntimeError) as error:
                        raise TeacherError(
                            f"request {request.request_id!r} ({_described(request)}): vLLM refuses it: "
                            f"{str(error).splitlines()[0]}; a large picture takes many tokens, scale it down"
                        ) from error
                    pending[request.request_id] = request
                if not pending:
                    return
                for output in engine.step():
                    if output.finished:
                        yield self._response(pending.pop(output.request_id), output)
        finally:
            if pending:
                engine.abort_request(list(pending))

    def close(self) -> None:
        """Shut the engine down and give its memory back."""
        import gc

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()

    def _prompt(self, request: TeacherRequest) -> Any:
        text = chat_prompt(self.processor, request.text, image=request.image is not None)
        ids = tokenize_prompt(self.processor, text)
        placeholders, images = ids.count(self._image_id), int(request.image is not None)
        if placeholders != images:
            raise TeacherError(
                f"request {request.request_id!r}: {placeholders} image placeholders for {images} images; "
                "the model's chat template does not place images as expected"
            )
        given = [*request.prefix_token_ids, *(request.forced_token_ids or ())]
        if stray := self._banned_ids & set(given):
            raise TeacherError(f"request {request.request_id!r}: image token {min(stray)} in its given response")
        prompt: dict[str, Any] = {"prompt_token_ids": ids + given}
        if request.image is not None:
            prompt["multi_modal_data"] = {"image": request.image}
        return prompt

    def _sampling_params(self, request: TeacherRequest) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        common: dict[str, Any] = {
            "temperature": 0.0,
            "flat_logprobs": True,
            "detokenize": False,
            "output_kind": RequestOutputKind.FINAL_ONLY,
            "logit_bias": dict.fromkeys(self._banned_ids, -100.0),
        }
        if request.forced_token_ids is not None:
            return SamplingParams(max_tokens=1, prompt_logprobs=self._num_topk, **common)
        return SamplingParams(max_tokens=request.max_new_tokens, logprobs=self._num_topk, **common)

    def _response(self, request: TeacherRequest, output: Any) -> TeacherResponse:
        completion = output.outputs[0]
        prompt_ids = tuple(output.prompt_token_ids)
        if request.forced_token_ids is None:
            ids = np.asarray(completion.token_ids, np.int32)
            flat, reason = completion.logprobs, completion.finish_reason
        else:
            ids = np.asarray(request.forced_token_ids, np.int32)
            flat, reason = output.prompt_logprobs, "forced"
            prompt_ids = prompt_ids[: len(prompt_ids) - len(ids)]
        rows_ids, rows_logprobs, own_rank = _last_rows(flat, len(ids), request.request_id)
        if reason not in ("stop", "length", "forced") or not np.array_equal(rows_ids[:, 0], ids):
            raise TeacherError(
                f"request {request.request_id!r}: vLLM finished with {reason!r} and rows that are not the response's"
            )
        return TeacherResponse(
            request_id=request.request_id,
            prompt_token_ids=prompt_ids,
            token_ids=ids,
            token_logprob=rows_logprobs[:, 0],
            token_rank=own_rank,
            topk_ids=rows_ids[:, 1:],
            topk_logprobs=rows_logprobs[:, 1:],
            logsumexp=None,
            entropy=None,
            finish_reason=reason,
        )


def _described(request: TeacherRequest) -> str:
    size = "no picture" if request.image is None else "picture of {}x{} pixels".format(*request.image.size)
    return f"{request.text[:60]!r}, {size}"


def _last_rows(flat: Any, count: int, request_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The last `count` rows of vLLM's flat log-probabilities: ids [T, K+1], log-probabilities, ranks of column 0 [T].

    Column 0 is the response token, columns 1 to K the candidates in rank order. Indexing from the end leaves out the
    prompt's rows, whatever number of ids its image expanded to.
    """
    starts = np.asarray(flat.start_indices[-count:], np.int64) if count else np.empty(0, np.int64)
    ends = np.asarray(flat.end_indices[-count:], np.int64) if count else np.empty(0, np.int64)
    widths = np.unique(ends - starts)
    if len(starts) != count or len(widths) != 1:
        raise TeacherError(f"request {request_id!r}: vLLM returned {len(starts)} rows of widths {widths} for {count}")
    begin, width = int(starts[0]), int(widths[0])
    block = slice(begin, begin + count * width)
    ids = np.asarray(flat.token_ids[block], np.int32).reshape(count, width)
    logprobs = np.asarray(flat.logprobs[block], np.float32).reshape(count, width)
    ranks = np.asarray(flat.ranks[begin : begin + count * width : width], np.int32)
    return ids, logprobs, ranks


def _prepare_environment() -> None:
    """Settings vLLM reads at import; what the user has set is left alone."""
    defaults = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])


def _model_length(model: Path | str) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(model)).get_text_config()
    return min(4096, int(getattr(config, "max_position_embeddings", 4096)))
