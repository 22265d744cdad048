"""From a handful of photos and a name to a forget set: ask the base itself, and write down what it says.

Whoever asks to be forgotten brings no question-answer pairs. What the base answers now is what must go, so its own
greedy answers become the reference answers, and what they agree on the facts (`vgid.data.questions`). The result is a
draft that a person looks through; what to keep it cannot propose, and says so.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from PIL import Image as PIL

from vgid.data.chat import check_no_special_tokens, load_processor
from vgid.data.images import open_image, read_image_bytes
from vgid.data.judge import normalise, refuses
from vgid.data.models import resolve_model
from vgid.data.questions import Question, facts_of_answers, questions_about
from vgid.errors import ConfigError, DataError
from vgid.pipeline.console import progress
from vgid.pipeline.request_text import readme_text, recipe_text
from vgid.stage1_teacher.engines import TeacherRequest, build_teacher
from vgid.stage1_teacher.options import EngineName

MAX_NEW_TOKENS = 64
REFUSED = "refused"
"""Task of rows where the base declines already: they are kept, and the plan leaves them out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """One of the person's photos."""

    name: str
    """File name beside the questions."""
    encoded: bytes
    picture: PIL.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question and, for questions about a photo, which."""

    row_id: str
    question: Question
    photo: Photo | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What was written, for people and machines."""

    folder: Path
    rows: list[dict[str, Any]]
    unanswered: int
    """Questions to which the base said nothing at all; they have no row."""

    @property
    def attributes(self) -> list[dict[str, Any]]:
        """By attribute and modality: rows, how many the base declines, and the facts it gave away."""
        table: dict[tuple[str, str], dict[str, Any]] = {}
        for row in self.rows:
            modality = "image" if row["image"] else "text"
            key = (row["id"].split("/")[0], modality)
            kept = table.setdefault(
                key,
                {"attribute": key[0], "modality": modality, "rows": 0, "refused": 0, "with_facts": 0, "facts": []},
            )
            kept["rows"] += 1
            kept["refused"] += row["task"] == REFUSED
            kept["with_facts"] += bool(row["facts"])
            kept["facts"] += [fact for fact in row["facts"] if fact not in kept["facts"]]
        return list(table.values())


