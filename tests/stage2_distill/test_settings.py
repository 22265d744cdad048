"""What a recipe may and may not say about stage two."""

from __future__ import annotations

from typing import Any

import pytest
from distill_cases import SELECTIONS, make_settings
from pydantic import BaseModel, ValidationError

from vgid.stage2_distill.settings import DistillSettings, LoraSettings, LossSettings, TargetSelection


def test_role_follows_the_split_unless_said() -> None:
    settings = make_settings()
    assert [target.role for target in settings.targets] == ["forget", "forget", "retain"]
    assert TargetSelection.model_validate({**SELECTIONS[2], "role": "forget"}).role == "forget"


def test_lora_settings_have_defaults_only_where_the_method_is_lora() -> None:
    assert make_settings(method="lora").lora == LoraSettings()
    assert make_settings().lora is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 1e-3}, "learning_rat"),
        ({"epochs": 2.0}, "exactly one of epochs and max_steps"),
        ({"max_steps": None}, "exactly one of epochs and max_steps"),
        ({"lora": {"r": 4}}, "do not fit together"),
        ({"export": "adapter"}, "needs method 'lora'"),
        ({"retain_batch": 0}, "targets select some retain rows"),
        ({"targets": SELECTIONS[:2]}, "targets select no retain rows"),
        ({"targets": [{**SELECTIONS[0], "veiw": "icu"}]}, "veiw"),
        ({"targets": [{**SELECTIONS[0], "view": "fog"}]}, "noise"),
        ({"targets": []}, "at least 1"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"max_steps": None, "epochs": float("inf")}, "finite"),
        ({"alpha": float("nan")}, "finite"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"seed": 2**32}, "less than 4294967296"),
        ({"loss": {"divergence": "topk_conditional_kl"}}, "needs one"),
        ({"loss": {"temperature": 2.0}}, "a temperature belongs to topk_conditional_kl"),
        ({"loss": {"divergence": "jsd", "temperature": 1.0}}, "a temperature belongs to topk_conditional_kl"),
        ({"online": True, "fused_head": True}, "cannot be combined"),
        ({"loss": {"divergence": "tvd"}}, "forward_kl"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_settings(**changes)


@pytest.mark.parametrize("field", ["alpha", "beta", "learning_rate", "forget_batch", "retain_batch", "seed", "targets"])
def test_what_decides_a_result_has_no_default(field: str) -> None:
    said = make_settings().model_dump(exclude={field})
    with pytest.raises(ValidationError, match=field):
        DistillSettings.model_validate(said)


@pytest.mark.parametrize("model", [DistillSettings, LossSettings, LoraSettings, TargetSelection])
def test_every_field_says_what_it_means(model: type[BaseModel]) -> None:
    assert all(field.description for field in model.model_fields.values())


def test_settings_survive_json() -> None:
    settings = make_settings(method="lora")
    assert DistillSettings.model_validate_json(settings.model_dump_json()) == settings
