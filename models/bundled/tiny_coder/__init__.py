"""A code model of a few million parameters: its repository. bench/tiny_coder made it."""
