"""What the models of the registry compute and keep, as `siclip_platform.plan.counting` counted them.

Stored, because counting imports torch, which alone takes longer than everything else that a plan does. A model that
is not here, or whose config has changed, is counted when it is planned; a test recounts these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from siclip.config import FreezePolicy


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A model under a policy of freezing.

    Attributes:
        trainable: parameters that train.
        activation_bytes: what autograd keeps for the backward pass per pair, in train form under bf16 autocast.
        trunk_is_frozen: whether no weight of the trunks trains.
    """

    trainable: int
    activation_bytes: int
    trunk_is_frozen: bool


@dataclass(frozen=True, kw_only=True)
class ModelWork:
    """What a model computes and keeps.

    Attributes:
        config: hash of the model's config.
        trunk_flops, head_flops: floating-point operations of a forward pass per pair in train form, of both trunks
            and of both heads; a multiply-add is two.
        parameters: of the train form.
        frozen: by policy; ``none`` is also the model that inherits nothing.
    """

    config: str
    trunk_flops: int
    head_flops: int
    parameters: int
    frozen: Mapping[FreezePolicy, Frozen]


COUNTED: dict[str, ModelWork] = {
    "mobileclip-nano": ModelWork(
        config="7d51bb0e5778",
        trunk_flops=15407616,
        head_flops=26782208,
        parameters=5687633,
        frozen={
            "inherited": Frozen(trainable=1, activation_bytes=0, trunk_is_frozen=True),
            "before_sasp": Frozen(trainable=776753, activation_bytes=473400, trunk_is_frozen=True),
            "none": Frozen(trainable=5687633, activation_bytes=1427992, trunk_is_frozen=False),
        },
    ),
    "mobileclip-s0": ModelWork(
        config="f43ed64d7a80",
        trunk_flops=4413093888,
        head_flops=2415142912,
        parameters=53847681,
        frozen={
            "inherited": Frozen(trainable=1, activation_bytes=0, trunk_is_frozen=True),
            "before_sasp": Frozen(trainable=20963905, activation_bytes=10077784, trunk_is_frozen=True),
            "none": Frozen(trainable=53847681, activation_bytes=95780416, trunk_is_frozen=False),
        },
    ),
    "mobileclip2-nano": ModelWork(
        config="be4374975ac5",
        trunk_flops=12374016,
        head_flops=46673408,
        parameters=6131473,
        frozen={
            "inherited": Frozen(trainable=1, activation_bytes=0, trunk_is_frozen=True),
            "before_sasp": Frozen(trainable=1297873, activation_bytes=809460, trunk_is_frozen=True),
            "none": Frozen(trainable=6131473, activation_bytes=1694932, trunk_is_frozen=False),
        },
    ),
    "mobileclip2-s0": ModelWork(
        config="112e5e4234ab",
        trunk_flops=4088397824,
        head_flops=6285852672,
        parameters=74835073,
        frozen={
            "inherited": Frozen(trainable=1, activation_bytes=0, trunk_is_frozen=True),
            "before_sasp": Frozen(trainable=44067393, activation_bytes=19106288, trunk_is_frozen=True),
            "none": Frozen(trainable=74835073, activation_bytes=103389656, trunk_is_frozen=False),
        },
    ),
    "siclip-nano": ModelWork(
        config="453a225fbdf8",
        trunk_flops=15407616,
        head_flops=21735936,
        parameters=5476121,
        frozen={
            "inherited": Frozen(trainable=430665, activation_bytes=414200, trunk_is_frozen=True),
            "before_sasp": Frozen(trainable=565241, activation_bytes=422584, trunk_is_frozen=True),
            "none": Frozen(trainable=5476121, activation_bytes=1377176, trunk_is_frozen=False),
        },
    ),
    "siclip-s0": ModelWork(
        config="a2cd4b3095cc",
        trunk_flops=4413093888,
        head_flops=1957963776,
        parameters=49115981,
        frozen={
            "inherited": Frozen(trainable=13182157, activation_bytes=7346810, trunk_is_frozen=True),
            "before_sasp": Frozen(trainable=16232205, activation_bytes=9136312, trunk_is_frozen=True),
            "none": Frozen(trainable=49115981, activation_bytes=94838944, trunk_is_frozen=False),
        },
    ),
    "siclip2-nano": ModelWork(
        config="9127819da040",
        trunk_flops=12374016,
        head_flops=35728896,
        parameters=5695025,
        frozen={
            "inherited": Frozen(trainable=804001, activation_bytes=708428, trunk_is_frozen=True),
            "before_sasp": Frozen(trainable=861425, activation_bytes=709132, trunk_is_frozen=True),
            "none": Frozen(trainable=5695025, activation_bytes=1594604, trunk_is_frozen=False),
        },
    ),
    "siclip2-s0": ModelWork(
        config="95930ccd31e1",
        trunk_flops=4088397824,
        head_flops=5182750720,
        parameters=63791645,
        frozen={
            "inherited": Frozen(trainable=32089501, activation_bytes=17140592, trunk_is_frozen=True),
            "before_sasp": Frozen(trainable=33023965, activation_bytes=17143664, trunk_is_frozen=True),
            "none": Frozen(trainable=63791645, activation_bytes=101427032, trunk_is_frozen=False),
        },
    ),
}
