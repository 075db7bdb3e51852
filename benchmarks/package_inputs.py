"""Real inputs of the networks that packages carry: speech, its spectrograms, lines of text, and files."""

from __future__ import annotations

import wave
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from waterfill.zoo import data_folder

RATE = 16000
"""Samples in a second."""


@cache
def speech() -> Tensor:
    """A minute of speech, between -1 and 1."""
    with wave.open(str(data_folder() / "audio" / "speech.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return torch.from_numpy(samples.astype(np.float32) / 32768)


def sounds(seconds: int = 5, before: int = 64) -> Tensor:
    """The minute in parts one after the other, [parts, before + samples], each with a little of what was before."""
    size = RATE * seconds // 512 * 512
    return torch.nn.functional.pad(speech(), (before, 0)).unfold(0, before + size, size)


def frames(step: int = 1280) -> Tensor:
    """Frames of 1,024 samples, without mean and with a standard deviation of one, where there is sound."""
    found = speech().unfold(0, 1024, step)
    found = found[found.std(1) > 0.005]
    return (found - found.mean(1, keepdim=True)) / found.std(1, keepdim=True)


def powers(size: int, hop: int) -> Tensor:
    """Squared magnitudes of the short-time Fourier transform, [time, size / 2 + 1]."""
    window = torch.hann_window(size)
    found = torch.stft(speech(), size, hop, window=window, return_complex=True, pad_mode="constant")
    return found.abs().square().T


def mels(count: int, size: int, hop: int = 160) -> Tensor:
    """A mel spectrogram [time, count] with triangles of one area, as librosa computes it."""
    edges = _hertz(np.linspace(0, _mel(RATE / 2), count + 2))
    places = np.linspace(0, RATE / 2, size // 2 + 1)
    rising = (places - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - places) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return powers(size, hop) @ torch.from_numpy(triangles.T.astype(np.float32))


def _mel(hertz: float) -> float:
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)


def _hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


def decibels(power: Tensor) -> Tensor:
    """Logarithms under their maximum, at least -80 dB, as -1 to 1."""
    found = 10 * power.clamp(min=1e-10).log10()
    return ((found - found.max()).clamp(min=-80) + 40) / 40


def windows(values: Tensor, length: int, step: int) -> Tensor:
    """Parts [parts, length, ...] of a series [time, ...]."""
    return torch.stack([values[start : start + length] for start in range(0, len(values) - length + 1, step)])


def lines(count: int = 48, width: int = 320) -> Tensor:
    """Printed lines of a book, grey [count, 1, 64, width] between -1 and 1."""
    text = (data_folder() / "text" / "charlotte_bronte.txt").read_text("utf-8").split()
    found = []
    for i in range(count):
        image = Image.new("L", (width, 64), 255 - 2 * (i % 40))
        words = " ".join(text[1000 + 40 * i :][:6])
        ImageDraw.Draw(image).text((6, 10 + i % 8), words, fill=i % 60, font=ImageFont.load_default(28 + i % 12))
        found.append(torch.from_numpy(np.array(image, np.float32)) / 127.5 - 1)
    return torch.stack(found)[:, None]


def files(count: int = 128) -> Tensor:
    """The first and last kilobyte of files of numpy and of the data folder, int64 [files, 2048]."""
    roots = [Path(np.__file__).parent, data_folder()]
    kinds: dict[str, list[Path]] = {}
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.stat().st_size > 64:
                kinds.setdefault(path.suffix, []).append(path)
    most = max(map(len, kinds.values()))
    mixed = [paths[i] for i in range(most) for paths in kinds.values() if i < len(paths)]
    return torch.stack([_ends(path) for path in mixed[:count]])


def _ends(path: Path) -> Tensor:
    with path.open("rb") as file:
        head = file.read(4096)
        file.seek(max(0, path.stat().st_size - 4096))
        tail = file.read()
    first = np.frombuffer(head.lstrip()[:1024], np.uint8)
    last = np.frombuffer(tail.rstrip()[-1024:], np.uint8)
    found = np.full(2048, 256, np.int64)
    found[: len(first)] = first
    found[2048 - len(last) :] = last
    return torch.from_numpy(found)
