"""The API of llama.cpp's server, as far as editors use it."""
