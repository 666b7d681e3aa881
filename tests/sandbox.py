"""Refuses system calls to this process from now on, as hardened sandboxes do: seccomp's filters.

For children that tests start: what is refused stays refused. x86-64 Linux alone.
"""

from __future__ import annotations

import ctypes
import errno
import struct

# By name: the call's number, and the bits of its third argument that make it be refused; 0: always.
CALLS = {
    "memfd_create": (319, 0),
    "mprotect(PROT_EXEC)": (10, 4),
    "mmap(PROT_EXEC)": (9, 4),
    "sched_getaffinity": (204, 0),
}

_SET_SECCOMP, _NO_NEW_PRIVILEGES, _FILTER = 22, 38, 2
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_REFUSE, _ALLOW = 0x00050000, 0x7FFF0000
_NUMBER, _THIRD = 0, 32  # where they stand in what a filter sees


def refuse(*names: str, error: int = errno.EPERM) -> None:
    """Refuse some calls to this process and to its children.

    Raises:
        OSError: The system has no such filters.
    """
    steps: list[tuple[int, int, int, int]] = []
    for name in names:
        number, bits = CALLS[name]
        refusal = (_RETURN, 0, 0, _REFUSE | error)
        check = [(_LOAD, 0, 0, _THIRD), (_ANY_BIT, 0, 1, bits), refusal] if bits else [refusal]
        steps += [(_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, len(check), number), *check]
    program = b"".join(struct.pack("<HBBI", *step) for step in [*steps, (_RETURN, 0, 0, _ALLOW)])
    content = ctypes.create_string_buffer(program)
    described = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(content))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    zero = [ctypes.c_ulong(0)] * 2
    for arguments in (
        (_NO_NEW_PRIVILEGES, ctypes.c_ulong(1), ctypes.c_ulong(0), *zero),
        (_SET_SECCOMP, ctypes.c_ulong(_FILTER), described, *zero),
    ):
        if prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
