"""Decoding: greedy, beam search and sampling, with the semantics of `transformers`' `generate`.

Two ideas make it fast. The keys and values of cross-attention are made once per image and never copied: all
beams of an image are queries against them. And the self-attention cache is not reordered when beams are:
every beam appends its token to one cache per image, and a mask says which entries are a beam's ancestors.

The host never waits for a GPU but at a look whether all is done, every few steps: no boolean index, no value is read.

Shapes in comments: I images, B beams (or samples) an image, P tokens of prompt, L cache slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blip_lite.errors import ConfigError
from blip_lite.model.blip import Blip, KeyValueCache
from blip_lite.processing.upload import upload

NEVER = -1.0e9  # the score of a beam that must not win; transformers' value, kept so that sums round alike
STEPS_A_LOOK = 4  # steps between two looks at a GPU whether captions are complete; on a CPU looking costs nothing


NUMBERS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("max_new_tokens", "min_new_tokens", "num_beams", "top_k", "num_return_sequences"), (int,)),
    "no_repeat_ngram_size": (int,),
    **dict.fromkeys(("length_penalty", "temperature", "top_p", "repetition_penalty"), (int, float)),
}


@dataclass(frozen=True)
class GenerationSettings:
    """How to decode. Raises ValueError for values that make no sense together."""

    max_new_tokens: int = 30  # the prompt not counted, the final [SEP] counted
    min_new_tokens: int = 0  # [SEP] is not allowed before this many new tokens
    num_beams: int = 5  # 1 is greedy (or sampling)
    length_penalty: float = 1.0  # beam score = sum of log-probabilities / length ** length_penalty
    early_stopping: bool = True  # stop an image when num_beams captions are complete; else when none can improve
    repetition_penalty: float = 1.0  # above 1 a token that was said is less likely again; see `discourage`
    no_repeat_ngram_size: int = 0  # so many tokens never come twice in this order; 0: they may
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # sample among the k likeliest tokens; 0: among all
    top_p: float = 1.0  # sample among the likeliest tokens that hold this much probability (nucleus)
    seed: int | None = None  # of sampling; None draws a fresh one
    num_return_sequences: int = 1
    banned_words: list[str] = field(
        default_factory=list
    )  # words and phrases that captions must not say, see `processing/word_filter.py`

    def __post_init__(self) -> None:
        if isinstance(self.banned_words, str):
            object.__setattr__(self, "banned_words", [self.banned_words])  # frozen
        for name, kinds in NUMBERS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise ConfigError(f"generation settings: {name} is {value!r}; expected a number")
        if not isinstance(self.early_stopping, bool):
            raise ConfigError(f"generation settings: early_stopping is {self.early_stopping!r}; expected true or false")
        problems = [
            (self.max_new_tokens < 1, "max_new_tokens must be at least 1"),
            (not 0 <= self.min_new_tokens <= self.max_new_tokens, "min_new_tokens must be 0 to max_new_tokens"),
            (self.num_beams < 1, "num_beams must be at least 1"),
            (self.num_return_sequences < 1, "num_return_sequences must be at least 1"),
            (not 0.01 <= self.temperature <= 100, "temperature must be 0.01 to 100"),
            (not 0 < self.top_p <= 1, "top_p must be above 0 and at most 1"),
            (self.top_k < 0, "top_k must not be negative"),
            (not 0.1 <= self.repetition_penalty <= 10, "repetition_penalty must be 0.1 to 10"),
            (self.no_repeat_ngram_size < 0, "no_repeat_ngram_size must not be negative"),
            (not -10 <= self.length_penalty <= 10, "length_penalty must be -10 to 10"),
            (self.seed is not None and not 0 <= self.seed < 2**63, "seed must be 0 to 2**63 - 1"),
            (self.do_sample and self.num_beams > 1, "do_sample needs num_beams=1"),
            (
                not self.do_sample and self.num_return_sequences > self.num_beams,
                "num_return_sequences cannot exceed num_beams (or use do_sample=True)",
            ),
        ]
        if wrong := [text for bad, text in problems if bad]:
            raise ConfigError("generation settings: " + "; ".join(wrong))
        for name, kinds in NUMBERS.items():  # a whole number of JSON, of which torch has no negative powers
            if float in kinds:
                object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def one_shape(self) -> bool:
        """Whether all steps can be of one shape: nothing is drawn, and none looks at all of a caption."""
        return not (self.do_sample or self.banned_words or self.limits_repetition)

    @property
    def limits_repetition(self) -> bool:
        """Whether `discourage` has anything to do."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0


