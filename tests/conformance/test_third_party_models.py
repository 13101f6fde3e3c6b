"""Models that other projects publish, served as they are: the answers are those of ONNX Runtime run directly.

The wheels are fetched on the first run and kept in pytest's cache; only the model files in them are used.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import pytest

from tests.clients.ondemand import FetchFailed, unavailable, wheel
from tests.conformance.node_tests import session
from tests.conformance.protocol import Client, Format, Refused, datatype_of
from tests.servers import Server

pytestmark = [pytest.mark.slow(0.25), pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parent.parent.parent


class Wheel(NamedTuple):
    """A pinned wheel and the models in it: what they are called here, and where they lie there."""

    requirement: str
    sha256: str
    models: dict[str, str]


WHEELS = (
    Wheel(
        "silero-vad==6.2.3",
        "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
        {
            "speech": "silero_vad/data/silero_vad.onnx",
            "speech_half": "silero_vad/data/silero_vad_half.onnx",
            "speech_sequence": "silero_vad/data/silero_vad_16k_sequence.onnx",
        },
    ),
    Wheel(
        "magika==1.0.3",
        "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
        {"filetype": "magika/models/standard_v3_3/model.onnx"},
    ),
    Wheel(
        "pyopenjtalk-plus==0.4.1.post10",
        "239c2fe9d6fb97a3c14ccfaabee91f44c7953d36b34249c7e05884eecbebc93d",
        {
            "reading_encoder": "pyopenjtalk/yomi_model/nani_enc.onnx",
            "reading": "pyopenjtalk/yomi_model/nani_model.onnx",
        },
    ),
)


class Served(NamedTuple):
    """A running server with the models, and the folder they lie in."""

    server: Server
    models: Path
    magika: dict[str, Any]

    def both(
        self, model: str, inputs: dict[str, np.ndarray], format_: Format
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The server's answer and that of ONNX Runtime, by output name."""
        direct = self.direct(model)
        names = [node.name for node in direct.get_outputs()]
        expected = dict(zip(names, direct.run(names, inputs), strict=True))
        client = Client(self.server.address)
        try:
            outputs = [(name, datatype_of(array)) for name, array in expected.items()]
            return client.infer(model, inputs, outputs, format_), expected
        finally:
            client.close()

    def direct(self, model: str) -> ort.InferenceSession:
        return session(self.models / model / "1" / "model.onnx")


