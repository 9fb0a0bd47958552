"""The parts of timm that the models are built of, imported without torch's compiler.

timm and torchvision each use one name of the compiler at import, and so import all of it: a thousand modules, which
take longer than everything else that a process of this project imports, in every training, task and command. None of
them needs it before it compiles. Import timm's parts from here, and torchvision and open_clip after this module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from torch._compile import _disable_dynamo

__all__ = [
    "AttentionBlock",
    "ConvMlp",
    "FastVit",
    "LayerNorm2d",
    "Mlp",
    "MobileOneBlock",
    "RepConditionalPosEnc",
    "RepMixerBlock",
    "RmsNorm2d",
    "reparameterize_model",
]

COMPILER, UTILS = "torch._dynamo", "torch._dynamo.utils"


@contextmanager
def _compiler_on_use() -> Iterator[None]:
    """Inside the block, an import of the compiler gives a stand-in for the two names that timm and torchvision use.

    Both import the compiler when they are called, and then are its own. Any other name imports it at once.
    """
    if COMPILER in sys.modules:
        yield
        return
    stand_ins = {name: ModuleType(name) for name in (COMPILER, UTILS)}

    def remove() -> None:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]

    def attribute_of(module: str) -> Callable[[str], Any]:
        def get(name: str) -> Any:
            # What Python asks of every module; only a package answers where its own modules are.
            if name.startswith("__") and (module, name) != (COMPILER, "__path__"):
                raise AttributeError(name)
            remove()
            return getattr(import_module(module), name)

        return get

    for name, module in stand_ins.items():
        # A module's own `__getattr__` answers for what it lacks.
        vars(module)["__getattr__"] = attribute_of(name)
    vars(stand_ins[COMPILER])["disable"] = _disable
    vars(stand_ins[UTILS])["is_compile_supported"] = _is_compile_supported
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        remove()


def _disable(function: Callable[..., Any] | None = None, recursive: bool = True, **_: Any) -> Any:
    """What torch itself uses in place of ``torch.compiler.disable``: its decorator imports the compiler on a call."""
    return _disable_dynamo(function, recursive)


def _is_compile_supported(device_type: str) -> Any:
    return import_module(UTILS).is_compile_supported(device_type)


with _compiler_on_use():
    from timm.layers import LayerNorm2d, Mlp, RmsNorm2d
    from timm.models.fastvit import (
        AttentionBlock,
        ConvMlp,
        FastVit,
        MobileOneBlock,
        RepConditionalPosEnc,
        RepMixerBlock,
    )
    from timm.utils.model import reparameterize_model
