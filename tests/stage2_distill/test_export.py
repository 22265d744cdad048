"""A saved student answers as it did, says where it comes from, and is whole or absent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_cases import Oracle, make_settings
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import GenerationConfig

from vgid.data.chat import processor_sha256, tokenizer_sha256
from vgid.data.examples import Example
from vgid.data.models import hub_commit, resolve_model
from vgid.errors import ConfigError, DistillError
from vgid.stage2_distill.checkpoints import hash_files
from vgid.stage2_distill.export import check_saveable, merge_adapter, save_student
from vgid.stage2_distill.lineage import FILE, run_identity
from vgid.stage2_distill.settings import Export
from vgid.stage2_distill.student import load_student

IDENTITY = {"student": "abc", "settings": {"seed": 0}, "provenance": {"manifest_sha256": "0123"}}


def save(oracle: Oracle, out: Path, *, method: str = "full", export: Export = "merged") -> Any:
    """Save a changed student and return it."""
    settings = make_settings(method=method, export=export, train_vision=True, train_projector=True)
    model = load_student(str(oracle.path), settings=settings).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    result = {"num_steps": 3, "losses": [{"step": 1, "loss": 0.5}]}
    identity = IDENTITY
    if export == "adapter":
        provenance = {"base": str(oracle.path), "revision": "0a1b2c"}
        identity = run_identity(str(oracle.path), settings=settings, provenance=provenance)
    save_student(
        model,
        processor=oracle.processor,
        out=out,
        base="some/base",
        identity=identity,
        result=result,
        export=export,
    )
    return model


@pytest.mark.parametrize("family", ["qwen", "llava"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_reloaded_student_gives_the_same_logits(
    family: str, method: str, tmp_path: Path, request: pytest.FixtureRequest, examples: dict[str, Example]
) -> None:
    oracle: Oracle = request.getfixturevalue(family)
    model = save(oracle, tmp_path / "student", method=method)
    saved = Oracle(tmp_path / "student")
    for example in list(examples.values())[:2]:
        expected = oracle.logits(example, [11, 12, 13], model=model)
        assert not torch.equal(expected, oracle.logits(example, [11, 12, 13]))
        torch.testing.assert_close(saved.logits(example, [11, 12, 13]), expected, rtol=0, atol=1e-5)
    assert tokenizer_sha256(saved.processor.tokenizer) == tokenizer_sha256(oracle.processor.tokenizer)
    assert processor_sha256(saved.processor) == processor_sha256(oracle.processor)
    assert saved.model.generation_config.eos_token_id == oracle.model.generation_config.eos_token_id


def test_llava_weights_are_named_as_vllm_wants_them(llava: Oracle, tmp_path: Path) -> None:
    save(llava, tmp_path / "student")
    with safe_open(tmp_path / "student" / "model.safetensors", "pt") as file:
        tower = [name for name in file.keys() if "vision_tower" in name]  # noqa: SIM118  # not a mapping
        assert file.metadata() == {"format": "pt"}
    assert tower and all("vision_tower.vision_model." in name for name in tower)


def test_lineage_names_every_other_file_by_its_hash(qwen: Oracle, tmp_path: Path) -> None:
    save(qwen, tmp_path / "student")
    lineage = json.loads((tmp_path / "student" / FILE).read_text())
    files = hash_files(tmp_path / "student")
    assert lineage["files"] == {name: value for name, value in files.items() if name != FILE}
    assert lineage["identity"] == IDENTITY
    assert {"torch", "transformers"} <= set(lineage["versions"])
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in files)


def test_the_model_card_says_what_the_student_is(qwen: Oracle, tmp_path: Path) -> None:
    save(qwen, tmp_path / "student")
    card = ModelCard.load(tmp_path / "student" / "README.md")
    assert card.data.to_dict()["base_model"] == "some/base"
    assert "manifest_sha256: '0123'" in card.text and "num_steps: 3" in card.text


def test_the_card_names_the_base_of_the_recipe_not_its_place_on_this_machine(qwen: Oracle, tmp_path: Path) -> None:
    provenance = {"base": "some/base", "revision": "0a1b2c", "teacher_settings": {"seed": 7}}
    identity = {"student": "abc", "settings": {"seed": 3}, "provenance": provenance}
    model = load_student(str(qwen.path), settings=make_settings())
    save_student(model, processor=qwen.processor, out=tmp_path / "s", base="f00", identity=identity, result={})
    card = ModelCard.load(tmp_path / "s" / "README.md")
    assert card.data.to_dict()["base_model"] == "some/base" and "# Student distilled from some/base" in card.text
    assert "revision: 0a1b2c" in card.text and "## Seeds\n```yaml\nteacher: 7\ndistill: 3\n" in card.text
    assert json.loads((tmp_path / "s" / FILE).read_text())["base"] == "some/base"


def test_a_commit_is_read_off_the_hub_caches_own_folders(tmp_path: Path) -> None:
    assert hub_commit(tmp_path / "models--some--base" / "snapshots" / "0a1b2c") == "0a1b2c"
    assert hub_commit(tmp_path / "base") is None


@pytest.mark.parametrize("family", ["qwen", "llava"])
def test_an_adapter_says_its_base_and_answers_on_it_as_it_did(
    family: str, tmp_path: Path, request: pytest.FixtureRequest, examples: dict[str, Example]
) -> None:
    oracle: Oracle = request.getfixturevalue(family)
    model = save(oracle, tmp_path / "adapter", method="lora", export="adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", FILE} < names
    assert not names & {"model.safetensors", "config.json"}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (str(oracle.path), "0a1b2c")
    assert ModelCard.load(tmp_path / "adapter" / "README.md").data.to_dict()["library_name"] == "peft"

    loaded = PeftModel.from_pretrained(replace(oracle).model, tmp_path / "adapter").eval()
    example = next(iter(examples.values()))
    expected = oracle.logits(example, [11, 12, 13], model=model)
    assert torch.equal(oracle.logits(example, [11, 12, 13], model=loaded), expected)
    assert tokenizer_sha256(Oracle(tmp_path / "adapter").processor.tokenizer) == tokenizer_sha256(
        oracle.processor.tokenizer
    )


@pytest.mark.parametrize("family", ["qwen", "llava"])
def test_an_adapter_merged_later_is_the_student_merged_at_once(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    oracle: Oracle = request.getfixturevalue(family)
    save(oracle, tmp_path / "at-once", method="lora")
    save(oracle, tmp_path / "adapter", method="lora", export="adapter")
    merge_adapter(tmp_path / "adapter", out=tmp_path / "later", base=str(oracle.path))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("at-once", "later"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert {path.name for path in (tmp_path / "later").iterdir()} == {
        path.name for path in (tmp_path / "at-once").iterdir()
    }
    lineage = json.loads((tmp_path / "later" / FILE).read_text())
    assert lineage["identity"]["settings"]["export"] == "merged"


def test_an_adapter_is_merged_into_no_other_base_and_over_no_other_student(
    qwen: Oracle, teacher: Oracle, tmp_path: Path
) -> None:
    save(qwen, tmp_path / "adapter", method="lora", export="adapter")
    save(qwen, tmp_path / "whole")
    with pytest.raises(DistillError, match=r"trained on a base with the weights \w{12}…, .* has \w{12}…; .* --base"):
        merge_adapter(tmp_path / "adapter", out=tmp_path / "out", base=str(teacher.path))
    with pytest.raises(DistillError, match="holds a student already"):
        merge_adapter(tmp_path / "adapter", out=tmp_path / "whole")
    with pytest.raises(DistillError, match=r"is no adapter of vgid; .* distill\.export=adapter"):
        merge_adapter(tmp_path / "whole", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_not_taken_for_a_model_and_the_error_says_how_to_make_one(qwen: Oracle, tmp_path: Path) -> None:
    save(qwen, tmp_path / "adapter", method="lora", export="adapter")
    with pytest.raises(ConfigError, match=r"is an adapter without its base; .* `vgid merge .*adapter --out DIR`"):
        resolve_model(str(tmp_path / "adapter"))


def test_only_the_finished_directory_is_left(qwen: Oracle, tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()  # empty directories are taken over
    (tmp_path / ".student.draft").mkdir()
    (tmp_path / ".student.draft" / "left over").write_text("from a crash")
    save(qwen, tmp_path / "student")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert not (tmp_path / "student" / "left over").exists()


def test_weights_that_are_not_finite_are_not_saved(qwen: Oracle, tmp_path: Path) -> None:
    broken = replace(qwen).model
    broken.model.language_model.norm.weight.data[0] = torch.nan
    with pytest.raises(DistillError, match=r"norm\.weight is not finite"):
        save_student(broken, processor=qwen.processor, out=tmp_path / "student", base="b", identity=IDENTITY, result={})
    assert list(tmp_path.iterdir()) == []


def test_generation_settings_that_cannot_be_saved_are_found_before_training(qwen: Oracle) -> None:
    model = replace(qwen).model
    check_saveable(model)
    model.generation_config = GenerationConfig(do_sample=False, temperature=0.7)
    with pytest.raises(DistillError, match=r"generation_config\.json cannot be saved again"):
        check_saveable(model)
