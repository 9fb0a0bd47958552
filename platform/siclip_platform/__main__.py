"""``python -m siclip_platform``: the same as ``siclip-platform``."""

from siclip_platform.cli import main

main()
