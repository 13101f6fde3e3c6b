"""The life of a model version: Source finds it, Policy wants it, Loader tries and loads it, Manager owns it, Handle holds it."""
