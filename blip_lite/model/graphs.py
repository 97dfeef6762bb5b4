"""Beam and greedy search whose steps have one shape, so that CUDA can record a step and replay it: it is some 300 small
kernels, which a host launches more slowly than a GPU runs them.

What grows in `generation` is as long as it may become here, and a mask says what is there yet. The search itself is
`generation.grow`, and the tokens are the same. On a CPU this is slower, as nothing is saved there.

**No GPU has run this yet** (`benchmarks/gpu.py` does, beside the search without it), so nothing switches it on but
`Captioner.from_pretrained(..., cuda_graphs=True)`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from blip_lite.model.blip import Blip
from blip_lite.model.generation import (
    NEVER,
    STEPS_A_LOOK,
    Beams,
    Generated,
    GenerationSettings,
    Moments,
    advance,
    grow,
    moments,
    prefill,
    with_prompt,
)

MOST = 8  # recorded shapes that a model keeps; each has a cache of its own in memory
WARM_UPS = (
    3  # steps before a recording, in which libraries choose kernels and ask for memory; torch's own examples do 3
)

kept: WeakKeyDictionary[Blip, OrderedDict[Any, Search]] = WeakKeyDictionary()
alone = threading.Lock()  # a search works in buffers that the next one uses, too


class FixedCache:
    """As `generation.Cache`, but as long as it may become from the start.

    `slots` `[B]`: where the next entries go. `mask` `[I, 1, B, L]`: 0 where a query looks, else minus infinity.
    """

    def __init__(self, model: Blip, rows: int, patches: int, beams: int, slots: int) -> None:
        text, device, dtype = model.config.text, model.device, model.dtype
        num_heads, size = text.num_attention_heads, text.hidden_size // text.num_attention_heads
        layers = len(model.text_decoder.layers)
        self.cross = [
            (
                torch.zeros(rows, num_heads, patches, size, device=device, dtype=dtype),
                torch.zeros(rows, num_heads, patches, size, device=device, dtype=dtype),
            )
            for _ in range(layers)
        ]
        shape = (layers, rows, num_heads, slots, size)
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        self.visible = torch.zeros(rows, beams, slots, dtype=torch.bool, device=device)
        self.slots, self.every_slot = torch.arange(beams, device=device), torch.arange(slots, device=device)
        self.mask = torch.zeros(rows, 1, beams, slots, device=device, dtype=dtype)
        self.length = 0  # `advance` counts on it; `slots` says where

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.keys[layer].index_copy_(2, self.slots, k)
        self.values[layer].index_copy_(2, self.slots, v)
        return self.keys[layer], self.values[layer], self.mask

    def descend(self, parents: Tensor) -> None:
        """Each beam sees what the beam that it continues saw, and itself."""
        seen = self.visible.gather(1, parents[:, :, None].expand(-1, -1, self.visible.shape[2]))
        self.visible.copy_(seen | (self.slots[:, None] == self.every_slot))
        self.mask.zero_().masked_fill_(~self.visible[:, None], -torch.inf)


class Search:
    """The buffers of searches of one shape, `rows` images, and their step."""

    def __init__(self, model: Blip, rows: int, patches: int, prompt_length: int, s: GenerationSettings) -> None:
        device, text, B = model.device, model.config.text, s.num_beams
        self.s, self.sep, self.prompt_length = s, text.sep_token_id, prompt_length
        # kernels for masks want lengths that are multiples of 8
        slots = -(-(prompt_length + B * s.max_new_tokens) // 8) * 8
        self.cache = FixedCache(model, rows, patches, B, slots)
        self.logits = torch.zeros(rows, B, text.vocab_size, device=device)
        self.t, self.moments = torch.zeros(1, dtype=torch.long, device=device), moments(s, device)
        tokens = torch.full((rows, B, s.max_new_tokens), text.pad_token_id, device=device)
        first = Beams.first(tokens, growing=B)
        self.beams = Beams(**{name: tensor.clone() for name, tensor in vars(first).items()})
        self.graph: Any = None

    def tensors(self) -> list[Tensor]:
        """All that belongs to an image, a row each."""
        cache = self.cache
        rows_first = [cache.keys.transpose(0, 1), cache.values.transpose(0, 1), cache.visible, self.logits]
        return [*(tensor for pair in cache.cross for tensor in pair), *rows_first, *vars(self.beams).values()]

    def start(self, first: Beams, logits: Tensor, prompt: Any, rows: Tensor) -> None:
        """Take up what `prefill` made of the prompt: logits `[I, V]`, `prompt` its cache. `rows`: the image of each."""
        B, cache = self.s.num_beams, self.cache
        for mine, theirs in zip(cache.cross, prompt.cross, strict=True):
            for buffer, source in zip(mine, theirs, strict=True):
                buffer.copy_(source[rows])
        cache.keys[:, :, :, : self.prompt_length] = prompt.keys[:, rows]
        cache.values[:, :, :, : self.prompt_length] = prompt.values[:, rows]
        cache.visible.zero_()[:, :, : self.prompt_length] = True
        self.logits.copy_(logits[rows][:, None].expand(-1, B, -1))
        for name, tensor in vars(first.of(rows)).items():
            getattr(self.beams, name).copy_(tensor)
        self.t.zero_()
        cache.slots.copy_(torch.arange(self.prompt_length, self.prompt_length + B, device=self.t.device))

    def take_over(self, other: Search, rows: Tensor) -> None:
        """Go on with these rows of another search."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(theirs[rows])
        self.t.copy_(other.t)
        self.cache.slots.copy_(other.cache.slots)

    def step(self, model: Blip) -> None:
        """Grow by a token, and find what follows it. Nothing is made that stays: all lies in the buffers."""
        early, greedy = self.t < self.s.min_new_tokens, self.s.num_beams == 1
        # what may not be said yet has no share of a greedy caption's probability, as in `generation`
        log_probs = self.logits if greedy else self.logits.log_softmax(-1)
        log_probs[..., self.sep].masked_fill_(early, -torch.inf)
        log_probs = log_probs.log_softmax(-1) if greedy else log_probs
        now = Moments(*(values.index_select(0, self.t) for values in self.moments))
        found = grow(self.beams, log_probs, now, self.s, self.sep)
        for name, tensor in vars(found).items():
            getattr(self.beams, name).copy_(tensor)
        self.cache.descend(self.beams.parents)
        tokens = self.beams.tokens.index_select(2, self.t)[:, :, 0]
        self.logits.copy_(model.logits(advance(model, self.cache, tokens, self.prompt_length + self.t)))
        self.cache.slots += self.s.num_beams
        self.t += 1

    def record(self, model: Blip) -> None:
        """The step as a CUDA graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.t.zero_()
                self.cache.slots.copy_(torch.arange(self.s.num_beams, device=self.t.device))
                self.step(model)
        torch.cuda.current_stream().wait_stream(stream)
        self.t.zero_()
        self.graph = torch.cuda.CUDAGraph()
        # threads that upload the next images meanwhile are no part of it
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.step(model)

    def run(self, model: Blip) -> None:
        """A step."""
        if self.graph is None:
            self.step(model)
        else:
            self.graph.replay()


def search_of(model: Blip, rows: int, patches: int, prompt_length: int, s: GenerationSettings) -> Search:
    """The search of this shape; those of the least recent shapes are given up."""
    searches = kept.setdefault(model, OrderedDict())
    how = (s.num_beams, s.max_new_tokens, s.min_new_tokens, s.length_penalty, s.early_stopping)
    weights = model.text_decoder.cls.predictions.bias  # a recording holds their addresses
    key = (rows, patches, prompt_length, how, model.dtype, weights.data_ptr())
    if key not in searches:
        while len(searches) >= MOST:
            searches.popitem(last=False)
        searches[key] = Search(model, rows, patches, prompt_length, s)
        if weights.device.type == "cuda":
            searches[key].record(model)
    searches.move_to_end(key)
    return searches[key]


def size_for(images: int) -> int:
    """Rows of a search over so many images: a power of two, as each number is recorded for itself."""
    return 1 << (images - 1).bit_length()


def search(model: Blip, image_embeds: Tensor, prompt_ids: Tensor, s: GenerationSettings) -> Generated:
    """`beam_search`, or with one beam `greedy_or_sample`, in steps of one shape.

    Greedy search is that of one beam which stops at its first end, whose score is the mean of its log-probabilities.
    """
    (images, prompt_length), device, text = prompt_ids.shape, prompt_ids.device, model.config.text
    B, patches = s.num_beams, image_embeds.shape[1]
    if B == 1:
        s = replace(s, early_stopping=True, length_penalty=1.0)
    out = torch.full((images, B, s.max_new_tokens), text.pad_token_id, device=device)
    out_scores = torch.full((images, B), NEVER, device=device)
    logits, cache = prefill(model, image_embeds, prompt_ids, prompt_length)

    with alone, torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        size = size_for(images)
        rows = torch.arange(size, device=device) % images  # the image of each row; some come twice
        now = search_of(model, size, patches, prompt_length, s)
        now.start(Beams.first(out, growing=B), logits, cache, rows)
        for t in range(s.max_new_tokens):
            now.run(model)
            if (t + 1) % STEPS_A_LOOK or t + 1 == s.max_new_tokens:
                continue
            left = size - int(now.beams.complete.sum())
            if not left:
                break
            if 2 * left <= size:
                out[rows], out_scores[rows] = now.beams.done_tokens, now.beams.done_scores
                size = size_for(left)
                going = now.beams.complete.long().argsort(stable=True)[:size]
                smaller = search_of(model, size, patches, prompt_length, s)
                smaller.take_over(now, going)
                rows, now = rows[going], smaller
        out[rows], out_scores[rows] = now.beams.done_tokens, now.beams.done_scores
    return with_prompt(prompt_ids, out[:, : s.num_return_sequences], out_scores[:, : s.num_return_sequences])
