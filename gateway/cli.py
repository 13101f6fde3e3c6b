"""The `headgate` command. Exit codes: 0 done, 1 the answer is no, 2 a wrong option or setting, 3 cannot start."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from gateway import __version__, settings
from gateway.errors import HeadgateError, SettingError
from gateway.feedback import cli as feedback_cli
from gateway.journal import cli as journal_cli
from gateway.replay import cli as replay_cli
from monitors import options as monitor_options
from monitors.grafana import cli as grafana_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line on standard error."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except SettingError as error:
        print(f"headgate: {error.message}", file=sys.stderr)
        return 2
    except HeadgateError as error:
        print(f"headgate: {error.message}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        if args.run is _serve:
            raise
        # Whoever reads has seen enough (`| head`). What is still buffered must not be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f": {error.filename}" if error.filename is not None else ""
        print(f"headgate: {error.strerror or error}{where}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headgate", description="Serve versioned ONNX models over the Open Inference Protocol."
    )
    parser.add_argument("--version", action="version", version=f"headgate {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve a folder of models", description="Serve a folder of models.")
    settings.add_arguments(serve)
    serve.set_defaults(run=_serve)

    doctor = commands.add_parser("doctor", help="say what this machine is like and what to change")
    settings.add_arguments(doctor)
    doctor.add_argument("--json", action="store_true", help="print JSON instead of a table")
    doctor.set_defaults(run=_doctor)

    model = commands.add_parser("model", help="add, check and list model versions")
    verbs = model.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_parser(verbs)
    check = verbs.add_parser("check", help="try a version in quarantine, as the server would")
    check.add_argument("folder", type=Path, help="a version folder, such as models/flights/2")
    check.add_argument("--json", action="store_true", help="print the whole report as JSON")
    check.set_defaults(run=_model_check)
    listing = verbs.add_parser("list", help="list the versions in a folder of models")
    listing.add_argument("--models", type=Path, default=Path("models"), help="folder of models (default: models)")
    listing.add_argument("--json", action="store_true", help="print JSON instead of a table")
    listing.set_defaults(run=_model_list)
    feedback_cli.add_parser(commands)
    journal_cli.add_parser(commands)
    replay_cli.add_parser(commands)
    grafana_cli.add_parser(commands)
    _monitor_parsers(commands)
    return parser


def _monitor_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    baseline = commands.add_parser("baseline", help="build what live rows are compared with")
    verbs = baseline.add_subparsers(title="commands", required=True, metavar="COMMAND")
    build = verbs.add_parser(
        "build",
        help="count training data into the baseline of a version",
        description="Count the training data of a version and put the counts into its folder, and into its manifest.",
    )
    monitor_options.baseline_arguments(build)
    build.set_defaults(run=_baseline_build)
    monitor = commands.add_parser("monitor", help="watch predictions that were made before")
    verbs = monitor.add_subparsers(title="commands", required=True, metavar="COMMAND")
    backfill = verbs.add_parser(
        "backfill",
        help="run the monitors over all predictions that are kept",
        description="Run the monitors of a server over all predictions that are kept, in order of time, and print "
        "drift, data quality and every alarm that would have been raised. It may run beside a server.",
    )
    settings.add_arguments(backfill, only=("models", "data"))
    monitor_options.backfill_arguments(backfill)
    backfill.set_defaults(run=_monitor_backfill)


def _add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    add = verbs.add_parser(
        "add",
        help="package a model file as a new version",
        description="Package a model file as a version: check it in quarantine, write golden samples and manifest, "
        "and publish the folder with one rename.",
    )
    add.add_argument("name", help="name of the model")
    add.add_argument("file", type=Path, help="the .onnx file")
    add.add_argument("--models", type=Path, default=Path("models"), help="folder of models (default: models)")
    add.add_argument("--version", type=_positive, help="version number (default: the highest one plus 1)")
    add.add_argument("--samples", type=Path, help="JSON list of requests whose answers become golden samples")
    add.add_argument("--replace", action="store_true", help="replace a version that exists")
    add.add_argument("--author", default="", help="who made it")
    add.add_argument("--reason", default="", help="why it was made")
    add.add_argument("--training-data", default="", help="digest of the training data, or a file to digest")
    add.add_argument("--code-revision", default="", help="revision of the training code")
    add.add_argument("--metric", action="append", default=[], type=_metric, metavar="NAME=NUMBER", help="repeatable")
    add.set_defaults(run=_model_add)


def _positive(text: str) -> int:
    from gateway.models.manifest import parse_version

    version = parse_version(text)
    if version is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number of at most 18 digits")
    return version


def _metric(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name or not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER")
    return name, number


def _serve(args: argparse.Namespace) -> int:
    chosen = settings.load(vars(args), os.environ)
    if not chosen.models.is_dir():
        raise SettingError(f"models: {str(chosen.models)!r} is not a folder; give one with --models")
    from gateway import server

    return server.run(chosen)


def _doctor(args: argparse.Namespace) -> int:
    from gateway import doctor

    return doctor.main(settings.load(vars(args), os.environ), as_json=args.json)


def _model_add(args: argparse.Namespace) -> int:
    from gateway.models.manifest import sha256
    from gateway.models.package import Lineage, add_version

    training = args.training_data
    if training and Path(training).is_file():
        training = f"sha256:{sha256(Path(training).read_bytes())}"
    lineage = Lineage(
        author=args.author,
        reason=args.reason,
        training_data=training,
        code_revision=args.code_revision,
        metrics=dict(args.metric),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    folder = add_version(
        args.models,
        args.name,
        args.file,
        version=args.version,
        samples=args.samples,
        lineage=lineage,
        replace=args.replace,
    )
    print(f"added {args.name} version {folder.name}")
    return 0


def _baseline_build(args: argparse.Namespace) -> int:
    from monitors import cli as baseline_cli

    return baseline_cli.run(args)


def _monitor_backfill(args: argparse.Namespace) -> int:
    from gateway import server
    from gateway.control.monitoring import subject
    from gateway.ledger import dialect
    from gateway.ledger.reading import Ledger
    from monitors import backfill_cli

    chosen = settings.load(vars(args), os.environ)
    lock = server.hold(chosen) if args.write else None
    try:
        now_ns = journal_cli.SystemClock.now_ns()
        ledger = Ledger(dialect.location(chosen.data))
        return backfill_cli.run(args, chosen.data, partial(subject, chosen.models), now_ns, ledger)
    finally:
        if lock is not None:
            os.close(lock)


def _model_check(args: argparse.Namespace) -> int:
    import msgspec

    from gateway.models import config as model_config
    from gateway.models.manifest import parse_version
    from gateway.models.package import check_version
    from gateway.oip.tensors import show

    folder: Path = args.folder.absolute()
    version = parse_version(folder.name)
    if version is None or not folder.is_dir():
        raise SettingError(f"folder: {str(args.folder)!r} is not a version folder such as models/flights/2")
    toml = folder.parent / "model.toml"
    try:
        config = model_config.parse(toml.read_bytes()) if toml.exists() else None
    except ValueError as error:
        raise SettingError(str(error)) from None
    report = check_version(folder, folder.parent.name, version, config)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
        return 0
    print(f"{folder.parent.name} version {version} passed ({'verified' if report.verified else 'unverified'})")
    print(f"  sha256   {report.sha256}, {report.size} bytes, made by {report.producer or 'unknown'}")
    for role, specs in (("input", report.contract.inputs), ("output", report.contract.outputs)):
        for spec in specs:
            print(f"  {role:<8} {spec.name} {spec.datatype}{show(spec.shape) if spec.shape is not None else '[...]'}")
    run = "not run" if report.run_s is None else f"run {report.run_s * 1e6:.0f} us"
    print(f"  measured load {report.load_s * 1e3:.0f} ms, {run}, memory {report.memory_bytes / 1e6:.1f} MB")
    print(f"  golden   {report.golden_samples} samples agree" if report.golden_samples else "  golden   none")
    print(f"  batches  {'yes' if report.contract.batched else 'no'}")
    for note in report.notes:
        print(f"  note     {note}")
    return 0


def _model_list(args: argparse.Namespace) -> int:
    import json

    from gateway.models.source import Source

    try:
        models = Source(args.models).scan()
    except OSError as error:
        raise SettingError(f"models: {str(args.models)!r} cannot be read ({error.strerror})") from None
    rows: list[dict[str, str | int]] = []
    for name, model in models.items():
        aliases = dict(model.config.aliases) if model.config is not None else {}
        if model.error and not model.versions:
            rows.append({"model": name, "version": "-", "kind": "-", "aliases": "", "state": model.error})
        for version, files in sorted(model.versions.items()):
            state = "waiting: " + files.waiting if files.waiting else "complete"
            if model.error:
                state = model.error
            names = ",".join(alias for alias, target in aliases.items() if target == version)
            verified = "manifest" if files.verified else "unverified"
            rows.append({"model": name, "version": version, "kind": verified, "aliases": names, "state": state})
    if args.json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print("no models")
    else:
        heads: dict[str, str | int] = {key: key.upper() for key in rows[0]}
        for row in (heads, *rows):
            cells = (row["model"], row["version"], row["kind"], row["aliases"], row["state"])
            print("{:<24} {:<8} {:<11} {:<22} {}".format(*cells).rstrip())
    return 0
