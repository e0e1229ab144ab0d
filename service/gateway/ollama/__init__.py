"""The API of Ollama, as far as editors use it."""
