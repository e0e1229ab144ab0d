"""What the process stands on: threads, tasks, child processes, health and the end."""
