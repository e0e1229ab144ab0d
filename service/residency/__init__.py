"""The models in memory: loaded on first use, leased, swapped, evicted."""
