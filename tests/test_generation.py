"""Decoding against `transformers`' `generate`: the same tokens and scores."""

from __future__ import annotations

import itertools

import pytest
import torch

from blip_lite.model.generation import GenerationSettings, _sample, generate
from conftest import make_hf
from test_model import ours


def stripped(sequence: torch.Tensor) -> list[int]:
    """Up to the first [SEP] (3): `transformers` pads with [SEP] in beam search and with [PAD] in greedy search."""
    ids = sequence.tolist()
    return ids[: ids.index(3, 1) + 1] if 3 in ids[1:] else ids


def reference(hf: torch.nn.Module, pixels: torch.Tensor, prompt: torch.Tensor, **settings):
    # generate() drops the last id of its input and overwrites the first in place, hence the [SEP] and the clone
    ids = torch.cat([prompt, torch.full((len(prompt), 1), 3)], 1).clone()
    return hf.generate(
        pixels, input_ids=ids, do_sample=False, return_dict_in_generate=True, output_scores=True, **settings
    )


def prompts(images: int, length: int, vocab: int = 99) -> torch.Tensor:
    ids = torch.randint(4, vocab - 2, (images, length), generator=torch.Generator().manual_seed(length))
    ids[:, 0] = vocab - 2
    return ids


@pytest.mark.parametrize("seed", range(6))
def test_tokens_and_scores_equal_transformers(seed: int) -> None:
    hf = make_hf(
        seed, vision_heads=[1, 2, 4][seed % 3], text_heads=[1, 2, 4, 8][seed % 4], sep_bias=[1.5, 3, 2, 2, 1.5, 2][seed]
    )
    model = ours(hf)
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    lengths = set()
    for beams, penalty, early, least, length in itertools.product(
        [1, 5], [1.0, -1.0, 2.0], [True, False], [0, 4], [1, 3]
    ):
        if beams == 1 and (penalty != 1.0 or early):
            continue
        prompt = prompts(5, length)
        beam_only = {"length_penalty": penalty, "early_stopping": early} if beams > 1 else {}
        common = {"max_new_tokens": 12, "num_beams": beams, **beam_only}
        expected = reference(hf, pixels, prompt, min_new_tokens=least or None, **common)
        found = generate(model, pixels, prompt, GenerationSettings(min_new_tokens=least, **common))
        tokens = [stripped(row) for row in found.sequences[:, 0]]
        assert tokens == [stripped(row) for row in expected.sequences], (beams, penalty, early, least, length)
        assert all((row[1:] != 3).all() for row in found.sequences[:, 0, : length + least])
        if beams > 1:
            torch.testing.assert_close(found.scores[:, 0], expected.sequences_scores, rtol=1e-5, atol=1e-5)
        lengths |= {len(row) - length for row in tokens}
    assert len(lengths) > 2, "the captions do not end at different lengths, so this shows little"


def test_several_return_sequences_equal_transformers() -> None:
    hf = make_hf(2, sep_bias=1)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    settings = {"max_new_tokens": 10, "num_beams": 4, "num_return_sequences": 3, "early_stopping": True}
    expected = reference(hf, pixels, prompts(3, 1), **settings)
    found = generate(ours(hf), pixels, prompts(3, 1), GenerationSettings(**settings))
    assert found.sequences.shape[:2] == (3, 3)
    assert [stripped(r) for r in found.sequences.flatten(0, 1)] == [stripped(r) for r in expected.sequences]
    torch.testing.assert_close(found.scores.flatten(), expected.sequences_scores, rtol=1e-5, atol=1e-5)


def test_greedy_score_is_the_mean_log_probability() -> None:
    hf = make_hf(1, sep_bias=1)
    model = ours(hf)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = generate(model, pixels, prompts(2, 1), GenerationSettings(num_beams=1, max_new_tokens=8))
    for image in range(2):
        ids = torch.tensor([[stripped(found.sequences[image, 0])]])
        labels = ids.clone()
        labels[:, :, 0] = -100
        with torch.no_grad():
            loss, targets = model(pixels[image : image + 1], ids, labels)
        torch.testing.assert_close(found.scores[image, 0], -loss / targets, rtol=1e-5, atol=1e-5)


def test_the_batch_does_not_change_a_caption() -> None:
    model = ours(make_hf(3, sep_bias=1))
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    settings = GenerationSettings(max_new_tokens=12)
    together = [stripped(r) for r in generate(model, pixels, prompts(6, 1), settings).sequences[:, 0]]
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    shuffled = [stripped(r) for r in generate(model, pixels[order], prompts(6, 1), settings).sequences[:, 0]]
    alone = [stripped(generate(model, p[None], prompts(1, 1), settings).sequences[0, 0]) for p in pixels]
    assert alone == together
    assert shuffled == [together[i] for i in order]


def test_sampling_is_seeded_and_follows_the_warped_distribution() -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, 1, 12, generator=torch.Generator().manual_seed(0)) * 2
    settings = GenerationSettings(num_beams=1, do_sample=True, temperature=1.3, top_k=8, top_p=0.8)
    warped = logits[0]
    for warper in (TemperatureLogitsWarper(1.3), TopKLogitsWarper(8), TopPLogitsWarper(0.8)):
        warped = warper(None, warped)
    expected = warped.softmax(-1)[0]
    draws = _sample(logits.expand(1, 20_000, 12), settings, torch.Generator().manual_seed(1)).flatten()
    share = torch.bincount(draws, minlength=12) / len(draws)
    assert (share[expected == 0] == 0).all()
    assert (share - expected).abs().max() < 0.015  # four standard errors of 20,000 draws

    model = ours(make_hf(4, sep_bias=1))
    pixels = torch.randn(2, 3, 32, 32)
    drawn = [
        generate(
            model,
            pixels,
            prompts(2, 1),
            GenerationSettings(num_beams=1, do_sample=True, seed=s, num_return_sequences=3),
        ).sequences
        for s in (5, 5, 6)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len({tuple(row.tolist()) for row in drawn[0][0]}) > 1


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong, words in (
        ({"num_beams": 0}, "num_beams"),
        ({"min_new_tokens": 40}, "min_new_tokens"),
        ({"num_return_sequences": 6}, "cannot exceed num_beams"),
        ({"do_sample": True}, "num_beams=1"),
        ({"top_p": 0.0, "temperature": 0.0}, "temperature.*top_p"),
    ):
        with pytest.raises(ValueError, match=words):
            GenerationSettings(**wrong)
    model = ours(make_hf())
    with pytest.raises(ValueError, match="64 positions"):
        generate(model, torch.zeros(1, 3, 32, 32), prompts(1, 1), GenerationSettings(max_new_tokens=64))
