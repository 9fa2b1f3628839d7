"""Strictness for every test, set before anything imports jax."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"  # 1, 2 and 4 devices without hardware
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["TOKENIZERS_PARALLELISM"] = "true"  # without a choice the library warns when a process forks

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# Annotations of ptft are checked at every call, shapes included. As for mypy, a whole number is a float, too.
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
install_import_hook("ptft", "conftest.typechecked")
