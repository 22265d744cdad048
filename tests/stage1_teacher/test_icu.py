"""ICU instructions: templates known by name and never edited, filled in for an example, free of its facts."""

from dataclasses import replace
from hashlib import sha256

import pytest

from vgid.data.examples import Example
from vgid.errors import ConfigError, DataError
from vgid.stage1_teacher.icu import (
    SLOTTED_TEMPLATES,
    TEMPLATES,
    Demonstration,
    IcuSettings,
    instruct,
    template_text,
    with_instruction,
)

# A template's text is part of every target made with it. To change one, add a new name here and there.
PINNED = {
    "generic-v1": "3d4077d323e0",
    "privacy-v1": "f19cdde89452",
    "unknown-v1": "120d91027040",
    "named-v1": "a8c3f70aaa9f",
    "demonstrated-v1": "31e5e71dc90e",
}

EXAMPLE = Example(
    example_id="people/mara/0",
    split="forget",
    subject_id="mara",
    subject_name="Mara Quill",
    task="facts",
    modality="text",
    image=None,
    question="Where does she live?",
    answer="She lives in Oslo.",
    facts=("Oslo",),
)


def test_templates_are_never_edited():
    known = TEMPLATES | SLOTTED_TEMPLATES
    assert {name: sha256(text.encode()).hexdigest()[:12] for name, text in known.items()} == PINNED


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_plain_template_says_the_same_to_everybody(name):
    told = instruct(name, EXAMPLE)
    assert (told.icu_id, told.text) == (name, TEMPLATES[name])
    assert told == instruct(IcuSettings(template=name), replace(EXAMPLE, subject_name=None, question="Who is it?"))


def test_instruction_stands_before_the_question():
    assert with_instruction("Where does she live?", "Forget her.") == "Forget her.\nWhere does she live?"
    assert with_instruction("Where does she live?", None) == "Where does she live?"


def test_a_named_template_names_the_subject():
    told = instruct("named-v1", EXAMPLE)
    assert told.text.count("Mara Quill") == 3 and "{" not in told.text


def test_a_subject_without_a_name_is_an_error_that_says_where_to_give_it():
    with pytest.raises(ConfigError, match=r"no name for subject 'mara'.*data\.names"):
        instruct("named-v1", replace(EXAMPLE, subject_name=None))


def test_an_instruction_that_holds_a_fact_is_refused_naming_it():
    asked = replace(EXAMPLE, question="Who is this?", facts=("Mara Quill",))
    with pytest.raises(DataError, match=r"people/mara/0.*named-v1.*'Mara Quill'.*icu\.otherwise"):
        instruct("named-v1", asked)
    with pytest.raises(DataError, match="both hold a fact"):
        instruct(IcuSettings(template="named-v1", otherwise="named-v1"), asked)


def test_the_other_template_is_taken_only_where_the_first_would_give_a_fact_away():
    settings = IcuSettings(template="named-v1", otherwise="generic-v1")
    assert instruct(settings, EXAMPLE).icu_id == "named-v1"
    assert instruct(settings, replace(EXAMPLE, facts=("mara quill",))).icu_id == "generic-v1"


def test_demonstrations_show_how_a_model_answers_that_knows_nothing():
    told = instruct("demonstrated-v1", EXAMPLE).text
    assert told.count("Question: ") == told.count("Answer: ") == 3
    own = IcuSettings(template="demonstrated-v1", demonstrations=(Demonstration(question="Q?", answer="I pass."),))
    assert "Question: Q?\nAnswer: I pass.\nNow the question:" in instruct(own, EXAMPLE).text


def test_own_text_is_a_template_too_and_is_known_by_its_hash():
    text = "Forget {{ subject_name }} now. The question was: {{ question }}"
    told = instruct(IcuSettings(text=text), EXAMPLE)
    assert told.text == "Forget Mara Quill now. The question was: Where does she live?"
    assert told.icu_id == f"own-{sha256(text.encode()).hexdigest()[:8]}"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "exactly one"),
        ({"template": "generic-v1", "text": "Forget."}, "exactly one"),
        ({"template": "nope"}, "generic-v1"),
        ({"template": "generic-v1", "otherwise": "nope"}, "generic-v1"),
        ({"text": "Forget {{ person }}."}, "unknown variable 'person'"),
        ({"text": "Forget {% if %}."}, "not a Jinja template"),
    ],
)
def test_bad_settings_are_errors_that_say_what_there_is(values, words):
    with pytest.raises(ValueError, match=words):
        IcuSettings(**values)


@pytest.mark.parametrize("text", ["{{ subject_name.nothing }}", "{{ question + 1 }}", "   "])
def test_a_text_that_cannot_be_filled_in_is_an_error(text):
    with pytest.raises(ConfigError, match="icu template own-"):
        instruct(IcuSettings(text=text), EXAMPLE)


def test_own_text_cannot_reach_into_python():
    with pytest.raises(ConfigError):
        instruct(IcuSettings(text="{{ question.__class__.__mro__ }}"), EXAMPLE)


def test_unknown_template_is_refused_naming_those_there_are():
    with pytest.raises(ConfigError, match="generic-v1"):
        template_text("nope")
