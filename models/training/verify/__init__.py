"""Verification of a trained model: metrics, comparison with the live version, acceptance, the report."""
