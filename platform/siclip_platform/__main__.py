"""``python -m siclip_platform`` is ``siclip-platform``."""

from siclip_platform.cli import main

main()
