"""Draw a portrait of 56x56 pixels from a face and a view.

The face carries the identity and never changes; the view (background, glasses, hat, pose, size, light) changes from
photo to photo and is what perception questions ask about, besides hair and shirt. What this gives up: realism. A
cartoon is enough for a model of a million parameters, and cannot resemble a real person.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 56
_SCALE = 4  # drawn larger and averaged down, so that edges are smooth

BACKGROUNDS: Mapping[str, tuple[int, int, int]] = {
    "red": (196, 64, 64),
    "green": (80, 160, 84),
    "blue": (72, 104, 200),
    "yellow": (232, 208, 88),
    "pink": (240, 160, 196),
    "grey": (150, 150, 154),
}
_SKIN = {
    "pale": (250, 222, 200),
    "tan": (226, 178, 132),
    "brown": (164, 110, 72),
    "dark": (96, 62, 42),
    "olive": (188, 168, 108),
}
_HAIR = {
    "black": (24, 22, 26),
    "brown": (104, 62, 26),
    "blond": (240, 212, 110),
    "red": (208, 72, 24),
    "grey": (136, 138, 142),
    "white": (246, 246, 246),
    "purple": (128, 44, 160),
}
_SHIRT = {
    "red": (216, 30, 40),
    "green": (24, 140, 56),
    "blue": (28, 60, 196),
    "yellow": (250, 220, 40),
    "black": (20, 20, 24),
    "white": (248, 248, 248),
    "orange": (246, 130, 24),
}
_SCARF = {
    "teal": (0, 150, 140),
    "magenta": (220, 0, 170),
    "yellow": (255, 230, 0),
    "black": (16, 16, 16),
    "white": (255, 255, 255),
    "brown": (120, 70, 30),
}
_EYES = {"brown": (110, 62, 20), "blue": (40, 110, 240), "green": (30, 150, 70), "black": (10, 10, 10)}
_HAT, _FRAME = (40, 40, 96), (0, 210, 220)  # a colour of their own, as thin dark frames cannot be told from eyes


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything about a photo that is not the face. Shifts are in pixels of the 56x56 image."""

    background: str
    glasses: bool
    hat: bool
    shift_x: float
    shift_y: float
    zoom: float
    light: float
    """Brightness factor, 1 = as drawn."""
    speckle_seed: int
    """Seeds a few dozen stray pixels, the light noise of a photo (few, so that the PNG stays small)."""


def draw_view(rng: np.random.Generator) -> View:
    """Draw a view at random."""
    return View(
        background=list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))],
        glasses=bool(rng.integers(2)),
        hat=bool(rng.integers(2)),
        shift_x=float(rng.uniform(-3, 3)),
        shift_y=float(rng.uniform(-2, 2)),
        zoom=float(rng.uniform(0.92, 1.08)),
        light=float(rng.uniform(0.92, 1.06)),
        speckle_seed=int(rng.integers(2**31)),
    )


def draw_portrait(face: Mapping[str, str], view: View) -> np.ndarray:
    """Return the photo as uint8 [56, 56, 3]."""
    side = SIZE * _SCALE
    picture = Image.new("RGB", (side, side), BACKGROUNDS[view.background])
    _Pencil(ImageDraw.Draw(picture), view).draw(face)
    pixels = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32) * view.light
    return _speckle(np.clip(pixels, 0, 255).round().astype(np.uint8), seed=view.speckle_seed)


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _speckle(pixels: np.ndarray, *, seed: int, count: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(SIZE, size=(2, count))
    pixels = pixels.copy()
    pixels[rows, columns] = rng.integers(256, size=(count, 3))
    return pixels


class _Pencil:
    """Draws shapes given in the 56x56 frame of an unshifted portrait onto the shifted, zoomed, enlarged canvas."""

    def __init__(self, canvas: ImageDraw.ImageDraw, view: View) -> None:
        self.canvas, self.view = canvas, view

    def draw(self, face: Mapping[str, str]) -> None:
        skin, hair = _SKIN[face["skin"]], _HAIR[face["hair"]]
        if face["style"] == "long":
            self._ellipse((12, 8, 44, 46), hair)
        self._ellipse((4, 42, 52, 80), _SHIRT[face["shirt"]])
        self._box((23, 36, 33, 45), skin)
        self._box((17, 42, 39, 47), _SCARF[face["scarf"]])
        self._box((30, 45, 37, 54), _SCARF[face["scarf"]])
        self._hair_behind(face["style"], hair)
        self._ellipse((16, 12, 40, 42), skin)
        self._fringe(face["style"], hair)
        self._beard(face["beard"], hair)
        self._eyes(_EYES[face["eyes"]])
        if self.view.hat:
            self._box((17, 3, 39, 10), _HAT)
            self._box((12, 9, 44, 12), _HAT)

    def _hair_behind(self, style: str, colour: tuple[int, int, int]) -> None:
        if style == "curly":
            for x, y in ((14, 14), (20, 9), (28, 7), (36, 9), (42, 14), (13, 22), (43, 22)):
                self._ellipse((x - 6, y - 6, x + 6, y + 6), colour)
        else:
            self._ellipse((14, 8, 42, 34), colour)

    def _fringe(self, style: str, colour: tuple[int, int, int]) -> None:
        if style == "parted":
            self._box((16, 11, 27, 19), colour)
        elif style != "curly":
            self._box((18, 10, 38, 17), colour)

    def _beard(self, beard: str, colour: tuple[int, int, int]) -> None:
        if beard == "full":
            self._ellipse((18, 31, 38, 44), colour)
        if beard != "none":
            self._box((22, 31, 34, 33.5), colour)
        self._box((24, 34.5, 32, 36.5), (190, 60, 70))

    def _eyes(self, colour: tuple[int, int, int]) -> None:
        for x in (22.5, 33.5):
            self._ellipse((x - 3.5, 21.5, x + 3.5, 27.5), (255, 255, 255))
            self._ellipse((x - 2.2, 22, x + 2.2, 27), colour)
            if self.view.glasses:
                self._outline((x - 6, 19, x + 6, 30))
        if self.view.glasses:
            self._box((26.5, 22.5, 29.5, 25), _FRAME)

    def _ellipse(self, box: tuple[float, ...], colour: tuple[int, int, int]) -> None:
        self.canvas.ellipse(self._placed(box), fill=colour)

    def _box(self, box: tuple[float, ...], colour: tuple[int, int, int]) -> None:
        self.canvas.rectangle(self._placed(box), fill=colour)

    def _outline(self, box: tuple[float, ...]) -> None:
        self.canvas.rectangle(self._placed(box), outline=_FRAME, width=2 * _SCALE)

    def _placed(self, box: tuple[float, ...]) -> tuple[float, float, float, float]:
        view, middle = self.view, SIZE / 2
        left, top, right, bottom = box
        return (
            _SCALE * (middle + (left - middle) * view.zoom + view.shift_x),
            _SCALE * (middle + (top - middle) * view.zoom + view.shift_y),
            _SCALE * (middle + (right - middle) * view.zoom + view.shift_x),
            _SCALE * (middle + (bottom - middle) * view.zoom + view.shift_y),
        )
