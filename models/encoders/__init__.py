"""Texts to vectors, by each runtime."""

import os

# ONNX Runtime writes an id of the machine into the home of whoever imports it, and reports to its makers; its only
# switch is the environment, where a value that the user has set wins.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
