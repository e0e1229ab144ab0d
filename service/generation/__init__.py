"""Serving completions: requests are admitted, the engine is stepped, and its events become replies."""
