"""MLLMU-Bench's two schemas: the evaluation files and the training files, both with one person and photo a row.

    evaluation  image or images, ID, biography, Classification_Task, Generation_Task, Mask_Task
    training    image, ID, metadata: a JSON list of {Question, Answer}

Both carry data sets of the same name (`forget_5`), so only the columns tell them apart. Items of the training schema
may say more than MLLMU-Bench's own: Type (`Image_Textual`, the default, or `Pure_Text`), Task, Phrasing, Facts; items
of the evaluation tasks may have Phrasing and Facts. How facts are found where no item lists them: facts.py.

Example ids are `<data set>/<ID>/<number of the question in its row>`, then `/p<n>` on every photo of a person but the
first. An image question of a row with several photos is asked about each of them.

What this gives up: the evaluation files' `question` and `answer` columns are accepted and not asked, as in the
benchmark's own evaluation; nor are the task columns of a file that also has `metadata`; few-shot profiles are never
drawn. A cloze text without a gap is asked as it stands, as the benchmark does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vgid.data.examples import Example, Image
from vgid.data.readers.facts import known_values
from vgid.data.readers.fields import optional_id
from vgid.data.readers.items import TASK_COLUMNS, Item, Parsed, metadata_items, task_items
from vgid.data.readers.source import Origin, Outcome
from vgid.errors import DataError

EVALUATION_COLUMNS = frozenset(
    {"image", "images", "ID", "Directory", "biography", "question", "answer", *TASK_COLUMNS, "__index_level_0__"}
)
TRAINING_COLUMNS = EVALUATION_COLUMNS | {"metadata"}


def read_training_row(record: Mapping[str, Any], origin: Origin) -> Iterator[Outcome]:
    """Yield the examples of one row of a training file, and the problems of its items.

    Raises:
        DataError: the row as a whole makes no sense: no ID, `metadata` that is not a JSON list.
    """
    entries = _metadata(record)
    values = known_values(record)
    items = list(metadata_items(entries, values))
    yield from _ask(items, record, origin, subject=_subject(record, entries))


def read_evaluation_row(record: Mapping[str, Any], origin: Origin) -> Iterator[Outcome]:
    """Yield the examples of one row of an evaluation file, and the problems of its items.

    Raises:
        DataError: the row as a whole makes no sense: no ID, task columns of another shape.
    """
    yield from _ask(list(task_items(record)), record, origin, subject=_subject(record, []))


def _ask(items: Sequence[Parsed], record: Mapping[str, Any], origin: Origin, *, subject: str) -> Iterator[Outcome]:
    """Put every item to the photos it is about."""
    photos = _photos(record, origin)
    first = origin.seen[subject]
    origin.seen[subject] += max(1, len(photos))
    yield from (photo for photo in photos if isinstance(photo, DataError))
    if not items:
        yield DataError("the row holds no questions; fill its task or metadata column or drop it")
    for number, item in enumerate(items):
        if isinstance(item, DataError):
            yield item
        elif item.text_only:
            yield _example(item, None, origin, subject=subject, number=number, photo_index=first)
        elif not photos:
            yield DataError(f"image is missing, but question {number} ({item.question[:60]!r}) is about one")
        else:
            for index, photo in enumerate(photos, start=first):
                if not isinstance(photo, DataError):
                    yield _example(item, photo, origin, subject=subject, number=number, photo_index=index)


def _example(
    item: Item, image: Image | None, origin: Origin, *, subject: str, number: int, photo_index: int
) -> Example:
    assert origin.split, "the caller refuses MLLMU-Bench files without a split"
    return Example(
        example_id=f"{origin.name}/{subject}/{number}" + (f"/p{photo_index}" if photo_index else ""),
        split=origin.split,
        subject_id=subject,
        task=item.task,
        modality="text" if image is None else "image",
        image=image,
        photo=None if image is None else origin.photo,
        phrasing=item.phrasing,
        question=item.question,
        answer=item.answer,
        facts=item.facts,
        choices=item.choices,
    )


def _photos(record: Mapping[str, Any], origin: Origin) -> list[Image | DataError]:
    """The row's pictures, `image` and `images` alike one or a list of them; a broken one stands as its problem."""
    photos: list[Image | DataError] = []
    for column in ("image", "images"):
        value = record.get(column)
        for number, entry in enumerate(value if isinstance(value, list) else [value]):
            where = f"{column}[{number}]" if isinstance(value, list) else column
            try:
                photo = origin.gallery.admit(entry, where=where)
            except DataError as error:
                photo = error
            if photo is not None:
                photos.append(photo)
    return photos


def _subject(record: Mapping[str, Any], entries: Sequence[Any]) -> str:
    own = optional_id(record, "ID")
    from_items = {optional_id(entry, "ID") for entry in entries if isinstance(entry, Mapping)} - {None}
    subject = own or (from_items.pop() if len(from_items) == 1 else None)
    if subject is None:
        raise DataError("ID is missing or empty; it says whose knowledge the row carries")
    return subject


def _metadata(record: Mapping[str, Any]) -> list[Any]:
    value = record.get("metadata")
    try:
        entries = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise DataError(f"metadata is not JSON ({error})") from error
    if not isinstance(entries, list):
        raise DataError(f"metadata must hold a JSON list of questions, not {type(entries).__name__}")
    return entries
