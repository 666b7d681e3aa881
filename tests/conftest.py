"""What every test shares: a compile cache of its own, and room for many libraries."""

from __future__ import annotations

import os
import resource
import tempfile

_cache = tempfile.TemporaryDirectory(prefix="relu_ops-tests-")
os.environ["RELU_OPS_CACHE"] = os.path.join(_cache.name, "cache")

# Every loaded library holds a descriptor; the suite loads thousands in one process.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (_hard, _hard))
