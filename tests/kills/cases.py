"""The commands that are killed, and what they work on: tiny networks, a tiny model directory."""

import contextlib
import signal
import sys
from dataclasses import dataclass

import torch
import transformers

import waterfill
from families import LLAMA, batches
from waterfill import cli


def net():
    """A small network."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 24), torch.nn.ReLU(), torch.nn.Linear(24, 5))


def data():
    """Batches for it."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 6, generator=generator), torch.arange(8) % 5) for _ in range(2)]


def llama():
    """A small model of text."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | {"num_hidden_layers": 1}))


def tokens():
    """Batches for a model of text."""
    return batches(2)


@dataclass(frozen=True)
class Case:
    """A command, run in its own folder, which holds `in`, `work` and the folder of its output.

    Attributes:
        name: in the table.
        words: of the command line, without the output; of `load` the file or directory.
        out: name of the output; empty where nothing is written.
        work: whether it goes on from a work folder.
        sample: before how many steps at most it is killed in a sample.
    """

    name: str
    words: tuple[str, ...]
    out: str = ""
    work: bool = False
    sample: int = 12

    @property
    def is_directory(self):
        """Whether a directory is written."""
        return "DIR" in self.name

    def command(self, place):
        """The words of the command line that is to be run now: what is there is replaced."""
        out = place / "out" / self.out
        more = ["--work", str(place / "work")] if self.work else []
        return [*self.words, "-o", str(out), *more, *(["--force"] if out.exists() else [])]

    def run(self, place):
        """Do it here, in this process."""
        if self.out:
            sys.argv = ["waterfill", *self.command(place)]
            cli.main()
            return
        waterfill.load(self.words[0], into=self.model())

    def warm(self, place):
        """Do it once, and go on."""
        handler, streams = signal.getsignal(signal.SIGTERM), (sys.stdout, sys.stderr)
        with contextlib.suppress(SystemExit):
            self.run(place)
        signal.signal(signal.SIGTERM, handler)
        sys.stdout, sys.stderr = streams

    def model(self):
        """What is loaded into."""
        if self.words[0].endswith(".wf"):
            return net()
        return llama()


FAST = ("--effort", "fast", "--quantizer", "scalar")


def cases(inputs):
    """All commands.

    Args:
        inputs: a folder, in which a model directory and the compressed file and directory are made.
    """
    original, small, file = inputs / "llama", inputs / "small", inputs / "net.wf"
    llama().save_pretrained(original)
    (original / "tokenizer_config.json").write_text("{}")
    waterfill.compress(net(), rate=8, effort="fast").save(file)
    waterfill.compress_directory(original, small, rate=6, effort="fast")
    network, directory = ("compress", "kills.cases:net", "--rate", "8", *FAST), ("compress", str(original), *FAST)
    return [
        Case("compress", (*network, "--importance", "identity"), "o.wf"),
        Case("compress, data", (*network, "--data", "kills.cases:data"), "o.wf", work=True, sample=3),
        Case("compress DIR", (*directory, "--importance", "identity"), "o", sample=6),
        Case("compress DIR, data", (*directory, "--data", "kills.cases:tokens"), "o", work=True, sample=3),
        Case("decompress", ("decompress", str(file)), "o.safetensors"),
        Case("decompress DIR", ("decompress", str(small)), "o"),
        Case("load", (str(file),)),
        Case("load DIR", (str(small),)),
    ]
