"""``study.json``: what it stores, and files of the version before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from siclip.errors import UserError
from siclip_platform.studies.options import Options
from siclip_platform.studies.study_file import SPACE, StudyFile, fetch_study, read_study
from tests.support.study_parts import base_recipe


def study(out: Path, name: str = "s", **options: Any) -> StudyFile:
    asked = Options(out=out, **options)
    return StudyFile(name=name, kind="search", key="k", base=base_recipe(out / "digits"), options=asked)


def test_a_study_is_read_as_it_was_written_in_any_folder(tmp_path: Path) -> None:
    written = study(tmp_path / "a", trials=4, checkpoints="s3://b/c", artifacts="s3://b/files", data="s3://b/digits")
    written = written.model_copy(
        update={
            "options": written.options.model_copy(update={"checkpoints": None, "address": "h:1", "verbose": True})
        }
    )
    written.write()
    content = json.loads((tmp_path / "a" / "s" / "study.json").read_text())
    assert not {"out", "resume", "address", "verbose"} & content["options"].keys()
    (tmp_path / "a").rename(tmp_path / "b")
    here = {"out": tmp_path / "b", "address": None, "verbose": False}
    assert read_study(tmp_path / "b" / "s") == written.model_copy(
        update={"options": written.options.model_copy(update=here)}
    )


def test_a_study_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path) -> None:
    for name in ("first", "second"):
        study(tmp_path, name).write()
    with pytest.raises(UserError, match=r"no study 'third'.*it has first, second"):
        read_study(tmp_path / "third")
    with pytest.raises(UserError, match=r"no study 'third' in .*/new, and no .*kept/third/study.json"):
        fetch_study(tmp_path / "new" / "third", tmp_path / "kept")


def test_a_study_is_fetched_from_its_checkpoints_with_its_space(tmp_path: Path) -> None:
    begun = study(tmp_path / "a", checkpoints=tmp_path / "kept")
    begun.folder.mkdir(parents=True)
    (begun.folder / SPACE).write_text("name: x\n")
    begun.write()
    fetch_study(tmp_path / "b" / "s", tmp_path / "kept")
    fetched = read_study(tmp_path / "b" / "s")
    assert fetched.key == "k" and fetched.definition == tmp_path / "b" / "s" / SPACE
    assert fetched.definition.read_text() == "name: x\n"


VERSION_1 = json.loads("""{
  "name": "s", "key": "k", "trials": 24, "seeds": 2, "concurrent": 3, "search_seed": 5, "backend": "train",
  "disk_budget": 1000, "rerun": true, "register_as": "m", "tracking_uri": "sqlite:////x.db", "data": "/d",
  "checkpoints": "s3://b/c", "artifacts": "s3://b/files", "sampler": "gp", "scheduler": null
}""")


def write_version_1(folder: Path, **changes: Any) -> None:
    folder.mkdir()
    recipe = base_recipe(Path("/d")).updated({"teacher": "/t.pt"}).model_dump(mode="json")
    (folder / "study.json").write_text(json.dumps(VERSION_1 | {"base": recipe} | changes))


def test_a_study_of_the_version_before_is_read(tmp_path: Path) -> None:
    write_version_1(tmp_path / "s", kind="search", options={})
    read = read_study(tmp_path / "s")
    assert (read.kind, read.key, read.base.teacher) == ("search", "k", "/t.pt")
    assert read.options == Options(
        out=tmp_path,
        data="/d",
        teacher="/t.pt",
        tracking_uri="sqlite:////x.db",
        trials=24,
        seeds=2,
        seed=5,
        concurrent=3,
        backend="train",
        rerun=True,
        register_as="m",
        disk_budget=1000,
        sampler="gp",
        checkpoints="s3://b/c",
        artifacts="s3://b/files",
    )


def test_a_training_of_the_version_before_keeps_its_workers(tmp_path: Path) -> None:
    write_version_1(tmp_path / "s", kind="train", options={"workers": 2})
    assert read_study(tmp_path / "s").options.workers == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "does not describe a study of this version; resume it with the version that began it"),
        (json.dumps({"version": 3, "name": "s"}), "version: Input should be 2"),
        (json.dumps(VERSION_1 | {"extra": 1, "base": {}}), r"options\.extra"),
    ],
)
def test_a_damaged_or_later_file_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_study(tmp_path / "s")
