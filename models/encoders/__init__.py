"""Embedding models: texts to vectors, by each runtime."""

import os

# On import, ONNX Runtime writes a machine id into the home directory and reports to its makers. The environment is the
# only switch; a value that the user has set wins.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
