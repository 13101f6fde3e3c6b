"""The life of a version: Source finds, Policy wants, Loader tries and loads, Manager moves, a Call holds it."""
