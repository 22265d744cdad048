"""Draw pictures in rows, each with a caption, and the words that go with them beneath.

The letters are those of Pillow's own font: Latin, with accents. Other scripts come out as boxes; read such prompts on
stdout. Control characters are spelt out, so that nothing in a text can hide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image as PIL
from PIL import ImageDraw, ImageFont

from vgid.pipeline.console import spelt_out

CELL = 200
"""Side in pixels that a picture is brought to."""
_GAP, _MARGIN = 10, 16
_SIZE, _TITLE_SIZE = 15, 19
_LEAST_CELLS = 4
_INK, _GREY, _PAPER = (20, 20, 20), (190, 190, 190), (255, 255, 255)


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetRow:
    """One example: its pictures with their captions, left to right, and its words."""

    heading: str
    pictures: Sequence[tuple[str, PIL.Image]]
    text: str


def thumbnail(picture: PIL.Image) -> PIL.Image:
    """The picture scaled to fit a cell; small ones are enlarged without smoothing, so that noise stays noise."""
    scale = CELL / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, PIL.Resampling.NEAREST if scale > 1 else PIL.Resampling.LANCZOS)


def draw_sheet(title: str, rows: Sequence[SheetRow]) -> PIL.Image:
    """One RGB picture of all rows, as wide as the longest row of pictures and as high as it takes."""
    cells = max([_LEAST_CELLS, *(len(row.pictures) for row in rows)])
    width = cells * (CELL + _GAP) - _GAP
    font, large = _font(_SIZE), _font(_TITLE_SIZE)
    blocks: list[tuple[SheetRow | None, list[str]]] = [(None, list(wrap(title, font=large, width=width)))]
    blocks += [(row, list(wrap(row.text, font=font, width=width))) for row in rows]
    height = 2 * _MARGIN + sum(_height(row, lines) for row, lines in blocks)
    sheet = PIL.new("RGB", (width + 2 * _MARGIN, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, lines in blocks:
        bottom = top + _height(row, lines)
        if row is not None:
            draw.line([(_MARGIN, top), (_MARGIN + width, top)], _GREY)
            top = _draw_pictures(sheet, draw, row, top + _GAP, font)
        for line in lines:
            draw.text((_MARGIN, top), line, _INK, large if row is None else font)
            top += _line_height(_TITLE_SIZE if row is None else _SIZE)
        top = bottom
    return sheet


def wrap(text: str, *, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> Iterator[str]:
    """The lines of a text, none wider than `width` pixels; a word that is too long is cut."""
    for paragraph in text.splitlines():
        line = ""
        for word in spelt_out(paragraph).split(" "):
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) <= width:
                line = longer
                continue
            if line:
                yield line
            *full, line = _cut(word, font=font, width=width)
            yield from full
        yield line


def _cut(word: str, *, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> Iterator[str]:
    piece = ""
    for letter in word:
        if piece and font.getlength(piece + letter) > width:
            yield piece
            piece = ""
        piece += letter
    yield piece


def _draw_pictures(
    sheet: PIL.Image,
    draw: ImageDraw.ImageDraw,
    row: SheetRow,
    top: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> int:
    """Heading, pictures and captions of one row; returns where its words begin."""
    draw.text((_MARGIN, top), _fitting(row.heading, font, sheet.width - 2 * _MARGIN), _INK, font)
    top += _line_height(_SIZE)
    if not row.pictures:
        return top
    for column, (caption, picture) in enumerate(row.pictures):
        left = _MARGIN + column * (CELL + _GAP)
        sheet.paste(thumbnail(picture), (left, top))
        draw.text((left, top + CELL + 2), _fitting(caption, font, CELL), _INK, font)
    return top + CELL + _line_height(_SIZE) + _GAP


def _height(row: SheetRow | None, lines: Sequence[str]) -> int:
    if row is None:
        return len(lines) * _line_height(_TITLE_SIZE) + _GAP
    pictures = CELL + _line_height(_SIZE) + _GAP if row.pictures else 0
    return _GAP + _line_height(_SIZE) + pictures + len(lines) * _line_height(_SIZE) + 2 * _GAP


def _line_height(size: int) -> int:
    return round(size * 1.4)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text on one line, its end cut off where there is no room."""
    first, *more = list(wrap(" ".join(text.split()), font=font, width=width)) or [""]
    return f"{first[:-1]}…" if more else first


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
