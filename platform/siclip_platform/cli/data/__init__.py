"""``siclip-platform data``: one module per command."""

from siclip_platform.cli.data import build, caption, captions, embed, import_, inspect, negatives, push, verify
from siclip_platform.cli.data.group import app

__all__ = ["app", "build", "caption", "captions", "embed", "import_", "inspect", "negatives", "push", "verify"]
