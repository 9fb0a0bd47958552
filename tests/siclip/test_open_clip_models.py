"""A model config cannot run code: it names an architecture or is refused, and what open_clip ships is not trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
from hostile_models import TINY_COCA, HostileModels, hostile_models

from siclip.errors import UserError
from siclip.open_clip_models import check_config, open_model, read_config, register
from siclip.teachers import OpenClipTeacher

REFUSED = ("hf_model_name", "hf_model_pretrained", "hf_tokenizer_name", "hf_proj_type", "hf_pooler_type")


@pytest.fixture
def hostile(tmp_path: Path) -> HostileModels:
    return hostile_models(tmp_path / "models")


def test_the_code_runs_where_open_clip_opens_the_model_itself(hostile: HostileModels) -> None:
    """The canary works: without the checks the file beside the tokenizer is run."""
    open_clip.get_tokenizer(f"local-dir:{hostile.folder}")
    assert hostile.canary.exists()


def test_a_config_with_a_tokenizer_of_code_is_refused(hostile: HostileModels) -> None:
    with pytest.raises(UserError, match=r"evil\.json: text_cfg: 'hf_tokenizer_name' is no architecture field"):
        register(hostile.config)
    with pytest.raises(UserError, match="text_cfg: 'hf_tokenizer_name' is no architecture field"):
        open_model(f"local-dir:{hostile.folder}", "")
    with pytest.raises(UserError, match=r"the teacher local-dir:.*'hf_tokenizer_name'"):
        OpenClipTeacher(f"local-dir:{hostile.folder}", "")
    assert not hostile.canary.exists()
    assert hostile.config.stem not in open_clip.list_models()


def test_a_pickle_with_code_is_refused(hostile: HostileModels) -> None:
    open_clip.add_model_config(_written(hostile.folder / "siclip-test-coca.json", TINY_COCA))
    opened = open_model("siclip-test-coca", str(hostile.weights))
    assert type(opened.tokenizer) is open_clip.SimpleTokenizer
    with pytest.raises(UserError, match="weights of this model"):
        OpenClipTeacher("siclip-test-coca", str(hostile.pickle))
    assert not hostile.canary.exists()


@pytest.mark.parametrize("section", ["text_cfg", "multimodal_cfg"])
@pytest.mark.parametrize("name", [*REFUSED, "tokenizer_kwargs", "tokenizer_mode", "trust_remote_code"])
def test_every_field_that_reaches_transformers_is_refused(section: str, name: str) -> None:
    for value in (None, False, "x", {}):
        with pytest.raises(UserError, match=rf"c: {section}: '{name}' is no architecture field"):
            check_config(TINY_COCA | {section: TINY_COCA[section] | {name: value}}, "c")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trust_remote_code": True}, "c: 'trust_remote_code' is no architecture field"),
        ({"vision_cfg": {"timm_model_name": "hf-hub:a/b"}}, "'hf-hub:a/b' is no model of timm"),
        ({"vision_cfg": {"timm_model_name": "local-dir:/tmp"}}, "'local-dir:/tmp' is no model of timm"),
        ({"vision_cfg": {"width": 10**400}}, "c: vision_cfg: width is not between"),
        ({"vision_cfg": {"mlp_ratio": float("nan")}}, "c: vision_cfg: mlp_ratio is not between"),
        ({"vision_cfg": {"layers": [[1]]}}, "c: vision_cfg: layers is a mapping, a nested list"),
        ({"vision_cfg": {"act_kwargs": {"approximate": {}}}}, "act_kwargs is a mapping, a nested list"),
        ({"vision_cfg": 3}, "c: vision_cfg is not a mapping"),
        ({"embed_dim": float("inf")}, "c: embed_dim is not between"),
    ],
)
def test_a_value_that_is_no_architecture_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_config(TINY_COCA | change, "c")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"embed_dim": ' + "9" * 10_000 + "}", "not JSON that can be read"),
        ("{", "not JSON that can be read"),
        ('"' + "x" * 2_000_000 + '"', "larger than 1,000,000 bytes"),
        ("[]", "is not a mapping"),
        ("{}", "lacks embed_dim, vision_cfg, text_cfg"),
    ],
)
def test_a_file_that_is_no_config_ends_in_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        register(tmp_path / "model.json")
    assert len(str(caught.value)) < 500


def test_the_name_of_a_file_is_no_schema(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the file's name becomes the model's"):
        register(_written(tmp_path / "hf-hub:someone.json", TINY_COCA))


def test_a_file_may_not_replace_a_model_of_open_clip(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already has a model 'coca_ViT-B-32': rename"):
        register(_written(tmp_path / "coca_ViT-B-32.json", TINY_COCA))
    assert register(_written(tmp_path / "siclip-test-own.json", TINY_COCA)) == "siclip-test-own"
    assert register(tmp_path / "siclip-test-own.json") == "siclip-test-own"  # again


def test_every_architecture_that_open_clip_ships_is_allowed() -> None:
    folder = Path(open_clip.__file__).parent / "model_configs"
    for file in sorted(folder.glob("*.json")):
        config = read_config(file)
        if not {"hf_model_name", "hf_tokenizer_name"} & config["text_cfg"].keys():
            check_config(config, file.name)


def test_code_of_a_hub_repository_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import transformers

    asked: dict[str, Any] = {}

    def from_pretrained(name: str, **options: Any) -> None:
        asked.update(options, name=name)
        raise OSError("no network")

    def built(name: str, **options: Any) -> None:
        asked["weights_only"] = options["weights_only"]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(open_clip, "create_model", built)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(OSError, match="no network"):
        open_model("ViT-H-14-CLIPA", "datacomp1b")
    assert asked["name"] == "bert-base-uncased"
    assert asked["trust_remote_code"] is False and asked["weights_only"] is True


def test_a_folder_with_the_name_of_a_hub_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """transformers prefers the folder, with its config and its code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert-base-uncased").mkdir()
    with pytest.raises(UserError, match=r"'bert-base-uncased' of the Hugging Face hub, but .* would be read instead"):
        open_model("ViT-H-14-CLIPA", "datacomp1b")


def _written(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(json.dumps(config))
    return path
