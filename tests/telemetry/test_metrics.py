"""The exposition of a real server: it parses, it counts what was sent, and it says what the statistics say."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.onnx_models import constant_answer, put
from tests.servers import Server

ROW = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
THREE = {"inputs": [{"name": "x", "shape": [3, 4], "datatype": "FP32", "data": list(range(12))}]}
WRONG = {"inputs": [{"name": "x", "shape": [1, 5], "datatype": "FP32", "data": [1, 2, 3, 4, 5]}]}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(server: Server) -> Samples:
    """Every sample of /metrics by name and labels; each must be there once."""
    status, headers, text = server.request("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    found: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def seconds(ns: int) -> float:
    return ns / 1e9


def test_the_metrics_count_what_was_sent_and_agree_with_the_statistics(
    tmp_path: Path, start_server: Callable[..., Server]
) -> None:
    models = tmp_path / "models"
    put(models, "m", 1, constant_answer(1), toml="[versions]\npolicy = 'all'\n[aliases]\nchampion = 2\n")
    put(models, "m", 2, constant_answer(2))
    server = start_server(models)
    server.wait_for(lambda: server.infer("m", ROW, 1).get("model_version") == "1", 20, "version 1 answers")
    first = scrape(server)
    sent_before = value(first, "headgate_requests_total", model="m", version="1", code="ok", **{"class": "ok"})
    for _ in range(7):
        server.infer("m", ROW, 1)
    for _ in range(5):
        server.infer("m", THREE, 2)
    for _ in range(3):
        assert server.infer("m", WRONG, 2)["code"] == "invalid-request"
    assert server.request("POST", "/v2/models/m/infer", b"{")[0] == 400
    for _ in range(2):
        server.infer("nobody", ROW)
        server.infer("m", ROW, 9)
    samples = scrape(server)

    def requests(version: str, code: str, blame: str) -> float:
        labels = {"model": "m", "version": version, "code": code, "class": blame}
        return value(samples, "headgate_requests_total", **labels)

    assert requests("1", "ok", "ok") == sent_before + 7
    assert requests("2", "ok", "ok") == 5
    assert requests("2", "invalid-request", "client") == 3
    assert requests("2", "invalid-json", "client") == 1
    for code in ("unknown-model", "unknown-version"):
        labels = {"model": "_unknown_", "version": "", "code": code, "class": "client"}
        assert value(samples, "headgate_requests_total", **labels) == 2
    assert value(samples, "headgate_rows_total", model="m", version="2") == 15
    assert value(samples, "headgate_requests_in_flight", model="m", version="2") == 0
    assert value(samples, "headgate_model_ready", model="m", version="1") == 1
    assert value(samples, "headgate_model_alias", model="m", version="2", alias="champion") == 1

    for row in server.json("GET", "/v2/models/m/stats")["model_stats"]:
        agrees(samples, row)
    assert all(later >= first[key] for key, later in samples.items() if key in first and key[0].endswith("_total"))


def agrees(samples: Samples, row: dict[str, Any]) -> None:
    """The samples of a version say what its row of the statistics says."""
    labels = {"model": row["name"], "version": row["version"]}
    assert value(samples, "headgate_rows_total", **labels) == row["inference_count"]
    assert value(samples, "headgate_runs_total", **labels) == row["execution_count"]
    stats = row["inference_stats"]
    failed = sum(
        sample
        for (name, pairs), sample in samples.items()
        if name == "headgate_requests_total" and set(labels.items()) <= pairs and ("code", "ok") not in pairs
    )
    assert failed == stats["fail"]["count"]
    for phase, key in (
        ("total", "success"),
        ("queue", "queue"),
        ("decode", "compute_input"),
        ("run", "compute_infer"),
        ("encode", "compute_output"),
    ):
        name = "headgate_request_duration_seconds"
        assert value(samples, f"{name}_count", **labels, phase=phase) == stats[key]["count"]
        assert math.isclose(value(samples, f"{name}_sum", **labels, phase=phase), seconds(stats[key]["ns"]))
        buckets = sorted(
            (float(dict(pairs)["le"]), sample)
            for (bucket, pairs), sample in samples.items()
            if bucket == f"{name}_bucket" and {*labels.items(), ("phase", phase)} <= pairs
        )
        counts = [count for _, count in buckets]
        assert counts == sorted(counts)
        assert buckets[-1] == (math.inf, stats[key]["count"])


def test_names_from_outside_make_no_new_series(tmp_path: Path, start_server: Callable[..., Server]) -> None:
    put(tmp_path / "models", "m", 1, constant_answer(1))
    server = start_server(tmp_path / "models")
    for path in ("/v2/models/x/infer", "/v2/models/m/versions/77/infer", "/nowhere", "/v2/models/x/ready"):
        server.request("POST", path, ROW)
        server.request("GET", path)
    scrape(server)
    before = set(scrape(server))
    for number in range(100):
        server.request("POST", f"/v2/models/x{number}/infer", ROW)
        server.request("POST", f"/v2/models/m/versions/{number + 100}/infer", ROW)
        server.request("GET", f"/nowhere/{number}")
        server.request("GET", f"/v2/models/x{number}/ready")
    assert set(scrape(server)) == before


def test_fifty_scrapes_at_once_all_parse(tmp_path: Path, start_server: Callable[..., Server]) -> None:
    put(tmp_path / "models", "m", 1, constant_answer(1))
    server = start_server(tmp_path / "models")
    found: list[Samples] = []
    threads = [threading.Thread(target=lambda: found.append(scrape(server))) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 50
