"""What would stop a run after its teacher pass, found before it: the pass may take hours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vgid.data.chat import check_examples
from vgid.data.examples import Example
from vgid.data.models import resolve_model
from vgid.errors import ConfigError
from vgid.pipeline.distill import check_no_other_student, check_selections
from vgid.pipeline.evaluate import select_examples
from vgid.pipeline.teacher import TeacherJob
from vgid.pipeline.watch import watched_questions
from vgid.stage2_distill.schedule import micro_batch


def check_training(job: TeacherJob, examples: Sequence[Example], student: Path) -> None:
    """What would stop the training of a student in this process.

    Args:
        job: The teacher pass before it.
        examples: The recipe's data.
        student: Where it is to be.

    Raises:
        ConfigError: rows are selected that are not planned, or a condition is of questions that are not asked.
        DistillError: a step does not divide into micro-batches, or `student` is something else's.
    """
    settings = job.recipe.distill
    check_selections(settings.targets, job.plan)
    micro_batch(settings, num_processes=1)
    if settings.watch is not None:
        watched_questions(job.recipe, settings.watch, examples)
    check_no_other_student(job.recipe, examples, student, plan=job.plan)


def check_evaluation(job: TeacherJob, examples: Sequence[Example], *, retrained: str | None) -> None:
    """What would stop the evaluation of a run's student.

    Args:
        job: The run's teacher pass.
        examples: The recipe's data.
        retrained: A model to evaluate as well.

    Raises:
        ConfigError: the student will be no whole model, `retrained` cannot be resolved, or nothing is asked.
        DataError: a question cannot be asked.
    """
    if job.recipe.distill.export == "adapter":
        raise ConfigError(
            "distill.export is 'adapter', and the evaluation needs a whole model; end the run with --until distill and "
            "make one of the adapter with `vgid merge`, or set distill.export to merged"
        )
    if retrained is not None:
        resolve_model(retrained)
    chosen = select_examples(examples, settings=job.recipe.evaluate)
    check_examples(job.processor.tokenizer, chosen, answers=False)
