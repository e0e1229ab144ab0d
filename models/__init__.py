"""Machine learning: catalogue, weights, loading, encoders, generation, training. No NATS, no asyncio, no wire format.

transformers imports torchao if it is installed, which warns of missing parts for other hardware; these are silenced.
"""

import logging

for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).addFilter(lambda record: record.levelno >= logging.ERROR)