@dataclass
class Generated:
    """`sequences` `[I, n, P + new]`: prompt, new tokens, `[SEP]`, padding. `scores` `[I, n]`: for beams the sum of
    log-probabilities / length ** length_penalty, else the mean log-probability of the new tokens."""

    sequences: Tensor
    scores: Tensor


class Cache:
    """All keys and values of one batch of images.

    `cross`: per layer two `[I, H, P, d]`. `keys`, `values`: `[layers, I, H, L, d]`, filled up to `length`.
    `visible` `[I, T, L]`: which slots each query may look at.
    """

    def __init__(self, model: Blip, image_embeds: Tensor, slots: int) -> None:
        layers: Any = model.text_decoder.layers
        self.cross: list[tuple[Tensor, Tensor]] = [layer.cross_keys_values(image_embeds) for layer in layers]
        images, num_heads, _, size = self.cross[0][0].shape
        shape = (len(self.cross), images, num_heads, slots, size)
        self.keys = self.cross[0][0].new_zeros(shape)
        self.values = self.cross[0][0].new_zeros(shape)
        self.visible = torch.zeros(images, 1, slots, dtype=torch.bool, device=image_embeds.device)
        self.length = 0

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end], self.visible[:, None, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Keep only these images (indices `[n]`)."""
        self.cross = [(k[rows], v[rows]) for k, v in self.cross]
        self.keys, self.values, self.visible = self.keys[:, rows], self.values[:, rows], self.visible[rows]


def prefill(model: Blip, image_embeds: Tensor, prompt_ids: Tensor, slots: int) -> tuple[Tensor, Cache]:
    """Read the prompt `[I, P]` once per image; return the next token's logits `[I, V]` and the cache."""
    length = prompt_ids.shape[1]
    cache = Cache(model, image_embeds, slots)
    causal = torch.ones(length, length, dtype=torch.bool, device=prompt_ids.device).tril()
    cache.visible = cache.visible.repeat(1, length, 1)
    cache.visible[:, :, :length] = causal
    hidden = advance(model, cache, prompt_ids, torch.arange(length, device=prompt_ids.device))
    return model.logits(hidden[:, -1]).float(), cache


def advance(model: Blip, cache: KeyValueCache, input_ids: Tensor, positions: Tensor) -> Tensor:
    """Run tokens `[I, T]` through the decoder, appending to the cache; hidden states `[I, T, D]`."""
    x = model.text_decoder.bert.embeddings(input_ids, positions)
    for layer in model.text_decoder.layers:
        x = layer(x, cache)
    cache.length += input_ids.shape[1]
    return x


def step(model: Blip, cache: Cache, tokens: Tensor, parents: Tensor, prompt_length: int) -> Tensor:
    """One new token for each beam: tokens `[I, B]`, each continuing beam `parents` `[I, B]` -> logits `[I, B, V]`."""
    beams = tokens.shape[1]
    seen = cache.visible.gather(1, parents[:, :, None].expand(-1, -1, cache.visible.shape[2]))  # [I, B, L]
    seen[:, :, cache.length : cache.length + beams] |= torch.eye(beams, dtype=torch.bool, device=tokens.device)
    cache.visible = seen
    position = torch.full((), prompt_length + (cache.length - prompt_length) // beams, device=tokens.device)
    return model.logits(advance(model, cache, tokens, position)).float()


Forbidden = Callable[[Sequence[int]], list[int]]


def generate(
    model: Blip,
    pixel_values: Tensor,
    prompt_ids: Tensor,
    settings: GenerationSettings,
    forbidden: Forbidden | None = None,
) -> Generated:
    """Caption images.

    Args:
        model: in evaluation mode.
        pixel_values: `[I, 3, S, S]`, on the model's device.
        prompt_ids: `[I, P]`, first `[DEC]`, then the same number of prompt tokens for every image (or none).
        settings: how to decode.
        forbidden: prompt and tokens of a caption so far -> the tokens that must not follow. It runs on the host, so
            each step waits for the one before: one download, one upload.

    Returns:
        `settings.num_return_sequences` sequences an image, best first.

    Raises:
        ConfigError: prompt and new tokens together are more than the model has positions for.
    """
    limit = model.config.text.max_position_embeddings
    if prompt_ids.shape[1] + settings.max_new_tokens > limit:
        raise ConfigError(
            f"{prompt_ids.shape[1]} prompt + {settings.max_new_tokens} new tokens: the model has {limit} positions"
        )
    if settings.num_beams > 1 and (vocabulary := model.config.text.vocab_size) < 2 * settings.num_beams + 1:
        raise ConfigError(
            f"{settings.num_beams} beams need a vocabulary of at least {2 * settings.num_beams + 1} tokens; it has "
            f"{vocabulary}"
        )
    with torch.inference_mode():
        image_embeds = model.encode(pixel_values)
        if model.recorded_search and not forbidden and settings.one_shape:
            found: Generated = model.recorded_search(model, image_embeds, prompt_ids, settings)
            return found
        if settings.num_beams > 1:
            return beam_search(model, image_embeds, prompt_ids, settings, forbidden)
        return greedy_or_sample(model, image_embeds, prompt_ids, settings, forbidden)


def time_to_look(t: int, device: torch.device) -> bool:
    """Whether to see after step `t` (from 0) which captions are complete: reading that waits for a GPU."""
    return device.type == "cpu" or (t + 1) % STEPS_A_LOOK == 0


def forbid(scores: Tensor, prompt_ids: Tensor, tokens: Tensor, forbidden: Forbidden) -> None:
    """Set the scores `[I, B, V]` of what must not follow `tokens` `[I, B, t]` to minus infinity."""
    prompt = prompt_ids[:, None].expand(-1, scores.shape[1], -1)
    captions = torch.cat([prompt, tokens[:, : scores.shape[1]]], -1).flatten(0, 1).tolist()
    never = [row * scores.shape[2] + token for row, ids in enumerate(captions) for token in forbidden(ids)]
    scores.view(-1).index_fill_(0, upload(never, scores.device), -torch.inf)


def discourage(scores: Tensor, prompt_ids: Tensor, tokens: Tensor, s: GenerationSettings) -> Tensor:
    """Scores `[I, B, V]` of what follows `tokens` `[I, B, t]`, with repetitions made unlikely or impossible; the prompt
    and `[DEC]` count as said, as in `transformers`' processors.

    `repetition_penalty` (Keskar et al. 2019, https://arxiv.org/abs/1909.05858) divides positive scores of tokens that
    were said, and multiplies negative ones.
    """
    said = torch.cat([prompt_ids[:, None].expand(-1, scores.shape[1], -1), tokens[:, : scores.shape[1]]], -1)
    if s.repetition_penalty != 1:
        score = scores.gather(-1, said)
        score = torch.where(score < 0, score * s.repetition_penalty, score / s.repetition_penalty)
        scores = scores.scatter(-1, said, score)
    if (n := s.no_repeat_ngram_size) and said.shape[-1] >= n:
        ngrams = said.unfold(-1, n, 1)  # [I, B, those said, n]
        begun = (ngrams[..., :-1] == said[:, :, None, said.shape[-1] - n + 1 :]).all(-1)  # those that go on now
        banned = torch.zeros_like(scores).scatter_add(-1, ngrams[..., -1], begun.to(scores.dtype))
        scores = scores.masked_fill(banned > 0, -torch.inf)
    return scores


@dataclass
class Beams:
    """Where a search over I images stands: B captions of each that grow, and the best B that are finished."""

    tokens: Tensor  # [I, B, new]: the captions still growing
    scores: Tensor  # [I, B]: their summed log-probabilities
    parents: Tensor  # [I, B]: which beam of the step before each continues
    done_tokens: Tensor  # [I, B, new]: the best finished captions so far
    done_scores: Tensor  # [I, B]
    is_done: Tensor  # [I, B]: whether there is one
    complete: Tensor  # [I]: nothing can become better

    @staticmethod
    def first(tokens: Tensor, growing: int) -> Beams:
        """Before the first step: captions of padding `[I, B, new]`, of which one an image grows, in so many rows."""
        (images, B, _), device = tokens.shape, tokens.device
        scores = torch.full((images, growing), NEVER, device=device)
        scores[:, 0] = 0
        parents = torch.zeros(images, growing, dtype=torch.long, device=device)
        is_done = torch.zeros(images, B, dtype=torch.bool, device=device)
        done_scores = torch.full((images, B), NEVER, device=device)
        return Beams(tokens, scores, parents, tokens, done_scores, is_done, torch.zeros_like(is_done[:, 0]))

    def of(self, rows: Tensor) -> Beams:
        """Of these images only."""
        return Beams(**{name: tensor[rows] for name, tensor in vars(self).items()})


class Moments(NamedTuple):
    """What a search knows of its steps, `[new]` each, or of one of them, `[1]`: all on the device, so nobody waits."""

    t: Tensor  # from 0
    last: Tensor  # whether all captions end here
    divisor: Tensor  # of the score of a caption that ends here: length ** length_penalty


def moments(s: GenerationSettings, device: torch.device) -> Moments:
    """Of all steps."""
    t = torch.arange(s.max_new_tokens, device=device)
    divisor = torch.tensor([(step + 1) ** float(s.length_penalty) for step in range(s.max_new_tokens)])
    return Moments(t, t + 1 == s.max_new_tokens, upload(divisor, device))


def grow(beams: Beams, log_probs: Tensor, now: Moments, s: GenerationSettings, sep: int) -> Beams:
    """A step of the search.

    Args:
        beams: before it; with one beam an image at first.
        log_probs: `[I, B, V]` of the next token.
        now: of this step.
        s: how to decode.
        sep: the token that ends a caption.
    """
    B, V, device = s.num_beams, log_probs.shape[-1], log_probs.device
    # 2B candidates: at most B of them end here, so at least B go on.
    candidates, flat = (beams.scores[:, :, None] + log_probs).flatten(1).topk(2 * B)  # [I, 2B]
    parents, chosen = flat // V, flat % V
    grown = beams.tokens.gather(1, parents[:, :, None].expand(-1, -1, s.max_new_tokens))
    grown.index_copy_(2, now.t, chosen[:, :, None])
    ends = (chosen == sep) | now.last

    # Finished captions: only candidates among the first B count, and only the best B are remembered.
    final = candidates / now.divisor
    not_final = ~ends | (torch.arange(2 * B, device=device) >= B) | beams.complete[:, None]
    final = final.masked_fill(not_final, NEVER)
    done_scores, best = torch.cat([beams.done_scores, final], 1).topk(B)
    done_tokens = torch.cat([beams.done_tokens, grown], 1).gather(1, best[:, :, None].expand(-1, -1, s.max_new_tokens))
    is_done = torch.cat([beams.is_done, final > NEVER], 1).gather(1, best)

    # Growing captions: the best B that go on.
    scores, best = (candidates + ends * NEVER).topk(B)
    tokens = grown.gather(1, best[:, :, None].expand(-1, -1, s.max_new_tokens))

    # An image is complete when its growing captions cannot beat its finished ones (as judged at the
    # present length, transformers' heuristic), or at once with early_stopping.
    can_improve = scores[:, 0] / now.divisor > done_scores.min(1).values
    complete = beams.complete | (is_done.all(1) & (~can_improve | s.early_stopping))
    return Beams(tokens, scores, parents.gather(1, best), done_tokens, done_scores, is_done, complete)


def beam_search(
    model: Blip, image_embeds: Tensor, prompt_ids: Tensor, s: GenerationSettings, forbidden: Forbidden | None = None
) -> Generated:
    """Keep the `num_beams` likeliest unfinished captions of each image, and the best finished ones.

    Follows `transformers` 5's `_beam_search`, but each image ends by itself: what it finished stays, and it is dropped.
    """
    text = model.config.text
    (images, prompt_length), B, device = prompt_ids.shape, s.num_beams, prompt_ids.device
    out = torch.full((images, B, s.max_new_tokens), text.pad_token_id, device=device)
    out_scores = torch.full((images, B), NEVER, device=device)
    rows = torch.arange(images, device=device)  # which image each row of the state below belongs to
    beams = Beams.first(out, growing=1)
    each = [Moments(*one) for one in zip(*(values.split(1) for values in moments(s, device)), strict=True)]

    logits, cache = prefill(model, image_embeds, prompt_ids, prompt_length + B * s.max_new_tokens)
    cache.visible = cache.visible[:, -1:]
    logits = logits[:, None]
    for t, now in enumerate(each):
        log_probs = logits.log_softmax(-1)
        if s.limits_repetition:
            log_probs = discourage(log_probs, prompt_ids[rows], beams.tokens[:, :, :t], s)
        if t < s.min_new_tokens:
            log_probs[..., text.sep_token_id] = -torch.inf
        if forbidden:
            forbid(log_probs, prompt_ids[rows], beams.tokens[:, :, :t], forbidden)
        beams = grow(beams, log_probs, now, s, text.sep_token_id)
        if t + 1 == s.max_new_tokens:
            break
        if time_to_look(t, device):
            left = len(rows) - int(beams.complete.sum())
            if not left:
                break
            # A complete image costs a row of work until it is dropped, but dropping copies the others' caches: so
            # wait until half are complete.
            if 2 * left <= len(rows):
                out[rows], out_scores[rows] = beams.done_tokens, beams.done_scores
                going = beams.complete.long().argsort(stable=True)[:left]
                rows, beams = rows[going], beams.of(going)
                cache.keep(going)
        logits = step(model, cache, beams.tokens[:, :, t], beams.parents, prompt_length)

    out[rows], out_scores[rows] = beams.done_tokens, beams.done_scores
    return with_prompt(prompt_ids, out[:, : s.num_return_sequences], out_scores[:, : s.num_return_sequences])


def greedy_or_sample(
    model: Blip, image_embeds: Tensor, prompt_ids: Tensor, s: GenerationSettings, forbidden: Forbidden | None = None
) -> Generated:
    """Take the likeliest token at each step, or draw `num_return_sequences` captions an image."""
    text = model.config.text
    (images, prompt_length), B, device = prompt_ids.shape, s.num_return_sequences, prompt_ids.device
    generator = torch.Generator(device)
    if s.seed is None:
        generator.seed()
    else:
        generator.manual_seed(s.seed)

    tokens = torch.full((images, B, s.max_new_tokens), text.pad_token_id, device=device)
    scores, lengths = torch.zeros(2, images, B, device=device)
    going = torch.ones(images, B, dtype=torch.bool, device=device)
    parents = torch.arange(B, device=device).expand(images, B)
    logits, cache = prefill(model, image_embeds, prompt_ids, prompt_length + B * s.max_new_tokens)
    cache.visible = cache.visible[:, -1:].repeat(1, B, 1)
    logits = logits[:, None].repeat(1, B, 1)
    for t in range(s.max_new_tokens):
        if s.limits_repetition:
            logits = discourage(logits, prompt_ids, tokens[:, :, :t], s)
        if t < s.min_new_tokens:
            logits[..., text.sep_token_id] = -torch.inf
        if forbidden:
            forbid(logits, prompt_ids, tokens[:, :, :t], forbidden)
        chosen = _sample(logits, s, generator) if s.do_sample else logits.argmax(-1)
        tokens[:, :, t] = torch.where(going, chosen, text.pad_token_id)
        scores += going * logits.log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
        lengths += going
        going = going & (chosen != text.sep_token_id)
        if t + 1 == s.max_new_tokens or (time_to_look(t, device) and not going.any()):
            break
        logits = step(model, cache, tokens[:, :, t], parents, prompt_length)
    return with_prompt(prompt_ids, tokens, scores / lengths)


def _sample(logits: Tensor, s: GenerationSettings, generator: torch.Generator) -> Tensor:
    """Draw a token from `[I, B, V]` logits: temperature, then top-k, then the nucleus (Holtzman et al. 2020)."""
    logits = logits / s.temperature
    if s.top_k:
        kth = logits.topk(min(s.top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if s.top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= s.top_p
        outside[..., 0] = False  # the first token always stays, also where top_p rounds to 0
        logits = logits.masked_fill(outside.gather(-1, order.argsort(-1)), -torch.inf)
    # What `torch.multinomial` does, without its look whether these are probabilities: the first of exponential clocks.
    probabilities = logits.softmax(-1)
    return (probabilities / torch.empty_like(probabilities).exponential_(generator=generator)).argmax(-1)


def with_prompt(prompt_ids: Tensor, tokens: Tensor, scores: Tensor) -> Generated:
    """`tokens` `[I, n, new]` behind the prompt."""
    prompt = prompt_ids[:, None].expand(-1, tokens.shape[1], -1)
    return Generated(torch.cat([prompt, tokens], dim=-1), scores)
