"""Weights of eight and four bits, and weights laid out as the processor multiplies them."""
