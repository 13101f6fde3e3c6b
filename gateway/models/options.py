"""How a session is set up. Apart from `session`, so that describing a session does not import onnxruntime."""

from __future__ import annotations

import msgspec


class SessionOptions(msgspec.Struct, frozen=True):
    """How a session is set up: threads inside one operator, memory behaviour, execution providers in order."""

    intra_op_threads: int = 1
    memory_arena: bool = True
    memory_pattern: bool = True
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
