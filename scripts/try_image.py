"""Runs a Dockerfile without Docker: its steps in a Debian or Ubuntu root made here, then its server, which must answer.

    sudo python3 scripts/try_image.py /var/tmp/image                                       # Dockerfile
    sudo python3 scripts/try_image.py /var/tmp/image-gpu --file Dockerfile.gpu --only steps

It wants root, debootstrap, unshare and git, and a few GB; what lacks is said before anything is made. What it shows is whether
the steps work, on a base with the same packages; layers, the registry's image itself and the network of containers are not
tried, nor is CUDA. Where the base image brings a Python of its own, a copy of one on this machine stands in for it. The server
runs in namespaces of its own: without a network, and nothing of it stays.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from versions import find

ROOT = Path(__file__).resolve().parents[1]
# What the base images are made of: suite, mirror, components, and the distribution whose key signs them.
BASES = {
    "python:3.12-slim-bookworm": ("bookworm", "http://deb.debian.org/debian", "main", "debian"),
    "nvidia/cuda:12.4.1-cudnn-devel-ubuntu22.04": (
        "jammy",
        "http://archive.ubuntu.com/ubuntu",
        "main,universe",
        "ubuntu",
    ),
}
TOOLS = {"debootstrap": "debootstrap", "unshare": "util-linux", "git": "git", "tar": "tar"}  # and their packages
# What Python's own image has besides.
PYTHON_LIBRARIES = "libbz2-1.0 libffi8 liblzma5 libreadline8 libsqlite3-0 libssl3 libuuid1 netbase tzdata zlib1g"
# As in a container of --shm-size=2g, whose network has nothing but itself.
ENTER = """
mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount -t tmpfs -o size=2g tmpfs "$0/dev/shm" && exec "$@"
"""
LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 0x41))
os.execvp(sys.argv[1], sys.argv[1:])
"""
ASK = """
import json, urllib.request
url, headers = "http://127.0.0.1:8000/v1", {"Content-Type": "application/json", "Authorization": "Bearer secret"}
models = json.load(urllib.request.urlopen(urllib.request.Request(url + "/models", headers=headers), timeout=60))
messages = [{"role": "user", "content": "Name the capital of France."}]
body = {"model": models["data"][0]["id"], "messages": messages, "temperature": 0, "max_tokens": 40}
request = urllib.request.Request(url + "/chat/completions", json.dumps(body).encode(), headers)
print("answer:", json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["message"]["content"])
"""
START_S = 300


class Image:
    """A root and what the Dockerfile has said so far."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder, self.user = "/", "root"
        # How this machine reaches its registries is no part of the image.
        sites = {
            name: value for name, value in os.environ.items() if name.startswith("PIP_") or "_proxy" in name.lower()
        }
        self.env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "DEBIAN_FRONTEND": "noninteractive",
            **sites,
        }
        self.last: dict[str, str] = {}

    def command(self, words: list[str], networked: bool = True) -> list[str]:
        """``words`` in the root, as its user, in namespaces that end with it."""
        home = "/root" if self.user == "root" else f"/home/{self.user}"
        env = [f"{name}={value}" for name, value in {**self.env, "HOME": home}.items()]
        inside = ["sh", "-c", f'cd "{self.folder}" && exec "$@"', "sh", *words]
        chroot = ["chroot", f"--userspec={self.user}:{self.user}", str(self.root), "env", "-i", *env, *inside]
        if not networked:
            chroot = [sys.executable, "-c", LOOPBACK_UP, *chroot]
        namespaces = ["--mount", "--pid", "--fork", "--kill-child", *([] if networked else ["--net"])]
        return ["unshare", *namespaces, "sh", "-c", ENTER, str(self.root), *chroot]

    def run(self, line: str) -> None:
        """A step of the Dockerfile.

        Raises:
            SystemExit: it failed.
        """
        print(f"RUN {line}", flush=True)
        started = time.monotonic()
        if subprocess.run(self.command(["sh", "-c", line])).returncode:
            raise SystemExit(f"failed: RUN {line}")
        print(f"    {time.monotonic() - started:.0f} s", flush=True)

    def begin(self, base: str, python: Path | None, is_checked: bool) -> None:
        """A root for ``base``.

        Raises:
            SystemExit: it could not be made.
        """
        suite, mirror, components, distribution = BASES[base]
        packages = ["--include=ca-certificates", f"--components={components}"]
        check = [f"--keyring={keyring(distribution)}"] if is_checked else ["--no-check-gpg"]
        command = ["debootstrap", "--variant=minbase", *check, *packages, suite, str(self.root), mirror]
        # What it mounts in the root is not left on this machine, also where it is broken off.
        if subprocess.run(["unshare", "--mount", "--fork", "--kill-child", *command]).returncode:
            raise SystemExit(f"failed: debootstrap; its log is {self.root}/debootstrap/debootstrap.log")
        for name in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"):
            shutil.copy(name, f"{self.root}{name}")
        if python is not None:
            self.run(f"apt-get update -qq && apt-get install -y -qq --no-install-recommends {PYTHON_LIBRARIES}")
            for part in ("bin", "lib", "include"):
                shutil.copytree(python / part, self.root / "usr/local" / part, symlinks=True, dirs_exist_ok=True)
            self.run("ldconfig && python3 --version")

    def copy(self, owner: str) -> None:
        """What git has of this checkout, as ``.dockerignore`` leaves it."""
        target = self.root / self.folder.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        tar = subprocess.Popen(
            ["tar", "-c", "--null", "-T", "-"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        untar = subprocess.Popen(["tar", "-x", "--no-same-owner", "-C", str(target)], stdin=tar.stdout)
        assert tar.stdin is not None
        tar.stdin.write(files)
        tar.stdin.close()
        if tar.wait() or untar.wait():
            raise SystemExit("failed: COPY")
        self.run(f"chown -R {owner}:{owner} {self.folder}/*")

    def serve(self) -> None:
        """Start what the image starts, and ask it.

        Raises:
            SystemExit: no answer, or it does not end when it is told to.
        """
        words = [*json.loads(self.last["ENTRYPOINT"]), *json.loads(self.last["CMD"])]
        check = json.loads(self.last["HEALTHCHECK"].partition(" CMD ")[2])
        self.env["BIREME_API_KEY"] = "secret"
        # One namespace for the server, its health and a question, as ``docker exec`` has it.
        script = f"""
{shlex.join(words)} & server=$!
for second in $(seq {START_S}); do
    kill -0 $server || exit 1
    {shlex.join(check)} 2>/dev/null && break
    sleep 1
