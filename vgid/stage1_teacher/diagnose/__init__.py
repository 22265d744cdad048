"""Is a teacher worth training on? The checks D1 to D18 over a cache, as SQL files, with gates and verdicts."""

from vgid.stage1_teacher.diagnose.gates import GATES, Gate
from vgid.stage1_teacher.diagnose.inspection import inspect_cache
from vgid.stage1_teacher.diagnose.report import Check, Dose, InspectReport, Reading, Row, SubjectReading
from vgid.stage1_teacher.diagnose.variants import Interventions, Taught, Variant

__all__ = [
    "GATES",
    "Check",
    "Dose",
    "Gate",
    "InspectReport",
    "Interventions",
    "Reading",
    "Row",
    "SubjectReading",
    "Taught",
    "Variant",
    "inspect_cache",
]
