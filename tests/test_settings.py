"""The settings table: one row of it answers alike to its flag, its variable, the file and the docs page."""

from __future__ import annotations

import argparse
import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from gateway.errors import SettingError
from gateway.kinds import size_text
from gateway.settings import TABLE, Row, Settings, add_arguments, describe, example, load, service_links

DOCS = Path(__file__).parents[1] / "docs" / "settings.md"
NAMES = [row.name for row in TABLE]

# A value other than the default for each setting, as text, and what it must become.
OTHERS: dict[str, tuple[str, Any]] = {
    "models": ("elsewhere/models", Path("elsewhere/models")),
    "data": ("elsewhere/data", Path("elsewhere/data")),
    "host": ("::1", "::1"),
    "port": ("0", 0),
    "admin_host": ("::1", "::1"),
    "admin_port": ("9001", 9001),
    "workers": ("3", 3),
    "heartbeat_timeout_s": ("2.5", 2.5),
    "header_timeout_s": ("0.5", 0.5),
    "body_timeout_s": ("0.5", 0.5),
    "idle_timeout_s": ("0.5", 0.5),
    "write_timeout_s": ("0.5", 0.5),
    "max_header_bytes": ("64KiB", 65536),
    "max_headers": ("50", 50),
    "max_url_bytes": ("8KiB", 8192),
    "max_chunks": ("1000", 1000),
    "drain_s": ("0.5", 0.5),
    "grace_s": ("5", 5.0),
    "max_worker_memory_bytes": ("2GiB", 2 << 30),
    "repository_api": ("false", False),
    "log_level": ("DEBUG", "debug"),
    "access_log": ("true", True),
    "poll_s": ("0.25", 0.25),
    "quiet_s": ("0", 0.0),
    "require_manifest": ("yes", True),
    "max_model_bytes": ("1GiB", 1 << 30),
    "quarantine_timeout_s": ("5", 5.0),
    "quarantine_memory_bytes": ("64 MiB", 64 << 20),
    "providers": (
        "XnnpackExecutionProvider, CPUExecutionProvider",
        ("XnnpackExecutionProvider", "CPUExecutionProvider"),
    ),
    "intra_op_threads": ("3", 3),
    "max_body_bytes": ("65536", 65536),
    "max_tensors": ("1", 1),
    "max_elements": ("1000", 1000),
    "max_rank": ("64", 64),
    "max_json_depth": ("12", 12),
    "monitors": ("false", False),
    "alarm_webhook": ("https://alarms.example/hook", "https://alarms.example/hook"),
    "journal": ("false", False),
    "journal_flush": ("commit", "commit"),
    "journal_required": ("true", True),
    "journal_segment_bytes": ("2MiB", 2 << 20),
    "journal_segment_age_s": ("60", 60.0),
    "journal_archive": ("no", False),
    "journal_disk_bytes": ("1GiB", 1 << 30),
    "journal_inputs_days": ("7", 7),
    "journal_rows_disk_bytes": ("2MiB", 2 << 20),
    "journal_rows_days": ("1000", 1000),
    "max_feedback_bytes": ("64KiB", 65536),
    "feedback_keys": ("1000", 1000),
    "feedback_file_bytes": ("1MiB", 1 << 20),
    "feedback_file_age_s": ("60", 60.0),
    "public_url": ("https://models.example.org:8443/serving/", "https://models.example.org:8443/serving"),
    "max_in_flight": ("9", 9),
    "max_in_flight_per_model": ("8", 8),
    "max_in_flight_per_client": ("2", 2),
    "client_key_header": ("Authorization", "authorization"),
    "max_wait_s": ("0.5", 0.5),
    "default_deadline_s": ("0.001", 0.001),
    "max_deadline_s": ("86400", 86400.0),
}

BAD = [
    ("models", ""),
    ("data", "  "),
    ("data", "a\0b"),
    ("host", ""),
    ("host", "two words"),
    ("port", "65536"),
    ("port", "-1"),
    ("port", "8080.0"),
    ("port", "8_080"),
    ("port", "\u0668\u0660"),
    ("port", "9" * 5000),
    ("port", "http"),
    ("client_key_header", "two words"),
    ("client_key_header", ""),
    ("drain_s", "nan"),
    ("drain_s", "inf"),
    ("drain_s", "1e3"),
    ("drain_s", "-1"),
    ("drain_s", "25s"),
    ("poll_s", "0"),
    ("log_level", "verbose"),
    ("access_log", "maybe"),
    ("access_log", ""),
    ("max_body_bytes", "8MB"),
    ("max_body_bytes", "1.5MiB"),
    ("max_body_bytes", "1023"),
    ("max_body_bytes", "3GiB"),
    ("max_body_bytes", "MiB"),
    ("max_rank", "0"),
    ("max_rank", "65"),
    ("providers", ""),
    ("providers", "A,,B"),
    ("providers", "A,A"),
    ("providers", "CPU Execution"),
]


