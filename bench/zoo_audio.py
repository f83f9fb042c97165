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


def voices(parts: tuple[tuple[str, str], ...], every: int) -> np.ndarray:
    """Spectrograms float32 [n, 160, 40] of 1.6 s each, one begun `every` so many steps of 10 ms of each recording."""
    files = zoo_fetch.read_all(zoo_fetch.SPEECH, sorted({name for name, _ in parts}))
    mels = (mel(loud(_samples(files[name]))) for name, _ in parts)
    return np.stack([m[start : start + 160] for m in mels for start in range(0, len(m) - 159, every)])


def loud(samples: np.ndarray) -> np.ndarray:
    """Raised to a root mean square of -30 dB of full scale where it is below."""
    rms, wanted = float(np.sqrt(np.mean(samples**2))), 10 ** (-30 / 20)
    return samples * np.float32(max(wanted / max(rms, 1e-6), 1.0))


def mel(samples: np.ndarray, bands: int = 40, window: int = 400, hop: int = 160) -> np.ndarray:
    """Power in `bands` of Slaney's mel scale, float32 [frames, bands]: Hann windows, reflected at the ends."""
    padded = np.pad(samples, window // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window + 1)[:-1]
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    step = np.log(6.4) / 27  # above 1,000 Hz, the 15th mel
    mels = np.linspace(0, 15 + np.log(RATE / 2 / 1000) / step, bands + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((np.maximum(mels, 15) - 15) * step))
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    at = np.fft.rfftfreq(window, 1 / RATE)
    filters = np.maximum(0, np.minimum((at - low) / (middle - low), (high - at) / (high - middle)))
    return np.asarray(power @ (filters * 2 / (high - low)).T, np.float32)


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
