"""Any shape, any settings: the tokens and scores of `transformers`' `generate` (hypothesis draws the cases)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blip_lite.model import graphs
from blip_lite.model.generation import GenerationSettings, generate
from conftest import make_hf
from test_generation import prompts, reference, stripped
from test_model import ours

CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**20),
        "vision_heads": st.sampled_from([1, 2, 3, 4]),
        "vision_size": st.sampled_from([24, 48]),
        "text_heads": st.sampled_from([1, 2, 4]),
        "text_size": st.sampled_from([16, 32]),
        "layers": st.integers(1, 3),
        "vocab": st.integers(30, 300),
        "act": st.sampled_from(["gelu", "gelu_new", "relu"]),
        "sep_bias": st.floats(-2, 5),
        "scale": st.floats(2, 5),
    }
)
SETTINGS = st.fixed_dictionaries(
    {
        "num_beams": st.integers(1, 7),
        "length_penalty": st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
        "early_stopping": st.booleans(),
        "max_new_tokens": st.integers(1, 16),
        "min_new_tokens": st.integers(0, 6),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 0.7, 1.3, 5.0]),
        "no_repeat_ngram_size": st.sampled_from([0, 0, 1, 2, 3]),
    }
)


def check(case: dict, chosen: dict, images: int, prompt_length: int) -> None:
    chosen = {**chosen, "min_new_tokens": min(chosen["min_new_tokens"], chosen["max_new_tokens"])}
    hf = make_hf(**case)
    pixels = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(case["seed"]))
    prompt = prompts(images, prompt_length, case["vocab"])
    theirs = {**chosen, "min_new_tokens": chosen["min_new_tokens"] or None}
    if chosen["num_beams"] == 1:
        del theirs["length_penalty"], theirs["early_stopping"]
    expected = reference(hf, pixels, prompt, **theirs)
    found = generate(ours(hf), pixels, prompt, GenerationSettings(**chosen))
    assert [stripped(row) for row in found.sequences[:, 0]] == [stripped(row) for row in expected.sequences]
    if chosen["num_beams"] > 1:
        torch.testing.assert_close(found.scores[:, 0], expected.sequences_scores, rtol=1e-5, atol=1e-5)
    # steps of one shape, as CUDA records them, find the same
    model = ours(hf)
    model.recorded_search = graphs.search
    fixed = generate(model, pixels, prompt, GenerationSettings(**chosen))
    assert fixed.sequences.tolist() == found.sequences.tolist()
    torch.testing.assert_close(fixed.scores, found.scores, rtol=1e-4, atol=1e-4)
    # the same image alone gives the same tokens
    alone = generate(ours(hf), pixels[-1:], prompt[-1:], GenerationSettings(**chosen))
    assert stripped(alone.sequences[0, 0]) == stripped(found.sequences[-1, 0])


drawn = given(case=CASES, chosen=SETTINGS, images=st.integers(1, 5), prompt_length=st.integers(1, 4))
quiet = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "print_blob": True}


@settings(max_examples=50, derandomize=True, **quiet)
@drawn
def test_50_drawn_cases(case: dict, chosen: dict, images: int, prompt_length: int) -> None:
    check(case, chosen, images, prompt_length)


@pytest.mark.slow
@settings(max_examples=600, **quiet)
@drawn
def test_600_drawn_cases(case: dict, chosen: dict, images: int, prompt_length: int) -> None:
    check(case, chosen, images, prompt_length)
