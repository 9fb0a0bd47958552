from __future__ import annotations

import io
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import siclip
from siclip.checkpoints.formats import load_checkpoint, load_model, read_checkpoint, save_checkpoint
from siclip.errors import UserError
from siclip.models import Clip, create_model

SUFFIXES = pytest.mark.parametrize("suffix", [".pt", ".safetensors"])


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch bombed",)


def model_of(seed: int, name: str = "siclip-nano", **options: Any) -> Clip:
    """A small model in which every tensor has different values, including BatchNorm statistics."""
    torch.manual_seed(seed)
    model = create_model(name, text={"vocab_size": 64}, **options)
    for value in model.state_dict().values():
        value.copy_(torch.randint(1, 99, value.shape) if not value.is_floating_point() else torch.rand(value.shape))
    return model


def assert_same(one: Clip, other: Clip, prefix: str = "") -> None:
    theirs = other.state_dict()
    different = [k for k, v in one.state_dict().items() if k.startswith(prefix) and not torch.equal(v, theirs[k])]
    assert not different


def bytes_of(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@SUFFIXES
def test_a_saved_model_is_rebuilt_with_its_weights_and_sharing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    model = model_of(0, image_sharing="block:0-0", text_sharing="mlp:0-0-0-1")
    save_checkpoint(path, model.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    again = siclip.load_model(path)
    assert again.config == model.config
    assert_same(model, again)
    assert again.image_encoder.blocks[0] is again.image_encoder.blocks[1]
    other = model_of(1, image_sharing="block:0-0", text_sharing="mlp:0-0-0-1")
    siclip.load_checkpoint(other, path)
    assert_same(model, other)
    content = read_checkpoint(path)
    assert content["training"] is None and set(content["model"]) == set(model.state_dict())


def test_training_state_is_stored_in_torch_files_but_not_in_safetensors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.pt", model_of(0), {"step": 7})
    assert read_checkpoint(tmp_path / "model.pt")["training"] == {"step": 7}
    with pytest.raises(UserError, match="cannot contain training state"):
        save_checkpoint(tmp_path / "model.safetensors", model_of(0), {"step": 7})
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


@SUFFIXES
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"model{suffix}"
    old = model_of(0)
    save_checkpoint(path, old)

    def no_space(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match="cannot be written: no space"):
        save_checkpoint(path, model_of(1))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert_same(load_model(path), old)


def test_a_reparameterized_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reparameterized"):
        save_checkpoint(tmp_path / "model.pt", model_of(0).reparameterize())
    assert not list(tmp_path.iterdir())


BAD_FILES: dict[str, tuple[str, bytes | None, str]] = {
    "missing": (".pt", None, "does not exist"),
    "missing safetensors": (".safetensors", None, "does not exist"),
    "empty": (".pt", b"", "is empty"),
    "empty safetensors": (".safetensors", b"", "is empty"),
    "text": (".pt", b"half a zip PK\x03\x04", "cannot be read as a checkpoint"),
    "text safetensors": (".safetensors", b"garbage" * 99, "cannot be read as a checkpoint"),
    "five bytes safetensors": (".safetensors", b"abcde", "cannot be read as a checkpoint"),
    "torch file safetensors": (".safetensors", bytes_of({"a": torch.ones(3)}), "cannot be read as a checkpoint"),
    "pickle with code": (".pt", pickle.dumps(Bomb()), "would run code"),
    "old pickle with code": (".pt", pickle.dumps(Bomb(), protocol=0), r"asks for posix\.system.*would run code"),
    "torch file with code": (".pt", bytes_of({"model": Bomb()}), r"asks for posix\.system.*would run code"),
    "whole module": (".pt", bytes_of(torch.nn.Linear(2, 2)), r"asks for torch.*Linear.*would run code"),
    "list": (".pt", bytes_of([torch.ones(2)]), "contains a list"),
    "no tensors": (".pt", bytes_of({"epoch": 3, "loss": 0.1}), "no tensor under epoch, loss"),
    "nothing": (".pt", bytes_of({}), "it contains nothing"),
    "numbered": (".pt", bytes_of({0: torch.ones(2)}), "keys are not names"),
    "wrapped list": (".pt", bytes_of({"state_dict": [1]}), "not a state dict"),
    "another network": (".pt", bytes_of({"layer1.0.conv1.weight": torch.ones(2)}), r"layer1\.0\.conv1\.weight"),
    "newer": (".pt", bytes_of({"format": "siclip-checkpoint", "version": 99}), "of version 99, this code reads 1"),
    "other images": (
        ".pt",
        bytes_of({"format": "siclip-checkpoint", "version": 1, "preprocessing": {"mean": torch.ones(3)}}),
        "expects images prepared by .'mean': tensor",
    ),
    "half ours": (".pt", bytes_of({"format": "siclip-checkpoint", "version": 1}), "without config, model, training"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    suffix, content, message = BAD_FILES[case]
    path = tmp_path / f"bad{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(model_of(0), path)
    assert str(path) in str(error.value)
    with pytest.raises(UserError, match=r"bad\."):
        load_model(path)
    assert not (tmp_path / "bombed").exists()


@SUFFIXES
@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"model{suffix}"
    save_checkpoint(path, model_of(0))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    for read in (load_model, lambda path: load_checkpoint(model_of(0), path)):
        with pytest.raises(UserError, match="is it truncated"):
            read(path)


@SUFFIXES
def test_damaged_bytes_always_raise_a_user_error(tmp_path: Path, suffix: str) -> None:
    generator = random.Random(0)
    tensors = {"stem.a": torch.ones(3), "stem.b": torch.zeros(2)}
    whole = bytes_of(tensors) if suffix == ".pt" else safetensors.torch.save(tensors)
    model, path = model_of(0), tmp_path / f"damaged{suffix}"
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        # A file that is still readable is refused because it is of another model.
        with pytest.raises(UserError):
            load_checkpoint(model, path, part="image")


def test_a_checkpoint_of_another_model_lists_its_keys_and_changes_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "teacher.pt", model_of(0, "mobileclip-nano"))
    model, before = model_of(1), model_of(1)
    with pytest.raises(
        UserError, match=r"not a checkpoint of 'siclip-nano': \d+ missing: .*alpha.*unexpected"
    ) as error:
        load_checkpoint(model, tmp_path / "teacher.pt")
    assert "text_encoder.transformer.1.pre_norm_mha.0.weight" in str(error.value)
    assert "siclip.inherit" in str(error.value)
    assert_same(model, before)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("logit_scale"), "1 missing: logit_scale$"),
        (lambda state: state.update(logit_bias=torch.ones(())), "1 unexpected: logit_bias$"),
        (lambda state: state.update(logit_scale=torch.ones(3)), r"logit_scale \(3,\) instead of \(\)$"),
        (lambda state: state.pop("image_encoder.model.head.fc.weight"), r"1 missing: image_encoder\.model\.head"),
    ],
)
@SUFFIXES
def test_missing_and_unexpected_keys_are_listed(
    tmp_path: Path, suffix: str, damage: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    state = model_of(0, "mobileclip-nano").state_dict()
    damage(state)
    path = tmp_path / f"state{suffix}"
    torch.save(state, path) if suffix == ".pt" else safetensors.torch.save_file(state, path)
    with pytest.raises(UserError, match=message):
        load_checkpoint(model_of(1, "mobileclip-nano"), path)


def test_another_number_of_heads_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "model.pt", create_model("mobileclip-nano", text={"heads": 4}))
    with pytest.raises(UserError, match="4 heads in the text tower, but the model has 3"):
        load_checkpoint(create_model("mobileclip-nano"), tmp_path / "model.pt")


