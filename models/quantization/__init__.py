"""Weights of eight and four bits, and weights in the layout of the processor's kernels."""
