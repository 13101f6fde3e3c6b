"""Session: one loaded ONNX graph. The only place where onnxruntime is called."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import repeat

import numpy as np
import onnxruntime as ort

from gateway.errors import LoadRejected
from gateway.models.options import SessionOptions
from gateway.models.quarantine import is_out_of_memory
from gateway.oip.datatypes import BY_ORT_NAME
from gateway.types import Array, Contract, TensorSpec

_BF16_ONNX_TYPE = 16


class Session:
    """Runs one model. `run` releases the GIL while ONNX Runtime computes and may be called from several threads.

    `computes_alone`: all is computed by the thread that calls.
    """

    def __init__(self, model: bytes, options: SessionOptions, unranked: Collection[str] = ()) -> None:
        """Load a graph from its bytes. `unranked` names the tensors whose rank the graph leaves open.

        Raises LoadRejected where onnxruntime refuses the graph or a tensor is outside of the protocol, MemoryError
        where there is not enough of it.
        """
        setup = ort.SessionOptions()
        setup.intra_op_num_threads = options.intra_op_threads
        setup.inter_op_num_threads = 1
        setup.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        setup.enable_cpu_mem_arena = options.memory_arena
        setup.enable_mem_pattern = options.memory_pattern
        setup.log_severity_level = 4
        # Spinning threads of one session slow every other session on the same cores (onnxruntime#10273).
        setup.add_session_config_entry("session.intra_op.allow_spinning", "0")
        setup.add_session_config_entry("session.inter_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(model, setup, providers=list(options.providers))
        except Exception as error:  # onnxruntime raises a dozen unrelated types, all derived from Exception alone
            if is_out_of_memory(str(error)):
                raise MemoryError from None
            raise LoadRejected(f"onnxruntime refused the model: {first_line(error)}") from None
        # What `InferenceSession.run` calls once it has looked at its arguments, which are right here by construction.
        self._run = self._session._sess.run
        self.contract = Contract(
            tuple(_spec(node, unranked) for node in self._session.get_inputs()),
            tuple(_spec(node, unranked) for node in self._session.get_outputs()),
        )
        self.computes_alone = options.intra_op_threads == 1 and options.providers == ("CPUExecutionProvider",)
        self._bf16 = frozenset(spec.name for spec in self.contract.inputs if spec.datatype == "BF16")
        self._has_bf16 = bool(self._bf16) or any(spec.datatype == "BF16" for spec in self.contract.outputs)
        names = [spec.name for spec in (*self.contract.inputs, *self.contract.outputs)]
        if not all(names):
            raise LoadRejected("every input and output of the graph needs a name")

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        """Run once; `inputs` as in InferRequest, one array per name of `outputs`. Raises what onnxruntime raises."""
        if self._has_bf16:
            return self._run_bf16(inputs, outputs)
        return tuple(self._run(outputs, inputs, None))

    def run_all(self, feeds: Iterable[Mapping[str, Array]], outputs: Sequence[str]) -> list[Sequence[Array]]:
        """Run once for each of `feeds`, as `run` does, with nothing around a run that it can do without."""
        if self._has_bf16:
            return [self._run_bf16(feed, outputs) for feed in feeds]
        return list(map(self._run, repeat(list(outputs)), feeds, repeat(None)))

    def _run_bf16(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> tuple[Array, ...]:
        """numpy has no bfloat16, so the bits go in and out through OrtValues."""
        feed = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BF16_ONNX_TYPE)
            if name in self._bf16
            else ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in inputs.items()
        }
        results = self._session.run_with_ort_values(list(outputs), feed)
        return tuple(_bits(value) if value.data_type() == "tensor(bfloat16)" else value.numpy() for value in results)


def _bits(value: ort.OrtValue) -> Array:
    """A copy of a bfloat16 tensor's bits."""
    shape = tuple(value.shape())
    size = int(np.prod(shape, dtype=np.int64))
    if size == 0:
        return np.empty(shape, np.uint16)
    memory = (ctypes.c_uint16 * size).from_address(value.data_ptr())
    return np.ctypeslib.as_array(memory).reshape(shape).copy()


def _spec(node: ort.NodeArg, unranked: Collection[str]) -> TensorSpec:
    datatype = BY_ORT_NAME.get(node.type)
    if datatype is None:
        hint = "; export classifiers with zipmap off" if node.type.startswith("seq(map") else ""
        raise LoadRejected(f"{node.name!r} is {node.type}, but the protocol carries only tensors{hint}")
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape)
    return TensorSpec(node.name, datatype.name, None if node.name in unranked else shape)


def first_line(error: BaseException, limit: int = 300) -> str:
    """The first line of an error's text, cut at `limit` characters: for logs and load reports, not for clients."""
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return text[:limit]
