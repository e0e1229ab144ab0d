"""Residency: which models are in memory. They are loaded, leased to requests, swapped and evicted here."""
