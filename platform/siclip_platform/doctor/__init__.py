"""``siclip-platform doctor``: what would stop a run on this machine, and the command that fixes it."""

from siclip_platform.doctor.checks import Finding
from siclip_platform.doctor.examine import examine

__all__ = ["Finding", "examine"]
