"""Build the custom ops once and cache them by content, so that every Ray worker of a node loads the same library.

The key covers the sources, the compiler, Paddle's version and Python's, and what the processor can do: nodes of a cluster
differ, and the cache may lie on a shared disk. A lock file makes concurrent first starts build once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import platform
import shutil
import string
import subprocess
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, util
from pathlib import Path

from cluster.process.cache import Progress, cache_dir, exclusive
from cluster.process.trusted_path import NO_OTHERS, make_folder, other_writer
from gpu_ops.sources import CSRC, sources_hash, with_includes, write_generated_headers

KERNEL_FLAGS = [
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fPIC",
    "-Wall",
    "-pthread",
]
# Of a kernel file that is made for more than every processor has; which one runs is chosen when it does.
INSTRUCTION_SET_FLAGS = {
    "_avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"],
    "_avx2": ["-mavx2", "-mfma", "-mf16c"],
}
BINDING_FLAGS = ["-std=c++17", "-O1", "-fPIC", "-DPADDLE_WITH_CUSTOM_KERNEL", "-w", "-pthread"]
LIBRARY_FLAGS = ["-std=c++17", "-O2", "-fPIC", "-Wall", "-pthread", "-shared"]
CUDA_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC"]
CUDA_ARCHS = "80 89 90a 90+PTX"


class OpBuildError(RuntimeError):
    """The ops could not be built; the message holds the compiler's own words and what to install."""


def paddle_distribution() -> metadata.Distribution:
    """The installed Paddle package, found without importing it."""
    for name in ("paddlepaddle-gpu", "paddlepaddle"):
        try:
            return metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
    raise OpBuildError("PaddlePaddle is not installed: pip install paddlepaddle (CPU) or paddlepaddle-gpu")


def cuda_home() -> Path | None:
    """The CUDA toolkit that builds the GPU kernels; None where Paddle was built without CUDA or there is no nvcc."""
    if paddle_distribution().name.lower() != "paddlepaddle-gpu":
        return None
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), nvcc and Path(nvcc).resolve().parents[1]]
    for home in [*homes, "/usr/local/cuda"]:
        if home and Path(home, "bin/nvcc").exists() and Path(home, "include/cuda_runtime.h").exists():
            return Path(home)
    return None


def cuda_compiler_version() -> str:
    """What nvcc says of itself; empty without one."""
    home = cuda_home()
    if home is None:
        return ""
    return subprocess.run([str(home / "bin/nvcc"), "--version"], capture_output=True, text=True).stdout


def cuda_targets() -> list[str]:
    """nvcc's target options for $BIREME_CUDA_ARCHS, by default compute capabilities 8.0, 8.9, 9.0a and PTX for later ones.

    Raises:
        OpBuildError: an entry is not like 80, 90a or 90+PTX, or asks for PTX older than that.
    """
    targets = []
    for entry in os.environ.get("BIREME_CUDA_ARCHS", CUDA_ARCHS).replace(",", " ").split():
        arch, _, ptx = entry.partition("+")
        if not arch[:-1].isdigit() or ptx not in ("", "PTX"):
            raise OpBuildError(f"BIREME_CUDA_ARCHS: got {entry}, needs entries like 80, 90a or 90+PTX")
        if ptx and int(arch.rstrip(string.ascii_lowercase)) < 90:
            # On a newer GPU kernels made from it would start before their predecessor ended, and not wait for it.
            raise OpBuildError(f"BIREME_CUDA_ARCHS: got {entry}, PTX needs 90 or later")
        targets.append(f"-gencode=arch=compute_{arch},code={'compute' if ptx else 'sm'}_{arch}")
    return targets


def _sources() -> list[Path]:
    kernels = CSRC.glob("kernels/**/*.cu") if cuda_home() else []
    bindings = [source for source in CSRC.glob("bindings/*.cc") if source.stem != "run_op" or calls_ops_itself()]
    return sorted([*CSRC.glob("kernels/**/*.cc"), *bindings, *kernels])


