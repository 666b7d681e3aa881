"""The lock around code generation."""

from __future__ import annotations

import os
import threading

LOCK = threading.RLock()
"""Held while TVM generates code. LLVM's options are the process's, TVM sets them for each build and
releases the GIL: of 180 builds in three threads without a lock 4 gave other bytes (2026-11-28)."""

# A process that forks while another of its threads is building would leave the child with half a
# build: wait for its end, which comes within some tens of milliseconds.
os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)
