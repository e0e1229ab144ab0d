"""The environment of child processes that read what others have sent: without credentials, without the way to NATS."""

import os

_KEPT = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_", "TZ", "TMPDIR", "XDG_CACHE_HOME", "VIRTUAL_ENV", "PYTHON"),
    *("LD_", "DYLD_", "CUDA", "NVIDIA_", "NCCL_", "TORCH", "PYTORCH_", "TRITON_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_", "TRANSFORMERS_", "TOKENIZERS_"),
)
"""What names of variables begin with that say where things lie and how to compute; no other is passed on."""


def child_environment(**added: str) -> dict[str, str]:
    """Of this process's environment what a child may know, and what is added."""
    return {name: value for name, value in os.environ.items() if name.startswith(_KEPT)} | added
