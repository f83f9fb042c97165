"""An emulated ARM64 device: Debian's arm64 Python and a device install of edgerun, under QEMU's user mode.

    python -m bench.arm rpi4 run small.onnx --feeds x.npz -o y.npz     edgerun's command line, as that board has it

Debian's packages are extracted, never installed, and QEMU is the machine's own or taken out of its package: no root, no
change to the machine. What is downloaded is kept in `$EDGERUN_ARM`, or `.cache/arm` in the checkout (250 MB).
Instructions are emulated, the kernel and the clock are this machine's: results are the device's, times are not.
A program that the device starts is no ARM program to this machine: `isolated=True` does not work there.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tomllib

from bench import device_wheel
from edgerun import cache
from edgerun.errors import EdgerunError, Unsupported, unknown

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("python3", "libstdc++6")
TAGS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
EMULATOR = "qemu-aarch64-static"
SECONDS = 600.0  # for any one program


@dataclass(frozen=True)
class Profile:
    """A board: QEMU's name of its CPU, and what its kernel tells of it. `model` is the device tree's, empty without."""

    cpu: str
    part: int
    features: str
    model: str = ""
    cores: int = 4
    memory_gib: int = 4


_ARMV80 = "fp asimd evtstrm crc32 cpuid"
_ARMV82 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
PROFILES = {
    "rpi3": Profile("cortex-a53", 0xD03, _ARMV80, "Raspberry Pi 3 Model B Rev 1.2", memory_gib=1),
    "rpi4": Profile("cortex-a72", 0xD08, _ARMV80, "Raspberry Pi 4 Model B Rev 1.4"),
    "rpi5": Profile("cortex-a76", 0xD0B, _ARMV82, "Raspberry Pi 5 Model B Rev 1.0", memory_gib=8),
    "n1": Profile("neoverse-n1", 0xD0C, f"{_ARMV82} ssbs", cores=8, memory_gib=16),
}


@dataclass(frozen=True)
class Device:
    """An emulated device, whose paths are this machine's. `prefix` holds what it sees in place of this machine's."""

    profile: Profile
    prefix: Path
    emulator: Path
    python: Path
    path: str

    def call(self, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run its Python with these arguments, and nothing of this machine's environment."""
        command = [self.emulator, "-cpu", self.profile.cpu, "-L", self.prefix, self.python, *words]
        environment = {"HOME": str(self.prefix), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONPATH": self.path}
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=SECONDS)

    def edgerun(self, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run `edgerun` there."""
        return self.call("-m", "edgerun", *words, cwd=cwd)


def folder() -> Path:
    """$EDGERUN_ARM, else .cache/arm in the checkout."""
    return Path(os.environ.get("EDGERUN_ARM") or ROOT / ".cache/arm")


def device(name: str, installed: Path, place: Path) -> Device:
    """The device of that profile, with `installed` (see `install`) on it; `place` is an empty folder for what it sees.

    Raises Unsupported, with the reason, where it cannot be made.
    """
    if name not in PROFILES:
        raise unknown("profile", name, sorted(PROFILES))
    profile, system, emulator = PROFILES[name], _system(), _emulator()
    for link in (system / "root").iterdir():
        (place / link.name).symlink_to(link)
    for path, text in _kernel(profile).items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    (python,) = (system / "root/usr/bin").glob("python3.[0-9]*[0-9]")
    return Device(profile, place, emulator, python, f"{installed}:{system / 'site'}")


def install(place: Path) -> Path:
    """The device's wheel of this checkout, unpacked into a folder inside `place`. Raises Unsupported where none can be
    built."""
    out = place / "edgerun"
    try:
        wheel = device_wheel.build(place)
    except EdgerunError as error:
        raise Unsupported("the emulated device cannot be made here", got=error) from error
    _fetch(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", out, wheel)
    return out


def wheels(python: str) -> list[str]:
    """What makes pip choose wheels as on an ARM64 device with that version of Python ("3.11")."""
    tags = [word for tag in TAGS for word in ("--platform", f"{tag}_aarch64")]
    return ["--only-binary=:all:", "--python-version", python, *tags]


def _kernel(profile: Profile) -> dict[str, str]:
    """The files in which a kernel describes this CPU. Without a valid part number ONNX Runtime crashes on import."""
    core = (
        f"BogoMIPS\t: 108.00\nFeatures\t: {profile.features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        f"CPU variant\t: 0x0\nCPU part\t: {profile.part:#x}\nCPU revision\t: 3\n\n"
    )
    cores, system = f"0-{profile.cores - 1}\n", "sys/devices/system/cpu"
    told = {f"{system}/{name}": cores for name in ("possible", "present", "online")}
    told["proc/cpuinfo"] = "".join(f"processor\t: {index}\n{core}" for index in range(profile.cores))
    told["proc/meminfo"] = f"MemTotal: {profile.memory_gib * 2**20} kB\n"
    if profile.model:
        told["proc/cpuinfo"] += f"Model\t\t: {profile.model}\n"
        told["sys/firmware/devicetree/base/model"] = f"{profile.model}\0"
    return told


def _system() -> Path:
    """The folder with `root`, Debian's Python and its libraries, and `site`, what a device install needs."""
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    constraints = ROOT / "constraints.txt"
    wanted = (*PACKAGES, *TAGS, *needs, constraints.read_text(), _sources())
    with _kept(cache.key(*wanted)) as (found, new):
        if new is not None:
            with _packages(new, "arm64", "install", "--download-only", *PACKAGES) as packages:
                for name in ("bin", "lib", "sbin"):  # as the package base-files has it
                    (new / "root/usr" / name).mkdir(parents=True)
                    (new / "root" / name).symlink_to(f"usr/{name}")
                for package in packages:
                    _extract(package, new / "root")
            (python,) = (new / "root/usr/bin").glob("python3.[0-9]*[0-9]")
            how, into = wheels(python.name.removeprefix("python")), ("--target", new / "site")
            pip: tuple[str | Path, ...] = (sys.executable, "-m", "pip", "install", "--quiet", *how, *into)
            _fetch(*pip, "--constraint", constraints, *needs)
    return found


def _emulator() -> Path:
    """QEMU's: what is installed, or taken out of its package."""
    if installed := shutil.which(EMULATOR):
        return Path(installed)
    with _kept(cache.key(EMULATOR, platform.machine(), _sources())) as (found, new):
        if new is not None:
            host = _fetch("dpkg", "--print-architecture").strip()
            with _packages(new, host, "download", "qemu-user", "qemu-user-static") as packages:
                for package in packages:  # from Debian 13 on, the second is links to the first
                    _extract(package, new, "--exclude=*_be*", "--wildcards", "./usr/bin/qemu-aarch64*")
    return found / "usr/bin" / EMULATOR


@contextlib.contextmanager
def _kept(name: str) -> Iterator[tuple[Path, Path | None]]:
    """A folder of the cache and, where there is none yet, the one to fill: it takes its place when the block ends."""
    found = folder() / name
    if found.is_dir():
        yield found, None
        return
    found.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=found.parent, prefix="new-") as new:
        filled = Path(new, name)
        filled.mkdir()
        yield found, filled
        with contextlib.suppress(OSError):  # another process was first, and its folder is as good
            filled.rename(found)


