"""Banned words: never said, in whatever pieces; with single tokens the same as `transformers`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from blip_lite.captioner import Captioner
from blip_lite.model.blip import IGNORE
from blip_lite.model.generation import GenerationSettings, generate
from blip_lite.processing.processor import SPECIAL_TOKENS, Processor, wordpiece
from blip_lite.processing.word_filter import BannedWords, found_words, read_words, split_entries
from conftest import make_hf
from test_generation import prompts, reference, stripped
from test_model import ours


@pytest.fixture(scope="module")
def spelling() -> Processor:
    """A tokenizer in which most words can be spelt in many ways."""
    words = ["dog", "dogs", "do", "hot", "house", "a", "t", "shirt", "-", "##g", "##gs", "##s", "##house", "##o", "##d", "##ot", "h", "d", "o", "##t", "##dog"]  # fmt: skip
    vocabulary = {token: id for id, token in enumerate([*SPECIAL_TOKENS[:5], *words])}
    return Processor(wordpiece(vocabulary), 8, bos_token_id=97, sep_token_id=3, pad_token_id=0)


def test_words_are_compared_whole_without_case_and_accents(spelling: Processor) -> None:
    entries = split_entries(spelling, ["Dog", "hot dog", "T-shirt", "café"])
    assert found_words(spelling, "a DOG in a t-shirt", entries) == ["Dog", "T-shirt"]
    assert found_words(spelling, "dogs, doghouse; hot a dogs", entries) == []
    assert found_words(spelling, "a hot dog at the Cafe", entries) == ["Dog", "hot dog", "café"]


def test_no_spelling_gets_through(spelling: Processor) -> None:
    entries = ["dog", "hot dogs", "t-shirt"]
    banned, rng, split = BannedWords(spelling, entries), random.Random(0), split_entries(spelling, entries)
    tokens = [t for t in range(spelling.tokenizer.get_vocab_size()) if t not in (0, 3)]
    others = split_entries(spelling, ["dogs", "hot", "house", "shirt"])
    said = blocked = 0
    for _ in range(3000):
        ids = [97]
        for _ in range(8):
            token = rng.choice(tokens)
            if token not in banned(ids):
                ids.append(token)
            elif found_words(spelling, spelling.decode([*ids, token]), split):
                blocked += 1
        text = spelling.decode(ids)
        assert not found_words(spelling, text, split), (text, ids)
        said += bool(found_words(spelling, text, others))
    assert said > 1000 and blocked > 300  # the others are still said, and the rest would have been


def test_single_tokens_equal_transformers() -> None:
    hf = make_hf(2, sep_bias=1)
    model = ours(hf)
    pixels, prompt = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), prompts(4, 2)
    for beams in (1, 4):
        settings = {"max_new_tokens": 10, "num_beams": beams, **({"early_stopping": True} if beams > 1 else {})}
        free = generate(model, pixels, prompt, GenerationSettings(**settings)).sequences[:, 0]
        never = sorted({int(t) for t in free[:, 2:5].flatten()} - {0, 3})
        expected = reference(hf, pixels, prompt, bad_words_ids=[[t] for t in never], **settings)
        found = generate(model, pixels, prompt, GenerationSettings(**settings), lambda ids, never=never: never)
        assert [stripped(r) for r in found.sequences[:, 0]] == [stripped(r) for r in expected.sequences]
        assert [stripped(r) for r in free] != [stripped(r) for r in found.sequences[:, 0]]


def test_captions_and_scores(hf_dir: Path) -> None:
    captioner = Captioner.from_pretrained(hf_dir, "cpu")
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for settings in ({}, {"num_beams": 1}, {"num_beams": 1, "do_sample": True, "seed": 1, "num_return_sequences": 4}):
        said = captioner.caption_pixels(pixels, GenerationSettings(max_new_tokens=8, **settings))
        words = sorted({word for row in said for text in row for word in text.split()[:1] if word.isalpha()})
        assert words
        again = captioner.caption_pixels(pixels, GenerationSettings(max_new_tokens=8, banned_words=words, **settings))
        split = split_entries(captioner.processor, words)
        assert not any(found_words(captioner.processor, text, split) for row in again for text in row)


def test_scores_are_mean_log_probabilities_whatever_the_length_penalty(hf_dir: Path) -> None:
    captioner = Captioner.from_pretrained(hf_dir, "cpu")
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    start = torch.tensor([captioner.processor.prompt_ids("a")] * 3)
    for changes in ({"length_penalty": -0.5}, {"length_penalty": 2.0}, {"num_beams": 1, "num_return_sequences": 1}):
        settings = GenerationSettings(**{"max_new_tokens": 12, "num_return_sequences": 4, **changes})
        ids = generate(captioner.model, pixels, start, settings).sequences
        labels = torch.where((ids == 3).cumsum(-1) - (ids == 3).long() == 0, ids, IGNORE)
        labels[:, :, : start.shape[1]] = IGNORE
        expected = captioner.score_pixels(pixels, ids, labels)
        found = captioner.caption_and_score(pixels, settings, ["a"] * 3)
        scores = torch.tensor([[score for _, score in row] for row in found])
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_lists_of_words_that_make_no_sense(spelling: Processor, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty.txt: holds no words"):
        read_words(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="cannot be read"):
        read_words(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match="holds no word"):
        BannedWords(spelling, [" "])
