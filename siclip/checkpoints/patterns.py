"""Sharing patterns in state dicts: dropping and restoring aliases, and converting between patterns.

A siclip state dict names a tensor once per block that uses it (see `siclip.models.sharing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from siclip.config import ModelConfig
from siclip.errors import UserError
from siclip.models.sharing import SharingPattern, parse_pattern

Tower = Literal["image", "text"]
TOWERS: tuple[Tower, ...] = ("image", "text")
Merge = Literal["average", "first"]


def pattern_of(config: ModelConfig, tower: Tower) -> SharingPattern:
    """The sharing pattern of a tower."""
    if tower == "image":
        return parse_pattern(config.image.sharing, config.image.layers[-1])
    return parse_pattern(config.text.sharing, config.text.layers)


def shared_groups(config: ModelConfig, tower: Tower) -> list[list[str]]:
    """The name prefixes of every set of shared weights, the owner's first; at least two prefixes each."""
    pattern = pattern_of(config, tower)
    inner = f"{pattern.part}." if pattern.part in ("qk", "mlp") else ""
    groups: dict[int, list[str]] = {}
    for block in range(len(pattern.assignment)):
        groups.setdefault(pattern.owner(block), []).append(_block_prefix(config, tower, block) + inner)
    return [group for group in groups.values() if len(group) > 1]


def drop_aliases(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Every shared tensor once, under its owner's name."""
    aliases = tuple(prefix for group in _all_groups(config) for prefix in group[1:])
    return {name: value for name, value in state.items() if not name.startswith(aliases)}


def fill_aliases(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Add the missing names of every shared tensor that has at least one; existing entries are not changed."""
    filled = dict(state)
    for group in _all_groups(config):
        for suffix, names in _members(state, group).items():
            for prefix in group:
                filled.setdefault(prefix + suffix, state[names[0]])
    return filled


def merge_blocks(state: Mapping[str, Tensor], config: ModelConfig, how: Merge) -> dict[str, Tensor]:
    """A state dict in which the tensors that ``config`` shares are equal.

    Integer counters are always the first block's. A matrix that only one block has (the first block's value) is
    that block's. Averaging queries and keys is a heuristic: the heads of two blocks do not correspond.

    Args:
        state: the state dict.
        config: its sharing patterns are applied.
        how: ``first``: the first block's tensors; ``average``: the mean over the blocks of a group.

    Raises:
        UserError: tensors to be averaged have different shapes.
    """
    merged = dict(state)
    for group in _all_groups(config):
        for suffix, names in _members(state, group).items():
            tensor = _merge({name: state[name] for name in names}, how)
            merged |= {prefix + suffix: tensor for prefix in group}
    return merged


def unequal_aliases(state: Mapping[str, Tensor], config: ModelConfig) -> list[str]:
    """Names of tensors that ``config`` shares with an earlier block but that differ from that block's."""
    different = []
    for group in _all_groups(config):
        for names in _members(state, group).values():
            first = state[names[0]]
            different += [name for name in names[1:] if not _same(first, state[name])]
    return different


def _all_groups(config: ModelConfig) -> list[list[str]]:
    return [group for tower in TOWERS for group in shared_groups(config, tower)]


def _block_prefix(config: ModelConfig, tower: Tower, block: int) -> str:
    if tower == "image":
        return f"image_encoder.model.stages.{len(config.image.layers) - 1}.blocks.{block}."
    # With RepMixers entry 0 of the list is the first of them.
    return f"text_encoder.transformer.{block + config.text.has_mixers}."


def _members(state: Mapping[str, Tensor], group: list[str]) -> dict[str, list[str]]:
    """Suffix after a prefix of the group → the names in the state dict with this suffix, in the group's order."""
    members: dict[str, list[str]] = {}
    for prefix in group:
        for name in state:
            if name.startswith(prefix):
                members.setdefault(name.removeprefix(prefix), []).append(name)
    return members


def _merge(tensors: Mapping[str, Tensor], how: Merge) -> Tensor:
    first, *others = tensors.values()
    if how == "first" or not first.is_floating_point() or all(_same(first, other) for other in others):
        return first
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise UserError(f"blocks of different shapes cannot be averaged: {shapes}")
    # The mean is taken in fp32: a sum of bf16 weights would lose bits.
    return torch.stack([tensor.float() for tensor in tensors.values()]).mean(dim=0).to(first.dtype)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and (one.is_set_to(other) or one.equal(other))
