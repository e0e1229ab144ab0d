"""Processes with limits, in which models of unknown origin are opened and chat templates rendered."""
