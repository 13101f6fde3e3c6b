"""Performance of served models, with labels (as they come, late, superseded) and estimated without them."""
