"""``siclip-platform doctor``: what on this machine would stop a run, and the command that mends it."""

from siclip_platform.doctor.checks import Finding
from siclip_platform.doctor.examine import examine

__all__ = ["Finding", "examine"]
