"""What Headgate says about itself: counters, the Prometheus exposition and JSON log lines."""
