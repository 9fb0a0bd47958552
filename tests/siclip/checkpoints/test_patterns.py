from __future__ import annotations

import itertools
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from siclip.checkpoints.formats import load_checkpoint, save_checkpoint
from siclip.checkpoints.patterns import drop_aliases, fill_aliases, merge_blocks, unequal_aliases
from siclip.config import TrainingConfig
from siclip.errors import UserError
from siclip.models import Clip, SharingPattern, count_parameters, create_model, enumerate_patterns, parse_pattern
from siclip.training.optimizer import make_optimizer

IMAGE_BLOCKS, TEXT_BLOCKS = 2, 4
IMAGE_PATTERNS = st.sampled_from(list(enumerate_patterns(IMAGE_BLOCKS)))
TEXT_PATTERNS = st.sampled_from(list(enumerate_patterns(TEXT_BLOCKS)))
States = dict[str, list[dict[str, Tensor]]]
property_test = settings(max_examples=25, deadline=None, derandomize=True, database=None)


IMAGE_TOWER = {"layers": (1, IMAGE_BLOCKS), "widths": (16, 32), "squeeze_excite_downsample": (False, False)}
TEXT_TOWER = {"vocab_size": 64, "width": 24}


def model_of(seed: int, image: object = "none", text: object = "none", **text_options: Any) -> Clip:
    """A tiny siclip model in which every tensor has different values."""
    torch.manual_seed(seed)
    towers: dict[str, Any] = {"image": IMAGE_TOWER, "text": TEXT_TOWER | text_options}
    model = create_model("siclip-nano", image_sharing=str(image), text_sharing=str(text), **towers)
    for value in model.state_dict().values():
        value.copy_(torch.rand(value.shape) if value.is_floating_point() else torch.randint(1, 99, value.shape))
    return model


@cache
def model_without_sharing() -> Clip:
    return model_of(0)


def blocks_of(model: Clip) -> dict[str, list[nn.Module]]:
    return {"image": list(model.image_encoder.blocks), "text": model.text_encoder.blocks}


def covers(pattern: SharingPattern, name: str) -> bool:
    """Whether the pattern's part contains a block's tensor of this name."""
    return pattern.part == "block" or name.startswith(f"{pattern.part}.")


@property_test
@given(IMAGE_PATTERNS, TEXT_PATTERNS)
def test_shared_tensors_are_one_storage_and_are_counted_once(image: SharingPattern, text: SharingPattern) -> None:
    model, unshared = model_of(0, image, text), model_without_sharing()
    expected = count_parameters(unshared)
    for tower, pattern in (("image", image), ("text", text)):
        states = [block.state_dict() for block in blocks_of(model)[tower]]
        for i, j in itertools.product(range(len(states)), repeat=2):
            for name, value in states[i].items():
                together = i == j or (covers(pattern, name) and pattern.assignment[i] == pattern.assignment[j])
                assert (value.data_ptr() == states[j][name].data_ptr()) == together, (tower, i, j, name)
        for i, block in enumerate(blocks_of(unshared)[tower]):
            if pattern.assignment[i] in pattern.assignment[:i]:
                expected -= sum(p.numel() for name, p in block.named_parameters() if covers(pattern, name))
    assert count_parameters(model) == expected
    groups = make_optimizer(model.named_parameters(), TrainingConfig(steps=1, warmup_steps=0)).param_groups
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert len({parameter.data_ptr() for parameter in parameters}) == len(parameters)
    assert sum(parameter.numel() for parameter in parameters) == expected


@property_test
@given(IMAGE_PATTERNS, TEXT_PATTERNS)
def test_a_file_contains_shared_tensors_once(image: SharingPattern, text: SharingPattern) -> None:
    model = model_of(0, image, text)
    size = 4 * count_parameters(model) + sum(buffer.nbytes for buffer in model.buffers())
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".pt", ".safetensors"):
            path = Path(folder) / f"model{suffix}"
            save_checkpoint(path, model)
            if suffix == ".pt":
                with zipfile.ZipFile(path) as archive:
                    stored = sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)
            else:
                stored = path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")
            assert stored == size


def merged(sources: list[Tensor], how: str) -> Tensor:
    if how == "first" or not sources[0].is_floating_point():
        return sources[0]
    return torch.stack(sources).double().mean(0).to(sources[0].dtype)


