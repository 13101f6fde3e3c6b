"""Quarantine with real child processes: a version that crashes, hangs, eats memory or lies fails alone."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from gateway.errors import HeadgateError, LoadRejected, LoadUnavailable
from gateway.models.config import ModelConfig
from gateway.models.loader import QuarantineLoader
from gateway.models.manifest import sha256
from gateway.models.quarantine import Quarantine, Report
from gateway.models.source import Source
from gateway.models.trial import resident_bytes
from gateway.telemetry.counters import VersionCounters
from tests.models import bad_models, crafted
from tests.models.trying import ENDLESS, MIB, TINY, job_for, put, wait_for
from tests.onnx_models import build, constant_answer, identity
from tests.processes import nurseries

pytestmark = pytest.mark.usefixtures("nothing_is_left")

SHARED: list[Quarantine] = []
"""The one that the tests share, and its nursery."""


def attempt(folder: Path, timeout_s: float = 30, **options: Any) -> Report:
    return SHARED[-1].try_version(job_for(folder, **options), timeout_s)


def refusal(folder: Path, timeout_s: float = 30, kind: type[HeadgateError] = LoadRejected, **options: Any) -> str:
    """The sentence a version is refused with; it names no path of this machine."""
    with pytest.raises(kind) as caught:
        attempt(folder, timeout_s, **options)
    assert type(caught.value) is kind
    message = caught.value.message
    assert "\n" not in message
    assert str(folder.parents[1]) not in message
    return message


@pytest.fixture(autouse=True, scope="module")
def _the_nursery_ends_with_the_tests() -> Iterator[None]:
    # Made here, as test processes that take tests from each other may come to this file twice.
    SHARED.append(Quarantine())
    attempt(TINY / "1")
    yield
    SHARED.pop().close()
    wait_for(lambda: not nurseries(os.getpid()))


# A version that passes


def test_a_version_that_passes_is_measured() -> None:
    report = attempt(TINY / "1")
    assert (report.verified, report.contract.batched) == (True, True)
    assert report.golden_samples > 0
    assert report.sha256 == sha256((TINY / "1" / "model.onnx").read_bytes())
    assert report.size == (TINY / "1" / "model.onnx").stat().st_size
    assert report.opsets["ai.onnx.ml"] == 3
    assert report.contract.inputs[0].shape == (-1, 30)
    assert 0 < report.load_s < 10
    assert report.run_s is not None
    assert report.batch_run_s is not None
    assert 0 < report.run_s < 1
    assert 0 < report.batch_run_s < 1
    assert MIB / 10 < report.memory_bytes < 256 * MIB
    assert report.notes == ()


# Crash, hang, hunger


@pytest.mark.faults
def test_a_model_that_crashes_its_process_is_refused_by_the_name_of_the_signal(tmp_path: Path) -> None:
    assert refusal(put(tmp_path, crafted.crashing())) == "the model crashed the process that tried it (SIGFPE)"


@pytest.mark.faults
def test_a_model_that_hangs_is_given_up_when_its_time_is_over(tmp_path: Path) -> None:
    folder = put(tmp_path, crafted.looping(ENDLESS))
    started = time.monotonic()
    message = refusal(folder, timeout_s=1.5, kind=LoadUnavailable)
    assert message == "it was not ready within 1.5 s in quarantine"
    assert time.monotonic() - started < 5


@pytest.mark.faults
@pytest.mark.parametrize("at_run_time", [False, True], ids=["in the file", "from the input"])
def test_a_model_that_eats_memory_is_refused_and_costs_its_parent_nothing(tmp_path: Path, at_run_time: bool) -> None:
    model = crafted.swelling(4096, at_run_time=at_run_time)
    assert len(model) < 250
    folder = put(tmp_path, model)
    before = resident_bytes()
    message = refusal(folder)
    assert message == "it needs more memory than it may take: twice its file and 256 MiB"
    assert resident_bytes() - before < 20 * MIB


@pytest.mark.faults
def test_hunger_in_a_golden_sample_is_called_hunger_too(tmp_path: Path) -> None:
    tensor = {"datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}
    golden = {"samples": [{"inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}]}]}
    assert "more memory" in refusal(put(tmp_path, crafted.swelling(4096, at_run_time=True), golden))


def nothing_much(size: int) -> str:
    """A `golden.json` of about so many bytes that takes many times as much memory as objects."""
    data = "[]," * (size // 3) + "[]"
    return f'{{"samples":[{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1,4],"data":[{data}]}}]}}]}}'


@pytest.mark.parametrize("bound", [False, True], ids=["bare", "with a manifest"])
def test_golden_samples_over_their_own_limit_are_refused_unread(tmp_path: Path, bound: bool) -> None:
    folder = put(tmp_path, identity())
    (folder / "golden.json").write_text(nothing_much(60 * MIB))
    if bound:
        contents = {name: (folder / name).read_bytes() for name in ("model.onnx", "golden.json")}
        files = {name: {"size": len(content), "sha256": sha256(content)} for name, content in contents.items()}
        (folder / "manifest.json").write_text(json.dumps({"model": "m", "version": 1, "files": files}))
    size = (folder / "golden.json").stat().st_size
    assert refusal(folder) == f"golden.json is {size} bytes, at most {8 * MIB} are taken"


@pytest.mark.faults
def test_golden_samples_that_eat_memory_while_they_are_read_are_refused(tmp_path: Path) -> None:
    folder = put(tmp_path, identity())
    (folder / "golden.json").write_text(nothing_much(7 * MIB))
    assert "twice its file and 64 MiB" in refusal(folder, memory_bytes=64 * MIB)


def test_a_model_may_take_what_it_is_allowed_and_not_more(tmp_path: Path) -> None:
    folder = put(tmp_path, crafted.swelling(128, at_run_time=True))
    assert attempt(folder, memory_bytes=256 * MIB).run_s is not None
    assert "twice its file and 64 MiB" in refusal(folder, memory_bytes=64 * MIB)


# Files that are not what they should be


@pytest.mark.parametrize("name", ["model.onnx", "golden.json"])
def test_one_flipped_bit_is_a_digest_mismatch(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "tiny" / "1"
    shutil.copytree(TINY / "1", folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 0x10
    (folder / name).write_bytes(content)
    assert refusal(folder) == f"sha256 mismatch: {name} is not the file that its manifest describes"


def test_a_version_in_another_place_than_its_manifest_says_is_refused(tmp_path: Path) -> None:
    shutil.copytree(TINY / "1", tmp_path / "tiny" / "2")
    assert "is for 'tiny' version 1, but lies in 'tiny' 2" in refusal(tmp_path / "tiny" / "2")


def test_a_file_that_the_manifest_lists_and_nobody_needs_is_verified_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "tiny" / "1"
    shutil.copytree(TINY / "1", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["baseline.json"] = {"size": 2, "sha256": sha256(b"{}")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert refusal(folder) == "baseline.json is missing"
    (folder / "baseline.json").write_text("[]")
    assert "sha256 mismatch: baseline.json" in refusal(folder)


@pytest.mark.parametrize("damage", [b"", b"not a model", b"\x08\x09", identity()[:40]])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, damage: bytes) -> None:
    assert refusal(put(tmp_path, damage))


def test_a_model_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder = put(tmp_path, identity())
    (folder / "model.onnx").rename(tmp_path / "elsewhere")
    (folder / "model.onnx").symlink_to(tmp_path / "elsewhere")
    assert "it must be a regular, readable file" in refusal(folder)


def test_a_model_over_the_size_limit_is_refused_unread(tmp_path: Path) -> None:
    folder = put(tmp_path, identity())
    with open(folder / "model.onnx", "r+b") as file:
        file.truncate(65 * MIB)
    assert refusal(folder) == f"model.onnx is {65 * MIB} bytes, at most {64 * MIB} are taken"


def test_external_data_is_refused_before_onnxruntime_opens_it(tmp_path: Path) -> None:
    model = bad_models.model(initializers=[bad_models.external("weights.bin")])
    folder = put(tmp_path, model.SerializeToString())
    # Whoever opens this waits for a writer that never comes.
    os.mkfifo(folder / "weights.bin")
    message = refusal(folder)
    assert "'weights'" in message
    assert "outside the model file" in message


# Golden samples


def golden_of(expected: float, **more: Any) -> dict[str, Any]:
    """One sample of a model that answers 1."""
    x = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}
    y = {"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [1, expected, 1, 1]}
    return {"samples": [{"inputs": [x], "outputs": [y]}], **more}


def test_a_golden_sample_within_tolerance_agrees(tmp_path: Path) -> None:
    assert attempt(put(tmp_path, constant_answer(1), golden_of(1.00005))).golden_samples == 1


def test_a_golden_sample_that_is_off_refuses_the_version_and_says_by_how_much(tmp_path: Path) -> None:
    message = refusal(put(tmp_path, constant_answer(1), golden_of(1.5)))
    assert message == "golden sample 0: output 'y' is off by up to 0.5, allowed are atol 1e-05 and rtol 0.0001"


def test_the_samples_say_what_is_within_tolerance(tmp_path: Path) -> None:
    assert attempt(put(tmp_path, constant_answer(1), golden_of(1.5, atol=0.6))).golden_samples == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"inputs": []}, "golden sample 0 inputs has []", id="no inputs"),
        pytest.param({"outputs": []}, "golden sample 0 outputs has []", id="no outputs"),
        pytest.param({"surprise": 1}, "surprise", id="an unknown key"),
        pytest.param(
            {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 4], "data": [0] * 4}]}, "FP64", id="type"
        ),
        pytest.param(
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [0] * 3}]}, "'x'", id="shape"
        ),
    ],
)
def test_a_sample_that_does_not_fit_the_model_refuses_the_version(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    golden = golden_of(1)
    golden["samples"][0].update(change)
    assert words in refusal(put(tmp_path, constant_answer(1), golden))


# Batches


def test_a_model_whose_rows_do_not_touch_each_other_is_batched(tmp_path: Path) -> None:
    for number, model in enumerate((constant_answer(1), crafted.summing_long_rows())):
        report = attempt(put(tmp_path / str(number), model))
        assert report.contract.batched, report.notes
        assert report.batch_run_s is not None


@pytest.mark.parametrize(
    ("model", "why"),
    [
        pytest.param(identity(dims=(1, 4)), "axis 0 of 'x' is not free", id="a fixed axis"),
        pytest.param(identity(dims=()), "axis 0 of 'x' is not free", id="scalars"),
        pytest.param(crafted.mixing_rows(), "row 0 of output 'y' alone is not what it is in a batch", id="softmax"),
        pytest.param(
            crafted.dividing_by_the_largest(), "row 0 of output 'y' alone is not what it is in a batch", id="largest"
        ),
        pytest.param(
            crafted.as_wide_as_the_largest(), "how large output 'y' is depends on values, and so may on", id="wide"
        ),
        pytest.param(crafted.averaging_rows(), "axis 0 of 'y' is not free", id="one row for all"),
        pytest.param(
            build([onnx.helper.make_node("Constant", [], ["y"], value_float=1.0)], [], [("y", TensorProto.FLOAT, [])]),
            "axis 0 of 'y' is not free",
            id="no inputs",
        ),
    ],
)
def test_a_model_that_cannot_be_batched_passes_with_the_reason(tmp_path: Path, model: bytes, why: str) -> None:
    report = attempt(put(tmp_path, model))
    assert not report.contract.batched
    assert report.batch_run_s is None
    assert any(note.startswith(f"not batched: {why}") for note in report.notes), report.notes


def test_batching_that_is_off_is_not_tried(tmp_path: Path) -> None:
    report = attempt(put(tmp_path, constant_answer(1)), batching=False)
    assert not report.contract.batched
    assert report.notes == ("not batched: batching is off in model.toml",)


# The loader around it


def loader(**options: Any) -> QuarantineLoader:
    return QuarantineLoader(
        timeout_s=30,
        memory_bytes=256 * MIB,
        max_model_bytes=64 * MIB,
        intra_op_threads=1,
        providers=("CPUExecutionProvider",),
        **options,
    )


def test_without_a_manifest_a_version_is_unverified_or_where_one_is_required_refused(tmp_path: Path) -> None:
    put(tmp_path, identity())
    files = Source(tmp_path, 0).scan()["m"].versions[1]
    with pytest.raises(LoadRejected, match=r"no manifest\.json, which require_manifest demands"):
        loader(require_manifest=True).check("m", files, ModelConfig())
    with closing(loader()) as lenient:
        assert not lenient.check("m", files, ModelConfig()).verified


def test_a_file_that_is_swapped_after_its_trial_is_not_loaded(tmp_path: Path) -> None:
    folder = put(tmp_path, constant_answer(1))
    files = Source(tmp_path, 0).scan()["m"].versions[1]
    with closing(loader()) as one:
        report = one.check("m", files, ModelConfig())
        assert one.load("m", files, ModelConfig(), report, VersionCounters()).version == 1
        (folder / "model.onnx").write_bytes(constant_answer(2))
        with pytest.raises(LoadRejected, match=r"model\.onnx changed between quarantine and loading"):
            one.load("m", files, ModelConfig(), report, VersionCounters())
