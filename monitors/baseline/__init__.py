"""The baseline: what the training data looked like, frozen. See `monitors.baseline.build` and `.document`."""
