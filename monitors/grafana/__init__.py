"""Dashboards and rules as code: the JSON that Grafana shows and the rules that Prometheus evaluates are made here."""
