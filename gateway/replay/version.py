"""A version that a replay runs: loaded as a server loads it, and compared with the one that answered."""

from __future__ import annotations

from typing import NamedTuple

from gateway.errors import HeadgateError, LoadRejected
from gateway.models import config as model_config
from gateway.models.config import ModelConfig
from gateway.models.loader import QuarantineLoader
from gateway.models.manifest import MODEL, read_file, sha256
from gateway.models.scan import ScanLimits, scan
from gateway.models.session import Session
from gateway.settings import Settings


class Version(NamedTuple):
    """A loaded version. `max_rows`: of a batch; a larger request runs in pieces."""

    session: Session
    sha256: str
    max_rows: int


def load(settings: Settings, model: str, version: int) -> Version:
    """Load a version from the model folder: one session with the options that a server would give it.

    It is scanned, but not tried in quarantine. Raises LoadRejected.
    """
    home = settings.models / model
    try:
        config = model_config.parse((home / "model.toml").read_bytes())
    except FileNotFoundError:
        config = ModelConfig()
    except ValueError as error:
        raise LoadRejected(str(error)) from None
    loader = QuarantineLoader(
        timeout_s=settings.quarantine_timeout_s,
        memory_bytes=settings.quarantine_memory_bytes,
        max_model_bytes=settings.max_model_bytes,
        intra_op_threads=settings.intra_op_threads or 1,
        providers=settings.providers,
    )
    folder = home / str(version)
    if not (folder / MODEL).is_file():
        raise LoadRejected(f"{model} version {version} is not in the model folder")
    try:
        data = read_file(folder, MODEL, settings.max_model_bytes)
        facts = scan(data, ScanLimits(max_file_bytes=settings.max_model_bytes))
        session = Session(data, loader.options(config), (*facts.unranked_inputs, *facts.unranked_outputs))
    except HeadgateError as error:
        raise LoadRejected(f"{model} version {version}: {error.message}") from None
    except MemoryError:
        raise LoadRejected(f"{model} version {version}: it needs more memory than there is") from None
    finally:
        loader.close()
    specs = (*session.contract.inputs, *session.contract.outputs)
    may_batch = config.batching.enabled and all(spec.shape and spec.shape[0] == -1 for spec in specs)
    return Version(session, sha256(data), config.batching.max_rows if may_batch else 0)
