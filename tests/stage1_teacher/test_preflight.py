"""What is wrong with a teacher pass is found before a model is loaded, in one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from PIL import Image
from tiny_models import build_tiny_qwen2_vl

from vgid.data.chat import chat_prompt, encode_prompt, load_processor
from vgid.data.examples import Example
from vgid.data.images import image_size
from vgid.errors import ConfigError, DataError, TeacherError
from vgid.stage1_teacher.options import DEFAULT_OPTIONS
from vgid.stage1_teacher.plan import make_plan
from vgid.stage1_teacher.preflight import (
    available_memory,
    check_lengths,
    check_memory,
    check_model,
    free_memory,
    weight_bytes,
)
from vgid.stage1_teacher.settings import PlanEntry, TeacherSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_tiny_qwen2_vl(tmp_path_factory.mktemp("model"), max_image_tokens=100)


@pytest.fixture(scope="module")
def processor(model):
    return load_processor(model)


def planned(tmp_path: Path, *, size: tuple[int, int] | None, kind: str = "generated", **changes: str):
    path = tmp_path / "photo.png"
    if size is not None:
        Image.new("RGB", size).save(path)
    example = Example(
        example_id="people/mara/0",
        split="forget",
        subject_id="mara",
        task="facts",
        modality="text" if size is None else "image",
        image=None if size is None else path,
        question=changes.get("question", "Where does this person live?"),
        answer=changes.get("answer", "In Oslo."),
    )
    entries = (PlanEntry(split="forget", view="base", response_kind=kind),)  # type: ignore[arg-type]
    settings = TeacherSettings(dtype="float32", num_topk=8, seed=0, plan=entries, max_new_tokens=20)
    return make_plan([example], settings=settings, teacher={"vocab_size": 400}, engine_id="e"), settings


def tokens_of(plan, processor) -> int:
    """By another way: the real prompt, encoded with its real picture."""
    example = plan[0].example
    image = None if example.image is None else Image.open(example.image)
    prompt = chat_prompt(processor, example.question, image=image is not None)
    return encode_prompt(processor, prompt, image)["input_ids"].shape[1]


@pytest.mark.parametrize("size", [None, (56, 56), (300, 170), (900, 900)])
def test_a_prompt_may_fill_the_context_to_the_last_token_and_no_further(tmp_path, processor, size):
    plan, settings = planned(tmp_path, size=size)
    longest = tokens_of(plan, processor) + settings.max_new_tokens
    check_lengths(plan, settings, processor, limit=longest)
    with pytest.raises(ConfigError, match=rf"1 rows are longer than the {longest - 1} .*people/mara/0 with {longest}"):
        check_lengths(plan, settings, processor, limit=longest - 1)


def test_a_reference_answer_counts_with_its_end_of_turn(tmp_path, processor):
    answer = "She works as a dentist in Oslo."
    plan, settings = planned(tmp_path, size=None, kind="reference", answer=answer)
    longest = tokens_of(plan, processor) + len(processor.tokenizer(answer)["input_ids"]) + 1
    check_lengths(plan, settings, processor, limit=longest)
    with pytest.raises(ConfigError, match=f"{longest:,}"):
        check_lengths(plan, settings, processor, limit=longest - 1)


def test_the_error_says_how_much_of_a_long_prompt_is_its_picture(tmp_path, processor):
    plan, settings = planned(tmp_path, size=(900, 900))
    with pytest.raises(ConfigError, match="its picture of 900x900 pixels; scale pictures down"):
        check_lengths(plan, settings, processor, limit=64)


def test_the_size_of_a_turned_photo_is_that_of_the_upright_one(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=turned)
    assert image_size(tmp_path / "turned.jpg", where="x") == (30, 40)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="x: image cannot be read"):
        image_size(tmp_path / "broken.jpg", where="x")


def test_a_whole_model_passes(model, processor):
    check_model(model, processor, num_topk=400, vocab_size=400)
    check_memory(model, dtype="float32", options=DEFAULT_OPTIONS)


def test_more_candidates_than_the_vocabulary_are_refused(model, processor):
    with pytest.raises(ConfigError, match=r"num_topk 401 is above the model's vocabulary of 400"):
        check_model(model, processor, num_topk=401, vocab_size=400)


def test_a_model_that_writes_no_text_about_images_is_refused(model, processor, tmp_path):
    transformers.Qwen2Config(vocab_size=400, hidden_size=32).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a qwen2, which writes no text about images"):
        check_model(tmp_path, processor, num_topk=8, vocab_size=400)


TEXT_ONLY = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (TEXT_ONLY, "places 0 image"),
        (None, "has no chat template"),
    ],
)
def test_a_chat_template_without_images_is_refused(model, tmp_path, template, words):
    copy = shutil.copytree(model, tmp_path / "model")
    (copy / "chat_template.jinja").unlink()
    if template is not None:
        (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match=words):
        check_model(copy, load_processor(copy), num_topk=8, vocab_size=400)


def test_weights_are_counted_as_the_type_they_are_loaded_in(model):
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(model)
    count = sum(parameter.numel() for parameter in loaded.parameters())
    assert weight_bytes(model, dtype="float32") == 4 * count and weight_bytes(model, dtype="bfloat16") == 2 * count


def test_a_model_larger_than_the_memory_there_is_is_refused(model, tmp_path):
    """A header that claims more than this machine has; the file itself holds nothing."""
    free, _ = free_memory(DEFAULT_OPTIONS)
    header = json.dumps({"w": {"dtype": "F32", "shape": [free, 2], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(TeacherError, match=r"takes .* GiB in float32 and .* GiB free"):
        check_memory(tmp_path, dtype="float32", options=replace(DEFAULT_OPTIONS))


def test_memory_that_linux_would_give_back_counts_as_free(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  16 kB\nMemFree:  2 kB\nMemAvailable:  9 kB\n")
    assert available_memory(tmp_path / "meminfo") == 9 * 1024
    (tmp_path / "meminfo").write_text("MemTotal:  16 kB\nMemFree:  2 kB\n")
    assert available_memory(tmp_path / "meminfo") > 1 << 20 and available_memory(tmp_path / "no file") > 1 << 20
