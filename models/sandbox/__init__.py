"""Processes with limits, in which files of unknown origin are opened and chat templates rendered."""
