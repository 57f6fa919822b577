"""Programs that try to leave the sandbox or to pass its limits. Each prints ESCAPED when it succeeded.

Names in capitals are replaced by what the test has on the host: HOST_FILE, a file that only root may read; OPEN_FILE,
a file that anyone may read and write; HOST_SOCKET and HOST_FIFO; HOST_PORT; HOST_ABSTRACT; HOST_PID.
"""

# ruff: noqa: E501  # programs are easier to read on one line

from __future__ import annotations

_C = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"

ESCAPES = {
    "read a file of root": "print('ESCAPED', open('HOST_FILE').read())",
    "read a file of the host": "print('ESCAPED', open('OPEN_FILE').read())",
    "write a file of the host": "open('OPEN_FILE', 'w').write('x')\nprint('ESCAPED')",
    "make a file beside it": "import os\nopen(os.path.dirname('OPEN_FILE') + '/more', 'w').write('x')\nprint('ESCAPED')",
    "read the password hashes": "print('ESCAPED', open('/etc/shadow').read())",
    "read the accounts": "print('ESCAPED', open('/etc/passwd').read())",
    "list the home": "import os\nprint('ESCAPED', os.listdir(os.path.expanduser('~root') + '/.ssh'))",
    "read a block device": (
        "import glob, os\n"
        "for path in glob.glob('/dev/[svx]d*') + glob.glob('/dev/nvme*') + glob.glob('/dev/loop*'):\n"
        "    print('ESCAPED', open(path, 'rb').read(1))"
    ),
    "make a block device": (
        "import os\nos.mknod('disk', 0o60666, os.makedev(254, 0))\nprint('ESCAPED', open('disk', 'r+b').read(1))"
    ),
    "write to the interpreter": "import os\nopen(os.__file__, 'a').write('#')\nprint('ESCAPED')",
    "write to site-packages": (
        "import site\nfor folder in site.getsitepackages():\n"
        "    open(folder + '/evil.pth', 'w').write('import os')\n    print('ESCAPED')"
    ),
    "become root": "import os\nos.setuid(0)\nprint('ESCAPED', os.getuid())",
    "be root": "import os\nif os.geteuid() == 0: print('ESCAPED')",
    "chroot": "import os\nos.chroot('/tmp')\nprint('ESCAPED')",
    "mount": _C + "if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0: print('ESCAPED')",
    "remount writable": _C + "if libc.mount(None, b'/', None, 32 | 4096, None) == 0: print('ESCAPED')",
    "new user namespace": _C + "if libc.unshare(0x10000000) == 0: print('ESCAPED')",
    "new namespace by clone": (
        _C + "pid = libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)\n"
        "if pid == 0: os._exit(0)\nif pid > 0 and os.uname().machine == 'x86_64': print('ESCAPED')"
    ),
    "new namespace by clone3": (
        _C + "args = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)\n"
        "pid = libc.syscall(435, args, 88)\nif pid == 0: os._exit(0)\nif pid > 0: print('ESCAPED')"
    ),
    "trace another process": (
        _C + "for pid in [1, *range(2, 20)]:\n"
        "    if pid != os.getpid() and libc.ptrace(16, pid, 0, 0) == 0: print('ESCAPED')"
    ),
    "be traced": _C + "if libc.ptrace(0, 0, 0, 0) == 0: print('ESCAPED')",
    "kernel keys": _C + "if libc.syscall(248, b'user', b'x', b'y', 1, -3) > 0: print('ESCAPED')",
    "bpf": _C + "buffer = ctypes.create_string_buffer(128)\nif libc.syscall(321, 0, buffer, 128) >= 0: print('ESCAPED')",
    "io_uring": _C + "buffer = ctypes.create_string_buffer(128)\nif libc.syscall(425, 8, buffer) >= 0: print('ESCAPED')",
    "userfaultfd": _C + "if libc.syscall(323, 1) >= 0: print('ESCAPED')",
    "perf": (
        _C + "buffer = ctypes.create_string_buffer(128)\nbuffer[4] = 128\n"
        "if libc.syscall(298, buffer, 0, -1, -1, 0) >= 0: print('ESCAPED')"
    ),
    "connect to a port": "import socket\nsocket.create_connection(('127.0.0.1', HOST_PORT), 2)\nprint('ESCAPED')",
    "connect to a named socket": (
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('HOST_SOCKET')\nprint('ESCAPED')"
    ),
    "connect to an abstract socket": (
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0HOST_ABSTRACT')\nprint('ESCAPED')"
    ),
    "write to a named pipe": "import os\nos.write(os.open('HOST_FIFO', os.O_RDWR), b'x')\nprint('ESCAPED')",
    "reach the internet": (
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.sendto(b'x', ('192.0.2.1', 53))\nprint('ESCAPED')"
    ),
    "signal the host": "import os\nos.kill(HOST_PID, 0)\nprint('ESCAPED')",
    "see processes of the host": (
        "import os\nif os.path.exists('/proc/HOST_PID/cmdline'): print('ESCAPED')"
    ),
    "environment of the host": (
        "import glob\nfor path in glob.glob('/proc/[0-9]*/environ'):\n"
        "    if b'SECRET' in open(path, 'rb').read(): print('ESCAPED')"
    ),
    "write to the kernel": "open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x')\nprint('ESCAPED')",
    "open descriptors of the host": (
        "import os\nfor fd in range(3, 4096):\n    try: os.fstat(fd)\n    except OSError: continue\n"
        "    print('ESCAPED', fd)"
    ),
    "leave by the parent folder": "import os\nos.chdir('..')\nos.chdir('../../..')\nprint('ESCAPED', os.listdir('/etc/cron.d'))",
}  # fmt: skip

