"""The model against `transformers`: same weights, same loss, same gradients."""

from __future__ import annotations

import pytest
import torch

from blip_lite.model.blip import IGNORE, Blip
from blip_lite.model.config import BlipConfig
from blip_lite.model.pretrained import load_weights
from conftest import make_hf


def ours(hf: torch.nn.Module) -> Blip:
    model = Blip(BlipConfig.from_dict(hf.config.to_dict()))
    load_weights(model, {k: v.clone() for k, v in hf.state_dict().items()}, "transformers")
    return model


def batch(images: int = 3, captions: int = 4, length: int = 9, vocab: int = 99, size: int = 32, prompt: int = 0):
    """Random uneven captions: `[DEC] ... [SEP] [PAD]...`; the last image lacks its last caption."""
    generator = torch.Generator().manual_seed(images * 100 + captions)
    pixels = torch.randn(images, 3, size, size, generator=generator)
    ids = torch.zeros(images, captions, length, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE)
    for i in range(images):
        for k in range(captions):
            n = int(torch.randint(prompt + 3, length + 1, (1,), generator=generator))
            row = torch.randint(4, vocab - 2, (n,), generator=generator)
            row[0], row[-1] = vocab - 2, 3
            ids[i, k, :n] = row
            if (i, k) != (images - 1, captions - 1):
                labels[i, k, 1 + prompt : n] = row[1 + prompt :]
    return pixels, ids, labels


def reference_loss(hf: torch.nn.Module, pixels, ids, labels, label_smoothing: float = 0.0) -> torch.Tensor:
    """The sum of losses over repeated (image, caption) pairs, by `transformers`."""
    images, captions, length = ids.shape
    repeated = pixels.repeat_interleave(captions, 0)
    ids, labels = ids.view(-1, length), labels.view(-1, length)
    out = hf(pixel_values=repeated, input_ids=ids.clone(), attention_mask=(ids != 0).long())
    logits = out.logits[:, :-1].reshape(-1, out.logits.shape[-1])
    return torch.nn.functional.cross_entropy(
        logits, labels[:, 1:].reshape(-1), reduction="sum", label_smoothing=label_smoothing
    )


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    # Every parameter's error against its own norm. A key's bias has a gradient of exactly zero in theory
    # (softmax ignores a shift), so there only the noise is left: measured against the whole model's norm.
    whole = torch.cat([g.flatten() for g in b.values()]).norm()
    for name in a:
        error = (a[name] - b[name]).norm()
        assert error <= tolerance * b[name].norm() or error <= 1e-7 * whole, (name, (error / b[name].norm()).item())


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"vision_heads": 1, "text_heads": 8, "seed": 1},
        {"vision_size": 64, "vision_heads": 8, "text_size": 48, "text_heads": 3, "layers": 3, "seed": 2},
        {"act": "gelu_new", "image_size": 48, "seed": 3},
        {"act": "quick_gelu", "vocab": 301, "seed": 4},
    ],
)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_and_gradients_equal_transformers(shape: dict, label_smoothing: float) -> None:
    """K captions sharing an image give the loss and gradients of the K repeated pairs."""
    hf = make_hf(**shape)
    model = ours(hf)
    data = batch(vocab=shape.get("vocab", 99), size=shape.get("image_size", 32))
    loss, targets = model(*data, label_smoothing=label_smoothing)
    expected = reference_loss(hf, *data, label_smoothing)
    loss.backward()
    expected.backward()
    assert targets == (data[2][:, :, 1:] != IGNORE).sum()
    torch.testing.assert_close(loss / targets, expected / targets, rtol=0, atol=1e-5)
    assert_same_gradients(gradients(model), gradients(hf))


def test_loss_equals_transformers_own_labels_loss() -> None:
    """Its `labels=` argument too, which is a mean and shifts by itself."""
    hf = make_hf()
    pixels, ids, labels = batch(images=2, captions=1)
    labels[1, 0, 1:4] = ids[1, 0, 1:4]
    loss, targets = ours(hf)(pixels, ids, labels)
    out = hf(
        pixel_values=pixels, input_ids=ids[:, 0].clone(), attention_mask=(ids[:, 0] != 0).long(), labels=labels[:, 0]
    )
    torch.testing.assert_close(loss / targets, out.loss, rtol=0, atol=1e-5)


