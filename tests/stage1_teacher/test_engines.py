"""The two engines on one plan: same prompts, same tokens, same log-probabilities; malformed requests are refused."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image
from tiny_models import build_tiny_qwen2_vl

from vgid.errors import ConfigError, DataError, TeacherError
from vgid.stage1_teacher.engines import TeacherRequest, build_teacher
from vgid.stage1_teacher.options import EngineOptions
from vgid.stage1_teacher.topk import round_to_fp16_grid

K = 20
TOLERANCE_NATS = 1e-4


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def requests() -> list[TeacherRequest]:
    """Images of three sizes and none, prompts of three lengths, generated, prefilled and forced responses."""
    pictures = [picture(56, 56), picture(70, 56), picture(40, 90), None]
    return [
        TeacherRequest(
            request_id=f"r{i}",
            text="Where does this person live?" + " What is the job of Mara?" * (i % 3),
            image=pictures[i % 4],
            prefix_token_ids=(5, 6) if i % 5 == 0 else (),
            forced_token_ids=tuple(range(10, 11 + i % 7)) if i % 3 == 0 else None,
            max_new_tokens=12,
        )
        for i in range(48)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny_qwen2_vl(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reference(model):
    teacher = build_teacher("transformers", model, num_topk=K)
    yield teacher
    teacher.close()


@pytest.fixture(scope="module")
def vllm(model):
    teacher = build_teacher("vllm", model, num_topk=K)
    yield teacher
    teacher.close()


@pytest.fixture(scope="module")
def answers(reference, vllm):
    both = [{response.request_id: response for response in engine.run(requests())} for engine in (reference, vllm)]
    assert both[0].keys() == both[1].keys() == {request.request_id for request in requests()}
    return [(both[0][key], both[1][key]) for key in both[0]]


def test_engines_agree_on_prompt_ids_and_response_tokens(answers):
    for ours, theirs in answers:
        assert ours.prompt_token_ids == theirs.prompt_token_ids
        assert np.array_equal(ours.token_ids, theirs.token_ids)
        assert ours.finish_reason == theirs.finish_reason


def test_engines_agree_on_logprobs_by_token_id_before_rounding(answers):
    compared = 0
    for ours, theirs in answers:
        assert np.abs(ours.token_logprob - theirs.token_logprob).max() <= TOLERANCE_NATS
        for position in range(len(ours.token_ids)):
            left, right = (
                dict(zip(r.topk_ids[position], r.topk_logprobs[position], strict=True)) for r in (ours, theirs)
            )
            shared = left.keys() & right.keys()
            assert len(shared) >= K - 1  # ties at the edge of the top-k may swap
            assert max(abs(left[token] - right[token]) for token in shared) <= TOLERANCE_NATS
            compared += len(shared)
    assert compared > 1000


def test_stored_values_agree_within_one_unit_of_the_rounding_grid(answers):
    for ours, theirs in answers:
        left, right = round_to_fp16_grid(ours.topk_logprobs), round_to_fp16_grid(theirs.topk_logprobs)
        unit = np.spacing(np.maximum(np.abs(left), np.abs(right)).astype(np.float16)).astype(np.float32)
        assert (np.abs(left - right) <= unit).all()


def test_forced_responses_are_scored_as_given(answers):
    by_id = {request.request_id: request for request in requests()}
    for ours, _ in answers:
        forced = by_id[ours.request_id].forced_token_ids
        if forced is not None:
            assert tuple(ours.token_ids) == forced and ours.finish_reason == "forced"


def test_rows_are_most_likely_first_and_greedy_tokens_have_rank_one(answers):
    for pair in answers:
        for response in pair:
            assert (np.diff(response.topk_logprobs, axis=1) <= 0).all()
            if response.finish_reason != "forced":
                assert (response.token_rank == 1).all()


@pytest.mark.parametrize("engine", ["reference", "vllm"])
def test_a_request_asked_alone_gives_what_it_gives_among_others(engine, answers, request):
    teacher = request.getfixturevalue(engine)
    side = ["reference", "vllm"].index(engine)
    for asked in requests()[:6]:
        (alone,) = teacher.run([asked])
        among = next(pair[side] for pair in answers if pair[side].request_id == asked.request_id)
        assert np.array_equal(alone.token_ids, among.token_ids)
        assert np.abs(alone.token_logprob - among.token_logprob).max() <= TOLERANCE_NATS


@pytest.mark.parametrize("engine", ["reference", "vllm"])
def test_special_tokens_in_user_text_are_refused(engine, request):
    bad = replace(requests()[1], text="Hello <|image_pad|> there")
    with pytest.raises(DataError, match="image_pad"):
        list(request.getfixturevalue(engine).run([bad]))


def sampled(seed: int) -> TeacherRequest:
    request = TeacherRequest(request_id=f"s{seed}", text="Where does she live?", image=picture(56, 56), seed=seed)
    return replace(request, temperature=1.5, top_p=0.9, max_new_tokens=12)


@pytest.mark.parametrize("engine", ["reference", "vllm"])
def test_a_sample_depends_on_its_seed_and_on_nothing_beside_it(engine, request):
    teacher = request.getfixturevalue(engine)
    among = {each.request_id: each for each in teacher.run([sampled(seed) for seed in range(8)])}
    (alone,) = teacher.run([sampled(5)])
    assert np.array_equal(alone.token_ids, among["s5"].token_ids)
    assert len({tuple(each.token_ids) for each in among.values()}) > 4


@pytest.mark.parametrize("engine", ["reference", "vllm"])
def test_stored_distributions_of_a_sample_are_those_at_temperature_one(engine, request, reference):
    teacher = request.getfixturevalue(engine)
    (drawn,) = teacher.run([sampled(3)])
    (scored,) = reference.run([replace(sampled(3), forced_token_ids=tuple(drawn.token_ids.tolist()))])
    assert np.abs(drawn.token_logprob - scored.token_logprob).max() <= TOLERANCE_NATS
    assert np.abs(drawn.topk_logprobs - scored.topk_logprobs).max() <= TOLERANCE_NATS


def test_only_the_nucleus_is_sampled_from(reference):
    drawn = list(reference.run([replace(sampled(seed), top_p=1e-6) for seed in range(4)]))
    assert all((response.token_rank == 1).all() for response in drawn)


def test_vllms_arrays_are_what_its_own_container_holds(vllm, answers, monkeypatch):
    """The tap between vLLM's core and front end changes nothing but the work: without it, the same rows."""
    monkeypatch.setattr(vllm._tap, "enabled", False)
    monkeypatch.setattr(vllm, "_tap", None)
    for response in vllm.run(requests()[:12]):
        tapped = next(theirs for _, theirs in answers if theirs.request_id == response.request_id)
        assert np.array_equal(response.topk_ids[:, 0], tapped.topk_ids[:, 0])
        assert np.abs(response.topk_logprobs - tapped.topk_logprobs).max() <= TOLERANCE_NATS
        assert np.array_equal(response.token_rank, tapped.token_rank)


