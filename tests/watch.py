"""Watches what a process opens, from outside and below: also what native code opens.

The process asks the kernel (seccomp) to report its system calls that open files, make sockets or
start programs; its parent answers each report. So nothing that a library does behind Python's back
goes unseen, and what is not allowed does not happen.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
import struct
import threading
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)

# x86-64: numbers of system calls.
_OPEN, _OPENAT, _CREAT, _OPENAT2 = 2, 257, 85, 437
_OPENS = {_OPEN: 0, _CREAT: 0, _OPENAT: 1, _OPENAT2: 1}
"""System calls that open by path, and which argument is the path."""

_FORBIDDEN = {
    41: "socket",
    42: "connect",
    49: "bind",
    53: "socketpair",
    59: "execve",
    322: "execveat",
    76: "truncate",
    82: "rename",
    83: "mkdir",
    84: "rmdir",
    86: "link",
    87: "unlink",
    88: "symlink",
    101: "ptrace",
    133: "mknod",
    258: "mkdirat",
    259: "mknodat",
    263: "unlinkat",
    264: "renameat",
    265: "linkat",
    266: "symlinkat",
    304: "open_by_handle_at",
    316: "renameat2",
    425: "io_uring_setup",
}

_AUDIT_ARCH_X86_64 = 0xC000003E
_ALLOW, _NOTIFY, _KILL = 0x7FFF0000, 0x7FC00000, 0x80000000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER = 317, 1, 1 << 3
_NO_NEW_PRIVS = 38

_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # id, pid, flags; number, architecture, ip, arguments
_RESPONSE = struct.Struct("=QqiI")
_CONTINUE = 1
_AT_FDCWD = -100


def _filter() -> bytes:
    numbers = [*_OPENS, *_FORBIDDEN]
    instruction = struct.Struct("=HBBI")
    lines = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        *((_EQUAL, len(numbers) - k, 0, number) for k, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _NOTIFY),
    ]
    return b"".join(instruction.pack(*line) for line in lines)


def report_to(connection: socket.socket) -> None:
    """In the watched process: report every watched system call of this thread from here on.

    Raises:
        OSError: The kernel does not offer it here.
    """
    code = ctypes.create_string_buffer(_filter())
    program = struct.pack("=H6xQ", len(_filter()) // 8, ctypes.addressof(code))
    held = ctypes.create_string_buffer(program)
    if _LIBC.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    _LIBC.syscall.restype = ctypes.c_long
    listener = _LIBC.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(held))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp with a listener")
    socket.send_fds(connection, [b"x"], [listener])
    os.close(listener)


class Watch:
    """In the parent: answers reports; collects what was not allowed.

    Attributes:
        violations: One text for each call that was refused.
        opened: How many calls were allowed.
    """

    def __init__(self, connection: socket.socket, allowed: Path) -> None:
        self.violations: list[str] = []
        self.opened = 0
        self._connection = connection
        self._allowed = allowed.resolve()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _run(self) -> None:
        _, descriptors, _, _ = socket.recv_fds(self._connection, 1, 1)
        if not descriptors:
            return
        (listener,) = descriptors
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        try:
            while not any(event & select.POLLHUP for _, event in poll.poll()):
                self._answer(listener)
        finally:
            os.close(listener)

    def _answer(self, listener: int) -> None:
        report = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, report, True)
            serial, pid, _, number, _, _, *arguments = _NOTIFICATION.unpack(report)
            violation = _violation(pid, number, arguments, self._allowed)
            if violation is None:
                self.opened += 1
                response = _RESPONSE.pack(serial, 0, 0, _CONTINUE)
            else:
                self.violations.append(violation)
                response = _RESPONSE.pack(serial, 0, -1, 0)  # EPERM
            fcntl.ioctl(listener, _SEND, bytearray(response), True)
        except OSError:
            return  # the process died while it waited for the answer


def _violation(pid: int, number: int, arguments: list[int], allowed: Path) -> str | None:
    if number not in _OPENS:
        return _FORBIDDEN[number]
    position = _OPENS[number]
    text = _text_at(pid, arguments[position])
    writes = number == _CREAT or (
        number != _OPENAT2 and arguments[position + 1] & (os.O_ACCMODE | os.O_CREAT)
    )
    directory = ctypes.c_int32(arguments[0]).value if position else _AT_FDCWD
    base = f"/proc/{pid}/cwd" if directory == _AT_FDCWD else f"/proc/{pid}/fd/{directory}"
    path = Path(os.path.realpath(os.path.join(os.path.realpath(base), text)))
    if path.is_relative_to(allowed) and not writes:
        return None
    return f"open {'for writing ' if writes else ''}{text}"


def _text_at(pid: int, address: int) -> str:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        content = b""
        while b"\0" not in content:
            memory.seek(address + len(content))
            # Up to the end of the page: the next one may not be there.
            content += memory.read(4096 - (address + len(content)) % 4096)
    return os.fsdecode(content.partition(b"\0")[0])
