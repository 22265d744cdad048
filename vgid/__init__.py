"""Visual-Noise Guided In-Context Distillation: unlearning for multimodal language models, in two offline stages."""

__version__ = "0.1.0"