def assert_converted(source: States, target: States, patterns: dict[str, SharingPattern], how: str) -> None:
    """Where its pattern shares, a block of the target has its group's tensors, otherwise those of the same block."""
    for tower, pattern in patterns.items():
        for i, block in enumerate(target[tower]):
            group = [j for j, number in enumerate(pattern.assignment) if number == pattern.assignment[i]]
            for name, value in block.items():
                sources = group if covers(pattern, name) else [i]
                torch.testing.assert_close(value, merged([source[tower][j][name] for j in sources], how))


def block_prefix(tower: str, block: int) -> str:
    return (
        f"image_encoder.model.stages.1.blocks.{block}."
        if tower == "image"
        else f"text_encoder.transformer.{block + 1}."
    )


def states_in(state: dict[str, Tensor], patterns: dict[str, SharingPattern]) -> States:
    """A flat state dict by tower and block."""
    return {
        tower: [
            {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            for prefix in (block_prefix(tower, block) for block in range(len(pattern.assignment)))
        ]
        for tower, pattern in patterns.items()
    }


@settings(property_test, max_examples=300)
@given(IMAGE_PATTERNS, TEXT_PATTERNS, st.sampled_from(["average", "first"]))
def test_merging_blocks_and_filling_aliases(image: SharingPattern, text: SharingPattern, how: Any) -> None:
    patterns = {"image": image, "text": text}
    config = model_without_sharing().config
    config = config.model_copy(
        update={t: getattr(config, t).model_copy(update={"sharing": str(p)}) for t, p in patterns.items()}
    )
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {
        "logit_scale": torch.ones(()),
        "text_encoder.transformer.5.mlp.0.weight": torch.ones(3),
    }
    for tower, pattern in patterns.items():
        for block in range(len(pattern.assignment)):
            for name in ("qk.query.weight", "mlp.0.weight", "norm.weight", "alpha"):
                state[block_prefix(tower, block) + name] = torch.rand(3, generator=generator)
            state[block_prefix(tower, block) + "norm.num_batches_tracked"] = torch.tensor(block)
    result = merge_blocks(state, config, how)
    assert set(result) == set(state) and all(torch.equal(result[name], state[name]) for name in list(state)[:2])
    assert_converted(states_in(state, patterns), states_in(result, patterns), patterns, how)
    assert not unequal_aliases(result, config)
    twice = merge_blocks(result, config, how)
    assert all(torch.equal(twice[name], value) for name, value in result.items())
    once = drop_aliases(result, config)
    filled = fill_aliases(once, config)
    assert set(filled) == set(result) and all(torch.equal(filled[name], result[name]) for name in result)
    assert len(once) == len({value.data_ptr() for value in filled.values()})


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("how", ["average", "first"])
@pytest.mark.parametrize(
    ("saved", "target_patterns"),
    [(("none", "none"), ("qk:0-0", "qk:0-0-0-0")), (("block:0-0", "mlp:0-0-1-1"), ("none", "block:0-1-1-0"))],
)
def test_a_file_of_one_pattern_becomes_another(
    tmp_path: Path, suffix: str, how: Any, saved: tuple[str, str], target_patterns: tuple[str, str]
) -> None:
    source, target = model_of(1, *saved), model_of(2, *target_patterns)
    save_checkpoint(tmp_path / f"model{suffix}", source)
    load_checkpoint(target, tmp_path / f"model{suffix}", sharing=how)
    image, text = target_patterns
    patterns = {"image": parse_pattern(image, IMAGE_BLOCKS), "text": parse_pattern(text, TEXT_BLOCKS)}
    ours, theirs = target.state_dict(), source.state_dict()
    assert_converted(states_in(theirs, patterns), states_in(ours, patterns), patterns, how)
    blocks = tuple(block_prefix(tower, i) for tower, p in patterns.items() for i in range(len(p.assignment)))
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items() if not name.startswith(blocks))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("saved", "target_patterns", "message"),
    [
        ({}, {"image": "qk:0-0"}, "image sharing 'none', but the model has 'qk:0-0'"),
        ({"image": "qk:0-0"}, {}, "image sharing 'qk:0-0', but the model has 'none'"),
        (
            {"text": "qk:0-0-1-1"},
            {"text": "mlp:0-0-1-1"},
            "text sharing 'qk:0-0-1-1', but the model has 'mlp:0-0-1-1'",
        ),
        ({"text": "qk:0-0-0-1"}, {"text": "qk:0-0-1-1"}, "text sharing 'qk:0-0-0-1', but the model has 'qk:0-0-1-1'"),
    ],
)
def test_another_pattern_is_refused_unless_asked_for(
    tmp_path: Path, suffix: str, saved: dict[str, str], target_patterns: dict[str, str], message: str
) -> None:
    path = tmp_path / f"model{suffix}"
    save_checkpoint(path, model_of(0, **saved))
    model, before = model_of(1, **target_patterns), model_of(1, **target_patterns)
    with pytest.raises(UserError, match=f"saved with {message}") as error:
        load_checkpoint(model, path)
    assert str(path) in str(error.value) and "sharing='average'" in str(error.value)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.state_dict().items())
    load_checkpoint(model, path, sharing="average")
    assert not torch.equal(model.logit_scale, before.logit_scale)


