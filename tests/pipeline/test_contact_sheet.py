"""A contact sheet: every picture and every word is on it, whatever their size or script."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from vgid.pipeline.contact_sheet import CELL, SheetRow, draw_sheet, thumbnail, wrap

FONT = ImageFont.load_default(15)


def row(*colours: str, text: str = "Where does this person live?", size: tuple[int, int] = (30, 30)) -> SheetRow:
    pictures = [(colour, Image.new("RGB", size, colour)) for colour in colours]
    return SheetRow(heading="example", pictures=pictures, text=text)


def ink(sheet: Image.Image) -> np.ndarray:
    """Which pixels are dark."""
    return np.asarray(sheet.convert("L")) < 100


@given(st.text(max_size=120), st.integers(60, 600))
@settings(max_examples=50)
def test_no_line_is_wider_than_the_sheet_and_no_word_is_lost(text, width):
    lines = list(wrap(text, font=FONT, width=width))
    assert all(FONT.getlength(line) <= width for line in lines)
    letters = "".join(lines).replace(" ", "")
    spelt = "".join(c if c.isprintable() else repr(c)[1:-1] for c in "".join(text.splitlines()))
    assert letters == spelt.replace(" ", "")


def test_every_picture_is_on_the_sheet_in_its_colour_and_order():
    sheet = np.asarray(draw_sheet("title", [row("red", "lime"), row("blue")]))
    places = [np.argwhere((sheet == colour).all(-1)) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    assert [len(place) for place in places] == [CELL * CELL] * 3
    red, lime, blue = (place.mean(0) for place in places)
    assert red[0] == lime[0] < blue[0] and red[1] == blue[1] < lime[1]


def test_more_words_make_the_sheet_higher_and_none_runs_over_its_edges():
    short, long = draw_sheet("t", [row("white")]), draw_sheet("t", [row("white", text="Mara lives in Oslo. " * 200)])
    assert long.height > short.height + 20 * 15 and long.width == short.width
    assert ink(long).sum() > 5 * ink(short).sum()
    for sheet in (short, long):
        edges = ink(sheet)
        assert not edges[:, :8].any() and not edges[:, -8:].any() and not edges[-16:].any() and not edges[:8].any()


def test_letters_are_large_enough_to_read():
    low, high = (FONT.getbbox("x")[1], FONT.getbbox("x")[3])
    assert high - low >= 8


@pytest.mark.parametrize(
    "text", ["Ποῦ ζῇ;", "東京に住んでいます", "من هو؟", "🙂", "a\x00b\x1b[31m", "\ud800", "", "\n\n", " "]
)
def test_any_script_and_any_control_character_can_be_drawn(text):
    sheet = draw_sheet(
        text, [row("red", text=text), SheetRow(heading=text, pictures=[(text, Image.new("RGB", (2, 2)))], text=text)]
    )
    assert sheet.height > CELL


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (5000, 4000), (7, 9)])
def test_a_thumbnail_fits_its_cell(size):
    small = thumbnail(Image.new("RGB", size, "red"))
    assert max(small.size) == CELL and min(small.size) >= 1


def test_a_sheet_of_text_alone_has_no_room_for_pictures():
    assert draw_sheet("title", [SheetRow(heading="e", pictures=[], text="Where does Mara live?")]).height < CELL
