"""``python -m siclip_platform.rehearsal.worker FOLDER STAGE [NAME]`` runs one stage before the training.

Each has a process of its own: its memory is measured, and what it leaves in memory does not reach the next.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from siclip.errors import UserError
from siclip_platform.display import echo
from siclip_platform.rehearsal.job import Rehearsal
from siclip_platform.rehearsal.preparation import (
    Measured,
    check_recipe,
    import_rows,
    write_captions,
    write_embeddings,
)
from siclip_platform.rehearsal.watched import ERROR
from siclip_platform.storage.atomic import write_text_atomically

JOB = "rehearsal.json"
STAGES: dict[str, Callable[..., Measured]] = {
    "recipe": check_recipe,
    "import": import_rows,
    "captions": write_captions,
    "embeddings": write_embeddings,
}


def measured_file(folder: Path, stage: str, *names: str) -> Path:
    """Where a stage leaves what it measured."""
    return folder / f"{'-'.join([stage, *names])}.json"


def main(folder: Path, stage: str, *names: str) -> int:
    """Run a stage; bad input ends with a message and exit code 2, as in every command."""
    job = Rehearsal.model_validate_json((folder / JOB).read_bytes())
    try:
        found = STAGES[stage](job, *names)
    except UserError as error:
        echo(f"{ERROR}{error}", error=True)
        return 2
    write_text_atomically(measured_file(folder, stage, *names), found.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
