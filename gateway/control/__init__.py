"""The control process: it decides which versions serve, and writes the plan that the workers follow."""