def from_flags(*words: str, environ: Mapping[str, str] | None = None, toml_path: Path | None = None) -> Settings:
    """What a command with these flags would run with."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return load(vars(parser.parse_args(words)), environ or {}, toml_path)


def refusal(
    args: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None, toml_path: Path | None = None
) -> str:
    """The message of the SettingError that these sources must raise; always one line."""
    with pytest.raises(SettingError) as caught:
        load(args or {}, environ or {}, toml_path)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    return caught.value.message


def write(folder: Path, text: str) -> Path:
    path = folder / "headgate.toml"
    path.write_text(text)
    return path


def test_without_any_source_every_setting_has_its_default() -> None:
    assert load({}, {}) == Settings()
    assert from_flags() == Settings()


def test_the_defaults_are_of_the_types_that_the_fields_declare() -> None:
    hints = get_type_hints(Settings)
    for row in TABLE:
        expected = tuple if row.name == "providers" else hints[row.name]
        assert type(getattr(load({}, {}), row.name)) is (type(Path()) if expected is Path else expected), row.name


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_the_samples_cover_the_whole_table() -> None:
    assert sorted(OTHERS) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_flag_variable_and_file_read_the_same_value(name: str, tmp_path: Path) -> None:
    text, value = OTHERS[name]
    row = next(row for row in TABLE if row.name == name)
    assert value != row.default
    words = [row.flag, text] if row.kind.metavar else [row.flag if value else f"--no-{row.flag[2:]}"]
    by_flag = from_flags(*words)
    by_variable = load({}, {row.variable: text})
    by_file = load({}, {}, write(tmp_path, f'{name} = "{text}"\n'))
    assert getattr(by_flag, name) == value
    assert by_flag == by_variable == by_file == dataclasses.replace(Settings(), **{name: value})


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("port = 9000", "port", 9000),
        ("drain_s = 3", "drain_s", 3.0),
        ("drain_s = 1.5", "drain_s", 1.5),
        ("access_log = true", "access_log", True),
        ("max_body_bytes = 1048576", "max_body_bytes", 1 << 20),
        ('providers = ["A", "B"]', "providers", ("A", "B")),
    ],
)
def test_the_file_takes_the_native_types_of_toml(line: str, name: str, value: object, tmp_path: Path) -> None:
    assert getattr(load({}, {}, write(tmp_path, line)), name) == value


@pytest.mark.parametrize(
    "line",
    [
        "port = true",
        "port = 80.0",
        "port = [80]",
        "drain_s = true",
        "drain_s = nan",
        "drain_s = inf",
        f"drain_s = 1{'0' * 400}",
        "access_log = 1",
        "log_level = 3",
        "host = 127",
        "models = ['a']",
        "providers = []",
        "providers = [1]",
        "max_body_bytes = 8.5",
        "[port]\nnumber = 80",
        "port = 1979-05-27",
    ],
)
def test_a_value_of_the_wrong_type_in_the_file_is_refused(line: str, tmp_path: Path) -> None:
    message = refusal(toml_path=write(tmp_path, line))
    assert message.startswith(f"Setting {line.strip('[').split(']')[0].split(' ')[0]} from the file ")


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "port = 1\nmax_rank = 1\nmax_tensors = 1\n")
    environ = {"HEADGATE_PORT": "2", "HEADGATE_MAX_RANK": "2"}
    settings = from_flags("--port", "3", environ=environ, toml_path=path)
    assert (settings.port, settings.max_rank, settings.max_tensors) == (3, 2, 1)


def test_a_switch_that_a_flag_turns_off_stays_off_against_the_variable() -> None:
    assert from_flags("--no-access-log", environ={"HEADGATE_ACCESS_LOG": "true"}).access_log is False


def test_an_overridden_variable_is_not_even_read() -> None:
    assert from_flags("--port", "3", environ={"HEADGATE_PORT": "junk"}).port == 3


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_wrong_value_is_refused_with_its_setting_and_source(name: str, text: str) -> None:
    row = next(row for row in TABLE if row.name == name)
    by_flag = refusal({name: text})
    by_variable = refusal(environ={row.variable: text})
    assert by_flag.startswith(f"Setting {name} from the flag {row.flag} must be {row.kind.accepts}, got ")
    assert by_variable.startswith(f"Setting {name} from the variable {row.variable} must be {row.kind.accepts}, got ")
    assert repr(text)[:60] in by_flag


@pytest.mark.parametrize("name", NAMES)
def test_no_setting_takes_an_object_that_no_source_can_give(name: str) -> None:
    assert name in refusal({name: object()})


def test_a_default_deadline_above_the_maximum_is_refused_with_both_sources() -> None:
    message = refusal({"max_deadline_s": "2"}, {"HEADGATE_DEFAULT_DEADLINE_S": "3"})
    assert "default_deadline_s from the variable HEADGATE_DEFAULT_DEADLINE_S" in message
    assert "at most the 2 that the flag --max-deadline-s gives max_deadline_s" in message
    assert message.endswith("got 3.")
    assert load({"max_deadline_s": "3"}, {"HEADGATE_DEFAULT_DEADLINE_S": "3"}).default_deadline_s == 3


def test_an_unknown_variable_is_refused_with_the_name_that_was_meant() -> None:
    message = refusal(environ={"HEADGATE_MAX_BODY_BYTE": "sesame"})
    assert message == "Unknown variable HEADGATE_MAX_BODY_BYTE; did you mean HEADGATE_MAX_BODY_BYTES?"
    assert "sesame" not in message


def test_an_unknown_variable_with_no_near_name_is_refused_without_a_guess() -> None:
    assert refusal(environ={"HEADGATE_QQQQ": "1"}) == "Unknown variable HEADGATE_QQQQ."


def test_variables_of_other_programs_are_left_alone() -> None:
    assert load({}, {"HEADGATEPORT": "1", "PORT": "2", "headgate_port": "3"}) == Settings()


def test_an_unknown_key_in_the_file_is_refused_with_the_name_that_was_meant(tmp_path: Path) -> None:
    message = refusal(toml_path=write(tmp_path, "max-rank = 3\n"))
    assert "Unknown setting 'max-rank' in the file " in message
    assert "did you mean max_rank?" in message


def test_keys_of_the_command_line_that_are_no_settings_are_left_alone() -> None:
    assert load({"command": "serve", "run": print, "port": None}, {}) == Settings()


def test_the_file_is_found_by_flag_before_variable(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("port = 1")
    two.write_text("port = 2")
    environ = {"HEADGATE_CONFIG": str(two)}
    assert load({}, environ).port == 2
    assert from_flags("--config", str(one), environ=environ).port == 1


@pytest.mark.parametrize("environ", [{"HEADGATE_CONFIG": ""}, {"HEADGATE_CONFIG": "a\0b"}])
def test_an_impossible_path_of_the_file_is_refused(environ: dict[str, str]) -> None:
    assert refusal(environ=environ).startswith("Setting config from the variable HEADGATE_CONFIG must be a path, got ")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(toml_path=tmp_path / "absent.toml")
    assert "cannot be read: Is a directory" in refusal(toml_path=tmp_path)


@pytest.mark.parametrize("content", [b"port 8080", b"\xff\xfe", b"port = 1\nport = 2", b"a = " + b"[" * 100_000])
def test_a_file_that_is_not_toml_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "headgate.toml"
    path.write_bytes(content)
    assert "is not valid TOML: " in refusal(toml_path=path)


def test_variables_that_kubernetes_makes_for_a_service_are_ignored() -> None:
    links = {
        "HEADGATE_SERVICE_HOST": "10.0.0.1",
        "HEADGATE_SERVICE_PORT": "8080",
        "HEADGATE_SERVICE_PORT_HTTP": "8080",
        "HEADGATE_PORT": "tcp://10.0.0.1:8080",
        "HEADGATE_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "HEADGATE_PORT_8080_TCP_PROTO": "tcp",
        "HEADGATE_PORT_8080_TCP_PORT": "8080",
        "HEADGATE_PORT_8080_TCP_ADDR": "10.0.0.1",
        "HEADGATE_ADMIN_PORT": "tcp://10.0.0.2:8081",
        "HEADGATE_ADMIN_SERVICE_HOST": "10.0.0.2",
    }
    assert load({}, links) == Settings()
    assert service_links({**links, "HEADGATE_HOST": "::", "REDIS_PORT": "tcp://10.0.0.3:1"}) == tuple(sorted(links))


def test_a_port_variable_that_is_a_number_is_no_service_link() -> None:
    assert service_links({"HEADGATE_PORT": "8080"}) == ()
    assert load({}, {"HEADGATE_PORT": "9"}).port == 9


def test_help_shows_every_flag_with_its_default() -> None:
    parser = argparse.ArgumentParser(prog="headgate")
    add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for row in TABLE:
        assert row.flag in text
    assert "gets 413. [8MiB]" in text
    assert "[CPUExecutionProvider]" in text


def test_a_command_can_take_only_some_of_the_settings() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, only=("models", "max_model_bytes"))
    assert sorted(vars(parser.parse_args([]))) == ["config", "max_model_bytes", "models"]


def test_the_docs_page_is_in_step_with_the_table() -> None:
    assert DOCS.read_text() == describe(), "run: python -m gateway.settings > docs/settings.md"


@pytest.mark.parametrize("row", TABLE, ids=NAMES)
def test_every_setting_is_documented(row: Row) -> None:
    page = DOCS.read_text()
    section = page.split(f"\n### {row.name}\n")[1].split("\n##")[0]
    for part in (row.text, f"`{row.flag}`", f"`{row.variable}`", row.kind.accepts):
        assert part in section
    assert row.text.endswith(".")


def test_the_file_on_the_docs_page_holds_every_default(tmp_path: Path) -> None:
    block = DOCS.read_text().split("```toml\n")[1].split("```")[0]
    assert block == example()
    assert list(tomllib.loads(block)) == NAMES
    assert load({}, {}, write(tmp_path, block)) == Settings()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0B"), (1000, "1000B"), (1024, "1KiB"), (8 << 20, "8MiB"), (3 << 29, "1536MiB")]
)
def test_a_size_is_shown_in_the_largest_unit_that_divides_it(count: int, text: str) -> None:
    assert size_text(count) == text
