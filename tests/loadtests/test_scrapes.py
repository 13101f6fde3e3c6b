"""The scrape that is measured is the one that Prometheus gets: every family of the monitors, for ten models."""

from __future__ import annotations

from loadtests.scrapes import MODELS, scrape


def test_the_scrape_that_is_measured_shows_ten_models_with_drift_answers_and_performance() -> None:
    lines = scrape(rows=600)().decode().splitlines()
    for family in ("drift_score", "data_quality_ratio", "monitor_output_share", "performance_ratio", "alarm_evidence"):
        own = [line for line in lines if line.startswith(f"headgate_{family}{{")]
        assert len({line.split('model="')[1].split('"')[0] for line in own}) == MODELS, family
    for kind in ("estimated", "realised"):
        assert sum(f'kind="{kind}"' in line for line in lines) > MODELS
