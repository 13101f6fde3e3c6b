"""model.toml: an absent one is all defaults, a wrong one is refused by the name of the key."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.models.config import ModelConfig, parse


def test_an_absent_file_is_all_defaults() -> None:
    config = parse(b"")
    assert config == ModelConfig()
    assert (config.versions.policy, config.versions.count) == ("latest", 1)
    assert config.batching.enabled
    assert config.nonfinite_inputs == "accept"


def test_every_key_is_read() -> None:
    config = parse(
        b"""
        description = "late flights"
        nonfinite_inputs = "refuse"
        [versions]
        policy = "specific"
        only = [1, 3]
        [aliases]
        champion = 1
        challenger = 3
        [session]
        intra_op_threads = 2
        memory_arena = false
        memory_pattern = false
        [batching]
        enabled = false
        max_rows = 8
        [outputs.label]
        labels = ["on time", "late"]
        """
    )
    assert config.description == "late flights"
    assert (config.versions.policy, config.versions.only) == ("specific", (1, 3))
    assert config.aliases == {"champion": 1, "challenger": 3}
    assert (config.session.intra_op_threads, config.session.memory_arena, config.session.memory_pattern) == (2, 0, 0)
    assert (config.batching.enabled, config.batching.max_rows) == (False, 8)
    assert config.outputs["label"].labels == ("on time", "late")
    assert config.nonfinite_inputs == "refuse"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("versions = ", "model.toml is not valid", id="half a line"),
        pytest.param("descripton = 'x'", "descripton", id="a key that is spelt wrong"),
        pytest.param("[versions]\npolicy = 'newest'", "$.versions.policy", id="an unknown policy"),
        pytest.param("[versions]\ncount = 0", "$.versions.count", id="no version at all"),
        pytest.param("[versions]\ncount = '2'", "$.versions.count", id="a number as text"),
        pytest.param("[versions]\npolicy = 'specific'", "versions.only", id="specific without a list"),
        pytest.param("[versions]\nonly = [0]", "$.versions.only[0]", id="version zero"),
        pytest.param("[versions]\nlatest = 2", "latest", id="an unknown key of a table"),
        pytest.param("[aliases]\nchampion = 'two'", "$.aliases[...]", id="an alias of no number"),
        pytest.param("[aliases]\nchampion = -1", "$.aliases[...]", id="an alias of a negative version"),
        pytest.param("[aliases]\nBest = 1", "'Best'", id="an alias with a capital"),
        pytest.param("[aliases]\n1 = 1", "'1'", id="an alias that would be a version"),
        pytest.param("[session]\nintra_op_threads = 1000", "$.session.intra_op_threads", id="too many threads"),
        pytest.param("[batching]\nmax_rows = 0", "$.batching.max_rows", id="batches of nothing"),
        pytest.param("[batching]\nenabled = 1", "$.batching.enabled", id="a number for a switch"),
        pytest.param("nonfinite_inputs = 'maybe'", "$.nonfinite_inputs", id="an unknown choice"),
        pytest.param("[outputs.y]\nlabels = [1]", "$.outputs[...].labels[0]", id="a label that is no text"),
        pytest.param("a = 1\na = 2", "model.toml is not valid", id="a key twice"),
    ],
)
def test_a_wrong_file_is_refused_by_the_name_of_the_key(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"model\.toml") as caught:
        parse(text.encode())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.binary(max_size=100) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    refusal = ""
    try:
        parse(content)
    except ValueError as error:
        refusal = str(error)
    assert not refusal or refusal.startswith("model.toml")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.toml"):
        parse(b"a = " + b"[" * 50_000)