@pytest.mark.long
def test_base_shape_loss_and_gradients() -> None:
    """The published checkpoint's sizes, once, at 384 pixels with the full vocabulary."""
    from transformers import BlipConfig as HFConfig
    from transformers import BlipForConditionalGeneration

    torch.manual_seed(0)
    config = HFConfig(vision_config={"initializer_range": 0.02}, text_config={"num_attention_heads": 12})
    hf = BlipForConditionalGeneration(config).eval()
    model = ours(hf)
    data = batch(images=1, captions=2, length=12, vocab=30524, size=384)
    loss, targets = model(*data)
    expected = reference_loss(hf, *data)
    torch.testing.assert_close(loss / targets, expected / targets, rtol=0, atol=1e-5)
    loss.backward()
    expected.backward()
    assert_same_gradients(gradients(model), gradients(hf))


def test_gradient_of_accumulated_uneven_batch_equals_the_large_batch() -> None:
    model = ours(make_hf())
    pixels, ids, labels = batch(images=5)
    loss, targets = model(pixels, ids, labels)
    (loss / targets).backward()
    large = gradients(model)
    model.zero_grad()
    for part in (slice(0, 1), slice(1, 4), slice(4, 5)):  # uneven in images and in tokens
        (model(pixels[part], ids[part], labels[part])[0] / targets).backward()
    assert_same_gradients(gradients(model), large)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = ours(make_hf()).train()
    data = batch()
    model(*data)[0].backward()
    plain = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing = True
    model(*data)[0].backward()
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, plain[name]), name


def test_frozen_vision_has_no_graph_and_the_same_text_gradients() -> None:
    model = ours(make_hf())
    data = batch()
    model(*data)[0].backward()
    full = gradients(model)
    model.zero_grad(set_to_none=True)
    model.freeze_vision()
    assert not model.encode(data[0]).requires_grad
    model(*data)[0].backward()
    frozen = gradients(model)
    assert frozen.keys() == {n for n in full if n.startswith("text_decoder.")}
    assert_same_gradients(frozen, {n: full[n] for n in frozen})


def test_prompt_tokens_are_no_targets() -> None:
    hf = make_hf()
    model = ours(hf)
    data = batch(prompt=2)
    assert (data[2][:, :, :3] == IGNORE).all()
    loss, targets = model(*data)
    torch.testing.assert_close(loss, reference_loss(hf, *data), rtol=1e-6, atol=1e-5)


def test_padding_and_missing_captions_change_nothing() -> None:
    model = ours(make_hf())
    pixels, ids, labels = batch()
    loss, targets = model(pixels, ids, labels)
    ids, labels = (torch.nn.functional.pad(t, (0, 5, 0, 2), value=v) for t, v in ((ids, 7), (labels, IGNORE)))
    padded, same = model(pixels, ids, labels)
    assert same == targets
    torch.testing.assert_close(padded, loss, rtol=1e-6, atol=0)


def test_wrong_sizes_are_refused() -> None:
    model = ours(make_hf())
    with pytest.raises(ValueError, match=r"takes \[I, 3, 32, 32\]"):
        model.encode(torch.zeros(1, 3, 64, 64))
    raw = make_hf().config.to_dict()
    with pytest.raises(ValueError, match="do not divide"):
        BlipConfig.from_dict({**raw, "text_config": {**raw["text_config"], "num_attention_heads": 5}})
    with pytest.raises(ValueError, match="'gpt2'"):
        BlipConfig.from_dict({"model_type": "gpt2"})
    with pytest.raises(ValueError, match="hidden_act"):
        BlipConfig.from_dict({**raw, "text_config": {**raw["text_config"], "hidden_act": "tanhish"}})
