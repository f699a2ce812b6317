"""All targets, by name."""

from . import files, library, solving
from .core import TARGETS, traced_call

__all__ = ["TARGETS", "files", "library", "solving", "traced_call"]
