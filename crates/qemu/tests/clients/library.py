"""A client library for Firecracker from PyPI (`firecracker-python`), as it is: it starts a VM, pauses, saves, resumes and
ends it.

    library.py BANGER_QEMU

Runs as root in mount and network namespaces of its own, since the library's paths are fixed: `run` makes them.
"""

import os
import shutil
import subprocess
import sys
import time

from common import PATIENCE, Unix, tiny_kernel


def sh(command):
    subprocess.run(command, shell=True, check=True)


def prepare(program):
    sh("mount -t tmpfs clients /usr/local/bin && mount -t tmpfs clients /var/lib && mkdir /var/lib/firecracker")
    shutil.copy(program, "/usr/local/bin/firecracker")
    # The library looks for the way out of the host before it makes a tap.
    sh("ip link set lo up && ip link add out0 type veth peer name out1 && ip addr add 192.0.2.2/24 dev out0")
    sh("ip link set out0 up && ip link set out1 up && ip route add default via 192.0.2.1")


def told(name, api):
    connection = Unix(api)
    connection.request("GET", "/")
    state = connection.getresponse().read().decode()
    if f'"state":"{name}"' not in state:
        raise RuntimeError(f"not {name}: {state}")


def main():
    prepare(os.path.abspath(sys.argv[1]))
    import firecracker.microvm as library

    # It asks a server outside for the host's address, and Docker for images: neither is here or is needed.
    library.get_public_ip = lambda *_: "192.0.2.2"
    library.docker.from_env = lambda *_: None
    kernel, root = "/var/lib/kernel", "/var/lib/root"
    tiny_kernel(kernel)
    with open(root, "wb") as file:
        file.truncate(1 << 20)
    vm = library.MicroVM(name="clients", kernel_file=kernel, base_rootfs=root, vcpu=1, memory=64, vsock_enabled=True)
    folder = f"/var/lib/firecracker/{vm._microvm_id}"
    api = f"{folder}/firecracker.socket"
    begin = time.monotonic()
    answer = vm.create()
    if "created" not in answer:
        raise RuntimeError(answer)
    told("Running", api)
    print(f"started in {time.monotonic() - begin:.2f} s ({answer})")
    with open(f"{folder}/firecracker.pid") as file:
        pid = int(file.read())
    vm.pause()
    told("Paused", api)
    vm.resume()
    told("Running", api)
    print("paused and resumed")
    saved = "/var/lib/firecracker/saved"
    vm.snapshot(action="create", memory_path=f"{saved}-memory", snapshot_path=f"{saved}-state")
    told("Running", api)
    print(f"saved: {os.path.getsize(f'{saved}-state')} bytes of state, {os.path.getsize(f'{saved}-memory')} of memory")
    print(vm.delete())
    end = time.monotonic() + PATIENCE
    while os.path.exists(f"/proc/{pid}") and open(f"/proc/{pid}/stat").read().split()[2] != "Z":
        if time.monotonic() > end:
            raise RuntimeError("the VMM is still there")
        time.sleep(0.05)
    if os.path.exists(folder):
        raise RuntimeError(f"{folder} is still there")
    print("1 passed")


if __name__ == "__main__":
    main()
