"""Models that come with the package, weights and all."""
