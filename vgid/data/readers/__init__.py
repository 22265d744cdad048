"""Data sets on disk as examples. The only place that knows a data set's own columns."""

from vgid.data.readers.load import check_sources, load_sources
from vgid.data.readers.source import Source
from vgid.data.readers.world import world_sources

__all__ = ["Source", "check_sources", "load_sources", "world_sources"]
