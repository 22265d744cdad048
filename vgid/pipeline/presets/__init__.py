"""Shipped presets: published ways of teaching as settings, each with its source and what the source leaves open."""
