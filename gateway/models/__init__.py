"""The life of a version: Source finds it, Policy wants it, Loader tries and loads it, Manager moves it, Handle holds it."""