@SUFFIXES
@pytest.mark.parametrize("part", ["image", "text"])
def test_one_tower_of_a_whole_checkpoint(tmp_path: Path, suffix: str, part: str) -> None:
    source, model, before = model_of(0), model_of(1), model_of(1)
    path = tmp_path / f"model{suffix}"
    save_checkpoint(path, source)
    load_checkpoint(model, path, part=part)  # type: ignore[arg-type]
    other = "text" if part == "image" else "image"
    assert_same(model, source, f"{part}_encoder.")
    assert_same(model, before, f"{other}_encoder.")
    assert torch.equal(model.logit_scale, before.logit_scale)


def test_one_tower_is_loaded_completely_or_not_at_all(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.pt", model_of(0))
    teacher, before = model_of(1, "mobileclip-nano"), model_of(1, "mobileclip-nano")
    with pytest.raises(UserError, match=r"missing: image_encoder.*unexpected: image_encoder") as error:
        load_checkpoint(teacher, tmp_path / "model.pt", part="image")
    assert "text_encoder" not in str(error.value)
    assert_same(teacher, before)


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.pt", model_of(0))
    with pytest.raises(UserError, match="'mean'"):
        load_checkpoint(model_of(0), tmp_path / "model.pt", sharing="mean")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'vision'"):
        load_checkpoint(model_of(0), tmp_path / "model.pt", part="vision")  # type: ignore[arg-type]
