"""Speech of the zoo: recordings in 16 kHz with the spans in which somebody speaks, as Silero's frames."""

from __future__ import annotations

import io

import numpy as np

from bench import zoo_fetch

RATE, FRAME, CONTEXT = 16_000, 512, 64  # Hz, samples, samples of the frame before that each frame brings along
_ROOT = "pyannote_audio-4.0.7"
_DATA = f"{_ROOT}/tests/data"
SAMPLE = (f"{_ROOT}/src/pyannote/audio/sample/sample.wav", f"{_ROOT}/src/pyannote/audio/sample/sample.rttm")
MEETINGS = (
    *((f"{_DATA}/dev0{i}.wav", f"{_DATA}/debug.development.rttm") for i in (0, 1)),
    *((f"{_DATA}/tst0{i}.wav", f"{_DATA}/debug.test.rttm") for i in (0, 1)),
)
TRAIN = tuple((f"{_DATA}/trn0{i}.wav", f"{_DATA}/debug.train.rttm") for i in range(1, 10))


def recordings(parts: tuple[tuple[str, str], ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames float32 [t, 576] and labels int64 [t] of each recording of 30 s: 1 where somebody speaks."""
    files = zoo_fetch.read_all(zoo_fetch.SPEECH, sorted({name for part in parts for name in part}))
    told = []
    for sound, spans in parts:
        frames = framed(_samples(files[sound]))
        told.append((frames, speech(files[spans].decode(), sound.rsplit("/", 1)[-1][:-4], len(frames))))
    return told


def _samples(raw: bytes) -> np.ndarray:
    from scipy.io import wavfile  # type: ignore[import-untyped]

    rate, samples = wavfile.read(io.BytesIO(raw))
    if rate != RATE or samples.ndim != 1:
        raise ValueError(f"wanted one channel at {RATE} Hz, got {samples.shape} at {rate} Hz")
    scaled = samples / 32768 if samples.dtype == np.int16 else samples
    return np.asarray(scaled, np.float32)


def framed(samples: np.ndarray) -> np.ndarray:
    """float32 [n] to frames [n // 512, 576]: the last 64 samples before the frame (zeros at the start), the frame."""
    count = len(samples) // FRAME
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), samples[: count * FRAME]])
    return np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME].copy()


def speech(rttm: str, recording: str, frames: int) -> np.ndarray:
    """int64 [frames]: 1 where the frame's middle lies in a span of the RTTM file's `recording`."""
    middle, spoken = (np.arange(frames) * FRAME + FRAME / 2) / RATE, np.zeros(frames, np.int64)
    for line in rttm.splitlines():
        fields = line.split()
        if fields and fields[1] == recording:
            begin, length = float(fields[3]), float(fields[4])
            spoken[(middle >= begin) & (middle < begin + length)] = 1
    return spoken
