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
        self._leaves_replies = False

    @staticmethod
    async def _open(address: str) -> Any:
        return tritonclient.http.aio.InferenceServerClient(address)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not inspect.iscoroutinefunction(found):
            return found
        # Of what these calls are answered they read no body.
        self._leaves_replies |= name.endswith(("_live", "_ready"))
        return lambda *args, **kwargs: self._runner.run(found(*args, **kwargs))

    def close(self) -> None:
        """Close it, and while its loop still turns also what it leaves open."""
        self._runner.run(self._client.close())
        if self._leaves_replies:
            gc.collect()
        self._runner.run(self._end())
        self._runner.close()

    @staticmethod
    async def _end() -> None:
        """Wait until no socket is left: one with bytes that the server does not want any more closes a little later."""
        loop: Any = asyncio.get_running_loop()
        await asyncio.sleep(0)
        while len(loop._selector.get_map()) > 1:  # the loop's own
            await asyncio.sleep(0.001)


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