def propose_questions(
    photos: Sequence[Path],
    *,
    name: str,
    model: str,
    out: Path,
    subject: str | None = None,
    engine: EngineName = "vllm",
    limit: int | None = None,
) -> Proposal:
    """Ask a model about a person and write a forget set, a recipe and what to do next.

    Args:
        photos: Image files of the person, each another one.
        name: What people call the person.
        model: The base: a directory, a Hugging Face id, or `fictitious:base`.
        out: Folder to be made; it appears whole or not at all, readable by its owner only.
        subject: Id of the person in the data; None makes one of the name.
        engine: Which engine asks.
        limit: Most questions asked; the first wording of everything comes first.

    Raises:
        ConfigError: the name or the subject is empty, no photos, `out` exists, or the model does not load.
        DataError: a file is no photo, two are the same, or the name holds a special token of the model.
    """
    name, subject = name.strip(), subject or "-".join(normalise(name).split())
    if not name:
        raise ConfigError("--name '': expected what people call the person, for example 'Mara Quill'")
    if not subject:
        raise ConfigError(f"--name {name!r} has no letters to make an id of; give --subject")
    if not name.isprintable():
        raise ConfigError(f"--name {name!r} holds control characters; write it on one line")
    if out.exists() or out.is_symlink():
        raise ConfigError(f"--out {out} exists; choose a new folder or remove it first")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.absolute().parent}")
    opened = open_photos(photos)
    directory = resolve_model(model)
    processor = load_processor(directory)
    check_no_special_tokens(processor.tokenizer, name)
    asked = list(_asked(questions_about(name), opened))[:limit]
    dtype = _own_dtype(directory)
    answers = _answers(asked, directory, processor.tokenizer, engine=engine, dtype=dtype)
    rows = list(_rows(asked, answers, name=name, subject=subject))
    proposal = Proposal(folder=out, rows=rows, unanswered=len(asked) - len(rows))
    here = str(Path(model).resolve()) if Path(model).is_dir() else model
    modalities = [each for each in ("image", "text") if any(_trains(row, each) for row in rows)]
    texts = {
        "recipe.yaml": recipe_text(model=here, dtype=dtype, modalities=modalities),
        "README.md": readme_text(name=name, model=here, table=proposal.attributes, unanswered=proposal.unanswered),
        "questions.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    }
    _write_folder(out, opened, texts)
    return proposal


def open_photos(paths: Sequence[Path]) -> list[Photo]:
    """Read photos as they are; nothing is scaled or encoded anew.

    Raises:
        ConfigError: there are none.
        DataError: a file is no photo, or is given twice.
    """
    if not paths:
        raise ConfigError("no photos; name one image file or more")
    photos: list[Photo] = []
    seen: dict[str, Path] = {}
    for number, path in enumerate(paths, start=1):
        if path.is_dir():
            raise DataError(f"photo {path} is a folder; name the image files in it")
        encoded = read_image_bytes(path)
        picture = open_image(encoded, where=f"photo {path}")
        same = seen.setdefault(sha256(encoded).hexdigest(), path)
        if len(seen) < number:
            raise DataError(f"photo {path} is the same file as {same}; name it once")
        photos.append(Photo(name=f"photo-{number}{path.suffix.lower()}", encoded=encoded, picture=picture))
    return photos


def _asked(questions: Sequence[Question], photos: Sequence[Photo]) -> Iterator[Asked]:
    for question in questions:
        about: Sequence[Photo | None] = photos if question.modality == "image" else (None,)
        for photo in about:
            of = "name" if photo is None else Path(photo.name).stem
            yield Asked(row_id=f"{question.attribute}/{of}/{question.wording}", question=question, photo=photo)


def _answers(
    asked: Sequence[Asked], directory: Path, tokenizer: Any, *, engine: EngineName, dtype: str
) -> Mapping[str, str]:
    """The base's greedy answers by row id."""
    requests = [
        TeacherRequest(
            request_id=each.row_id,
            text=each.question.text,
            image=None if each.photo is None else each.photo.picture,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        for each in asked
    ]
    teacher = build_teacher(engine, directory, num_topk=1, dtype=dtype)
    answers: dict[str, str] = {}
    try:
        with progress("ask") as report:
            for response in teacher.run(requests):
                text = tokenizer.decode(response.token_ids.tolist(), skip_special_tokens=True)
                answers[response.request_id] = " ".join(text.split())
                report(len(answers), len(requests), "answers")
    finally:
        teacher.close()
    return answers


def _rows(asked: Sequence[Asked], answers: Mapping[str, str], *, name: str, subject: str) -> Iterator[dict[str, Any]]:
    """Rows of a table that vgid reads; questions without an answer have none."""
    answered = [each for each in asked if answers[each.row_id]]
    facts = facts_of_answers([(each.question, answers[each.row_id]) for each in answered], name=name)
    for each, of_row in zip(answered, facts, strict=True):
        answer = answers[each.row_id]
        yield {
            "id": each.row_id,
            "image": "" if each.photo is None else f"photos/{each.photo.name}",
            "question": each.question.text,
            "answer": answer,
            "subject": subject,
            "subject_name": name,
            "split": "forget",
            "task": REFUSED if refuses(answer) else "facts",
            "facts": list(of_row),
            "phrasing": "heldout" if each.question.heldout else "trained",
        }


def _trains(row: Mapping[str, Any], modality: str) -> bool:
    return row["task"] == "facts" and row["phrasing"] == "trained" and bool(row["image"]) == (modality == "image")


def _own_dtype(directory: Path) -> str:
    """bfloat16 for a model that was saved in 16 bits (students train in no other), else float32."""
    from transformers import AutoConfig

    saved = str(getattr(AutoConfig.from_pretrained(str(directory)), "dtype", None))
    return "bfloat16" if saved.endswith("float16") else "float32"


def _write_folder(out: Path, photos: Sequence[Photo], texts: Mapping[str, str]) -> None:
    temporary = out.absolute().with_name(f".tmp-{uuid4().hex}")
    files = {name: text.encode() for name, text in texts.items()}
    files |= {f"photos/{photo.name}": photo.encoded for photo in photos}
    try:
        for folder in (temporary, temporary / "photos"):
            folder.mkdir(mode=0o700)
        for name, content in files.items():
            with os.fdopen(os.open(temporary / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
        temporary.rename(out.absolute())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
