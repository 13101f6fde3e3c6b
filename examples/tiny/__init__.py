"""The program that trains this example model; the server ignores it."""
