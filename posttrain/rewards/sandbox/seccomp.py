"""A system-call filter for a process that computes: no sockets, no processes, no programs, no signals to others, no kernel interfaces.

Written for x86_64 and aarch64. What is younger than both tables (424 and above) is refused as unknown unless it is listed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from posttrain.rewards.sandbox.linux import PR_SET_PDEATHSIG, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, X86, prctl

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
ARCHITECTURE = 0xC000003E if X86 else 0xC00000B7
NUMBER, ARCH, FIRST, SECOND = 0, 4, 16, 24  # offsets in seccomp_data: arguments are 8 bytes, their low half first
X32 = 0x40000000
UNIFIED = 424  # from here on all architectures share their numbers
CLONE_THREAD = 0x10000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C

# name: (x86_64, aarch64); None where the architecture does not have it
REFUSED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "bind": (49, 200), "listen": (50, 201), "accept4": (288, 242),
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "unshare": (272, 97), "setns": (308, 268),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "quotactl": (179, 60), "acct": (163, 89),
    "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "personality": (135, 92), "syslog": (103, 116),
    "init_module": (175, 105), "delete_module": (176, 106), "finit_module": (313, 273), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "fanotify_mark": (301, 263), "memfd_create": (319, 279), "vhangup": (153, 58),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "io_setup": (206, 0), "io_submit": (209, 2), "mknod": (133, None), "mknodat": (259, 33), "setpriority": (141, 140),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "ioprio_set": (251, 30), "mbind": (237, 235),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "lookup_dcookie": (212, 18),
}  # fmt: skip
CLONE, KILL_CALL, TGKILL, IOCTL, PRLIMIT, PRCTL = (56, 62, 234, 16, 302, 157) if X86 else (220, 129, 131, 29, 261, 167)
YOUNG_ALLOWED = (436, 439, 441, 449)  # close_range, faccessat2, epoll_pwait2, futex_waitv

Instruction = tuple[int, int, int, int]


def refuse(number: int = errno.EPERM) -> Instruction:
    """The call fails with an error number."""
    return RETURN, 0, 0, ERRNO | number


def program(pid: int) -> list[Instruction]:
    """The filter for the process `pid`: instructions of classic BPF."""
    permit: Instruction = (RETURN, 0, 0, ALLOW)
    lines: list[Instruction] = [(LOAD, 0, 0, ARCH), (EQUAL, 1, 0, ARCHITECTURE), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER)]
    lines += [(AT_LEAST, 0, 1, X32), refuse(errno.ENOSYS)] if X86 else []
    for number in YOUNG_ALLOWED:
        lines += [(EQUAL, 0, 1, number), permit]
    lines += [(AT_LEAST, 0, 1, UNIFIED), refuse(errno.ENOSYS)]
    for numbers in REFUSED.values():
        if (known := numbers[0 if X86 else 1]) is not None:
            lines += [(EQUAL, 0, 1, known), refuse()]
    lines += _only_if(CLONE, FIRST, [(ANY_BIT, 0, 1, CLONE_THREAD), permit])
    lines += _only_if(KILL_CALL, FIRST, [(EQUAL, 0, 1, pid), permit]) + _only_if(TGKILL, FIRST, [(EQUAL, 0, 1, pid), permit])
    lines += _only_if(PRLIMIT, FIRST, [(EQUAL, 0, 1, 0), permit, (EQUAL, 0, 1, pid), permit])
    lines += [(EQUAL, 0, 4, PRCTL), (LOAD, 0, 0, FIRST), (EQUAL, 0, 1, PR_SET_PDEATHSIG), refuse(), permit]
    lines += [(EQUAL, 0, 6, IOCTL), (LOAD, 0, 0, SECOND), (EQUAL, 0, 1, TIOCSTI), refuse(), (EQUAL, 0, 1, TIOCLINUX), refuse(), permit]
    return [*lines, permit]


def _only_if(number: int, argument: int, permitted: list[Instruction]) -> list[Instruction]:
    """A call that is allowed only where its argument says so."""
    return [(EQUAL, 0, len(permitted) + 2, number), (LOAD, 0, 0, argument), *permitted, refuse()]


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def install() -> None:
    """Filters this process from here on. Needs no_new_privs."""
    lines = program(os.getpid())
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(_Filter(len(lines), ctypes.addressof(code))))
