"""Quality of a model with the settings of its entry and with other ones."""
