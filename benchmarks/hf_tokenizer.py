"""The 512-token tokenizer of stories260K as the files that `AutoTokenizer` loads."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from waterfill.zoo import data_folder

FIRST_PIECE = 259
"""Tokens before it are three special ones and the 256 single bytes."""

SPECIAL = ("<unk>", "<s>", "</s>")
SPACE = "▁"


def write(into: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into a model directory."""
    names = {"unk_token": SPECIAL[0], "bos_token": SPECIAL[1], "eos_token": SPECIAL[2]}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **names}
    (into / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    tokenizer().save(str(into / "tokenizer.json"))


def tokenizer() -> Any:
    """The tokenizer: pairs of pieces are joined in the order of scores, what no piece has is spelled in bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    vocabulary = {piece: number for number, piece in enumerate(_pieces())}
    model = models.BPE(vocabulary, _merges(vocabulary), unk_token=SPECIAL[0], byte_fallback=True, fuse_unk=True)
    found = Tokenizer(model)
    found.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    found.post_processor = processors.TemplateProcessing(f"{SPECIAL[1]} $A", special_tokens=[(SPECIAL[1], 1)])
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    found.decoder = decoders.Sequence(back)
    found.add_special_tokens(list(SPECIAL))
    return found


def _pieces() -> list[str]:
    data, start, found = (data_folder() / "text" / "stories260k_tok512.bin").read_bytes(), 4, []
    while start < len(data):
        _, length = struct.unpack_from("<fi", data, start)
        found.append(data[start + 8 : start + 8 + length].decode().replace(" ", SPACE))
        start += 8 + length
    return [*SPECIAL, *found[len(SPECIAL) :]]


def _merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to put a piece together of two; pieces are listed by falling score."""
    return [
        (piece[:cut], piece[cut:])
        for piece, number in vocabulary.items()
        if number >= FIRST_PIECE
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
