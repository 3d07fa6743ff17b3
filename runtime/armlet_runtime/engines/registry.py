"""The engines that armlet knows, and which of them this machine can use."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from ..errors import EngineError
from .base import Engine

NAMES = ("litert", "executorch", "onnx", "tflite")
"""Each is a module of this folder with ``why_not() -> str | None`` (cheap: loads nothing) and
``open_engine() -> Engine``.
``onnx`` also takes the name of a provider, as in ``onnx:cuda``; both of its functions take that name."""


def available() -> dict[str, str | None]:
    """Engine name to None if it can be used on this machine, else why not and what to install."""
    return {name: import_module(f"{__package__}.{name}").why_not() for name in NAMES}


@cache
def get_engine(name: str) -> Engine:
    """The engine of that name, opened once a process.

    Raises:
        EngineError: There is no such engine, or it cannot be used here; the message says what to install.
    """
    base, colon, option = name.partition(":")
    if base not in NAMES:
        raise EngineError(f"there is no engine '{base}'; there are {', '.join(NAMES)}")
    if colon and base != "onnx":
        raise EngineError(f"the engine '{base}' takes nothing after a colon; only onnx does, such as onnx:cuda")
    module = import_module(f"{__package__}.{base}")
    options = (option,) if colon else ()
    reason = module.why_not(*options)
    if reason is not None:
        raise EngineError(f"the engine '{name}' cannot be used here: {reason}")
    engine: Engine = module.open_engine(*options)
    return engine
