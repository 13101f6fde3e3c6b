"""The processes of a server: their shared board, the worker that serves, the supervisor that keeps them."""
