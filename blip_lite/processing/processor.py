"""Pictures <-> the model's pixels, captions <-> token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from blip_lite.errors import ConfigError
from blip_lite.processing.images import ImageInput, open_image
from blip_lite.processing.text import detokenize, normalize_caption
from blip_lite.processing.upload import upload

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")  # BERT's five and BLIP's two


def wordpiece(vocab: dict[str, int], about: Mapping[str, Any] | None = None) -> Tokenizer:
    """BERT's tokenizer around a vocabulary: uncased, unless `about`, a `tokenizer_config.json`, says otherwise."""
    about = about or {}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=about.get("do_lower_case", True),
        strip_accents=about.get("strip_accents"),
        handle_chinese_chars=about.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


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
    max_words: int = 30  # of a training caption, BLIP's own rule
    prompt: str = ""  # with which the model was trained; captions begin after it
    decoding: dict[str, Any] = field(default_factory=dict)  # the run's, fields of `GenerationSettings`
    _table: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True  # a caption that says "[SEP]" is text, not an end
        # A pixel has 256 values, so rescaling and normalising is looking up; in transformers' precision. Unlike
        # arithmetic, that is the same to the bit on every device: CUDA divides by a number in another way than the CPU.
        values = (np.arange(256, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        mean, std = (np.array(v, dtype=np.float32)[:, None] for v in (self.image_mean, self.image_std))
        self._table = torch.from_numpy((values - mean) / std)  # [3, 256]

    def rgb(self, source: ImageInput) -> Tensor:
        """One image, resized -> `[3, S, S]` uint8: what travels, a quarter of the bytes. Raises ImageError."""
        image = open_image(source).resize((self.image_size, self.image_size), Image.Resampling(self.resample))
        return torch.from_numpy(np.stack([np.asarray(band) for band in image.split()]))

    def normalize(self, pixels: Tensor) -> Tensor:
        """`[..., 3, S, S]` uint8 -> float32, rescaled and normalised, on its device. What is floating point, and so
        normalised (or encoded) already, is returned as it is."""
        if pixels.is_floating_point():
            return pixels
        if pixels.device.type == "cpu":  # numpy looks up in half the time
            found = np.empty(pixels.shape, np.float32)
            for at in np.ndindex(pixels.shape[:-2]):  # mode="clip": the other modes copy `out`
                np.take(self._table[at[-1]].numpy(), pixels[at].numpy(), out=found[at], mode="clip")
            return torch.from_numpy(found)
        table, channels = upload(self._table, pixels.device), torch.arange(3, dtype=torch.int32, device=pixels.device)
        return table.flatten().index_select(0, (pixels + 256 * channels[:, None, None]).flatten()).view(pixels.shape)

    def pixels(self, source: ImageInput) -> Tensor:
        """One image -> `[3, S, S]` float32, normalised. Raises ImageError."""
        return self.normalize(self.rgb(source))

    def pixel_values(self, images: Iterable[ImageInput]) -> Tensor:
        """Images -> `[I, 3, S, S]`. Raises ImageError, which names the image."""
        return torch.stack([self.pixels(image) for image in images])

    @property
    def mask_token_id(self) -> int:
        """`[MASK]`. Raises ConfigError where the vocabulary has none."""
        found = self.tokenizer.token_to_id("[MASK]")
        if found is None:
            raise ConfigError("--parallel_prediction: the checkpoint's vocabulary has no [MASK]; leave it at 0")
        return int(found)

    def words(self, text: str) -> list[int]:
        """Token ids of plain text, no special tokens added."""
        try:
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:  # of a command line, or a file, that is no UTF-8
            return self.tokenizer.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False).ids

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
        return [*start, *self.words(normalize_caption(caption, self.max_words))[:room], self.sep_token_id]

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
