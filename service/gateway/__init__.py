"""The HTTP gateway: a NATS client that speaks HTTP to those who have none. It holds no model and no state."""
