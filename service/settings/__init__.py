"""The settings of a worker: what can be set, how it is read, and how it is written as TOML."""

from .settings import CONFIG_FILE, BadSettings, Settings, read_settings

__all__ = ["CONFIG_FILE", "BadSettings", "Settings", "read_settings"]
