"""Models that start from random weights: their sizes, and a vocabulary from captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch

from blip_lite.model.blip import Blip, grid_positions
from blip_lite.model.config import BlipConfig, TextConfig, VisionConfig
from blip_lite.model.pretrained import Unfilled
from blip_lite.processing.processor import SPECIAL_TOKENS, Processor, wordpiece

# Sizes of models that start from random weights: (vision, text, how often a word must occur to enter the vocabulary).
PRESETS: dict[str, tuple[VisionConfig, TextConfig, int]] = {
    "tiny": (
        VisionConfig(
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=64,
            patch_size=16,
        ),
        TextConfig(
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        ),
        1,
    ),
    "small": (
        VisionConfig(
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=4,
            image_size=160,
            patch_size=16,
        ),
        TextConfig(
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=64,
        ),
        3,
    ),
    "base": (VisionConfig(), TextConfig(num_attention_heads=12), 3),
}


def build_vocabulary(captions: Iterable[str], min_frequency: int, limit: int) -> dict[str, int]:
    """A WordPiece vocabulary: BERT's five special tokens, every letter (so that any word can be spelt), then the
    words that occur at least `min_frequency` times, commonest first, up to `limit` tokens.

    Not `tokenizers`' WordPieceTrainer: its result changes from process to process, so two ranks would disagree.
    """
    bert = wordpiece({})
    counts = Counter(
        word
        for caption in captions
        for word, _ in bert.pre_tokenizer.pre_tokenize_str(bert.normalizer.normalize_str(caption))
    )
    letters = sorted(set("".join(counts)))
    words = sorted((w for w, n in counts.items() if n >= min_frequency and len(w) > 1), key=lambda w: (-counts[w], w))
    tokens = [*SPECIAL_TOKENS[:5], *letters, *("##" + letter for letter in letters), *words]
    return {token: index for index, token in enumerate(tokens[:limit])}


def from_scratch(preset: str, captions: Iterable[str], seed: int) -> tuple[Blip, Processor]:
    """A randomly initialised model of a preset's size, and a vocabulary from captions.

    Args:
        preset: a key of `PRESETS`.
        captions: normalised training captions.
        seed: of the random weights.
    """
    vision, text, min_frequency = PRESETS[preset]
    vocab = build_vocabulary(captions, min_frequency, text.vocab_size - 2)
    size, pad, sep = len(vocab), vocab["[PAD]"], vocab["[SEP]"]
    # As in the published checkpoints, [DEC] and [ENC] are the two ids after the vocabulary.
    text = replace(text, vocab_size=size + 2, bos_token_id=size, sep_token_id=sep, pad_token_id=pad)
    config = BlipConfig(vision, text, {"tie_word_embeddings": True})
    with Unfilled():
        model = Blip(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    if preset == "tiny":  # Four patches a side: waves no longer than the image, as strong as the white of its paper.
        positions = 3 * grid_positions(vision, longest=vision.image_size // vision.patch_size)
        model.vision_model.embeddings.position_embedding.data[0, 1:] = positions
    return model.eval(), Processor(wordpiece(vocab), vision.image_size, size, sep, pad)
