"""NATS: the connection and its settings, and a server of our own."""
