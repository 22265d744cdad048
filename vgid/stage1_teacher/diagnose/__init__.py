"""Is a teacher worth training on? The checks D1 to D18 over a cache, as SQL files, with gates and verdicts."""

from vgid.stage1_teacher.diagnose.gates import GATES, Gate
from vgid.stage1_teacher.diagnose.inspection import inspect_cache
from vgid.stage1_teacher.diagnose.report import Check, InspectReport, Reading, SubjectReading
from vgid.stage1_teacher.diagnose.variants import Variant

__all__ = ["GATES", "Check", "Gate", "InspectReport", "Reading", "SubjectReading", "Variant", "inspect_cache"]
