"""Firecracker's own description of its API, walked by schemathesis: no answer 5xx, none that the description doesn't
have, and a VMM that answers afterwards.

    describe.py BANGER_QEMU DESCRIPTION [EXAMPLES]

`/snapshot/load` and `/actions` get a VMM of their own, since a load that fails ends one, as does a guest that is told to.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading

from common import Vmm

# A 204 has no content, and so no type of it: that check is left out.
CHECKS = "not_a_server_error,status_code_conformance,response_schema_conformance"


class Door:
    """A TCP port before a VMM's socket; schemathesis knows no other. A VMM that has ended is started again for the next
    caller where `again` says so."""

    def __init__(self, vmm, again=None):
        self.vmm, self.again, self.starts = vmm, again, 0
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def connect(self):
        with self.lock:
            far = socket.socket(socket.AF_UNIX)
            try:
                if self.vmm.process.poll() is None:
                    far.connect(self.vmm.api)
                    return far
            except OSError:
                pass
            if self.again is None:
                far.close()
                return None
            self.vmm.end()
            self.vmm = self.again()
            self.starts += 1
            far.connect(self.vmm.api)
            return far

    def serve(self, client):
        far = self.connect()
        if far is not None:
            there = threading.Thread(target=copy, args=(client, far), daemon=True)
            there.start()
            copy(far, client)
            there.join()
            far.close()
        client.close()


def copy(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    for end, how in ((target, socket.SHUT_WR), (source, socket.SHUT_RD)):
        try:
            end.shutdown(how)
        except OSError:
            pass


def walk(name, door, description, examples, *choice):
    tool = os.path.join(os.path.dirname(sys.executable), "schemathesis")
    command = [tool, "run", description, "--url", door.url, "-c", CHECKS, "-n", str(examples), "--phases",
               "examples,coverage,fuzzing", "--continue-on-failure", "--request-timeout", "60", "--no-color",
               "--suppress-health-check", "all", "--warnings", "off", *choice]
    done = subprocess.run(command, cwd=door.vmm.dir, capture_output=True, text=True)
    cases = re.search(r"([\d,]+) generated", done.stdout)
    told = cases.group(1) if cases else "no"
    print(f"{name}: {told} requests, {'as described' if done.returncode == 0 else 'NOT as described'}"
          f"{f', {door.starts} starts' if door.starts else ''}", flush=True)
    if done.returncode != 0:
        print(done.stdout[-6000:], done.stderr[-2000:])
    return done.returncode == 0 and cases is not None


def main():
    program, description = (os.path.abspath(path) for path in sys.argv[1:3])
    examples = int(sys.argv[3]) if len(sys.argv) > 3 else 50
    alone = ["--exclude-path", "/snapshot/load", "--exclude-path", "/actions"]
    good, folders = 0, []

    def vmm(booted):
        made = Vmm(program).start()
        folders.append(made.dir)
        return made.boot() if booted else made

    for name, booted, again, choice in [
        ("before the boot", False, False, alone),
        ("after the boot", True, False, alone),
        ("/actions before", False, True, ["--include-path", "/actions"]),
        ("/actions after", True, True, ["--include-path", "/actions"]),
        ("/snapshot/load", False, True, ["--include-path", "/snapshot/load"]),
    ]:
        door = Door(vmm(booted), (lambda booted=booted: vmm(booted)) if again else None)
        passed = walk(name, door, description, examples, *choice)
        if not again and not door.vmm.alive():
            print(f"{name}: the VMM is gone, see {door.vmm.dir}")
            passed = False
        door.listener.close()
        door.vmm.end()
        good += passed
    if good == 5:
        for folder in folders:
            shutil.rmtree(folder)
    print(f"{good} passed, {5 - good} failed")
    return 0 if good == 5 else 1


if __name__ == "__main__":
    sys.exit(main())
