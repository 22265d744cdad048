"""A fitted picture is what the processor makes of the original, and the processor then leaves it alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from tiny_models import build_tiny_qwen2_vl

from vgid.data.chat import encode_prompt, load_processor
from vgid.errors import ConfigError, DataError
from vgid.stage1_teacher.engines import TeacherRequest, build_teacher
from vgid.stage1_teacher.fit import fit_to_processor
from vgid.stage1_teacher.perturb import PERTURBATIONS, perturb

SIZES = [(1, 1), (20, 3), (37, 91), (333, 500), (641, 479), (14, 14)]
FAMILIES = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "llava"]
LEVEL = 1 / 255


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_qwen2_vl(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def processors(model) -> dict[str, Any]:
    """The processors of four families with their published settings and a small tokenizer."""
    qwen2 = load_processor(model)
    parts: dict[str, Any] = {"tokenizer": qwen2.tokenizer, "chat_template": qwen2.chat_template}
    size = {"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28}
    half = [0.5, 0.5, 0.5]
    qwen = transformers.Qwen2VLImageProcessor(size=size)
    qwen3 = transformers.Qwen2VLImageProcessor(
        patch_size=16, image_mean=half, image_std=half, size={"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}
    )
    clip = transformers.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    return {
        "qwen2-vl": transformers.Qwen2VLProcessor(
            image_processor=qwen, video_processor=transformers.Qwen2VLVideoProcessor(size=size), **parts
        ),
        "qwen2.5-vl": transformers.Qwen2_5_VLProcessor(
            image_processor=qwen, video_processor=transformers.Qwen2VLVideoProcessor(size=size), **parts
        ),
        "qwen3-vl": transformers.Qwen3VLProcessor(
            image_processor=qwen3, video_processor=transformers.Qwen3VLVideoProcessor(), **parts
        ),
        "llava": transformers.LlavaProcessor(
            image_processor=clip,
            patch_size=14,
            vision_feature_select_strategy="default",
            image_token="<|image_pad|>",
            **parts,
        ),
    }


def pixel_values(processor: Any, image: Image.Image) -> np.ndarray:
    return encode_prompt(processor, "<|image_pad|>", image)["pixel_values"].numpy()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_a_fitted_picture_gives_the_pixel_values_of_the_original(processors, family, size):
    processor, original = processors[family], picture(*size)
    fitted = fit_to_processor(original, processor.image_processor)
    before, after = pixel_values(processor, original), pixel_values(processor, fitted)
    assert before.shape == after.shape
    assert np.abs(before - after).max() * max(processor.image_processor.image_std) <= LEVEL / 2
    assert fit_to_processor(fitted, processor.image_processor).tobytes() == fitted.tobytes()


def test_a_picture_of_the_processors_own_size_is_left_alone(processors):
    for family, size in [("qwen2-vl", (84, 56)), ("qwen3-vl", (512, 256)), ("llava", (336, 336))]:
        original = picture(*size)
        fitted = fit_to_processor(original, processors[family].image_processor)
        assert fitted.size == size and fitted.tobytes() == original.tobytes()


def test_a_picture_is_scaled_and_cropped_as_the_processor_does(processors):
    left_to_right = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3)))
    assert fit_to_processor(left_to_right, processors["qwen2.5-vl"].image_processor).size == (196, 112)
    middle = np.asarray(fit_to_processor(left_to_right, processors["llava"].image_processor))
    assert middle.shape == (336, 336, 3)
    assert abs(int(middle[100, 0, 0]) - 50) <= 1 and abs(int(middle[100, -1, 0]) - 149) <= 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", sorted(PERTURBATIONS))
def test_in_space_processor_the_model_sees_the_perturbed_levels_as_they_are(processors, family, name):
    image_processor = processors[family].image_processor
    arguments: dict[str, Any] = {"seed": 0, "image_sha256": "a" * 64, "draw": 0, "donor": picture(50, 40, seed=1)}
    arguments |= {"space": "processor", "image_processor": image_processor}
    strength = 900 if name == "diffusion" else 0.9
    noisy = perturb(picture(150, 90), name, strength=strength, **arguments)
    assert fit_to_processor(noisy, image_processor).tobytes() == noisy.tobytes()
    plain = perturb(picture(150, 90), name, strength=0, **arguments)
    assert plain.tobytes() == fit_to_processor(picture(150, 90), image_processor).tobytes()
    assert noisy.size == plain.size and noisy.tobytes() != plain.tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_uniform_replace_is_uniform_in_the_processors_own_space(processors, family):
    noisy = perturb(
        picture(400, 400),
        "uniform-replace",
        strength=1,
        seed=0,
        image_sha256="a",
        draw=0,
        space="processor",
        image_processor=processors[family].image_processor,
    )
    values = pixel_values(processors[family], noisy)
    rounding = LEVEL / 2 / min(processors[family].image_processor.image_std) + 1e-6
    assert values.min() >= -rounding and values.max() <= 1 + rounding
    assert abs(values.mean() - 0.5) < 0.005 and abs(values.std() - 12**-0.5) < 0.005


def test_processors_of_another_kind_are_refused(processors):
    tiles = transformers.LlavaNextImageProcessor(image_grid_pinpoints=[[336, 672], [672, 336]])
    with pytest.raises(ConfigError, match=r"LlavaNextImageProcessor gives pixel values of shape .* space 'pixel'"):
        fit_to_processor(picture(500, 300), tiles)


def test_a_processor_that_changes_its_own_pictures_again_is_refused():
    crops = transformers.CLIPImageProcessor(size={"shortest_edge": 90}, crop_size={"height": 60, "width": 60})
    with pytest.raises(ConfigError, match="changes a picture of its own size 60x60 again"):
        fit_to_processor(picture(120, 120), crops)


def test_a_picture_that_the_processor_refuses_is_a_data_error(processors):
    with pytest.raises(DataError, match=r"takes no picture of 333x1 pixels \(absolute aspect ratio"):
        fit_to_processor(picture(333, 1), processors["qwen2-vl"].image_processor)


def test_both_engines_hand_the_model_the_same_pixel_values(model, monkeypatch):
    processor = load_processor(model)
    arguments: dict[str, Any] = {"seed": 0, "image_sha256": "a" * 64, "draw": 0, "donor": picture(50, 40, seed=1)}
    arguments["image_processor"] = processor.image_processor
    pictures = {
        f"{name} {space}": perturb(
            picture(101, 67), name, strength=500 if name == "diffusion" else 1, space=space, **arguments
        )
        for name in PERTURBATIONS
        for space in ("pixel", "processor")
    }
    before = {key: image.tobytes() for key, image in pictures.items()}
    teacher: Any = build_teacher("vllm", model, num_topk=1)
    core, seen = teacher._llm.llm_engine.engine_core, {}
    add_request = core.add_request

    def record(request: Any) -> None:
        seen[request.external_req_id] = request.mm_features[0].data.get_data()
        add_request(request)

    monkeypatch.setattr(core, "add_request", record)
    requests = [
        TeacherRequest(request_id=key, text="Who is this?", image=image, max_new_tokens=1)
        for key, image in pictures.items()
    ]
    answers = list(teacher.run(requests))
    teacher.close()
    assert {answer.request_id for answer in answers} == seen.keys() == pictures.keys()
    for key, image in pictures.items():
        ours = pixel_values(processor, image)
        assert np.array_equal(np.asarray(seen[key]["pixel_values"].float()), ours), key
        assert image.tobytes() == before[key]