done
echo "healthy after $second s"
{shlex.join(check)} && python3 -c {shlex.quote(ASK)} || exit 1
kill -TERM $server && wait $server
echo "ended: $?"
"""
        if subprocess.run(self.command(["sh", "-c", script], networked=False)).returncode:
            raise SystemExit("failed: the server")


def instructions(path: Path) -> list[tuple[str, str]]:
    """Words and what follows them, continued lines joined."""
    lines = path.read_text().replace("\\\n", " ").splitlines()
    parted = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in parted]


def keyring(distribution: str) -> Path:
    return Path(f"/usr/share/keyrings/{distribution}-archive-keyring.gpg")


def own_python(given: Path | None) -> Path | None:
    """The prefix of a Python 3.12 that can be copied: the one that was given, or one of this machine; None if there is none.

    A distribution's own lies in /usr among all else, and has its library elsewhere.
    """
    found = find("3.12") if given is None else None
    if found is not None:
        ask = "import sys; print(sys.base_prefix)"
        given = Path(subprocess.run([found, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
    is_apart = given is not None and given.resolve() != Path("/usr") and (given / "bin/python3.12").exists()
    return given if is_apart else None


def lacking(root: Path, base: str | None, python: Path | None, is_checked: bool) -> list[str]:
    """What there is not for it, each with what to do.

    Args:
        base: that a root is to be made of; None: the root is there.
    """
    found = [f"{tool}: apt-get install {package}" for tool, package in TOOLS.items() if not shutil.which(tool)]
    if os.geteuid():
        found.insert(0, "root: begin with sudo")
    if base is None:
        return found if (root / "opt/bireme").exists() else [*found, f"an image in {root}: leave out --only server"]
    if root.exists() and any(root.iterdir()):
        found.append(f"an empty folder: {root} has something in it (--only server starts an image that is there)")
    if base.startswith("python:") and python is None:
        found.append(
            "a Python 3.12 in a folder of its own, as pyenv makes it: --python PREFIX, with PREFIX/bin/python3.12"
        )
    distribution = BASES[base][3]
    if is_checked and not keyring(distribution).exists():
        package = f"apt-get install {distribution}-archive-keyring or {distribution}-keyring"
        found.append(f"{keyring(distribution)}: {package}, or --no-check-gpg to take packages unchecked")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder that becomes the root; made if it is not there")
    parser.add_argument("--file", default="Dockerfile")
    parser.add_argument("--python", type=Path, help="prefix of a Python 3.12; default: one that is found here")
    parser.add_argument("--no-check-gpg", action="store_true", help="do not check who signed the base's packages")
    parser.add_argument(
        "--only",
        choices=["base", "steps", "server"],
        help="what the Dockerfile begins with, its steps, or the server of a root whose steps were run",
    )
    options = parser.parse_args()
    image = Image(options.root.resolve())
    is_made, is_checked = options.only == "server", not options.no_check_gpg
    steps = instructions(ROOT / options.file)
    (base,) = (rest for word, rest in steps if word == "FROM")
    python = own_python(options.python) if base.startswith("python:") else None
    missing = lacking(image.root, None if is_made else base, python, is_checked)
    if missing:
        raise SystemExit(f"missing: {'; '.join(missing)}")
    for word, rest in steps:
        if is_made and word in ("FROM", "RUN", "COPY"):
            continue
        if word == "FROM":
            image.begin(rest, python, is_checked)
            if options.only == "base":
                return
        elif word == "RUN":
            image.run(rest)
        elif word == "WORKDIR":
            image.folder = rest
            (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            image.user = rest
        elif word == "ENV":
            image.env.update(pair.split("=", 1) for pair in shlex.split(rest))
        elif word == "COPY":
            image.copy(rest.partition("--chown=")[2].split()[0])
        else:
            image.last[word] = rest
    if options.only != "steps":
        image.serve()


if __name__ == "__main__":
    main()
