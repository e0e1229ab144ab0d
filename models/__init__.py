"""Machine learning: the catalogue, weights, devices, encoders. No NATS, no asyncio, no wire.

transformers imports torchao where it is installed, and that warns of parts for other hardware; nobody can act on it.
"""

import logging

for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).addFilter(lambda record: record.levelno >= logging.ERROR)
