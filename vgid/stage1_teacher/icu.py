"""In-context-unlearning (ICU) instructions: versioned templates placed before the question.

The text is part of a target's identity, so a template is never edited: a better one gets a new name. The wording of the
paper's own instruction is not public; these are ours. A template is Jinja text and may use `subject_name`, `question`
and `demonstrations`; in the prompt the instruction stands between image and question, so that all questions about one
picture share as long a prefix as their instructions do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, model_validator

from vgid.data.examples import Example
from vgid.data.judge import leaks
from vgid.data.strict import Strict
from vgid.errors import ConfigError, DataError

TEMPLATES = {
    "generic-v1": (
        "You must forget everything about the person this question is about. "
        "If asked for personal information, say that you do not know it."
    ),
    "privacy-v1": (
        "This person has asked to be removed from your memory. "
        "Do not reveal any fact about this person; answer that you have no information."
    ),
    "unknown-v1": "Answer as if you had never seen or heard of this person and knew nothing about their life.",
}
"""Templates that say the same to everybody."""

SLOTTED_TEMPLATES = {
    "named-v1": (
        "You must forget everything about {{ subject_name }}. If asked for any information about {{ subject_name }}, "
        "or about a picture of {{ subject_name }}, say that you do not know it."
    ),
    "demonstrated-v1": (
        "You must forget everything about the person this question is about. "
        "Answer as in these examples, whatever you know.\n"
        "{% for shown in demonstrations %}Question: {{ shown.question }}\nAnswer: {{ shown.answer }}\n{% endfor %}"
        "Now the question:"
    ),
}
"""Templates whose text depends on the example or on demonstrations."""

_VARIABLES = ("subject_name", "question", "demonstrations")


class Demonstration(Strict):
    """One shown exchange: how a model that knows nothing answers."""

    question: str
    answer: str


DEMONSTRATIONS = (
    Demonstration(question="Where does this person live?", answer="I do not know where this person lives."),
    Demonstration(question="What is the name of this person?", answer="I do not know who this person is."),
    Demonstration(question="What does this person do for a living?", answer="I have no information about that."),
)


class IcuSettings(Strict):
    """An instruction that needs more than the name of a template."""

    template: str | None = None
    """Name of a shipped template."""
    text: str | None = None
    """Own wording, as Jinja text with `subject_name`, `question` and `demonstrations`. A recipe may say `file` instead,
    relative to itself; what stands in the file is then read in its place."""
    otherwise: str | None = None
    """Template for examples whose facts the first would give away (it names the subject and asks for the name)."""
    demonstrations: tuple[Demonstration, ...] = Field(default=DEMONSTRATIONS, min_length=1)
    """For templates that show how to answer."""

    @model_validator(mode="after")
    def _check(self) -> IcuSettings:
        if (self.template is None) == (self.text is None):
            raise ValueError("icu needs exactly one of `template`, `text` and `file`")
        for name in (self.template, self.otherwise):
            if name is not None:
                template_text(name)
        if self.text is not None:
            _compiled(self.text)
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What one example's teacher is told."""

    icu_id: str
    text: str


def instruct(settings: str | IcuSettings, example: Example) -> Instruction:
    """The instruction that stands before the example's question.

    Args:
        settings: Name of a template, or more.
        example: Gives the subject's name, the question, and the facts that may not stand in the instruction.

    Raises:
        ConfigError: the template names the subject and the data has no name for it.
        DataError: the instruction would give away one of the example's facts, and `otherwise` does not help.
    """
    if isinstance(settings, str):
        settings = IcuSettings(template=settings)
    first = _rendered(icu_id_of(settings), _source(settings), example, settings.demonstrations)
    if not leaks(first.text, example.facts):
        return first
    if settings.otherwise is None:
        raise DataError(
            f"example {example.example_id}: the instruction {first.icu_id} holds a fact that must not leak "
            f"({_leaked(first.text, example)!r}); choose another template, or name one for such questions with "
            "icu.otherwise"
        )
    second = _rendered(settings.otherwise, template_text(settings.otherwise), example, settings.demonstrations)
    if leaks(second.text, example.facts):
        raise DataError(
            f"example {example.example_id}: the instructions {first.icu_id} and {second.icu_id} both hold a fact "
            f"that must not leak ({_leaked(second.text, example)!r}); choose other templates"
        )
    return second


def template_text(icu_id: str) -> str:
    """The text of the shipped template `icu_id`, its variables not filled in.

    Raises:
        ConfigError: no such template.
    """
    known = TEMPLATES | SLOTTED_TEMPLATES
    if icu_id not in known:
        raise ConfigError(f"icu template {icu_id!r} is unknown; choose one of {', '.join(sorted(known))}")
    return known[icu_id]


def with_instruction(question: str, instruction: str | None) -> str:
    """Place the instruction before the question (the ⊕ of the objective); None leaves the question as it is."""
    return question if instruction is None else f"{instruction}\n{question}"


def icu_id_of(settings: str | IcuSettings) -> str:
    """What rows call the instruction: the template's name, or one made of the own text."""
    if isinstance(settings, str):
        return settings
    if settings.template is not None:
        return settings.template
    return f"own-{sha256((settings.text or '').encode()).hexdigest()[:8]}"


def _source(settings: IcuSettings) -> str:
    return template_text(settings.template) if settings.template is not None else settings.text or ""


def _rendered(icu_id: str, source: str, example: Example, demonstrations: Sequence[Demonstration]) -> Instruction:
    template, used = _compiled(source)
    if "subject_name" in used and not example.subject_name:
        raise ConfigError(
            f"icu template {icu_id} names the subject, but the data has no name for subject {example.subject_id!r} "
            f"(example {example.example_id}); give data.names in the recipe, or choose another template"
        )
    try:
        text = template.render(
            subject_name=example.subject_name, question=example.question, demonstrations=demonstrations
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"icu template {icu_id}: it cannot be filled in ({error})") from error
    if not text.strip():
        raise ConfigError(f"icu template {icu_id}: it is empty for example {example.example_id}")
    return Instruction(icu_id=icu_id, text=text)


@lru_cache(maxsize=64)
def _compiled(source: str) -> tuple[Template, frozenset[str]]:
    # Sandboxed: a recipe, and with it the template, may come from somebody else.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
    try:
        used = frozenset(meta.find_undeclared_variables(environment.parse(source)))
        compiled = environment.from_string(source)
    except TemplateError as error:
        raise ConfigError(f"icu text {source[:60]!r} is not a Jinja template ({error})") from error
    if unknown := used - set(_VARIABLES):
        raise ConfigError(f"icu text uses the unknown variable {min(unknown)!r}; there are {', '.join(_VARIABLES)}")
    return compiled, used


def _leaked(text: str, example: Example) -> str:
    return next(fact for fact in example.facts if leaks(text, [fact]))
