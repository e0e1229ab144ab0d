"""A code model of a few million parameters: its repository and how it was made. Serving it needs none of this code."""
