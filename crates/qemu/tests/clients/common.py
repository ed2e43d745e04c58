"""What the checks by foreign clients share: a banger-qemu of one's own and a kernel of a few bytes."""

import http.client
import json
import os
import socket
import struct
import subprocess
import tempfile
import time

PATIENCE = 30


class Unix(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=PATIENCE)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self.path)


class Vmm:
    """A running banger-qemu with its files in a folder of its own."""

    def __init__(self, program):
        self.program = program
        self.dir = tempfile.mkdtemp(prefix="banger-clients-")
        self.api = os.path.join(self.dir, "api")
        self.process = None

    def start(self):
        command = [self.program, "--api-sock", self.api, "--log-path", os.path.join(self.dir, "log")]
        out = open(os.path.join(self.dir, "console"), "ab")
        self.process = subprocess.Popen(command, cwd=self.dir, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        end = time.monotonic() + PATIENCE
        while not os.path.exists(self.api):
            if time.monotonic() > end or self.process.poll() is not None:
                raise RuntimeError(f"banger-qemu does not start: see {self.dir}")
            time.sleep(0.01)
        return self

    def ask(self, method, path, body=None):
        connection = Unix(self.api)
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def done(self, method, path, body):
        status, text = self.ask(method, path, body)
        if status != 204:
            raise RuntimeError(f"{method} {path}: {status} {text}")

    def boot(self):
        kernel = os.path.join(self.dir, "kernel")
        tiny_kernel(kernel)
        disk = os.path.join(self.dir, "disk")
        with open(disk, "wb") as file:
            file.truncate(1 << 20)
        self.done("PUT", "/boot-source", {"kernel_image_path": kernel})
        self.done("PUT", "/drives/d", {"drive_id": "d", "is_root_device": False, "path_on_host": disk})
        self.done("PUT", "/balloon", {"amount_mib": 0, "deflate_on_oom": False, "stats_polling_interval_s": 1})
        self.done("PUT", "/actions", {"action_type": "InstanceStart"})
        return self

    def alive(self):
        return self.process.poll() is None and self.ask("GET", "/")[0] == 200

    def end(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait()


def tiny_kernel(path):
    """An ELF file with a PVH entry whose code is `hlt; jmp`: it waits for ever."""
    at = 0x100000
    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", at)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, at, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    head += struct.pack("<IIQQQQQQ", 1, 7, 0x1000, at, at, 16, 16, 0x1000)
    head += struct.pack("<IIQQQQQQ", 4, 4, 0x200, 0, 0, len(note), len(note), 4)
    file = head.ljust(0x200, b"\0") + note
    file = file.ljust(0x1000, b"\0") + b"\xf4\xeb\xfd".ljust(16, b"\0")
    with open(path, "wb") as out:
        out.write(file)