@pytest.fixture(scope="module")
def served(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """All of the models in one repository, each without a manifest."""
    scratch = tmp_path_factory.mktemp("third-party")
    models = scratch / "models"
    magika: dict[str, Any] = {}
    cache = pytestconfig.cache.mkdir("third-party")
    try:
        for each in WHEELS:
            with zipfile.ZipFile(wheel(cache, each.requirement, each.sha256)) as archive:
                for name, member in each.models.items():
                    folder = models / name / "1"
                    folder.mkdir(parents=True)
                    (folder / "model.onnx").write_bytes(archive.read(member))
                if "filetype" in each.models:
                    magika = json.loads(archive.read("magika/models/standard_v3_3/config.min.json"))
    except FetchFailed as error:
        unavailable(error)
    server = Server(models, scratch / "server", "--quiet-s", "0")
    yield Served(server, models, magika)
    assert server.stop() == 0


@pytest.mark.parametrize("model", sorted(name for each in WHEELS for name in each.models))
def test_the_very_file_of_the_wheel_is_served_as_unverified(served: Served, model: str) -> None:
    (status,) = served.server.json("GET", f"/v2/models/{model}")["status"]
    assert status["state"] == "READY"
    assert status["verified"] is False
    assert status["sha256"] == sha256((served.models / model / "1" / "model.onnx").read_bytes()).hexdigest()


# -- silero-vad: is somebody speaking? The state of one call is an input of the next, the rate is a scalar


def sound(rate: int, seconds: float, seed: int = 0) -> np.ndarray:
    """Noise, and from the middle on a voice-like sum of harmonics that swells."""
    time = np.arange(int(rate * seconds)) / rate
    voice = sum(np.sin(2 * math.pi * 140 * k * time + k) / k for k in range(1, 20))
    swell = np.clip(2 * time / seconds - 1, 0, 1) * (1 + np.sin(2 * math.pi * 4 * time))
    noise = np.random.default_rng(seed).standard_normal(time.size)
    return (0.2 * swell * voice + 0.01 * noise).astype(np.float32)


def windows(rate: int, samples: np.ndarray) -> Iterator[np.ndarray]:
    """What silero-vad's own wrapper feeds: each window of samples behind the last ones of the window before."""
    size, context = (512, 64) if rate == 16000 else (256, 32)
    padded = np.concatenate([np.zeros(context, np.float32), samples])
    for start in range(0, len(samples) - size + 1, size):
        yield padded[start : start + context + size][np.newaxis]


@pytest.mark.parametrize("format_", ["binary", "json"])
@pytest.mark.parametrize("rate", [16000, 8000])
def test_silero_vad_follows_a_sound_through_its_state(served: Served, rate: int, format_: Format) -> None:
    """Each side carries its own state from call to call: an error would grow."""
    direct, client = served.direct("speech"), Client(served.server.address)
    ours = theirs = np.zeros((2, 1, 128), np.float32)
    heard = []
    for window in windows(rate, sound(rate, 1.0)):
        inputs = {"input": window, "sr": np.array(rate, np.int64)}
        outputs = [("output", "FP32"), ("stateN", "FP32")]
        answer = client.infer("speech", {**inputs, "state": ours}, outputs, format_)
        expected, theirs = direct.run(["output", "stateN"], {**inputs, "state": theirs})
        ours = answer["stateN"]
        np.testing.assert_allclose(answer["output"], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        heard.append(float(expected[0, 0]))
    client.close()
    assert len(heard) == 31
    assert max(heard) - min(heard) > 0.01, "the sound made no difference, so nothing was compared"


def test_silero_vad_is_not_batched_because_axis_0_of_its_state_counts_layers(served: Served) -> None:
    assert served.server.json("GET", "/v2/models/speech/config")["max_batch_size"] == 0
    described = served.server.json("GET", "/v2/models/speech")
    assert described["inputs"] == [
        {"name": "input", "datatype": "FP32", "shape": [-1, -1]},
        {"name": "state", "datatype": "FP32", "shape": [2, -1, 128]},
        {"name": "sr", "datatype": "INT64", "shape": []},
    ]


@pytest.mark.parametrize("format_", ["binary", "json"])
def test_three_sounds_may_go_through_silero_vad_together(served: Served, format_: Format) -> None:
    together = np.concatenate([next(windows(16000, sound(16000, 0.1, seed))) for seed in range(3)])
    inputs = {"input": together, "state": np.zeros((2, 3, 128), np.float32), "sr": np.array(16000, np.int64)}
    answer, expected = served.both("speech", inputs, format_)
    assert answer["output"].shape == (3, 1)
    for name, array in expected.items():
        np.testing.assert_allclose(answer[name], array, rtol=1e-4, atol=1e-6)


def test_a_sampling_rate_that_is_no_scalar_is_refused(served: Served) -> None:
    inputs = {"input": np.zeros((1, 576), np.float32), "state": np.zeros((2, 1, 128), np.float32)}
    client = Client(served.server.address)
    with pytest.raises(Refused, match=r"'sr' expects 0 dimensions \[\], got 1 \[1\]") as caught:
        client.infer("speech", {**inputs, "sr": np.array([16000])}, [("output", "FP32")], "binary")
    assert caught.value.status == 400
    client.close()


@pytest.mark.parametrize("format_", ["binary", "json"])
@pytest.mark.parametrize("length", [1, 7])
def test_silero_vad_for_whole_sequences_and_with_small_weights(served: Served, length: int, format_: Format) -> None:
    frames = np.concatenate(list(windows(16000, sound(16000, 1.0))))[-length:]
    zeros = np.zeros((1, 1, 128), np.float32)
    cases = {
        "speech_sequence": {"input": frames, "h": zeros, "c": zeros},
        "speech_half": {"input": frames, "state": np.zeros((2, length, 128), np.float32)},
    }
    for model, inputs in cases.items():
        answer, expected = served.both(model, inputs, format_)
        assert answer.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_allclose(answer[name], array, rtol=1e-4, atol=1e-6)


# -- magika: what sort of file is it? 2048 integers, 214 classes

FILES = {
    "python": (ROOT / "gateway" / "settings.py").read_bytes(),
    "toml": (ROOT / "pyproject.toml").read_bytes(),
    "makefile": (ROOT / "Makefile").read_bytes(),
    "dockerfile": (ROOT / "Dockerfile").read_bytes(),
    "json": (ROOT / "examples" / "flights" / "1" / "manifest.json").read_bytes(),
}


def features(content: bytes, config: dict[str, Any]) -> np.ndarray:
    """What magika makes of a file: its first and last bytes without white space at the ends, padded."""
    first, last, block, padding = (config[key] for key in ("beg_size", "end_size", "block_size", "padding_token"))
    head = list(content[:block].lstrip()[:first])
    tail = list(content[-block:].rstrip()[-last:])
    row = head + [padding] * (first - len(head)) + [padding] * (last - len(tail)) + tail
    return np.array([row], np.int32)


@pytest.mark.parametrize("format_", ["binary", "json"])
@pytest.mark.parametrize("kind", sorted(FILES))
def test_magika_knows_the_files_of_this_project(served: Served, kind: str, format_: Format) -> None:
    answer, expected = served.both("filetype", {"bytes": features(FILES[kind], served.magika)}, format_)
    np.testing.assert_allclose(answer["target_label"], expected["target_label"], rtol=1e-3, atol=1e-6)
    assert served.magika["target_labels_space"][int(np.argmax(answer["target_label"]))] == kind


def test_magika_answers_for_several_files_at_once(served: Served) -> None:
    rows = np.concatenate([features(content, served.magika) for content in FILES.values()])
    answer, expected = served.both("filetype", {"bytes": rows}, "binary")
    np.testing.assert_allclose(answer["target_label"], expected["target_label"], rtol=1e-3, atol=1e-6)
    labels = [served.magika["target_labels_space"][index] for index in np.argmax(answer["target_label"], axis=1)]
    assert labels == list(FILES)


# -- pyopenjtalk-plus: how is a Japanese word read? Six strings to a row, encoded by one model, judged by another

WORDS = (
    ("助詞", "格助詞", "一般", "ガ", "*", "*"),
    ("名詞", "一般", "助数詞", "カイ", "*", "*"),
    ("動詞", "自立", "*", "カンガエル", "一段", "基本形"),
    ("no word", "", "\u0000", "\U0001f6f0", "é" * 200, "*"),
)


def words(rows: Sequence[tuple[str, ...]]) -> np.ndarray:
    return np.array(rows, dtype=object)


@pytest.mark.parametrize("format_", ["binary", "json"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_strings_go_through_the_encoder_of_pyopenjtalk_and_its_classifier(
    served: Served, count: int, format_: Format
) -> None:
    answer, expected = served.both("reading_encoder", {"input": words(WORDS[:count])}, format_)
    (encoded,) = answer.values()
    np.testing.assert_array_equal(encoded, *expected.values(), strict=True)
    assert encoded.shape == (count, 131)
    assert encoded[:3].any(axis=1).all(), "a known word left no mark, so nothing was compared"
    answer, expected = served.both("reading", {"input": encoded}, format_)
    np.testing.assert_allclose(answer["probabilities"], expected["probabilities"], rtol=1e-5, atol=1e-6)
