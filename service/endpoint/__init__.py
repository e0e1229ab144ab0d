"""Requests from NATS to handlers and replies back: the micro protocol, headers, frames, deadlines."""