def test_the_pattern_of_the_other_tower_does_not_matter(tmp_path: Path) -> None:
    source, model = model_of(0), model_of(1, text="qk:0-0-1-1")
    save_checkpoint(tmp_path / "model.pt", source)
    load_checkpoint(model, tmp_path / "model.pt", part="image")
    theirs = source.image_encoder.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.image_encoder.state_dict().items())
    with pytest.raises(UserError, match="text sharing"):
        load_checkpoint(model, tmp_path / "model.pt", part="text")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_bare_state_dict_must_have_equal_tensors_where_the_model_shares(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"state{suffix}"
    state = model_of(0).state_dict()
    torch.save(state, path) if suffix == ".pt" else safetensors.torch.save_file(state, path)
    model = model_of(1, text="qk:0-0-1-1")
    with pytest.raises(UserError, match="different tensors where the model shares one: text_encoder") as error:
        load_checkpoint(model, path)
    message = str(error.value)
    assert "transformer.2.qk.query.weight" in message and "transformer.4.qk.key.bias" in message
    assert "transformer.3" not in message and ".mlp." not in message and "sharing='average'" in message
    load_checkpoint(model, path, sharing="first")
    key = "text_encoder.transformer.3.qk.key.weight"
    assert torch.equal(model.text_encoder.blocks[3].qk.key.weight, state[key])  # type: ignore[union-attr]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_bare_state_dict_of_the_same_pattern_loads(tmp_path: Path, suffix: str) -> None:
    source, model = (model_of(seed, "block:0-0", "mlp:0-1-0-1") for seed in (0, 1))
    path = tmp_path / f"state{suffix}"
    if suffix == ".pt":
        torch.save(source.state_dict(), path)
    else:
        # It omits aliases.
        safetensors.torch.save_model(source, path)
    load_checkpoint(model, path)
    theirs = source.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("how", ["average", "first"])
def test_the_first_blocks_value_matrix_survives_block_sharing(tmp_path: Path, how: Any) -> None:
    options = {"sasp": {"first_value": True}}
    source, model = model_of(0, **options), model_of(1, text="block:0-0-1-1", **options)
    save_checkpoint(tmp_path / "model.pt", source)
    with pytest.raises(UserError, match="text sharing 'none', but the model has 'block:0-0-1-1'"):
        load_checkpoint(model, tmp_path / "model.pt")
    load_checkpoint(model, tmp_path / "model.pt", sharing=how)
    first, ours = source.text_encoder.blocks[0], model.text_encoder.blocks[1]
    assert torch.equal(ours.value.weight, first.value.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_blocks_of_a_plain_text_tower_are_stored_once_and_converted(tmp_path: Path, suffix: str) -> None:
    """Without RepMixers its first block is the first entry of the tower's list."""
    options = {"layers": 3, "mixer_kernel": 0}
    model = model_of(0, text="qk:0-0-1", **options)
    save_checkpoint(tmp_path / f"model{suffix}", model)
    again, free = model_of(1, text="qk:0-0-1", **options), model_of(2, **options)
    load_checkpoint(again, tmp_path / f"model{suffix}")
    load_checkpoint(free, tmp_path / f"model{suffix}", sharing="average")
    for target in (again, free):
        assert all(torch.equal(value, target.state_dict()[name]) for name, value in model.state_dict().items())
    weights = [block.qk.key.weight for block in free.text_encoder.blocks]
    with torch.no_grad():
        weights[1].add_(2)
    save_checkpoint(tmp_path / f"free{suffix}", free)
    load_checkpoint(again, tmp_path / f"free{suffix}", sharing="average")
    torch.testing.assert_close(again.text_encoder.blocks[1].qk.key.weight, weights[0] + 1)
    assert torch.equal(again.text_encoder.blocks[2].qk.key.weight, weights[2])
