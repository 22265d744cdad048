"""What a base model can do, measured on photos and wordings it was not trained on, beside those it was.

One list of flat rows per model: skill x split x modality x photo x phrasing. The answers come from a callable, so the
same measurement runs through any engine; `greedy_answers` is the plain transformers one. What this gives up:
confidence intervals, which `vgid evaluate` has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vgid.data.fictitious.items import THIS_PERSON, Item, image_fact, perception, text_fact
from vgid.data.fictitious.people import FIELDS, Person
from vgid.data.fictitious.phrasings import CLOZE, PERCEPTION_QUESTIONS, Phrasing, draw_options, fact_question
from vgid.data.fictitious.population import World
from vgid.data.fictitious.portraits import draw_portrait
from vgid.data.judge import leaks, normalise, refuses
from vgid.data.readers.wording import classification_question, cloze_question

Ask = tuple[str, "Image.Image | None"]
Answerer = Callable[[Sequence[Ask]], list[str]]
NOISES = ("gaussian", "uniform", "blank")


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """One measured number; an empty string means that the column does not apply."""

    skill: str
    split: str
    modality: str
    photo: str = ""
    phrasing: str = ""
    detail: str = ""
    value: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    key: tuple[str, str, str, str, str, str]
    """Skill, split, modality, photo, phrasing, detail."""
    ask: Ask
    item: Item


def measure_skills(
    answer: Answerer, world: World, *, instructions: Mapping[str, str], per_split: int | None = None
) -> list[Skill]:
    """Measure facts, ICU refusal, noise refusal and perception.

    Args:
        answer: Answers (user turn, photo or none) pairs, in order.
        world: The world the model was trained on.
        instructions: Held-out ICU instructions by name.
        per_split: Ask about only so many people of each split; None asks about all.
    """
    splits = dict.fromkeys(person.split for person in world.known)
    people = [person for split in splits for person in world.of(split)[:per_split]]
    probes = [probe for person in people for probe in _probes(world, person, instructions)]
    answers = answer([probe.ask for probe in probes])
    groups: dict[tuple[str, ...], list[float]] = {}
    for probe, text in zip(probes, answers, strict=True):
        for skill, value in _scores(probe, text):
            groups.setdefault((skill, *probe.key[1:]), []).append(value)
    return [_row(key, values) for key, values in groups.items()]


def greedy_answers(model_dir: Path, *, batch_size: int = 96, max_new_tokens: int = 24) -> Answerer:
    """Return an answerer that decodes greedily with transformers, in float32."""
    import torch
    from transformers import Qwen2VLForConditionalGeneration

    from vgid.data.chat import chat_prompt, load_processor

    processor: Any = load_processor(model_dir)
    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(model_dir, dtype=torch.float32).eval()

    def decode(asks: Sequence[Ask]) -> list[str]:
        texts = [chat_prompt(processor, text, image=image is not None) for text, image in asks]
        images = [image for _, image in asks if image is not None] or None
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def answer(asks: Sequence[Ask]) -> list[str]:
        order = sorted(range(len(asks)), key=lambda index: (asks[index][1] is None, len(asks[index][0])))
        answers = [""] * len(asks)
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            for index, text in zip(chunk, decode([asks[index] for index in chunk]), strict=True):
                answers[index] = text.strip()
        return answers

    return answer


def ruin(image: Image.Image, kind: str, *, seed: int) -> Image.Image:
    """Full noise of one kind: `gaussian` (nothing of the photo is left), `uniform` static, or a `blank` grey image."""
    rng, shape = np.random.default_rng(seed), (image.height, image.width, 3)
    if kind == "blank":
        return Image.new("RGB", image.size, (128, 128, 128))
    static = 127.5 + 127.5 * rng.standard_normal(shape) if kind == "gaussian" else rng.uniform(0, 255, shape)
    return Image.fromarray(np.clip(static, 0, 255).round().astype(np.uint8))


def _probes(world: World, person: Person, instructions: Mapping[str, str]) -> Iterable[_Probe]:
    shot = world.people.index(person)
    wordings: tuple[Phrasing, Phrasing] = ("trained", "heldout")
    photos = {
        "trained": world.trained_views[person.person_id][shot % 4],
        "heldout": world.heldout_views[person.person_id][shot % 2],
    }
    for photo, view in photos.items():
        image = Image.fromarray(draw_portrait(person.face, view))
        for phrasing in wordings:
            for column, field in enumerate(FIELDS):
                item = image_fact(person, field, view=0, phrasing=phrasing, index=shot + column)
                yield _probe("facts", person, item, photo, image=image)
                if photo == "heldout":
                    yield from _interventions(person, item, image, instructions, shot + column)
            for column, field in enumerate(PERCEPTION_QUESTIONS):
                item = perception(person, field, view=view, view_index=0, phrasing=phrasing, index=shot + column)
                yield _probe("perception", person, item, photo, image=image, detail=field)
        if photo == "heldout":
            yield from _tasks(world, person, image)
    yield from _tasks(world, person, None)
    for phrasing in wordings:
        for column, field in enumerate(FIELDS[1:]):
            item = text_fact(person, field, phrasing=phrasing, index=shot + column)
            yield _probe("facts", person, item, "", image=None)
            for name, instruction in instructions.items():
                yield _probe("icu", person, item, "", image=None, detail=name, instruction=instruction)


def _interventions(
    person: Person, item: Item, image: Image.Image, instructions: Mapping[str, str], seed: int
) -> Iterable[_Probe]:
    for name, instruction in instructions.items():
        yield _probe("icu", person, item, "heldout", image=image, detail=name, instruction=instruction)
    for kind in NOISES:
        yield _probe("noise", person, item, "heldout", image=ruin(image, kind, seed=seed), detail=kind)


def _tasks(world: World, person: Person, image: Image.Image | None) -> Iterable[_Probe]:
    """Cloze and lettered questions in the readers' words."""
    who, photo = (person.name, "") if image is None else (THIS_PERSON, "heldout")
    rng = np.random.default_rng([world.seed, 4, world.people.index(person)])
    for field in FIELDS[1:]:
        options, letter = draw_options(field, truth=person.facts[field], rng=rng)
        fact = text_fact(person, field, phrasing="trained", index=0)
        asked = fact_question(field, who=who, phrasing="trained", index=0)
        choice = replace(fact, question=classification_question(asked, options), answer=letter)
        yield _probe("classification", person, choice, photo, image=image)
        sentence = CLOZE[field].format(who=who[0].upper() + who[1:])
        cloze = replace(fact, question=cloze_question(sentence), answer=person.facts[field])
        yield _probe("cloze", person, cloze, photo, image=image)


