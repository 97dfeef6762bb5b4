"""Untrusted bytes -> pixels, captions <-> token ids, and text that people can read."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tokenizers import Tokenizer
from torch import Tensor

ImageInput = str | Path | bytes | Image.Image | np.ndarray

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
)  # no others, whatever a file is called: of EPS, Pillow runs Ghostscript
STRIP = 256  # rows
PIXELS_A_BYTE = 300  # of a file; photographs have 2 to 20, and a bomb of few bytes takes many seconds
MAX_SIDE = 2**16 - 1  # pixels; JPEG's own limit
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")  # BERT's five and BLIP's two


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


# ---------------------------------------------------------------------------------------------- images


def open_image(source: ImageInput) -> Image.Image:
    """Decode an image and turn it into upright RGB.

    EXIF orientation is applied. Alpha and palette transparency are laid on white, 16-bit greys are scaled to 8
    bits (Pillow would clip them), everything else is converted by Pillow. Of an animation, the first frame.

    Args:
        source: a path, the bytes of a file, a Pillow image, or an array `[height, width]` or
            `[height, width, 1|3|4]`, uint8 (0 to 255) or floating (0 to 1).

    Raises:
        ImageError: no such file, not an image, truncated, or a decompression bomb: more than Pillow's limit of 179
            megapixels, a side above 65,535, or more than 89 megapixels (`Image.MAX_IMAGE_PIXELS`) at above 300 a byte.
    """
    name = str(source) if isinstance(source, (str, Path)) else f"<{type(source).__name__}>"
    try:
        if isinstance(source, np.ndarray):
            image = _from_array(source)
        elif isinstance(source, Image.Image):
            image = source
        else:
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
            size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
            dense = image.width * image.height > max(Image.MAX_IMAGE_PIXELS or 0, PIXELS_A_BYTE * size)
            if dense or max(image.size) > MAX_SIDE:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels in {size} bytes")
        if not (image.width and image.height):
            raise ValueError("it has no pixels")
        image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: not a JPEG, PNG, WebP, BMP, GIF or TIFF image") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: refused, {error}") from error
    except Exception as error:  # of broken files Pillow raises whatever its decoders do, struct.error among them
        raise ImageError(f"{name}: cannot be decoded ({error})") from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"an array of shape {array.shape} is no image; expected [height, width(, 1, 3 or 4)]")
    if np.issubdtype(array.dtype, np.floating):
        if array.size and (array.min() < 0 or array.max() > 1):
            raise ValueError("floating-point pixels must lie between 0 and 1")
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"pixels of type {array.dtype}; expected uint8 or floating point")
    return Image.fromarray(array)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I"):  # 16-bit grey, held in 16 or 32 bits
        grey = np.asarray(image).astype(np.float64) / 257  # 65535 -> 255
        return Image.fromarray(np.clip(np.round(grey), 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        rgb = Image.new("RGB", image.size)
        for top in range(0, image.height, STRIP):  # in strips: a large image is not held four times
            strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
            white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
            rgb.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
        return rgb
    return image.convert("RGB")


# -------------------------------------------------------------------------------------------- captions


def normalize_caption(caption: str, max_words: int = 30) -> str:
    """BLIP's own caption rule: lower case, `.!"()*#:;~` removed, white space folded, at most `max_words` words.

    Applied to training targets and to both sides of validation BLEU, so that all see the same text. Source:
    `pre_caption` in https://github.com/salesforce/BLIP/blob/main/data/utils.py
    """
    words = re.sub(r"[.!\"()*#:;~]", " ", caption.lower()).split()
    return " ".join(words[:max_words])


def detokenize(text: str) -> str:
    """Undo the spaces that BERT's tokenizer puts around punctuation: `a t - shirt` -> `a t-shirt`.

    Only white space changes, so the result has the same tokens.
    """
    text = re.sub(r"(?<=\w) ' (?=(?:s|t|d|m|re|ve|ll)\b)", "'", text)  # horse ' s, doesn ' t
    text = re.sub(r"(?<=\w) ([-/]) (?=\w)", r"\1", text)
    text = re.sub(r"(?<=\d) ([.,]) (?=\d)", r"\1", text)
    text = re.sub(r" ([,.!?;:%)\]])", r"\1", text)
    return re.sub(r"([(\[$#]) ", r"\1", text)


@dataclass
class Processor:
    """Everything between people and the model's tensors; made by `pretrained.load_processor`.

    Attributes:
        tokenizer: uncased WordPiece.
        image_size: S, pixels; images are resized to S x S without cropping, as BLIP was trained.
        bos_token_id: `[DEC]`. It need not be in the tokenizer's vocabulary, and is not in the published one.
    """

    tokenizer: Tokenizer
    image_size: int
    bos_token_id: int
    sep_token_id: int
    pad_token_id: int
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD
    resample: int = Image.Resampling.BICUBIC
    rescale_factor: float = 1 / 255
    _table: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True  # a caption that says "[SEP]" is text, not an end
        # A pixel has 256 values, so rescaling and normalising is looking up; in transformers' precision.
        values = (np.arange(256, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        mean, std = (np.array(v, dtype=np.float32)[:, None] for v in (self.image_mean, self.image_std))
        self._table = (values - mean) / std  # [3, 256]

    def pixels(self, source: ImageInput) -> Tensor:
        """One image -> `[3, S, S]` float32, normalised. Raises ImageError."""
        image = open_image(source).resize((self.image_size, self.image_size), Image.Resampling(self.resample))
        array, normalised = np.asarray(image), np.empty((3, *image.size), np.float32)
        for c in range(3):  # mode="clip": the other modes copy `out`
            np.take(self._table[c], array[:, :, c], out=normalised[c], mode="clip")
        return torch.from_numpy(normalised)

    def pixel_values(self, images: Iterable[ImageInput]) -> Tensor:
        """Images -> `[I, 3, S, S]`. Raises ImageError, which names the image."""
        return torch.stack([self.pixels(image) for image in images])

    def words(self, text: str) -> list[int]:
        """Token ids of plain text, no special tokens added."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prompt_ids(self, prompt: str = "") -> list[int]:
        """What generation starts from: `[DEC]` and the prompt's tokens."""
        return [self.bos_token_id, *self.words(prompt.lower())]

    def encode(self, caption: str, prompt: str = "", max_length: int = 40) -> list[int]:
        """A training target: `[DEC] prompt caption [SEP]`, at most `max_length` tokens, `[SEP]` kept.

        The caption is normalised first. Raises ValueError where the prompt leaves no room for a caption.
        """
        start = self.prompt_ids(prompt)
        room = max_length - len(start) - 1
        if room < 1:
            raise ValueError(f"the prompt takes {len(start)} of max_length={max_length} tokens: no room for a caption")
        return [*start, *self.words(normalize_caption(caption))[:room], self.sep_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids -> text for people; stops at `[SEP]`, leaves out special and unknown tokens.

        The pieces are joined here: the tokenizer's own decoder also rewrites "do not" to "don't".
        """
        pieces: list[str] = []
        for token in ids:
            if token == self.sep_token_id:
                break
            piece = self.tokenizer.id_to_token(token)
            if piece is not None and piece not in SPECIAL_TOKENS:
                pieces.append(piece)
        return detokenize(" ".join(pieces).replace(" ##", ""))
