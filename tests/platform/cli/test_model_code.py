"""Every command that takes a model refuses one that would run code, and the code does not run."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from captioning_parts import shapes_dataset, write_caption_set
from hostile_models import TINY_COCA, HostileModels, hostile_models

from siclip_platform.cli import main
from siclip_platform.cluster import connect

JOBS = Path(__file__).resolve().parents[3] / "jobs"
COMMANDS = {
    "data caption": ["data", "caption", "DATA", "--name", "n", "--model", "MODEL", "--pretrained", "WEIGHTS"],
    "data caption --teacher": [
        *("data", "caption", "DATA", "--name", "n", "--model", "HONEST", "--pretrained", "WEIGHTS"),
        *("--max-tokens", "8", "--min-similarity", "0.1", "--teacher", "MODEL"),
    ],
    "data inspect --teacher": ["data", "inspect", "DATA", "--captions", "set", "--teacher", "MODEL"],
    "data embed": ["data", "embed", "DATA", "--name", "n", "--teacher", "MODEL"],
    "evaluate": ["evaluate", "MODEL", "--data", "DATA"],
    "evaluate --compare": ["evaluate", "TEACHER", "--data", "DATA", "--compare", "MODEL"],
    "evaluate --teacher": ["evaluate", "TEACHER", "--data", "DATA", "--teacher", "MODEL"],
    "embed": ["embed", "MODEL", "TEXTS", "OUT"],
    "model describe": ["model", "describe", "MODEL"],
    "model convert": ["model", "convert", "MODEL", "OUT.pt"],
    "model convert --model": ["model", "convert", "WEIGHTS", "OUT.pt", "--model", "MODEL"],
    "model export": ["model", "export", "MODEL", "OUT", "--format", "onnx"],
    "model propose-sharing": ["model", "propose-sharing", "MODEL", "DATA"],
    "job train": ["train_siclip.py", "--recipe", "digits-student", "--data", "DATA", "--teacher", "MODEL"],
    "job train, distil_from": [
        *("train_siclip.py", "--recipe", "digits-student", "--data", "DATA", "--teacher", "TEACHER"),
        *("--set", "distil_from=[MODEL]"),
    ],
    "job tune": ["tune_wikd.py", "--data", "DATA", "--teacher", "MODEL"],
    "job ablate": ["ablate_siclip.py", "sharing", "--data", "DATA", "--teacher", "MODEL"],
    "job prepare": [
        "prepare_cc12m_syn.py",
        "LIST",
        "--data",
        "OUT",
        "--captioner",
        "MODEL",
        "--pretrained",
        "WEIGHTS",
    ],
}
MODELS = (
    *("CONFIG", "local-dir:FOLDER", "PICKLE", "open_clip:local-dir:FOLDER", "open_clip:ViT-B-32:PICKLE"),
    "transformers:FOLDER",
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> HostileModels:
    return hostile_models(tmp_path_factory.mktemp("hostile"))


@pytest.mark.slow
@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_no_command_runs_the_code_of_a_model(
    command: list[str],
    hostile: HostileModels,
    nano_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shapes_dataset(tmp_path / "data", shards=1, rows=4)
    write_caption_set(tmp_path / "data", "set", [["a red square"]] * 4)
    (tmp_path / "texts.txt").write_text("a red square\n")
    (tmp_path / "list.csv").write_text("path,caption\n")
    honest = tmp_path / "siclip-test-honest.json"
    shutil.copy(hostile.weights, tmp_path / "weights.pt")
    honest.write_text(json.dumps(TINY_COCA))
    monkeypatch.chdir(tmp_path)
    # One cluster for all commands: starting one takes seconds.
    monkeypatch.setattr(connect, "ray_cluster", lambda *_, **__: nullcontext())
    words = {"DATA": tmp_path / "data", "TEXTS": tmp_path / "texts.txt", "LIST": tmp_path / "list.csv"}
    words |= {"OUT": tmp_path / "out", "OUT.pt": tmp_path / "out.pt", "WEIGHTS": tmp_path / "weights.pt"}
    words |= {"HONEST": honest, "TEACHER": nano_teacher}
    paths = {"CONFIG": hostile.config, "FOLDER": hostile.folder, "PICKLE": hostile.pickle}
    for form in MODELS:
        model = re.sub("|".join(paths), lambda word: str(paths[word[0]]), form)
        arguments = [str(words.get(part, part.replace("MODEL", model))) for part in command]
        monkeypatch.setattr(sys, "argv", ["siclip-platform", *arguments])
        with pytest.raises(SystemExit) as ended:
            if command[0].endswith(".py"):
                monkeypatch.setattr(sys, "argv", [str(JOBS / command[0]), *arguments[1:]])
                runpy.run_path(str(JOBS / command[0]), run_name="__main__")
            else:
                main()
        message = capsys.readouterr().err
        assert ended.value.code == 2, f"{model}: {message}"
        assert "Traceback" not in message and "error: " in message, message
        assert not hostile.canary.exists(), f"the code of {model} has run: {message}"
