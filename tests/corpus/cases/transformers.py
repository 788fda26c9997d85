"""Language, vision and audio models of transformers: outputs are dataclasses, arguments are keywords."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cases._torchvision_operators  # noqa: F401
import torch
import transformers as hf
from corpus_case import Case, TorchCase, TorchTask

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TOKENS = {"vocab_size": 31, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**SMALL, **TOKENS, "num_key_value_heads": 1, "head_dim": 8, "use_cache": False}


def model(make: Callable[..., Any], config: Any, *, attention: str = "sdpa", **inputs: Any) -> TorchTask:
    """A model with random weights, and arguments by keyword."""
    config._attn_implementation = attention
    return TorchTask(make(config).eval(), (), inputs)


def text() -> dict[str, torch.Tensor]:
    """Tokens of two sentences, of which one is padded."""
    tokens = torch.tensor([[1, 5, 9, 30, 7, 2], [1, 8, 8, 2, 0, 0]])
    return {"input_ids": tokens, "attention_mask": (tokens != 0).long()}


def built(name: str, config: Any) -> TorchTask:
    """A model of text, with torch's own attention where the model supports it."""
    make = getattr(hf, name)
    return model(make, config, attention="sdpa" if make._supports_sdpa else "eager", **text())


def decoder(config: str, make: str, **options: Any) -> Callable[[], TorchTask]:
    return lambda: built(make, getattr(hf, config)(**GROUPED, **options))


def encoder(config: str, make: str, **options: Any) -> Callable[[], TorchTask]:
    return lambda: built(make, getattr(hf, config)(**SMALL, **TOKENS, **options))


def gpt2() -> TorchTask:
    config = hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, use_cache=False, **TOKENS)
    return model(hf.GPT2LMHeadModel, config, **text(), labels=text()["input_ids"])


def t5() -> TorchTask:
    config = hf.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, use_cache=False, **TOKENS)
    return model(hf.T5Model, config, **text(), decoder_input_ids=torch.tensor([[1, 4, 6], [1, 3, 2]]))


def bart() -> TorchTask:
    sizes = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 24))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 16}
    config = hf.BartConfig(d_model=16, use_cache=False, decoder_start_token_id=2, **sizes, **heads, **TOKENS)
    return model(hf.BartModel, config, **text(), decoder_input_ids=torch.tensor([[1, 4, 6], [1, 3, 2]]))


def mamba() -> TorchTask:
    config = hf.MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, use_cache=False, **TOKENS)
    return model(hf.MambaForCausalLM, config, attention="eager", input_ids=text()["input_ids"])


def fnet() -> TorchTask:
    config = hf.FNetConfig(hidden_size=16, num_hidden_layers=2, intermediate_size=24, **TOKENS)
    return model(hf.FNetModel, config, attention="eager", input_ids=text()["input_ids"])


def pixels(size: int = 16) -> torch.Tensor:
    return torch.rand(2, 3, size, size)


def vision(config: str, make: str, **options: Any) -> Callable[[], TorchTask]:
    sizes = {"image_size": 16, "patch_size": 8, **SMALL}
    return lambda: model(getattr(hf, make), getattr(hf, config)(**sizes, **options), pixel_values=pixels())


def clip() -> TorchTask:
    language = {**SMALL, **TOKENS, "max_position_embeddings": 8}
    config = hf.CLIPConfig(
        text_config=language, vision_config={**SMALL, "image_size": 16, "patch_size": 8}, projection_dim=8
    )
    return model(hf.CLIPModel, config, **text(), pixel_values=pixels())


def wav2vec2() -> TorchTask:
    convolutions = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = hf.Wav2Vec2Config(**SMALL, **convolutions, **positions)
    return model(hf.Wav2Vec2Model, config, input_values=torch.randn(2, 200))


def whisper() -> TorchTask:
    sizes = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 24))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 10}
    config = hf.WhisperConfig(d_model=16, num_mel_bins=4, use_cache=False, **sizes, **heads, **TOKENS)
    inputs = {"input_features": torch.randn(2, 4, 20), "decoder_input_ids": torch.tensor([[1, 4, 6], [1, 3, 2]])}
    return model(hf.WhisperModel, config, **inputs)


def hidden_states() -> TorchTask:
    config = hf.BertConfig(**SMALL, **TOKENS, output_hidden_states=True, output_attentions=True)
    return model(hf.BertModel, config, attention="eager", **text())


def with_cache() -> TorchTask:
    task = model(hf.LlamaForCausalLM, hf.LlamaConfig(**{**GROUPED, "use_cache": True}), input_ids=text()["input_ids"])
    net = task.fn

    class NextToken(torch.nn.Module):
        """Decodes one more token with the keys and values of those before."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            cache = self.net(tokens[:, :-1]).past_key_values
            return self.net(tokens[:, -1:], past_key_values=cache).logits

    return TorchTask(NextToken().eval(), (text()["input_ids"],))


TASKS = {
    "bert": encoder("BertConfig", "BertModel"),
    "bert with hidden states": hidden_states,
    "bert, masked language model": encoder("BertConfig", "BertForMaskedLM"),
    "roberta, classification": encoder("RobertaConfig", "RobertaForSequenceClassification"),
    "electra": encoder("ElectraConfig", "ElectraModel", embedding_size=8),
    "albert": encoder("AlbertConfig", "AlbertModel", embedding_size=8),
    "deberta v2": encoder(
        "DebertaV2Config", "DebertaV2Model", relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0
    ),
    "modernbert": encoder("ModernBertConfig", "ModernBertModel", cls_token_id=1, sep_token_id=2),
    "fnet": fnet,
    "gpt2 with a loss": gpt2,
    "gpt neox": encoder("GPTNeoXConfig", "GPTNeoXForCausalLM", use_cache=False),
    "llama": decoder("LlamaConfig", "LlamaForCausalLM"),
    "llama with a cache": with_cache,
    "mistral": decoder("MistralConfig", "MistralForCausalLM", sliding_window=3),
    "qwen2": decoder("Qwen2Config", "Qwen2ForCausalLM"),
    "gemma2": decoder("Gemma2Config", "Gemma2ForCausalLM", sliding_window=3),
    "mixtral": decoder("MixtralConfig", "MixtralForCausalLM", num_local_experts=3, num_experts_per_tok=2),
    "t5": t5,
    "bart": bart,
    "mamba": mamba,
    "vit": vision("ViTConfig", "ViTModel"),
    "dinov2": vision("Dinov2Config", "Dinov2Model"),
    "beit": vision("BeitConfig", "BeitModel", use_relative_position_bias=True),
    "clip": clip,
    "wav2vec2": wav2vec2,
    "whisper": whisper,
}


def cases() -> Iterator[Case]:
    yield from (TorchCase(name, make) for name, make in TASKS.items())
