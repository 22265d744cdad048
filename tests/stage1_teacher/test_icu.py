"""ICU templates: known by name, placed before the question, never edited."""

from hashlib import sha256

import pytest

from vgid.errors import ConfigError
from vgid.stage1_teacher.icu import TEMPLATES, icu_text, with_instruction

# A template's text is part of every target made with it. To change one, add a new name here and there.
PINNED = {
    "generic-v1": "3d4077d323e0",
    "privacy-v1": "f19cdde89452",
    "unknown-v1": "120d91027040",
}


def test_templates_are_never_edited():
    assert {name: sha256(text.encode()).hexdigest()[:12] for name, text in TEMPLATES.items()} == PINNED


def test_instruction_stands_before_the_question():
    asked = with_instruction("Where does she live?", "generic-v1")
    assert asked == f"{icu_text('generic-v1')}\nWhere does she live?"


def test_no_instruction_leaves_the_question_alone():
    assert with_instruction("Where does she live?", None) == "Where does she live?"


def test_unknown_template_is_refused_naming_those_there_are():
    with pytest.raises(ConfigError, match="generic-v1"):
        icu_text("nope")
