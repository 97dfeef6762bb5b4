"""BLIP for image captioning, in plain PyTorch: a vision transformer and a text decoder that looks at it.

Module and parameter names are those of the `BlipForConditionalGeneration` checkpoints, so weights go in and
out without renaming. Shapes in comments: I images, K captions an image, T tokens, S pixels, P patches + 1,
D hidden size, H heads, d head size, V vocabulary.

Li et al. 2022, "BLIP: Bootstrapping Language-Image Pre-training", https://arxiv.org/abs/2201.12086
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from blip_lite.model.config import ACTIVATIONS, BlipConfig, TextConfig, VisionConfig

IGNORE = -100  # a label that is no target; torch's and transformers' convention


class KeyValueCache(Protocol):
    """What the decoder needs of a cache; `generation.Cache` is one.

    `cross`: of each layer, the images' keys and values, `[I, H, P, d]` each. `length`: how many entries there are.
    """

    cross: list[tuple[Tensor, Tensor]]
    length: int

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Take the new keys and values `[I, H, T, d]` of a layer; return all of them and the mask."""
        ...


def grid_positions(c: VisionConfig, longest: float = 10_000) -> Tensor:
    """Where a model that starts from nothing begins to know where a patch lies: sines and cosines of its row and of
    its column, `[patches, D]` (Beyer et al. 2022, https://arxiv.org/abs/2205.01580), the longest wave 2 pi `longest`
    patches. They stay trainable.
    """
    side, quarter = c.image_size // c.patch_size, c.hidden_size // 4
    frequencies = longest ** -(torch.arange(quarter) / quarter)
    angles = torch.arange(side)[:, None] * frequencies  # [side, D/4]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, D/2]
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def heads(x: Tensor, num_heads: int) -> Tensor:
    """`[B, T, D]` -> `[B, H, T, d]`."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    """`[B, H, T, d]` -> `[B, T, D]`."""
    return x.transpose(1, 2).flatten(2)


def rows_before_targets(labels: Tensor) -> Tensor:
    """Where in labels `[I, K, T]`, flat, the next one is a target, `[N]`: the hidden states there predict it.
    Position 0 is never a target. Of labels on a GPU, the host waits for it."""
    return F.pad(labels[:, :, 1:] != IGNORE, (0, 1)).flatten().nonzero()[:, 0]


def avoid_cudnn_attention(device: torch.device) -> None:
    """For this process and its GPU: attention without cuDNN's kernels, which torch prefers on some GPUs (sm90, sm100).
    They build a plan for each shape that they meet first, and captions grow by a shape a step: 0.4 s forward and 0.6 s
    backward each, reported of torch 2.11 on a B200 (https://github.com/modelscope/FunASR/issues/3704)."""
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    """torch's, of `[I, H, T, d]`; in float32 where a CPU trains under bfloat16's autocast, as its way back takes five
    times as long in bfloat16 (on a Xeon with AMX, benchmarks/README.md)."""
    if torch.is_autocast_enabled("cpu") and q.device.type == "cpu" and q.requires_grad:
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, **options)
    return F.scaled_dot_product_attention(q, k, v, mask, **options)


