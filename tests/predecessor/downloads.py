"""What the notebooks download, made here: small models of the same classes, and data of the same types and shapes."""

from __future__ import annotations

import contextlib
import random
import sys
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch

WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in "aeiou"]


@contextlib.contextmanager
def replaced_downloads() -> Iterator[None]:
    """Within it, `datasets` has a `load_dataset`, and `from_pretrained` of BERT returns a small model or tokenizer."""
    datasets = types.ModuleType("datasets")
    datasets.load_dataset = load_dataset  # type: ignore[attr-defined]
    with contextlib.ExitStack() as stack:
        stack.callback(sys.modules.pop, "datasets")
        sys.modules["datasets"] = datasets
        with contextlib.suppress(ImportError):  # a notebook without BERT needs no transformers
            from transformers import BertModel, BertTokenizer

            stack.enter_context(mock.patch.object(BertModel, "from_pretrained", small_bert))
            stack.enter_context(mock.patch.object(BertTokenizer, "from_pretrained", tokenizer_of_words))
        yield


def load_dataset(name: str, *configuration: str, split: str) -> list[dict[str, Any]]:
    """Sentences in place of Wikitext, and random images in place of MNIST."""
    rng = np.random.default_rng(0)
    if name == "wikitext":
        lengths = rng.integers(5, 60, size=200)
        return [{"text": " ".join(rng.choice(WORDS, size=length))} for length in lengths]
    if name == "mnist":
        images = rng.integers(0, 256, size=(416, 28, 28), dtype=np.uint8)
        return [{"image": image, "label": int(image.sum() % 10)} for image in images]
    raise ValueError(f"Unknown data: {name}")


def small_bert(name: str) -> torch.nn.Module:
    """A BERT of two layers with random weights."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    return BertModel(BertConfig(vocab_size=len(vocabulary()), **sizes))


def tokenizer_of_words(name: str) -> Any:
    """BERT's tokenizer, whose vocabulary has the words of the sentences."""
    from transformers import BertTokenizer

    random.seed(0)  # the notebook chooses sentences
    return BertTokenizer(vocabulary())


def vocabulary() -> dict[str, int]:
    """The special tokens and the words, numbered."""
    return {word: number for number, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