@contextlib.contextmanager
def _packages(beside: Path, arch: str, *words: str) -> Iterator[list[Path]]:
    """The packages that apt-get fetches for `words`, from the machine's sources, with a state of its own."""
    with tempfile.TemporaryDirectory(dir=beside) as place:
        state = Path(place)
        (state / "lists/partial").mkdir(parents=True)
        (state / "archives/partial").mkdir(parents=True)
        (state / "status").touch()
        options = {
            "APT::Architecture": arch, "APT::Architectures": arch, "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root", "Acquire::Languages": "none", "Debug::NoLocking": "true",
            "Dir::State": place, "Dir::State::status": state / "status", "Dir::Cache": place,
        }  # fmt: skip
        apt = ["apt-get", "-q", "-y", *(f"-o{name}={value}" for name, value in options.items())]
        _fetch(*apt, "update", cwd=state)
        _fetch(*apt, *words, cwd=state)
        yield sorted(state.rglob("*.deb"))


def _sources() -> str:
    """The machine's release: packages of another one are other packages."""
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""


def _extract(package: Path, into: Path, *members: str) -> None:
    """Unpack a .deb, or these members of it, following the links that `into` has; no program of it runs."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as archive:
        command: list[str | Path] = [
            "tar",
            "--extract",
            "--keep-directory-symlink",
            "--no-same-owner",
            "-C",
            into,
            *members,
        ]
        subprocess.run(command, stdin=archive.stdout, check=True, timeout=SECONDS)
    if archive.returncode:
        raise subprocess.CalledProcessError(archive.returncode, archive.args)


def _fetch(*words: str | Path, cwd: Path | None = None) -> str:
    """What a program that may download printed. Raises Unsupported where it is missing or fails."""
    try:
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True, cwd=cwd, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unsupported("the emulated device cannot be made here", got=error) from error
    if done.returncode:
        said = " ".join(f"{done.stderr}{done.stdout}".split())[-300:]
        what = f"the emulated device cannot be made here: {Path(words[0]).name} failed"
        raise Unsupported(what, got=said, wanted="Debian, and its package sources and PyPI within reach")
    return done.stdout


def main() -> None:
    """`python -m bench.arm PROFILE ARGUMENTS…`: what `edgerun ARGUMENTS…` says on that device."""
    name, *words = sys.argv[1:] or [""]
    with tempfile.TemporaryDirectory() as place:
        prefix, installed = Path(place, "prefix"), Path(place, "installed")
        prefix.mkdir()
        installed.mkdir()
        try:
            made = device(name, installed / "edgerun", prefix)
            install(installed)
        except EdgerunError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        done = made.edgerun(*words, cwd=Path.cwd())
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
