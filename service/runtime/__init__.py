"""Threads, tasks, child processes, health and the end of the process."""
