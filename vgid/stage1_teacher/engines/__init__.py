"""Engines behind one protocol: `vllm` (default) and `transformers` (the reference in parity tests)."""

from vgid.stage1_teacher.engines.protocol import KeptTeacher, Teacher, TeacherRequest, TeacherResponse, build_teacher

__all__ = ["KeptTeacher", "Teacher", "TeacherRequest", "TeacherResponse", "build_teacher"]
