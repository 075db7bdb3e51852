"""Text to batches of tokens: what language models and sentence encoders are calibrated and measured on."""

from waterfill.text.batches import sentence_batches, text_batches
from waterfill.text.tokenizers import Tokens, as_tokens

__all__ = ["Tokens", "as_tokens", "sentence_batches", "text_batches"]
