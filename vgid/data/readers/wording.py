"""How a cloze and a multiple-choice item become one plain question.

Stated once because the fictitious benchmark trains its base on the very words the readers ask with: a base asked in
other words would look as if it had forgotten. What this gives up: MLLMU-Bench's own prompts differ a little in wording
from these, so accuracies are comparable between models measured by vgid, not with the paper's table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

BLANK = "[Blank]"
"""What stands for the missing words in a cloze question; data sets write two or more underscores."""

CLOZE_INSTRUCTION = "Answer only with the missing words."
CLASSIFICATION_INSTRUCTION = "Answer only with the letter of the right option."

_GAP = re.compile(r"_{2,}")


def cloze_question(text: str) -> str:
    """Turn a text with a gap (`__` or `[Blank]`) into a question, with the instruction on a line of its own."""
    return f"{_GAP.sub(BLANK, text.strip())}\n{CLOZE_INSTRUCTION}"


def classification_question(question: str, options: Mapping[str, str]) -> str:
    """Turn a question and its lettered options into one text: options by letter, one a line, then the instruction.

    Args:
        question: The question itself.
        options: Letter to option text, in any order.
    """
    lines = [f"{letter}: {options[letter].strip()}" for letter in sorted(options)]
    return "\n".join([question.strip(), *lines, CLASSIFICATION_INSTRUCTION])
