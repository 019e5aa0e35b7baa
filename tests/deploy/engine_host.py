"""A host of its own for container tests: Podman in namespaces that leave nothing behind, and images of programs."""

from __future__ import annotations

import ctypes
import http.client
import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from front import haproxy

STORE = "localhost:5000"
"""A registry there may be, without TLS."""
CONTAINERS = """
[containers]
default_ulimits = ["nofile=1024:20000", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "{path}/networks"
"""
"""What podman needs on a machine without CAP_SYS_RESOURCE, with cgroups of both versions."""
FRONT_DOOR = """
FROM scratch
COPY files/ /
ENV PATH=/usr/sbin
STOPSIGNAL SIGUSR1
USER 99:99
CMD ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
"""
"""As `haproxy:3.2` is: this command line, this signal, a user of its own."""
PROMETHEUS = """
FROM scratch
COPY files/ /
COPY --chown=65534:65534 data/ /prometheus
USER 65534
WORKDIR /prometheus
VOLUME /prometheus
ENTRYPOINT ["%s"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
"""
LOOPBACK_UP = (
    "import fcntl, socket, struct; "
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sH14x', b'lo', 0x49))"  # SIOCSIFFLAGS: up, running, loopback
)
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


@dataclass(frozen=True)
class Host:
    """Namespaces of network, mounts and processes: a host of its own for the engine, with an empty `/run`.

    `process`: the first of its processes, as this machine numbers it.
    """

    path: Path
    process: int

    def __call__(self, *words: object, cwd: Path | None = None) -> str:
        """Run this there, with success, and give back what it says."""
        ended = self.run(*words, cwd=cwd)
        assert ended.returncode == 0, f"{words}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    def run(self, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.words(*words, cwd=cwd), capture_output=True, text=True, env=self.environment)

    def words(self, *words: object, cwd: Path | None = None) -> list[str]:
        """The command line that runs this there."""
        enter = ["nsenter", f"--target={self.process}", "--net", "--mount", "--pid", f"--wd={cwd or self.path}"]
        return [*enter, "--", *map(str, words)]

    @property
    def environment(self) -> dict[str, str]:
        named = {"CONTAINERS_CONF": "containers.conf", "CONTAINERS_STORAGE_CONF": "storage.conf",
                 "CONTAINERS_REGISTRIES_CONF": "registries.conf", "TMPDIR": "tmp"}  # fmt: skip
        return os.environ | {name: str(self.path / file) for name, file in named.items()}

    def enter(self) -> None:
        """Let the calling thread, and no other, open its connections there."""
        with Path(f"/proc/{self.process}/ns/net").open() as network:
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "setns")

    def there(self, function: Callable[[], Any]) -> Any:
        """What the function returns; its connections are opened there."""
        with ThreadPoolExecutor(1, initializer=self.enter) as pool:
            return pool.submit(function).result()


@contextmanager
def engine_host(path: Path) -> Iterator[Host]:
    """A host with Podman whose containers find each other by name; skips where that cannot be had."""
    needed("unshare", "nsenter", "podman", "podman-compose", "runc", "iptables", "openssl")
    if os.geteuid() != 0:
        pytest.skip("only root can make namespaces and run these containers; rootless Podman was not tried")
    for folder in ("networks", "tmp"):
        (path / folder).mkdir()
    (path / "containers.conf").write_text(CONTAINERS.format(path=path))
    (path / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{path}/storage"\nrunroot = "{path}/storage-run"\n'
    )
    (path / "registries.conf").write_text(f'[[registry]]\nlocation = "{STORE}"\ninsecure = true\n')
    # It ends when nobody holds its standard input any more, and all that runs in it ends with it.
    first = "mount -t tmpfs none /run && mkdir -p /run/lock && echo made && exec cat"
    words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", first]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdin and holder.stdout and holder.stderr
        if holder.stdout.readline() != b"made\n":
            pytest.skip(f"no namespaces can be made here: {holder.stderr.read().decode().strip()}")
        (child,) = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        made = Host(path, int(child))
        try:
            made(sys.executable, "-c", LOOPBACK_UP)
            try_networks(made)
            yield made
        finally:
            made.run("podman", "rm", "--all", "--force", "--time", "0")
            holder.stdin.close()
            holder.wait()


def try_networks(host: Host) -> None:
    found = any(Path(folder, "aardvark-dns").exists() for folder in ("/usr/lib/podman", "/usr/libexec/podman"))
    if not found or host.run("podman", "info").returncode:
        pytest.skip(
            "Podman has no netavark with aardvark-dns: apt install --no-install-recommends netavark aardvark-dns"
        )
    program_image(host, "front-door", FRONT_DOOR, haproxy())
    host("podman", "network", "create", "tried")
    tried = host.run(
        "podman", "run", "--rm", "--network=tried", "--publish=9:9", "localhost/front-door", "haproxy", "-v"
    )  # fmt: skip
    host("podman", "network", "rm", "tried")
    if tried.returncode:
        pytest.skip(f"containers cannot have a network here: {tried.stderr.strip()[-400:]}")


def program_image(host: Host, name: str, containerfile: str, program: str) -> None:
    """`localhost/NAME`: this machine's program with the libraries that it is linked with, and nothing else."""
    context = host.path / name
    (context / "data").mkdir(parents=True)
    linked = subprocess.run(["ldd", program], capture_output=True, text=True).stdout.split()
    for file in (program, *(word for word in linked if word.startswith("/"))):
        place = context / "files" / file.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    (context / "Containerfile").write_text(containerfile)
    host("podman", "build", "--quiet", "--isolation=chroot", f"--tag=localhost/{name}", context)


def fetch(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, str]:  # fmt: skip
    """Status and text; 0 if nobody answers."""
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except ssl.SSLCertVerificationError:
        raise
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(1500):
        if holds():
            return
        time.sleep(0.2)
    raise AssertionError("it did not come to pass in five minutes")


def needed(*programs: str) -> None:
    packages = {"busybox": "busybox-static", "unshare": "util-linux", "nsenter": "util-linux"}
    for program in programs:
        if shutil.which(program) is None:
            package = packages.get(program, program)
            pytest.skip(f"{program} is not on the PATH: apt install --no-install-recommends {package}")
