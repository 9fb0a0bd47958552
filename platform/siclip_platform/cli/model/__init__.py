"""``siclip-platform model``: describe, convert and export models, and propose sharing patterns."""

from siclip_platform.cli.model import convert, describe, export, sharing
from siclip_platform.cli.model.group import app

__all__ = ["app", "convert", "describe", "export", "sharing"]
