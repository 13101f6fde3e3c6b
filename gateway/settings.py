"""The settings: one table makes the flags, the `HEADGATE_*` variables, the file's keys, the checks and the docs page.

Each field of `Settings` is one row: its default, the `Kind` that reads and checks a value, and a sentence. A value
comes from the flag, else the variable, else the file, else the default. Whatever is wrong raises `SettingError` with
one line that names the setting, where the value came from, and the value.
``python -m gateway.settings`` prints docs/settings.md.
"""

from __future__ import annotations

import argparse
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from gateway.errors import SettingError
from gateway.kinds import (
    GIB,
    KIB,
    MIB,
    Kind,
    choice,
    folder,
    header_name,
    listening_host,
    names,
    seconds,
    size,
    switch,
    web_address,
    whole,
)

PREFIX = "HEADGATE_"
CONFIG_VARIABLE = "HEADGATE_CONFIG"
# A Kubernetes Service named headgate puts variables such as HEADGATE_PORT=tcp://10.0.0.1:8080 into the pods beside it.
_SERVICE_LINK = re.compile(r"([A-Z0-9_]+_)?(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One setting: the heading it is explained under, how it is read, its default, and what it is for."""

    name: str
    heading: str
    kind: Kind
    default: Any
    text: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


def _row(default: T, heading: str, kind: Kind, text: str) -> T:
    return field(default=default, metadata={"heading": heading, "kind": kind, "text": text})


# fmt: off
@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, checked and frozen; `load` makes one from flags, variables and a file."""

    models: Path = _row(Path("models"), "Serving", folder(), "Model repository: `<name>/<version>/model.onnx`.")
    data: Path = _row(Path("data"), "Serving", folder(), "Folder for what Headgate itself writes and must find again.")
    host: str = _row("127.0.0.1", "Serving", listening_host(), "Address to listen on; `0.0.0.0` is every interface.")
    port: int = _row(8080, "Serving", whole(0, 65535), "Port of the data plane; 0 takes any free one and logs which.")
    admin_host: str = _row("127.0.0.1", "Serving", listening_host(), "Address of the admin port.")
    admin_port: int = _row(
        8081, "Serving", whole(0, 65535), "Port of the control process, for operators; 0 takes any free one.")
    workers: int = _row(
        0, "Serving", whole(0, 64), "Processes that serve on one port. 0 is one for each usable core.")
    heartbeat_timeout_s: float = _row(
        10.0, "Serving", seconds(1, 3600),
        "How long the event loop of a process may stand still before the process is replaced.")
    drain_s: float = _row(
        25.0, "Serving", seconds(0, 3600),
        "How long a shutdown waits for requests in flight. Keep it below the time after which the process manager "
        "kills: 30 s in Kubernetes.")
    grace_s: float = _row(
        0.0, "Serving", seconds(0, 3600),
        "How long a server that is told to end still takes new connections, while `/v2/health/ready` says 503: time "
        "for load balancers to notice. 5 s suits Kubernetes; it comes before `drain_s`.")
    max_worker_memory_bytes: int = _row(
        0, "Serving", size(0, 1024 * GIB),
        "Memory of a worker above which it answers inference with 503, until it is below nine tenths of it; files that "
        "it has mapped do not count, because the system takes their pages back. 0 divides 85 % of the memory that the "
        "server may really use (cgroup limit or machine) over the workers; what no machine has, as `1024GiB`, is no "
        "limit.")
    repository_api: bool = _row(
        True, "Serving", switch(),
        "Whether versions may be loaded and unloaded and aliases moved over HTTP. If not, these calls are answered "
        "with 403 and only the model folder decides.")
    log_level: str = _row(
        "info", "Logging", choice("debug", "info", "warning", "error"), "The least severe event that is logged.")
    access_log: bool = _row(False, "Logging", switch(), "Whether every request is logged, one JSON line each.")
    poll_s: float = _row(1.0, "Models", seconds(0.1, 3600), "How often the model folder is looked at.")
    quiet_s: float = _row(
        2.0, "Models", seconds(0, 3600),
        "How long a version without a manifest must have been unchanged before it is taken as complete.")
    require_manifest: bool = _row(
        False, "Models", switch(),
        "Whether a version without a manifest is refused. If not, it is served and marked as unverified.")
    max_model_bytes: int = _row(512 * MIB, "Models", size(KIB, 2 * GIB), "The largest model file that is opened.")
    quarantine_timeout_s: float = _row(
        60.0, "Models", seconds(1, 3600),
        "How long the checks, the load and the warm-up of a new version may take in quarantine before it has failed.")
    quarantine_memory_bytes: int = _row(
        512 * MIB, "Models", size(64 * MIB, 1024 * GIB),
        "Memory that a version may use in quarantine beyond twice the size of its file.")
    providers: tuple[str, ...] = _row(
        ("CPUExecutionProvider",), "Sessions and threads", names(),
        "ONNX Runtime's execution providers, the preferred one first.")
    intra_op_threads: int = _row(
        0, "Sessions and threads", whole(0, 1024),
        "Threads inside one session. 0 divides the cores that the process may really use (affinity and cgroup quota) "
        "over the sessions, at least one each.")
    max_body_bytes: int = _row(
        8 * MIB, "Requests", size(KIB, 2 * GIB), "The largest body, also after inflating; a larger one gets 413.")
    max_tensors: int = _row(64, "Requests", whole(1, 65536), "Inputs, and requested outputs, in one request.")
    max_elements: int = _row(4 * MIB, "Requests", whole(1, 2 * GIB), "Elements in one tensor.")
    max_rank: int = _row(8, "Requests", whole(1, 64), "Dimensions of a tensor; 64 is the most that numpy can hold.")
    max_json_depth: int = _row(100, "Requests", whole(4, 512), "Levels of nesting in a JSON body.")
    journal: bool = _row(
        True, "Journal", switch(), "Whether every prediction is kept, on the disk before its reply is sent.")
    journal_flush: str = _row(
        "interval", "Journal", choice("process", "interval", "commit"),
        "When records are forced to the disk. `process`: the system decides; a crash of the process loses nothing, a "
        "loss of power up to about 30 s. `interval`: each second; a loss of power loses up to that. `commit`: before "
        "each reply; nothing answered is lost.")
    journal_required: bool = _row(
        False, "Journal", switch(),
        "Whether a request that cannot be recorded, as on a full disk, is refused with 503. If not, it is answered "
        "and the missing record is counted.")
    journal_segment_bytes: int = _row(
        32 * MIB, "Journal", size(MIB, 2 * GIB), "The largest segment of the journal; the first ones are smaller.")
    journal_segment_age_s: float = _row(
        3600.0, "Journal", seconds(1, 864000), "How long a segment is written before it is sealed.")
    journal_archive: bool = _row(
        True, "Journal", switch(), "Whether sealed segments become Parquet files, which other programs can read.")
    journal_disk_bytes: int = _row(
        10 * GIB, "Journal", size(16 * MIB, 1 << 60),
        "Space for segments and for archived predictions with their inputs; past it the oldest lose their inputs.")
    journal_inputs_days: int = _row(
        30, "Journal", whole(1, 36500), "How long the inputs of predictions are kept, while there is space for them.")
    journal_rows_disk_bytes: int = _row(
        10 * GIB, "Journal", size(MIB, 1 << 60),
        "Space for archived predictions without their inputs; past it the oldest are deleted.")
    journal_rows_days: int = _row(
        395, "Journal", whole(1, 36500), "How long predictions are kept, while there is space for them.")
    max_feedback_bytes: int = _row(
        MIB, "Feedback", size(KIB, 64 * MIB), "The largest body of feedback, also of a batch; a larger one gets 413.")
    feedback_keys: int = _row(
        500000, "Feedback", whole(100, 50000000),
        "About how many idempotency keys are remembered, the newest; each takes 128 bytes of memory-mapped file.")
    feedback_file_bytes: int = _row(
        64 * MIB, "Feedback", size(KIB, GIB), "Size at which a feedback log is left and the next one begun.")
    feedback_file_age_s: float = _row(
        86400.0, "Feedback", seconds(1, 31536000), "Age at which a feedback log is left and the next one begun.")
    public_url: str = _row(
        "", "Feedback", web_address(),
        "Where people reach this server, as in `https://models.example.org`; feedback links begin with it. Empty: the "
        "address by which the link was asked for.")
    monitors: bool = _row(True, "Monitors", switch(), "Whether the control process watches what the journal gains.")
    alarm_webhook: str = _row(
        "", "Monitors", web_address(),
        "Where alarms are posted to as signed CloudEvents; empty for nowhere. The secrets that sign them stand in "
        "`webhook-secrets` in the data folder, one a line; the first start makes one.")
    header_timeout_s: float = _row(
        10.0, "Connections", seconds(0.1, 3600), "Time for the headers of a request to arrive; then 408.")
    body_timeout_s: float = _row(
        30.0, "Connections", seconds(0.1, 3600), "Time for the body of a request to arrive; then 408.")
    idle_timeout_s: float = _row(
        5.0, "Connections", seconds(0.1, 3600), "How long a connection is kept open between two requests.")
    write_timeout_s: float = _row(
        30.0, "Connections", seconds(0.1, 3600),
        "How long a client may leave its replies unread before its connection is cut.")
    max_header_bytes: int = _row(
        32 * KIB, "Connections", size(KIB, MIB), "Names and values of all headers of a request; more gets 431.")
    max_headers: int = _row(100, "Connections", whole(8, 10000), "Header fields of a request; more gets 431.")
    max_url_bytes: int = _row(4 * KIB, "Connections", size(256, MIB), "The request target; a longer one gets 414.")
    max_chunks: int = _row(65536, "Connections", whole(16, 1 << 24), "Pieces in which a body may come; more gets 400.")
    max_in_flight: int = _row(
        4096, "Requests", whole(1, 1000000), "Inference requests in flight at once in each worker; one more gets 429.")
    max_in_flight_per_model: int = _row(
        2048, "Requests", whole(1, 1000000), "Inference requests in flight at once for one model in each worker.")
    max_in_flight_per_client: int = _row(
        0, "Requests", whole(0, 1000000),
        "Inference requests in flight at once for one client key in each worker; 0 is no quota. "
        "Requests without a key have none.")
    client_key_header: str = _row(
        "x-client-key", "Requests", header_name(), "The header whose value tells clients apart for their quota.")
    max_wait_s: float = _row(
        1.0, "Requests", seconds(0.001, 3600),
        "The longest expected wait for a busy model; a request that would wait longer gets 429 at once.")
    default_deadline_s: float = _row(
        5.0, "Requests", seconds(0.001, 86400), "Time for a request that names none; past it the answer is 504.")
    max_deadline_s: float = _row(
        60.0, "Requests", seconds(0.001, 86400), "The longest time a request can have; a longer wish is cut to this.")
# fmt: on


TABLE = tuple(
    Row(column.name, column.metadata["heading"], column.metadata["kind"], column.default, column.metadata["text"])
    for column in fields(Settings)
)


def add_arguments(parser: argparse.ArgumentParser, only: Iterable[str] | None = None) -> None:
    """Give `parser` a flag for every setting (or for those named in `only`) and ``--config``.

    A flag that was not given leaves None, so that the variable or the file can speak; `load` checks the values.
    """
    parser.add_argument("--config", metavar="FILE", help=f"TOML file with settings; also {CONFIG_VARIABLE}")
    wanted = {row.name for row in TABLE} if only is None else set(only)
    rows = [row for row in TABLE if row.name in wanted]
    groups = {row.heading: parser.add_argument_group(row.heading.lower()) for row in rows}
    for row in rows:
        text = f"{row.text} [{_default(row)}]".replace("`", "").replace("%", "%%")
        if row.kind.metavar:
            groups[row.heading].add_argument(row.flag, metavar=row.kind.metavar, default=None, help=text)
        else:
            groups[row.heading].add_argument(row.flag, action=argparse.BooleanOptionalAction, default=None, help=text)


def load(args: Mapping[str, object], environ: Mapping[str, str], toml_path: Path | None = None) -> Settings:
    """The settings in force: flags in `args` over variables in `environ` over the file over the defaults.

    The file is `toml_path`, else the flag --config in `args`, else HEADGATE_CONFIG. Keys of `args` that are no setting
    (a parser's other results) are left alone. Raises SettingError.
    """
    file_name, document = _read_file(_config_path(args, environ, toml_path))
    variables = _variables(environ)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for row in TABLE:
        if args.get(row.name) is not None:
            raw, source = args[row.name], f"the flag {row.flag}"
        elif row.variable in variables:
            raw, source = variables[row.variable], f"the variable {row.variable}"
        elif row.name in document:
            raw, source = document[row.name], f"the file {file_name}"
        else:
            raw, source = row.kind.show(row.default), "the default"
        try:
            values[row.name] = row.kind.parse(raw)
        except ValueError:
            message = f"Setting {row.name} from {source} must be {row.kind.accepts}, got {_short(raw)}."
            raise SettingError(message, field=row.name) from None
        sources[row.name] = source
    settings = Settings(**values)
    if settings.default_deadline_s > settings.max_deadline_s:
        raise SettingError(
            f"Setting default_deadline_s from {sources['default_deadline_s']} must be at most the "
            f"{settings.max_deadline_s:g} that {sources['max_deadline_s']} gives max_deadline_s, "
            f"got {settings.default_deadline_s:g}.",
            field="default_deadline_s",
        )
    return settings


def service_links(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the variables that Kubernetes makes for a Service named headgate: no settings, and ignored."""
    return tuple(
        name
        for name, value in sorted(environ.items())
        if name.startswith(PREFIX)
        and (
            _SERVICE_LINK.fullmatch(name.removeprefix(PREFIX))
            or (name.endswith("_PORT") and _SERVICE_ADDRESS.match(value))
        )
    )


_PREAMBLE = f"""# Settings

<!-- Made by `python -m gateway.settings > docs/settings.md` from the table in gateway/settings.py; change that. -->

Every setting can be given as a flag, as an environment variable, or as a key of a TOML file named by `--config` or
`{CONFIG_VARIABLE}`. A flag overrides a variable, a variable overrides the file, the file overrides the default.
Sizes are bytes or have a unit (`64KiB`, `8MiB`, `2GiB`); durations are seconds; relative paths are taken from the
working directory. A wrong value, an unknown key in the file or an unknown `HEADGATE_` variable stops the start with
one line that names it, and exit code 2.

A Kubernetes Service named `headgate` puts variables like `HEADGATE_PORT=tcp://10.0.0.1:8080` into the pods beside it.
They are recognised and ignored; `enableServiceLinks: false` in the pod keeps them out.
"""


def describe() -> str:
    """The docs page, made from the table."""
    lines = [_PREAMBLE]
    for heading in dict.fromkeys(row.heading for row in TABLE):
        lines += [f"## {heading}", ""]
        for row in (row for row in TABLE if row.heading == heading):
            flag = f"`{row.flag}`" if row.kind.metavar else f"`{row.flag}`, `--no-{row.flag[2:]}`"
            default = f"default `{_default(row)}`, must be {row.kind.accepts}"
            lines += [f"### {row.name}", "", row.text, "", f"* {flag}, `{row.variable}`", f"* {default}", ""]
    lines += ["## A file with every default", "", "```toml", *example().splitlines(), "```"]
    return "\n".join(lines) + "\n"


def example() -> str:
    """A TOML file that holds every setting with its default."""
    return "".join(f"{row.name} = {_toml(row.kind.show(row.default))}\n" for row in TABLE)


def _default(row: Row) -> str:
    """The default as a flag or variable would give it."""
    shown = row.kind.show(row.default)
    return ",".join(shown) if isinstance(shown, list) else _toml(shown).strip('"')


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, list):
        return f"[{', '.join(_toml(part) for part in value)}]"
    return f'"{value}"'


def _config_path(args: Mapping[str, object], environ: Mapping[str, str], toml_path: Path | None) -> Path | None:
    if toml_path is not None:
        return toml_path
    for value, source in (
        (args.get("config"), "the flag --config"),
        (environ.get(CONFIG_VARIABLE), f"the variable {CONFIG_VARIABLE}"),
    ):
        if value is not None:
            if not str(value).strip() or "\0" in str(value):
                raise SettingError(f"Setting config from {source} must be a path, got {_short(value)}.", field="config")
            return Path(str(value))
    return None


def _read_file(path: Path | None) -> tuple[str, dict[str, object]]:
    """The file's name as it is shown, and its keys, all known."""
    if path is None:
        return "", {}
    name = _short(str(path))
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise SettingError(f"The settings file {name} cannot be read: {error.strerror}.", field="config") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise SettingError(f"The settings file {name} is not valid TOML: {reason}.", field="config") from None
    known = [row.name for row in TABLE]
    for key in document:
        if key not in known:
            hint = _suggest(key.replace("-", "_").lower(), known)
            raise SettingError(f"Unknown setting {_short(key)} in the file {name}{hint}")
    return name, document


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The HEADGATE_ variables that are settings, all known."""
    ignored = {CONFIG_VARIABLE, *service_links(environ)}
    known = [row.variable for row in TABLE]
    found = {name: environ[name] for name in sorted(environ) if name.startswith(PREFIX) and name not in ignored}
    for name in found:
        if name not in known:
            # Without its value: a name that is not known may be a misspelt secret.
            raise SettingError(f"Unknown variable {name}{_suggest(name, [*known, CONFIG_VARIABLE])}")
    return found


def _suggest(name: str, known: list[str]) -> str:
    """The end of a sentence about an unknown name; the prefix that all variables share does not count as likeness."""
    prefix = PREFIX if name.startswith(PREFIX) else ""
    close = difflib.get_close_matches(name.removeprefix(prefix), [each.removeprefix(prefix) for each in known], n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else "."


def _short(value: object) -> str:
    """`value` on one line, at most 80 characters of it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


if __name__ == "__main__":
    print(describe(), end="")
