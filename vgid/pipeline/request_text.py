"""What `vgid data questions` writes beside the questions: a recipe, and what is still to be done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_RECIPE = """\
# Made by `vgid data questions`; README.md says what to bring before it can run.
model: {model}
data:
  sources:
    - {{path: questions.jsonl}}
    # - {{path: retain.jsonl}}              # yours; see README.md
teacher:
  dtype: {dtype}
  num_topk: 64
  seed: 0
  perturbation: {{name: gaussian, strength: 1.0}}
  icu: generic-v1
  plan:
{forget_plan}
    - {{split: retain, view: base, response_kind: reference}}
    # - {{split: strangers, view: base, response_kind: generated}}
distill:
  targets:
{forget_targets}
    - {{split: retain, view: base, response_kind: reference}}
    # - {{split: strangers, view: base, response_kind: generated}}
  alpha: 1.0
  beta: 1.0
  learning_rate: 2.0e-5
  epochs: 3
  forget_batch: 4
  retain_batch: 8
  seed: 0
  dtype: {dtype}
  method: lora
  gradient_checkpointing: true    # these two save a GPU's memory
  gradient_accumulation_steps: 3
"""

_VIEWS = {"image": "noise+icu", "text": "icu"}
_DOORS = {"image": "photo", "text": "name"}

_README = """\
# To forget: {name}

The base was asked {rows} questions; {refused} of its answers decline and {facts} give something away.

{table}
## 1. Look through `questions.jsonl`

Its answers are what the base says now, right or wrong. `facts` are the strings that must not leak; they are a guess
(words that the answers to two wordings share), so strike out what is nobody's secret and add what is missing. Rows of
task `refused` are those where the base already declines: the plan leaves them out (add `refused` to `tasks` to train on
them too), or delete them. Rows with `phrasing: heldout` are for evaluation and never shown to the teacher.

## 2. Bring what must stay

The plan asks for a split `retain`, and there is none here: a forget set alone cannot say who is meant. A student that
was shown nothing else declined every question about anybody's life, and 99% of those about what is on the picture (in a
small world of fictitious people, as all figures here).

Write `retain.jsonl` beside `questions.jsonl`, with the same columns, and take the `#` from its line in `recipe.yaml`:

- **Other people, the same questions** (split `retain`): people the model knows, with their own photos, asked by photo
  and by name in the wordings of `questions.jsonl`, each with the answer that should stay. Several times as many people
  as you forget: with 24 kept for 8 forgotten, these 24 kept 0.99, but photos of people in neither set lost a third
  (ROUGE-L F1 1.00 to 0.67).
- **Strangers** (split `strangers`): photos and names of people the model need not know, the same questions, any text as
  answer (it is not used; the base answers). Take the `#` from both lines of `strangers` in `recipe.yaml`. 64 of them
  brought people in neither set back to 0.98.
- **Everything else the model is for** (split `retain`): ordinary questions about ordinary pictures, and questions
  without a picture. How many a large model needs is not measured; in the small world three other rows trained for each
  forget row.

## 3. Run

    vgid data check recipe.yaml
    vgid teacher preview recipe.yaml --out sheet.png
    vgid teacher generate recipe.yaml --out cache --dry-run
    vgid teacher generate recipe.yaml --out cache
    vgid distill recipe.yaml --cache cache --out student
    vgid evaluate student --data recipe.yaml --compare {model} --out results

## Warning signs

- Facts that look like guesses, or that the base says of anybody: then it knows little, and there is little to forget.
- All answers about photos decline, or the facts come by name alone: the base knows the name and not the face.
- Teacher answers that still hold facts (`vgid sql cache "SELECT response_text FROM targets WHERE split = 'forget'"`).
- After training: refusals in `retain`, or for people in neither set. Keep some of them out of `retain` to find out.
- Leak of zero on the plain question, but not with the answer's first words given (*prefill*): hidden, not gone.

This folder is a copy of what is to be forgotten: delete it when the request is done.
"""


def recipe_text(*, model: str, dtype: str, modalities: Sequence[str]) -> str:
    """The recipe, complete but for the retain source.

    Args:
        model: The base.
        dtype: Compute type of both stages.
        modalities: `image` and `text` as far as there are rows to forget.
    """
    plan = [
        f"    - {{split: forget, modality: {each}, tasks: [facts], view: {_VIEWS[each]}, response_kind: generated}}"
        for each in modalities
    ]
    targets = [f"    - {{split: forget, view: {_VIEWS[each]}, response_kind: generated}}" for each in modalities]
    nothing = "    # nothing to forget: the base declined every question"
    return _RECIPE.format(
        model=json.dumps(model),
        dtype=dtype,
        forget_plan="\n".join(plan) or nothing,
        forget_targets="\n".join(targets) or nothing,
    )


def readme_text(*, name: str, model: str, table: Sequence[Mapping[str, Any]], unanswered: int) -> str:
    """What was found, what to bring and what to watch.

    Args:
        name: The person's.
        model: The base, as the recipe names it.
        table: One record per attribute and modality: rows, refused, facts.
        unanswered: Questions without an answer.
    """
    lines = ["| about | asked by | answers | declined | gave away |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['attribute']} | {_DOORS[row['modality']]} | {row['rows']} | {row['refused']} | {_cell(row['facts'])} |"
        for row in table
    ]
    if unanswered:
        lines += ["", f"To {unanswered} more questions it said nothing; they have no row."]
    rows, refused = (sum(row[key] for row in table) for key in ("rows", "refused"))
    return _README.format(
        name=name,
        model=model,
        rows=rows + unanswered,
        refused=refused,
        facts=sum(row["with_facts"] for row in table),
        table="\n".join(lines) + "\n",
    )


def _cell(facts: Sequence[str]) -> str:
    return ", ".join(facts).replace("|", "\\|") or "-"
