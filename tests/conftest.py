"""Strictness for every test, set before anything imports jax."""

import os
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"  # 1, 2 and 4 devices without hardware
# compiling takes most of the time, and machine code that runs a few steps need not be good
if "PTFT_OPTIMIZED" not in os.environ:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    # The older way to fuse compiles in 0.6 of the time. It rounds more than what is compared with torch may;
    # later releases lack it.
    if version("jaxlib") < "0.11" and not os.environ.get("PTFT_PEERS"):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"  # a missing axis is said, and not made up
os.environ["TOKENIZERS_PARALLELISM"] = "true"  # without a choice the library warns when a process forks
# Tests compile the same programs again and again, in two workers and in child processes: a tenth of the time
# from disk. A size limit is what makes jax lock the folder.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**30)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

from beartype import BeartypeConf, beartype
from fault_table import pytest_addoption, pytest_terminal_summary, tries  # noqa: F401
from jaxtyping import install_import_hook

# Annotations of ptft are checked at every call, shapes included. As for mypy, a whole number is a float, too.
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
install_import_hook("ptft", "conftest.typechecked")
