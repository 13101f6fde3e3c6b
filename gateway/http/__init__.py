"""The HTTP surface: pure ASGI middleware and one endpoint function per route."""
