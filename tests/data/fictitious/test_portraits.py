"""Portraits: the same pixels for the same face and view, and every attribute leaves a trace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vgid.data.fictitious.people import FACE, draw_face
from vgid.data.fictitious.portraits import BACKGROUNDS, SIZE, draw_portrait, draw_view, encode_png
from vgid.data.images import open_image


def test_a_portrait_is_a_pure_function_of_face_and_view() -> None:
    face, view = draw_face(np.random.default_rng(0)), draw_view(np.random.default_rng(1))
    assert np.array_equal(draw_portrait(face, view), draw_portrait(dict(face), replace(view)))


@pytest.mark.parametrize("key", FACE)
def test_every_value_of_every_face_attribute_can_be_seen(key: str) -> None:
    face, view = draw_face(np.random.default_rng(0)), replace(draw_view(np.random.default_rng(1)), hat=False)
    pictures = {draw_portrait({**face, key: value}, view).tobytes() for value in FACE[key]}
    assert len(pictures) == len(FACE[key])


def test_background_glasses_and_hat_can_be_seen() -> None:
    face, view = draw_face(np.random.default_rng(0)), draw_view(np.random.default_rng(1))
    views = [replace(view, background=b, glasses=g, hat=h) for b in BACKGROUNDS for g in (0, 1) for h in (0, 1)]
    assert len({draw_portrait(face, v).tobytes() for v in views}) == len(views)


def test_a_photo_survives_its_png() -> None:
    pixels = draw_portrait(draw_face(np.random.default_rng(0)), draw_view(np.random.default_rng(1)))
    assert pixels.shape == (SIZE, SIZE, 3)
    assert np.array_equal(np.asarray(open_image(encode_png(pixels), where="test")), pixels)
