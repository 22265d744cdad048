"""The vLLM engine: streaming requests with a bounded window, log-probabilities as arrays, no detokenisation.

The only file that imports vllm; docs/vllm-versions.md says which releases it is for and what differs between them.
vLLM accepts malformed input without a word (a placeholder without an image, a stray image token, one id twice), so
every request is checked here first. What it gives up: vLLM returns no full-vocabulary entropy or logsumexp, so those
are None.
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
from vgid.stage1_teacher.engines.vllm_arrays import Rows, rows_of_flat, tap
from vgid.stage1_teacher.identity import engine_identity
from vgid.stage1_teacher.options import DEFAULT_OPTIONS, EngineOptions, default_length

_CPU_KV_CACHE_BYTES = 512 << 20
_IMAGE_CACHE_GIB = 64 / 1024
"""Pictures as the processor made them. Questions on one picture are neighbours in the plan, so it need hold only the
last few; one of up to 3,500 tokens fits."""


class VllmTeacher:
    """A `Teacher` on vLLM's engine, in this process; one per GPU (or CPU machine)."""

    def __init__(
        self,
        model: Path | str,
        *,
        num_topk: int,
        dtype: str = "float32",
        head_dtype: str | None = None,
        options: EngineOptions = DEFAULT_OPTIONS,
    ) -> None:
        _prepare_environment()
        try:
            import torch
            import vllm
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine import EngineCoreOutput
        except ImportError as error:
            raise ConfigError(
                f"engine vllm is not installed ({error}); pip install 'vgid[vllm]' on a GPU node, 'vgid[cpu]' elsewhere"
            ) from error

        self.processor = load_processor(model)
        self._num_topk, self._window = num_topk, options.window
        arguments: dict[str, Any] = {
            "model": str(model),
            "dtype": dtype,
            "max_model_len": default_length(model, options),
            "max_logprobs": num_topk,
            "logprobs_mode": "raw_logprobs",
            "limit_mm_per_prompt": {"image": 1, "video": 0},
            "mm_processor_cache_gb": _IMAGE_CACHE_GIB,
            "mm_device_do_normalize": False,
            "enable_prefix_caching": True,
            "generation_config": "vllm",
            "seed": 0,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }
        if head_dtype is not None:
            # Families differ in where they look for it; the other key is ignored.
            arguments["hf_overrides"] = {"head_dtype": head_dtype, "text_config": {"head_dtype": head_dtype}}
        if torch.cuda.is_available():
            arguments |= {
                "gpu_memory_utilization": options.gpu_memory,
                "tensor_parallel_size": options.tensor_parallel,
            }
        else:
            arguments |= {
                "enforce_eager": True,
                "kv_cache_memory_bytes": _CPU_KV_CACHE_BYTES,
                "skip_mm_profiling": True,
            }
            # Even with enforce_eager vLLM compiles a helper for ranks: 12 s and a C++ compiler that nobody asked for.
            torch._dynamo.config.disable = True  # pyright: ignore[reportPrivateUsage]
        # Options come and go between vLLM releases; those it does not know had no effect there to switch off.
        known = {field.name for field in dataclasses.fields(EngineArgs)}
        self._replays = options.trace_replay
        if options.trace_replay:
            if "enable_trace_replay" not in known or not torch.cuda.is_available():
                raise ConfigError(
                    "--trace-replay needs vLLM 0.29 or later on a GPU; leave it out, the rows are the same"
                )
            arguments["enable_trace_replay"] = True
        try:
            self._llm = vllm.LLM(**{key: value for key, value in arguments.items() if key in known})
        except (ValueError, RuntimeError, OSError) as error:
            raise TeacherError(f"model {str(model)!r} does not load in vLLM: {_reason(error)}") from error
        self._engine = self._llm.llm_engine
        config = self._engine.model_config
        self.engine_id = engine_identity("vllm", dtype=dtype, head_dtype=head_dtype)
        self.vocab_size = int(config.get_vocab_size())
        self._image_id = image_token_id(self.processor)
        self._banned_ids = image_token_ids(self.processor, config.hf_config)
        self._tap = tap(self._engine, EngineCoreOutput)

    def run(self, requests: Iterable[TeacherRequest]) -> Iterator[TeacherResponse]:
        """Answer requests, at most `EngineOptions.window` in flight; see `Teacher.run`."""
        waiting = iter(requests)
        pending: dict[str, tuple[TeacherRequest, str]] = {}
        try:
            while True:
                for request in islice(waiting, self._window - len(pending)):
                    if request.request_id in pending:
                        raise TeacherError(f"request id {request.request_id!r} is used twice")
                    pending[request.request_id] = request, self._add(request)
                if not pending:
                    return
                for output in self._engine.step():
                    if output.finished:
                        yield self._response(*pending.pop(output.request_id), output)
        finally:
            if pending:
                self._engine.abort_request(list(pending))
            if self._tap is not None:
                self._tap.forget()

    def close(self) -> None:
        """Shut the engine down and give its memory back."""
        import gc

        self._engine.engine_core.shutdown()
        del self._llm, self._engine
        gc.collect()

    def _add(self, request: TeacherRequest) -> str:
        """Put a request into the engine; gives the engine's own id for it."""
        prompt, params = self.prompt(request), self._sampling_params(request)
        try:
            return self._engine.add_request(request.request_id, prompt, params)
        except (ValueError, RuntimeError) as error:
            raise TeacherError(
                f"request {request.request_id!r} ({_described(request)}): vLLM refuses it: {_reason(error)}; "
                "a large picture takes many tokens, scale it down"
            ) from error

    def prompt(self, request: TeacherRequest) -> Any:
        """What vLLM is given for a request: ids with one placeholder for an image, and the image.

        Raises:
            DataError: special tokens in the text.
            TeacherError: the chat template places no image, or the given response holds an image token.
        """
        text = chat_prompt(self.processor, request.text, image=request.image is not None)
        ids = tokenize_prompt(self.processor, text)
        placeholders, images = ids.count(self._image_id), int(request.image is not None)
        if placeholders != images:
            raise TeacherError(
                f"request {request.request_id!r}: {placeholders} image placeholders for {images} images; "
                "the model's chat template does not place images as expected"
            )
        forced = request.forced_token_ids or ()
        if stray := self._banned_ids & {*request.prefix_token_ids, *forced}:
            raise TeacherError(f"request {request.request_id!r}: image token {min(stray)} in its given response")
        scored = () if self._replays else forced
        prompt: dict[str, Any] = {"prompt_token_ids": [*ids, *request.prefix_token_ids, *scored]}
        if request.image is not None:
            prompt["multi_modal_data"] = {"image": request.image}
            if request.pixel_sha256 is not None:  # spares vLLM a hash of its own
                prompt["multi_modal_uuids"] = {"image": [request.pixel_sha256]}
        return prompt

    def _sampling_params(self, request: TeacherRequest) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        common: dict[str, Any] = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "flat_logprobs": True,
            "detokenize": False,
            "output_kind": RequestOutputKind.FINAL_ONLY,
            "logit_bias": dict.fromkeys(self._banned_ids, -100.0),
        }
        if request.forced_token_ids is not None and self._replays:
            trace = list(request.forced_token_ids)
            common |= {"temperature": 0.0, "ignore_eos": True, "trace_decode_token_ids": trace}
            return SamplingParams(max_tokens=len(trace), logprobs=self._num_topk, **common)
        if request.forced_token_ids is not None:
            return SamplingParams(max_tokens=1, prompt_logprobs=self._num_topk, **common)
        return SamplingParams(max_tokens=request.max_new_tokens, logprobs=self._num_topk, **common)

    def _response(self, request: TeacherRequest, engine_request_id: str, output: Any) -> TeacherResponse:
        completion = output.outputs[0]
        prompt_ids = tuple(output.prompt_token_ids)
        if request.forced_token_ids is None:
            ids = np.asarray(completion.token_ids, np.int32)
            flat, reason = completion.logprobs, completion.finish_reason
        else:
            ids = np.asarray(request.forced_token_ids, np.int32)
            flat, reason = completion.logprobs if self._replays else output.prompt_logprobs, "forced"
            prompt_ids = prompt_ids if self._replays else prompt_ids[: len(prompt_ids) - len(ids)]
        rows = self._rows(engine_request_id, flat, count=len(ids))
        if reason not in ("stop", "length", "forced") or not np.array_equal(rows.token_ids[:, 0], ids):
            raise TeacherError(
                f"request {request.request_id!r}: vLLM finished with {reason!r} and rows that are not the response's"
            )
        return TeacherResponse(
            request_id=request.request_id,
            prompt_token_ids=prompt_ids,
            token_ids=ids,
            token_logprob=rows.logprobs[:, 0],
            token_rank=rows.ranks,
            topk_ids=rows.token_ids[:, 1:],
            topk_logprobs=rows.logprobs[:, 1:],
            logsumexp=None,
            entropy=None,
            finish_reason=reason,
        )

    def _rows(self, engine_request_id: str, flat: Any, *, count: int) -> Rows:
        if self._tap is not None:
            return self._tap.take(engine_request_id, count=count)
        return rows_of_flat(flat, count=count, request_id=engine_request_id)


def _described(request: TeacherRequest) -> str:
    size = "no picture" if request.image is None else "picture of {}x{} pixels".format(*request.image.size)
    return f"{request.text[:60]!r}, {size}"


def _reason(error: BaseException) -> str:
    """The first line that says something; vLLM's own wrappers end in a remark about the log."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _prepare_environment() -> None:
    """Settings vLLM reads at import; what the user has set is left alone."""
    defaults = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TRITON_F32_DEFAULT": "ieee",  # else a GPU's float32 attention is TF32, with 10 bits of mantissa
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
