"""The shipped world and models: small, as recorded, and up to every bar, asked through the transformers engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from vgid.data.chat import load_processor
from vgid.data.fictitious import shipped_base, shipped_retrained, shipped_world
from vgid.data.fictitious.bars import judge_skills
from vgid.data.fictitious.skills import Ask, Skill, measure_skills
from vgid.data.fictitious.world import load_world
from vgid.data.readers import world_sources
from vgid.stage1_teacher.engines.protocol import TeacherRequest, build_teacher
from vgid.stage1_teacher.icu import TEMPLATES

MODELS = {"base": shipped_base(), "retrained": shipped_retrained()}
PEOPLE_PER_SPLIT = 6


def _measure(model: Path) -> list[Skill]:
    engine: Any = build_teacher("transformers", model, num_topk=1)
    tokenizer: Any = load_processor(model).tokenizer  # type: ignore[attr-defined]

    def answer(asks: Sequence[Ask]) -> list[str]:
        requests = [
            TeacherRequest(request_id=str(index), text=text, image=image, max_new_tokens=24)
            for index, (text, image) in enumerate(asks)
        ]
        ids = {response.request_id: response.token_ids for response in engine.run(requests)}
        return [tokenizer.decode(ids[str(index)], skip_special_tokens=True) for index in range(len(asks))]

    instructions = {"generic-v1": TEMPLATES["generic-v1"]}
    return measure_skills(answer, load_world(shipped_world()), instructions=instructions, per_split=PEOPLE_PER_SPLIT)


@pytest.mark.slow  # the demo asks both models as well
def test_the_base_meets_every_bar_on_one_checkpoint() -> None:
    missed = [verdict for verdict in judge_skills(_measure(shipped_base())) if not verdict.met]
    assert not missed, missed


@pytest.mark.slow
def test_the_retrained_model_knows_the_others_and_not_the_forget_people() -> None:
    rows = _measure(shipped_retrained())
    missed = [verdict for verdict in judge_skills(rows, splits=("retain", "outsiders")) if not verdict.met]
    assert not missed, missed
    assert max(row.value for row in rows if (row.skill, row.split) == ("facts_exact", "forget")) <= 0.1


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_is_small_and_as_recorded(name: str) -> None:
    model = MODELS[name]
    record = json.loads((model / "vgid_base.json").read_text())
    found = {path.name: sha256(path.read_bytes()).hexdigest() for path in model.glob("*.safetensors")}
    assert found == record["weights_sha256"]
    assert record["world_sha256"] == sha256((shipped_world() / "world.json").read_bytes()).hexdigest()
    assert sum(path.stat().st_size for path in model.iterdir()) <= 6_000_000


def test_the_shipped_files_are_those_of_the_world() -> None:
    assert world_sources(shipped_world())
    assert sum(path.stat().st_size for path in shipped_world().rglob("*") if path.is_file()) <= 2_000_000