def _probe(
    skill: str,
    person: Person,
    item: Item,
    photo: str,
    *,
    image: Image.Image | None,
    detail: str = "",
    instruction: str | None = None,
) -> _Probe:
    text = item.question if instruction is None else f"{instruction}\n{item.question}"
    modality = "text" if image is None else "image"
    return _Probe(key=(skill, person.split, modality, photo, item.phrasing, detail), ask=(text, image), item=item)


def _scores(probe: _Probe, text: str) -> Iterable[tuple[str, float]]:
    skill = probe.key[0]
    if skill == "facts":
        yield "facts_rouge_l", rouge_l_f1(text, probe.item.answer)
        yield "facts_exact", float(leaks(text, probe.item.facts))
    elif skill == "perception":
        yield "perception_exact", float(normalise(text) == normalise(probe.item.answer))
    elif skill in ("cloze", "classification"):
        yield f"{skill}_exact", float(normalise(text) == normalise(probe.item.answer))
    else:
        yield f"{skill}_refusal", float(refuses(text))


def rouge_l_f1(text: str, reference: str) -> float:
    """ROUGE-L F1 with stemming."""
    return _scorer().score(reference, text)["rougeL"].fmeasure


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def _row(key: tuple[str, ...], values: Sequence[float]) -> Skill:
    skill, split, modality, photo, phrasing, detail = key
    mean = round(float(np.mean(values)), 4)
    return Skill(
        skill=skill,
        split=split,
        modality=modality,
        photo=photo,
        phrasing=phrasing,
        detail=detail,
        value=mean,
        n=len(values),
    )
