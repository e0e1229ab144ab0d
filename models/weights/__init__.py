"""Weights on disk: the Hub's cache, files and digests, versions, archives."""