TOO_MUCH = {
    "memory of one process": "held = bytearray(1 << 30)\nheld[::4096] = b'x' * len(held[::4096])\nprint('ESCAPED')",
    # Held by all four at once, for longer than two looks: the kernel may kill one, and the others may go on.
    "memory of many processes": (
        "import mmap, os, time\nmarks = mmap.mmap(-1, 8)\nnumber = 2 * bool(os.fork()) + bool(os.fork())\n"
        "held = bytearray(b'x') * (150 << 20)\n"
        "for first in (0, 4):\n    marks[first + number] = 1\n"
        "    while not all(marks[first:first + 4]): time.sleep(0.01)\ntime.sleep(2)\nprint('ESCAPED')"
    ),
    "files in memory": (
        "import os\nfor number in range(100):\n"
        "    with open(str(number), 'wb') as file: file.write(bytes(15 << 20))\nprint('ESCAPED')"
    ),
    "anonymous files in memory": (
        "import os\nfor _ in range(60):\n    one = os.memfd_create('x')\n    os.write(one, bytes(15 << 20))\nprint('ESCAPED')"
    ),
    "shared memory": (
        _C + "for _ in range(15):\n    number = libc.shmget(0, 100 << 20, 0o1666)\n    assert number >= 0\n"
        "    libc.shmat.restype = ctypes.c_void_p\n    ctypes.memset(libc.shmat(number, None, 0), 1, 100 << 20)\n"
        "print('ESCAPED')"
    ),
    "nested memory file system": (
        _C + "assert libc.unshare(0x10020000) == 0\nassert libc.mount(b'x', b'/tmp', b'tmpfs', 0, b'size=4g') == 0\n"
        "for number in range(180):\n    open(f'/tmp/{number}', 'wb').write(bytes(15 << 20))\nprint('ESCAPED')"
    ),
    "processes": (
        "import os, time\nfor _ in range(400):\n    if not os.fork():\n        time.sleep(60)\n        os._exit(0)\n"
        "print('ESCAPED')"
    ),
    "threads": (
        "import threading, time\nfor _ in range(400): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print('ESCAPED')"
    ),
    "one huge file": "with open('big', 'wb') as file:\n    file.write(bytes(200 << 20))\nprint('ESCAPED')",
    "many files": "for number in range(100_000): open(str(number), 'w').close()\nprint('ESCAPED')",
}  # fmt: skip
