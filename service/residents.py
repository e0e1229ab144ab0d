"""What is in memory, as discovery, statistics and metrics tell it."""

from models.registry import Registry

from .embedder import Embedder


def queued(registry: Registry[Embedder]) -> tuple[int, int]:
    """Texts and tokens that wait or run, over all models."""
    batchers = [resident.serves.batcher for resident in registry.everything()]
    return sum(batcher.queued_texts for batcher in batchers), sum(batcher.queued_tokens for batcher in batchers)


def memory_bytes(registry: Registry[Embedder]) -> int:
    """What the weights of all models take, over all devices."""
    return sum(resident.memory_bytes for resident in registry.everything())


def described(registry: Registry[Embedder], default: str) -> dict[str, str]:
    """What takes requests, in which version and where."""
    return {
        "models": ",".join(resident.model for resident in registry),
        "default_model": default,
        **{f"model.{resident.model}": f"{resident.version} on {resident.device}" for resident in registry},
    }
