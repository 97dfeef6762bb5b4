"""Bytes -> pixels, and captions <-> tokens."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from blip_lite.errors import ImageError
from blip_lite.processing.images import open_image
from blip_lite.processing.processor import Processor, wordpiece
from blip_lite.processing.text import detokenize, normalize_caption
from conftest import real_data


@pytest.fixture
def processor(vocabulary: list[str]) -> Processor:
    vocab = {token: i for i, token in enumerate(vocabulary)}
    return Processor(wordpiece(vocab), 32, len(vocab), vocab["[SEP]"], 0)


def noise(mode: str = "RGB", size: tuple[int, int] = (50, 37)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return (
        Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode)
        if mode != "RGBA"
        else Image.fromarray(pixels, "RGBA")
    )


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "LA", "1", "YCbCr"])
@pytest.mark.parametrize("size", [(50, 37), (3, 200), (1, 1)])
def test_pixels_equal_transformers_pil_processor(processor: Processor, mode: str, size: tuple[int, int]) -> None:
    image = noise(mode, size)
    theirs = BlipImageProcessorPil(size={"height": 32, "width": 32})(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(processor.pixels(image), theirs)


def test_pixels_of_real_photographs_equal_transformers(vocabulary: list[str]) -> None:
    folder = real_data("flickr8k", "Flicker8k_Dataset")
    processor = Processor(wordpiece({t: i for i, t in enumerate(vocabulary)}), 384, 99, 3, 0)
    for path in sorted(folder.glob("*.jpg"))[:5]:
        theirs = BlipImageProcessorPil()(Image.open(path), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(processor.pixels(path), theirs)


@given(
    data=st.data(),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.01, 2)] * 3),
    factor=st.one_of(st.sampled_from([1 / 255, 1.0, 1 / 127.5, 0.00392156862745098]), st.floats(1e-4, 2)),
)
def test_normalising_a_batch_is_the_arithmetic_of_transformers(
    data: st.DataObject, mean: tuple[float, ...], std: tuple[float, ...], factor: float
) -> None:
    """Bit for bit, of every checkpoint: rescaled in double precision, rounded, then normalised in single."""
    processor = Processor(wordpiece({"[PAD]": 0}), 16, 99, 3, 0, mean, std, rescale_factor=factor)
    seed = data.draw(st.integers(0, 2**32 - 1))
    rows = np.random.default_rng(seed).permuted(np.tile(np.arange(256, dtype=np.uint8), (2, 3, 1)), axis=2)
    batch = rows.reshape(2, 3, 16, 16)  # all 256 values in each channel
    rescaled = (batch.astype(np.float64) * factor).astype(np.float32)
    m, s = (np.array(v, np.float32)[:, None, None] for v in (mean, std))
    found = processor.normalize(torch.from_numpy(batch))
    assert found.dtype == torch.float32 and found.is_contiguous()
    assert np.array_equal(found.numpy(), (rescaled - m) / s)
    assert processor.normalize(found) is found  # once
    image = Image.fromarray(batch[0].transpose(1, 2, 0))
    assert torch.equal(processor.rgb(image), torch.from_numpy(batch[0])) and torch.equal(
        processor.pixels(image), found[0]
    )


def test_the_default_is_x_over_255_less_the_mean_over_the_deviation(processor: Processor) -> None:
    x = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1).contiguous()
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
    assert torch.equal(processor.normalize(x), (x / torch.tensor(255.0) - mean) / std)


def test_the_first_picture_of_a_stereo_photograph(processor: Processor) -> None:
    """MPO, which cameras call .jpg."""
    buffer = io.BytesIO()
    noise().save(buffer, "MPO", save_all=True, append_images=[noise("L").convert("RGB")], quality=100)
    assert Image.open(io.BytesIO(buffer.getvalue())).format == "MPO"
    first = io.BytesIO()
    noise().save(first, "JPEG", quality=100)
    assert torch.equal(processor.pixels(buffer.getvalue()), processor.pixels(first.getvalue()))


def test_all_kinds_of_input_agree(processor: Processor, tmp_path: Path) -> None:
    image = noise()
    image.save(tmp_path / "a.png")
    expected = processor.pixels(image)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), np.asarray(image)):
        assert torch.equal(processor.pixels(source), expected)
    assert torch.equal(processor.pixels(np.asarray(image) / 255.0), expected)
    grey = np.asarray(image.convert("L"))
    assert torch.equal(processor.pixels(grey), processor.pixels(grey[:, :, None]))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))  # red left, blue right
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise: red on top
    image.save(tmp_path / "turned.png", exif=exif)
    upright = open_image(tmp_path / "turned.png")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == (255, 0, 0)


def test_sixteen_bit_greys_are_scaled_and_alpha_is_laid_on_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16)).save(tmp_path / "16.png")
    assert open_image(tmp_path / "16.png").getpixel((0, 0)) == (128, 128, 128)
    assert open_image(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 0)
    palette.info["transparency"] = 0
    assert open_image(palette).getpixel((0, 0)) == (255, 255, 255)


def test_images_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    noise().save(tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:700])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    header = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(header, "PNG")
    (tmp_path / "bomb.png").write_bytes(header.getvalue())
    for name in ("cut.jpg", "empty.jpg", "text.jpg", "bomb.png", "absent.jpg"):
        with pytest.raises(ImageError, match=name):
            open_image(tmp_path / name)
    with pytest.raises(ImageError, match="shape"):
        open_image(np.zeros((2, 2, 7), dtype=np.uint8))
    with pytest.raises(ImageError, match="between 0 and 1"):
        open_image(np.full((2, 2), 7.0))


def test_normalize_caption_is_blips_rule() -> None:
    assert normalize_caption('  A "Black" Dog (running)  fast !  ') == "a black dog running fast"
    assert normalize_caption("A child's t-shirt, wet .") == "a child's t-shirt, wet"
    assert normalize_caption(" ".join(["w"] * 40)) == " ".join(["w"] * 30)
    assert normalize_caption(" .!\n") == ""


def test_position_0_is_dec_and_never_cls(processor: Processor) -> None:
    """Training on [CLS], as most public scripts do, trains a start token that generation never uses."""
    ids = processor.encode("A red circle .")
    vocab = processor.tokenizer.get_vocab()
    assert ids == [processor.bos_token_id, vocab["a"], vocab["red"], vocab["circle"], vocab["[SEP]"]]
    assert processor.prompt_ids("a red") == ids[:3]
    assert vocab["[CLS]"] not in ids


def test_long_captions_keep_their_end_and_special_words_are_text(processor: Processor) -> None:
    ids = processor.encode("red " * 60, max_length=10)
    assert len(ids) == 10 and ids[-1] == processor.sep_token_id
    assert processor.encode("a [SEP] star").count(processor.sep_token_id) == 1
    with pytest.raises(ValueError, match="no room"):
        processor.encode("a star", prompt="red " * 9, max_length=10)


def test_decode_stops_at_sep_and_skips_special_tokens(processor: Processor) -> None:
    vocab = processor.tokenizer.get_vocab()
    ids = [
        processor.bos_token_id,
        vocab["red"],
        vocab["star"],
        vocab["##s"],
        vocab["[UNK]"],
        vocab["[SEP]"],
        vocab["a"],
        0,
    ]
    assert processor.decode(ids) == "red stars"
    assert processor.decode([99_999, vocab["do"] if "do" in vocab else vocab["a"]]) in ("a", "do")


@pytest.mark.parametrize(
    ("spaced", "text"),
    [
        ("a man in a t - shirt", "a man in a t-shirt"),
        ("the horse ' s mane", "the horse's mane"),
        ("a dog , a cat and 2 , 000 birds", "a dog, a cat and 2,000 birds"),
        ("they don ' t look", "they don't look"),
        ("a red / blue car", "a red/blue car"),
        ("plain words", "plain words"),
    ],
)
def test_detokenize(spaced: str, text: str) -> None:
    assert detokenize(spaced) == text


def test_round_trip_of_all_flickr8k_captions() -> None:
    """What people read has the same tokens as what the model said, over all 40,460 captions."""
    tokenizer = Tokenizer.from_file(str(real_data("hf_configs", "base") / "tokenizer.json"))
    processor = Processor(tokenizer, 384, 30522, 102, 0)
    lines = (real_data("flickr8k") / "Flickr8k.token.txt").read_text("utf-8").splitlines()
    captions = [normalize_caption(line.split("\t")[1]) for line in lines]
    ids = [processor.words(caption) for caption in captions]
    text = [processor.decode(row) for row in ids]
    assert len(captions) == 40460
    assert [processor.words(t) for t in text] == ids
    # Nothing but spaces differs from what was written, save for letters outside the vocabulary.
    same = sum(a.replace(" ", "") == b.replace(" ", "") for a, b in zip(text, captions, strict=True))
    assert same / len(captions) > 0.999, same
