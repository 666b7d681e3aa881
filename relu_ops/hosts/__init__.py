"""Other machines, by the system's own ssh: operators are verified and timed there.

Nothing is installed there by us and no file is written: what runs is sent over the connection, and
ends with it. The other machine needs Python and the base install of the same relu_ops.
"""

from __future__ import annotations

from relu_ops.hosts.session import Session, connect

__all__ = ["Session", "connect"]
