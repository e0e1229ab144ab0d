"""Which models are in memory: loaded on first use, leased, swapped, evicted."""