class VisionEmbeddings(nn.Module):
    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(1, 1, c.hidden_size))
        self.patch_embedding = nn.Conv2d(3, c.hidden_size, c.patch_size, stride=c.patch_size)
        self.position_embedding = nn.Parameter(torch.empty(1, (c.image_size // c.patch_size) ** 2 + 1, c.hidden_size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # [I, P-1, D]
        x = torch.cat([self.class_embedding.expand(len(patches), -1, -1), patches], dim=1)
        return x + self.position_embedding


class VisionAttention(nn.Module):
    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = c.num_attention_heads, c.attention_dropout
        self.qkv = nn.Linear(c.hidden_size, 3 * c.hidden_size)
        self.projection = nn.Linear(c.hidden_size, c.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))  # [I, H, P, d]
        y = attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.projection(merge(y))


class VisionMLP(nn.Module):
    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(c.hidden_size, c.intermediate_size)
        self.fc2 = nn.Linear(c.intermediate_size, c.hidden_size)
        self.act = ACTIVATIONS[c.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class VisionLayer(nn.Module):
    """Pre-norm: normalise, attend, add; normalise, MLP, add."""

    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.self_attn = VisionAttention(c)
        self.layer_norm2 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.mlp = VisionMLP(c)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionModel(nn.Module):
    def __init__(self, c: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(c)
        self.encoder: Any = nn.Module()
        self.encoder.layers = nn.ModuleList(VisionLayer(c) for _ in range(c.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)

    def forward(self, pixel_values: Tensor, run: Callable[..., Tensor]) -> Tensor:
        """`[I, 3, S, S]` -> `[I, P, D]`; `run(layer, x)` applies a layer, see `Blip.run`."""
        x = self.embeddings(pixel_values)
        for layer in self.encoder.layers:
            x = run(layer, x)
        return self.post_layernorm(x)


class TextProjections(nn.Module):
    """Query, key and value of one attention; `source_size` is D of what keys and values come from."""

    def __init__(self, c: TextConfig, source_size: int) -> None:
        super().__init__()
        self.num_heads = c.num_attention_heads
        self.query = nn.Linear(c.hidden_size, c.hidden_size)
        self.key = nn.Linear(source_size, c.hidden_size)
        self.value = nn.Linear(source_size, c.hidden_size)

    def queries(self, x: Tensor) -> Tensor:
        return heads(self.query(x), self.num_heads)

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        return heads(self.key(source), self.num_heads), heads(self.value(source), self.num_heads)


class TextOutput(nn.Module):
    """BERT's post-norm: project, drop, add what came in, normalise."""

    def __init__(self, c: TextConfig, in_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_size, c.hidden_size)
        self.LayerNorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.dropout = c.hidden_dropout_prob

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(F.dropout(self.dense(y), self.dropout, self.training) + x)


class TextAttention(nn.Module):
    def __init__(self, c: TextConfig, source_size: int) -> None:
        super().__init__()
        self.self = TextProjections(c, source_size)
        self.output = TextOutput(c, c.hidden_size)


class TextLayer(nn.Module):
    def __init__(self, c: TextConfig, image_size: int, index: int) -> None:
        super().__init__()
        self.index, self.act, self.dropout = index, ACTIVATIONS[c.hidden_act], c.attention_probs_dropout_prob
        self.attention = TextAttention(c, c.hidden_size)
        self.crossattention = TextAttention(c, image_size)
        self.intermediate: Any = nn.Module()
        self.intermediate.dense = nn.Linear(c.hidden_size, c.intermediate_size)
        self.output = TextOutput(c, c.intermediate_size)

    def cross_keys_values(self, image_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """`[I, P, D]` -> two `[I, H, P, d]`: made once per image, shared by all of its captions or beams."""
        return self.crossattention.self.keys_values(image_embeds)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return merge(attention(q, k, v, mask, dropout_p=dropout, is_causal=causal))

    def forward(self, x: Tensor, images: Tensor | KeyValueCache) -> Tensor:
        """One layer for x `[R, T, D]`.

        With the images `[I, P, D]` (training) the R = I*K rows are captions, and each attends causally to itself. With
        a cache of what was made of them (generation) R = I, and the cache says which of its entries each of the T
        queries sees. Either way all rows of an image share that image's cross-attention keys and values.
        """
        q = self.attention.self.queries(x)
        k, v = self.attention.self.keys_values(x)
        if isinstance(images, Tensor):
            cross = self.cross_keys_values(images)
            y = self.attend(q, k, v, causal=True)
        else:
            cross = images.cross[self.index]
            y = self.attend(q, *images.update(self.index, k, v))
        x = self.attention.output(y, x)

        per_image = x.reshape(len(cross[0]), -1, x.shape[-1])  # [I, K*T, D]
        y = self.attend(self.crossattention.self.queries(per_image), *cross)
        x = self.crossattention.output(y.view_as(x), x)
        return self.output(self.act(self.intermediate.dense(x)), x)


class TextEmbeddings(nn.Module):
    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(c.vocab_size, c.hidden_size, padding_idx=c.pad_token_id)
        self.position_embeddings = nn.Embedding(c.max_position_embeddings, c.hidden_size)
        self.LayerNorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.dropout = c.hidden_dropout_prob

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        return F.dropout(self.LayerNorm(x), self.dropout, self.training)


class Transform(nn.Module):
    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(c.hidden_size, c.hidden_size)
        self.LayerNorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.act = ACTIVATIONS[c.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.act(self.dense(x)))


class Predictions(nn.Module):
    """Hidden state -> logits over the vocabulary; the matrix is the word embedding's."""

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.transform = Transform(c)
        self.decoder = nn.Linear(c.hidden_size, c.vocab_size)
        self.bias = self.decoder.bias  # a second name for one tensor, as in the checkpoint

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))


class TextDecoder(nn.Module):
    def __init__(self, c: TextConfig, image_size: int) -> None:
        super().__init__()
        self.bert: Any = nn.Module()
        self.bert.embeddings = TextEmbeddings(c)
        self.bert.encoder = nn.Module()
        self.bert.encoder.layer = nn.ModuleList(TextLayer(c, image_size, i) for i in range(c.num_hidden_layers))
        self.cls: Any = nn.Module()
        self.cls.predictions = Predictions(c)

    @property
    def layers(self) -> nn.ModuleList:
        return self.bert.encoder.layer


def apply_layer(layer: nn.Module, *args: Tensor) -> Tensor:
    return layer(*args)


@functools.cache
def compiled_layer() -> Callable[..., Tensor]:
    """`apply_layer`, compiled when it is first called. One compilation serves all layers of a kind, as the weights are
    its inputs; each shape has one of its own, and 64 are allowed, where torch allows 8."""
    import torch._dynamo  # costs a second, so only where it is wanted

    torch._dynamo.config.recompile_limit = 64
    return torch.compile(apply_layer, fullgraph=True, dynamic=False)


class Blip(nn.Module):
    """The captioning model. Call it for the training loss; `blip_lite.generation` decodes with it.

    Attributes:
        gradient_checkpointing: recompute each layer's activations in the backward pass, to save memory.
        compiled: layers are compiled in training.
        recorded_search: `graphs.search`, where beams and greedy search are to replay a recorded step.
        frozen_vision: the image encoder runs without a graph (set by `freeze_vision`).
        images_at_a_time: how many the encoder takes at once; None: the whole batch.
    """

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config.vision)
        self.text_decoder = TextDecoder(config.text, config.vision.hidden_size)
        self.gradient_checkpointing = False
        self.compiled = False
        self.recorded_search: Callable[..., Any] | None = None
        self.frozen_vision = False
        self.images_at_a_time: int | None = None
        self.tie_weights()

    @property
    def device(self) -> torch.device:
        return self.text_decoder.cls.predictions.bias.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.text_decoder.cls.predictions.bias.dtype

    def tie_weights(self) -> None:
        """Make the vocabulary head and the word embedding one tensor (again, after weights were replaced)."""
        predictions = self.text_decoder.cls.predictions
        predictions.decoder.weight = self.text_decoder.bert.embeddings.word_embeddings.weight
        predictions.bias = predictions.decoder.bias

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill in fresh random weights: embeddings normal(0, 0.02) as in BERT, matrices normal(0, 1 / sqrt(inputs)),
        which suits any width (LeCun et al. 1998), 0 for biases, 1 for norms."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.constant_(parameter, float(name.endswith("weight")))
            else:
                embedding = "embedding" in name and "patch" not in name
                std = 0.02 if embedding else parameter[0].numel() ** -0.5
                nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)
        with torch.no_grad():
            self.vision_model.embeddings.position_embedding[0, 1:] = grid_positions(self.config.vision)

    def freeze_vision(self) -> None:
        """Train the text decoder only."""
        self.vision_model.requires_grad_(False)
        self.frozen_vision = True

    def set_dropout(self, rate: float) -> None:
        """Drop this share of the decoder's activations and attentions in training, 0 to 1; BLIP had 0.1 (its
        `med_config.json`)."""
        self.config = replace(
            self.config,
            text=replace(self.config.text, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate),
        )
        for module in self.text_decoder.modules():
            if isinstance(module, (TextEmbeddings, TextLayer, TextOutput)):
                module.dropout = rate

    def run(self, layer: nn.Module, *args: Tensor) -> Tensor:
        """Apply a layer, in training as `compiled` and `gradient_checkpointing` say."""
        apply = compiled_layer() if self.compiled and self.training else apply_layer
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(apply, layer, *args, use_reentrant=False)
        return apply(layer, *args)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Images `[I, 3, S, S]` -> what the decoder attends to, `[I, P, D]` (P = patches + 1). What is encoded
        already, `[I, P, D]`, is returned in the weights' type."""
        if pixel_values.ndim == 3:
            return pixel_values.to(self.dtype)
        expected = self.config.vision.image_size
        if pixel_values.shape[1:] != (3, expected, expected):
            raise ValueError(
                f"pixel_values are {list(pixel_values.shape)}; this model takes [I, 3, {expected}, {expected}]"
            )
        parts = pixel_values.split(self.images_at_a_time or len(pixel_values))
        with torch.no_grad() if self.frozen_vision else contextlib.nullcontext():
            return torch.cat([self.vision_model(part, self.run) for part in parts])

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., D]` -> `[..., V]`."""
        return self.text_decoder.cls.predictions(hidden)

    def decode(self, input_ids: Tensor, image_embeds: Tensor) -> Tensor:
        """Teacher forcing: token ids `[I, K, T]` and images `[I, P, D]` -> hidden states `[I, K, T, D]`.

        Padding needs no mask: it follows the caption, and no token looks ahead.
        """
        images, captions, length = input_ids.shape
        positions = torch.arange(length, device=input_ids.device)
        x = self.text_decoder.bert.embeddings(input_ids.reshape(images * captions, length), positions)
        for layer in self.text_decoder.layers:
            x = self.run(layer, x, image_embeds)
        return x.view(images, captions, length, -1)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        labels: Tensor,
        target_rows: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, int]:
        """Cross-entropy of the captions given their images; each image is encoded once for all of its captions.

        Args:
            pixel_values: `[I, 3, S, S]`, or the features `[I, P, D]` that `encode` made of them.
            input_ids: `[I, K, T]`, each row `[DEC] tokens... [SEP] [PAD]...`.
            labels: `[I, K, T]`, `input_ids` with `IGNORE` (-100) where no loss is wanted: position 0, the
                prompt, padding, and every position of a caption that is not there. The token at t is the
                target of the hidden state at t - 1.
            target_rows: `[N]`, those of `labels`, flat, that come before a target. Finding them
                here waits for a GPU; the loader has them.
            label_smoothing: share of the target probability spread over the vocabulary, 0 to 1.

        Returns:
            (sum of the losses over all targets, number of targets), so that the caller can normalise over an
            effective batch that spans several calls and processes.
        """
        rows = rows_before_targets(labels) if target_rows is None else target_rows
        hidden = self.decode(input_ids, self.encode(pixel_values)).flatten(0, 2)
        logits = self.logits(hidden.index_select(0, rows))  # [N, V]: the vocabulary is costly, so only where needed
        targets = labels.flatten()[rows + 1]
        loss = F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=label_smoothing)
        return loss, len(rows)
