"""`vgid`, run again and again without the 12 s that torch and transformers take to import; asked through warm.py.

Each run is a fork that goes through the command's own `main`. vLLM is left to those that use it.
"""

from __future__ import annotations

from importlib import import_module

from rehearsing_process import serve

from vgid.data.chat import load_processor
from vgid.data.fictitious import shipped_base

HEAVY = (
    "vgid.stage1_teacher.engines.transformers",  # fills the cache
    "vgid.stage2_distill.trainer",
    "vgid.pipeline.distill",
    "vgid.pipeline.evaluation",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.auto.modeling_auto",
    "peft.utils.transformers_weight_conversion",
    "pandas",
)

if __name__ == "__main__":
    for module in HEAVY:
        import_module(module)
    load_processor(shipped_base())  # imports as much again
    serve()
