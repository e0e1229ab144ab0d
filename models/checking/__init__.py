"""How good a model is at what it is for, as its entry says and as it might be set otherwise. Knows no command."""