def calls_ops_itself() -> bool:
    """Whether ops are called by ``bindings/run_op.cc``; Paddle 2.6 for the CPU lacks what that takes for new tensors."""
    return cuda_home() is not None or int(paddle_distribution().version.split(".")[0]) >= 3


def _is_cpu_kernel(source: Path) -> bool:
    return source.suffix == ".cc" and source.parent.name != "bindings"


def kernel_flags(source: Path) -> list[str]:
    """The compiler's flags for a CPU kernel."""
    if platform.machine() != "x86_64":
        return KERNEL_FLAGS
    own = (flags for ending, flags in INSTRUCTION_SET_FLAGS.items() if source.stem.endswith(ending))
    return [*KERNEL_FLAGS, *itertools.chain(*own)]


def _instruction_set() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return " ".join(sorted(line.split(":", 1)[1].split()))
    except OSError:
        pass
    return platform.processor()


def compiler() -> str:
    """The C++ compiler: $CXX, else g++ or clang++."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise OpBuildError("no C++ compiler found: install g++ (Debian: apt-get install g++) or set CXX")


@functools.cache
def environment_key() -> str:
    """Hash of what a build depends on besides the sources."""
    distribution = paddle_distribution()
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout.splitlines()[:1]
    parts = [
        distribution.name,
        distribution.version,
        *version,
        platform.python_version(),
        platform.machine(),
        _instruction_set(),
        *KERNEL_FLAGS,
        *itertools.chain(*INSTRUCTION_SET_FLAGS.values()),
        *BINDING_FLAGS,
    ]
    home = cuda_home()
    if home:
        parts += [cuda_compiler_version(), *CUDA_FLAGS, *cuda_targets()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def build_key() -> str:
    """Hash of everything that the built library depends on."""
    return hashlib.sha256((sources_hash() + environment_key()).encode()).hexdigest()[:20]


def library_path() -> Path:
    """Where the library for the present sources and machine is, or will be."""
    return cache_dir() / "ops" / build_key() / "libbireme_ops.so"


def build(progress: Progress | None = None) -> Path:
    """Return the library, building it first if the cache has none.

    Args:
        progress: called as ``progress(file name, files done, files in all)`` while it compiles.
    Raises:
        OpBuildError: there is no compiler, a file did not compile, or others could put a library of theirs into the cache, which
            cannot be written.
    """
    target = library_path()
    _refuse_others(target)
    if target.exists():
        return target
    try:
        make_folder(target.parent)
        with exclusive(target.parent / "lock"):
            if not target.exists():
                _compile(target, progress)
    except OSError as error:  # a disk that is full or read-only
        raise _unwritable(target.parent, error) from None
    return target


def build_library(source: Path, for_python: bool = False) -> Path:
    """Return the shared library of one C++ file that needs neither Paddle nor CUDA, and of the headers beside it; builds it first
    if the cache has none.

    Args:
        for_python: it is a module of this interpreter.

    Raises:
        OpBuildError: as ``build``.
    """
    flags = list(LIBRARY_FLAGS)
    if for_python:
        flags += [f"-I{sysconfig.get_paths()['include']}", f"-DPYTHON_ABI={sysconfig.get_config_var('SOABI')}"]
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    key = hashlib.sha256("\0".join([*texts, platform.machine(), *flags]).encode())
    target = cache_dir() / "native" / f"lib{source.stem}-{key.hexdigest()[:20]}.so"
    _refuse_others(target)
    if target.exists():
        return target
    partial = target.with_suffix(f".{os.getpid()}.{threading.get_ident()}.partial")
    try:
        make_folder(target.parent)
        _run([compiler(), *flags, str(source), "-o", str(partial)])
        partial.rename(target)
    except OSError as error:
        raise _unwritable(target.parent, error) from None
    finally:
        with contextlib.suppress(OSError):  # of a folder that is none, which is an error of its own by then
            partial.unlink(missing_ok=True)
    return target


def _unwritable(folder: Path, error: OSError) -> OpBuildError:
    return OpBuildError(
        f"native ops cannot be written to {folder}: {error.strerror or error}; set BIREME_CACHE to a folder of your own with "
        "100 MB free"
    )


def _refuse_others(path: Path) -> None:
    """What is loaded or linked from ``path`` runs as this user: raise if others may have put it there."""
    if (fault := other_writer(path)) is not None:
        raise OpBuildError(
            f"native ops would be loaded from the cache, and {fault}: take that away (chown, chmod go-w, remove it), set "
            f"BIREME_CACHE to a folder of your own, or {NO_OTHERS}"
        )


def _compile(target: Path, progress: Progress | None) -> None:
    spec = util.find_spec("paddle")
    assert spec is not None and spec.origin is not None
    paddle_root = Path(spec.origin).parent
    includes = [
        f"-I{paddle_root}/include",
        f"-I{paddle_root}/include/third_party",
        f"-I{sysconfig.get_paths()['include']}",
    ]
    home = cuda_home()
    if home:
        includes += ["-DPADDLE_WITH_CUDA", "-DBIREME_WITH_CUDA", f"-I{home}/include", f"-I{home}/include/cccl"]
    sources = _sources()
    done = 0
    own_includes = write_generated_headers(target.parent)
    objects_dir = cache_dir() / "ops" / "objects"
    make_folder(objects_dir)

    def compile_one(source: Path) -> Path:
        nonlocal done
        flags = [compiler(), *(kernel_flags(source) if _is_cpu_kernel(source) else BINDING_FLAGS + includes)]
        if source.suffix == ".cu":
            flags = [f"{home}/bin/nvcc", "-ccbin", compiler(), *CUDA_FLAGS, *cuda_targets()]
        # A changed kernel must not cost the bindings' slow compilation again, so objects are cached on their own.
        key = hashlib.sha256("\0".join([environment_key(), with_includes(source), *flags]).encode()).hexdigest()[:20]
        obj = objects_dir / f"{source.stem}-{key}.o"
        _refuse_others(obj)
        if not obj.exists():
            partial = obj.with_suffix(f".{os.getpid()}.partial.o")
            try:
                _run([*flags, *own_includes, "-c", str(source), "-o", str(partial)])
                partial.rename(obj)
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
        done += 1
        if progress:
            progress(source.name, done, len(sources))
        return obj

    with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, 8))) as pool:
        # Bindings include Paddle's headers, and CUDA kernels are compiled for several chips: they take longest, so they
        # start first.
        objects = list(pool.map(compile_one, sorted(sources, key=_is_cpu_kernel)))
    partial = target.with_suffix(".partial")
    _run(
        [
            compiler(),
            "-shared",
            *map(str, objects),
            "-o",
            str(partial),
            f"-L{paddle_root}/base",
            f"-L{paddle_root}/libs",
            "-l:libpaddle.so",
            *_cuda_libraries(home, paddle_root),
            f"-Wl,-rpath,{paddle_root}/base:{paddle_root}/libs",
            "-pthread",
        ]
    )
    partial.rename(target)


def _cuda_libraries(home: Path | None, paddle_root: Path) -> list[str]:
    if home is None:
        return []
    # Paddle keeps streams and places in libraries of their own. The runtime is linked in and kept private, because Paddle
    # may have brought another version of it.
    own = [
        f"-l{name}"
        for name in ("phi", "phi_core", "phi_gpu", "common")
        if (paddle_root / f"libs/lib{name}.so").exists()
    ]
    folder = next(
        (home / name for name in ("lib64", "lib") if (home / name / "libcudart_static.a").exists()), home / "lib64"
    )
    # The shared C++ library by its path: a compiler that has only the static one at hand would put a second copy beside
    # Paddle's, and the first exception or stream would end the process.
    shared = subprocess.run(
        [compiler(), "-print-file-name=libstdc++.so.6"], capture_output=True, text=True
    ).stdout.strip()
    own += [shared] if Path(shared).is_absolute() else []
    return [*own, f"-L{folder}", "-lcudart_static", "-Wl,--exclude-libs,libcudart_static.a", "-ldl", "-lrt"]


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise OpBuildError(f"building the native ops failed: {command[0]} cannot be run: {error.strerror}") from None
    if result.returncode:
        raise OpBuildError(f"building the native ops failed: {' '.join(command)}\n{result.stdout}{result.stderr}")
