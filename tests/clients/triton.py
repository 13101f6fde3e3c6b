"""What the tests of tritonclient share: both of its clients behind one face, and tensors in one call."""

from __future__ import annotations

import asyncio
import gc
import inspect
from typing import Any

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.http import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

__all__ = ["AioClient", "InferRequestedOutput", "SyncClient", "refusal", "tensor"]

SyncClient = tritonclient.http.InferenceServerClient


class AioClient:
    """The asyncio client, of which each call is awaited at once: so one test serves both clients."""

    def __init__(self, address: str) -> None:
        self._runner = asyncio.Runner()
        self._client: Any = self._runner.run(self._open(address))

    @staticmethod
    async def _open(address: str) -> Any:
        return tritonclient.http.aio.InferenceServerClient(address)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not inspect.iscoroutinefunction(found):
            return found
        return lambda *args, **kwargs: self._runner.run(found(*args, **kwargs))

    def close(self) -> None:
        """Close it, and while its loop still turns also what its health calls leave open: they read no body."""
        self._runner.run(self._client.close())
        if not self._runner.run(self._ends(turns=20)):
            gc.collect()
            self._runner.run(self._ends())
        self._runner.close()

    @staticmethod
    async def _ends(turns: int = 1_000_000) -> bool:
        """Whether no socket is left soon: one with bytes that the server does not want any more closes a bit later."""
        loop: Any = asyncio.get_running_loop()
        for _ in range(turns):
            if len(loop._selector.get_map()) == 1:  # the loop's own
                return True
            await asyncio.sleep(0.001)
        return False


def tensor(name: str, array: np.ndarray, binary: bool = True) -> InferInput:
    """An input with its data."""
    given = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def refusal(call: Any, *args: Any, **kwargs: Any) -> tuple[int, str]:
    """Status and message of the exception that a call must end with."""
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **kwargs)
    status, message = caught.value.status(), caught.value.message()
    assert status is not None, f"the client itself refused: {message}"
    return int(status), message
