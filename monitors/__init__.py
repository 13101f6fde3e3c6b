"""The monitors: drift, quality and performance of served models, from mergeable counts. See monitors.types."""
