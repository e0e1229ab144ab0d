"""The API of OpenAI as far as workers can honour it; what they cannot is refused by name."""