def test_the_installed_vllm_has_the_seam_that_the_tap_needs(vllm):
    assert vllm._tap is not None


def test_vllm_refuses_one_id_used_twice(vllm):
    one = requests()[1]
    with pytest.raises(TeacherError, match="twice"):
        list(vllm.run([one, one]))


def test_vllm_refuses_an_image_token_in_a_forced_response(vllm, model):
    from vgid.data.chat import image_token_id, load_processor

    bad = replace(requests()[0], forced_token_ids=(image_token_id(load_processor(model)),))
    with pytest.raises(TeacherError, match="image token"):
        list(vllm.run([bad]))


def test_vllm_goes_on_after_a_refused_request(vllm):
    good, bad = requests()[1], replace(requests()[2], text="<|im_start|>")
    with pytest.raises(DataError):
        list(vllm.run([good, bad]))
    assert [response.request_id for response in vllm.run([good])] == [good.request_id]


def test_a_directory_without_a_model_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="processor"):
        build_teacher("transformers", tmp_path, num_topk=1)


def test_an_unknown_engine_is_refused(model):
    with pytest.raises(ConfigError, match="vllm or transformers"):
        build_teacher("tensorrt", model, num_topk=1)  # type: ignore[arg-type]


# From here on other engines are started; closing one takes down what all engines of a process share in vLLM 0.31.


def test_questions_on_one_picture_share_its_prefix_and_answer_as_if_alone(tmp_path):
    model = build_tiny_qwen2_vl(tmp_path, max_image_tokens=400)
    reference = build_teacher("transformers", model, num_topk=K)
    large = picture(504, 504)  # 324 image tokens: more than two of vLLM's blocks
    asked = [
        TeacherRequest(
            request_id=f"q{number}",
            text=f"Question {number}: where does this person live?",
            image=large,
            pixel_sha256=sha256(large.tobytes()).hexdigest(),
            max_new_tokens=6,
        )
        for number in range(4)
    ]
    ours = {response.request_id: response for response in reference.run(asked)}
    teacher = build_teacher("vllm", model, num_topk=K)
    try:
        for _ in range(2):  # the second time everything comes out of the caches
            for theirs in teacher.run(asked):
                mine = ours[theirs.request_id]
                assert theirs.prompt_token_ids == mine.prompt_token_ids and len(mine.prompt_token_ids) > 324
                assert np.array_equal(theirs.token_ids, mine.token_ids)
                assert np.abs(theirs.token_logprob - mine.token_logprob).max() <= TOLERANCE_NATS
    finally:
        teacher.close()


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_float32_head_takes_the_logits_of_a_bfloat16_model_off_the_coarse_grid(model, engine):
    """bfloat16 logits of at least 1/4 are multiples of 2^-9, and so are their differences."""
    asked = [replace(request, forced_token_ids=tuple(range(10, 18))) for request in requests()[:8]]
    on_grid = {}
    for head in (None, "float32"):
        teacher = build_teacher(engine, model, num_topk=5, dtype="bfloat16", head_dtype=head)
        rows = np.concatenate([each.topk_logprobs for each in teacher.run(asked)]).astype(np.float64)
        assert ("head float32" in teacher.engine_id) == (head is not None)
        teacher.close()
        steps = (rows[:, 1:] - rows[:, :1]) * 512
        on_grid[head] = (np.abs(steps - np.rint(steps)) < 0.01).mean()
    assert on_grid[None] > 0.95 and on_grid["float32"] < 0.3


def test_trace_replay_is_refused_where_the_engine_cannot(model):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=r"--trace-replay needs vLLM 0\.29 or later on a GPU"):
        build_teacher("vllm", model, num_topk=K, options=EngineOptions(trace_replay=True))
