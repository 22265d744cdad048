"""Models and rows shared by the tests of stage two."""

from __future__ import annotations

import pytest
from distill_cases import Oracle, build_sharp_qwen2_vl, make_examples
from tiny_models import build_tiny_llava

from vgid.cache.schema import Target
from vgid.data.examples import Example


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """The student of most tests."""
    return Oracle(build_sharp_qwen2_vl(tmp_path_factory.mktemp("qwen"), seed=0))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """Same tokenizer and shape, other weights."""
    return Oracle(build_sharp_qwen2_vl(tmp_path_factory.mktemp("teacher"), seed=1))


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(build_tiny_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="session")
def examples() -> dict[str, Example]:
    """Six forget and seven retain examples, with and without an image, prompts and responses of several lengths."""
    return make_examples(forget=6, retain=7)


@pytest.fixture(scope="session")
def targets(teacher: Oracle, examples: dict[str, Example]) -> list[Target]:
    return teacher.targets(examples)
