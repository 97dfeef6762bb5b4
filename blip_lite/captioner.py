"""`Captioner`: images in, captions out."""

from __future__ import annotations

import logging
import os
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from blip_lite.errors import ConfigError
from blip_lite.model import graphs
from blip_lite.model.blip import IGNORE, Blip, avoid_cudnn_attention
from blip_lite.model.generation import GenerationSettings, generate
from blip_lite.model.pretrained import load_pretrained
from blip_lite.model.quantize import quantize_encoder
from blip_lite.processing.images import ImageInput
from blip_lite.processing.processor import Processor
from blip_lite.processing.threads import Threads
from blip_lite.processing.upload import upload
from blip_lite.processing.word_filter import BannedWords

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def pick_device(device: str | int | torch.device | None = "auto") -> torch.device:
    """`auto` (or None) is CUDA, else Apple's GPU, else the CPU; a number is a CUDA device. Raises ConfigError for
    one that this machine does not have."""
    if device in ("auto", None):
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        found = torch.device(f"cuda:{device}" if isinstance(device, int) else str(device))
    except RuntimeError as error:
        raise ConfigError(f"device {device!r}: {error}") from error
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if found.type not in there:
        raise ConfigError(f"device {device!r}: expected auto, cpu, cuda, cuda:1 or mps")
    if (found.index or 0) >= there[found.type]:
        raise ConfigError(f"device {device!r}: this machine has {there[found.type]} of them")
    return found


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoding_threads() -> int:
    """How many threads read and decode images ahead of a model, unless told: Pillow lets them work at the same time."""
    return min(16, max(4, cores()))


def default_batch_size(device: torch.device) -> int:
    """Images that are captioned at a time, unless told. On a CPU more are no faster."""
    return 64 if device.type == "cuda" else 8


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in any of its forms: torch.OutOfMemoryError, cuBLAS and cuDNN that find no room for
    themselves, torch.AcceleratorError, and the CPU's plain RuntimeError."""
    told = ("out of memory", "alloc_failed", "can't allocate memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in told)
    )


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """`auto` (or None) is bfloat16 on a GPU that has it, float16 on an older one, else float32. Raises ConfigError."""
    if dtype in ("auto", None):
        if device.type != "cuda":
            return torch.float32
        with torch.cuda.device(device):  # torch asks the current one, and two GPUs may be of two kinds
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"dtype {dtype}: expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def is_one(images: Any) -> bool:
    """Whether this is a single image; an open file is iterable, and still one, as are `{"bytes": ...}` of `datasets`
    and a tensor. An array of objects or of four dimensions is several."""
    if isinstance(images, np.ndarray):
        return images.ndim < 4 and images.dtype.kind in "biuf"
    if isinstance(images, Tensor):
        return images.ndim < 4
    if isinstance(images, Mapping):
        return True
    return (
        isinstance(images, typing.get_args(ImageInput)) or hasattr(images, "read") or not isinstance(images, Iterable)
    )


class Captioner:
    """Captions images with a BLIP model.

    >>> captioner = Captioner.from_pretrained("runs/shapes/best")  # or a Hub id
    >>> captioner("photo.jpg")
    'a dog runs through the grass'
    >>> captioner(["a.jpg", "b.jpg"], num_beams=3, max_new_tokens=20)
    ['...', '...']
    """

    def __init__(self, model: Blip, processor: Processor) -> None:
        self.model, self.processor = model, processor
        self.images_that_fit: int | None = None  # at a time, once memory ran out
        avoid_cudnn_attention(model.device)

    @staticmethod
    def from_pretrained(
        path_or_id: str | Path,
        device: str | int | torch.device | None = "auto",
        dtype: str | torch.dtype | None = "auto",
        quantize: str | None = None,
        cuda_graphs: bool = False,
    ) -> Captioner:
        """Load a checkpoint directory or a Hub id.

        Args:
            path_or_id: e.g. `runs/flickr8k/best`, `last.ckpt` or `Salesforce/blip-image-captioning-base`, as for
                `load_pretrained`.
            device: `auto`, `cpu`, `cuda`, `cuda:1` or 1, `mps`.
            dtype: of the weights; `auto` is bfloat16 on a GPU that has it, float16 on an older one, else float32.
            quantize: `"int8"` runs the image encoder in 8-bit integers. Captions differ now and then from float32's
                (`benchmarks/README.md` says how often), and the first image waits for a compilation (some 40 s on 2
                cores at base size). CPU only; needs `pip install blip_lite[int8]` and a C++ compiler.
            cuda_graphs: beams and greedy search replay a recorded step instead of launching its kernels one by one.
                CUDA only; no GPU has run it yet.

        Raises:
            CheckpointError: it cannot be found, or is not a BLIP captioning checkpoint.
            ValueError: an option that this machine does not have.
        """
        device = pick_device(device)
        if quantize and device.type != "cpu":
            raise ConfigError(f"quantize is for the CPU; the device is {device}")
        if cuda_graphs and device.type != "cuda":
            raise ConfigError(f"cuda_graphs is for CUDA; the device is {device}")
        model, processor = load_pretrained(path_or_id, device, pick_dtype(dtype, device))
        model.recorded_search = graphs.search if cuda_graphs else None
        if quantize:
            quantize_encoder(model, quantize)
        return Captioner(model, processor)

    @overload
    def __call__(self, images: ImageInput, **settings: Any) -> Any: ...
    @overload
    def __call__(self, images: Iterable[ImageInput], **settings: Any) -> list[Any]: ...
    def __call__(
        self,
        images: ImageInput | Iterable[ImageInput],
        prompt: str | Sequence[str | None] | None = None,
        batch_size: int | None = None,
        return_scores: bool = False,
        **settings: Any,
    ) -> Any:
        """Caption one image or many.

        Args:
            images: a path, the bytes of a file, an open file, a `PIL.Image`, an array `[height, width, 3]`, a tensor
                `[3, height, width]`, `{"bytes", "path"}` of `datasets`, or several of these.
            prompt: how captions shall begin, e.g. `"a photography of"`; one for all images, or one an image. It
                is part of the caption. None: that with which the checkpoint was trained, which is left out.
            batch_size: images at a time, by default 64 on CUDA, else 8; fewer where memory runs out. It changes speed
                and memory, in float32 on a CPU not captions (but for `do_sample`); in half precision and on a GPU, sums
                round otherwise, and a close call may fall otherwise.
            return_scores: give (caption, score) for each caption: the mean log-probability of its new tokens.
            **settings: fields of `GenerationSettings`, by default as the checkpoint's run had them: `num_beams=5`,
                `max_new_tokens=30`, `min_new_tokens`, `length_penalty`, `repetition_penalty`, `no_repeat_ngram_size`,
                `early_stopping`, `num_return_sequences`,
                `do_sample` (with `num_beams=1`), `temperature`, `top_k`, `top_p`, `seed`, `banned_words` (see
                `processing/word_filter.py`).

        Returns:
            A caption, or for a list of images a list of captions. With `num_return_sequences` above 1 each
            caption is a list, best first.

        Raises:
            ImageError: an image cannot be read; the message names it.
            ValueError: settings that make no sense.
            torch.OutOfMemoryError: not even one image fits into memory.
        """
        batch_size = default_batch_size(self.model.device) if batch_size is None else batch_size
        if batch_size < 1:
            raise ConfigError("batch_size must be at least 1")
        generation = self.settings(**settings)
        single = is_one(images)
        sources: Sequence[Any] = [images] if single else list(images)  # type: ignore[arg-type]
        prompts = [prompt] * len(sources) if isinstance(prompt, str | None) else list(prompt)
        if len(prompts) != len(sources):
            raise ValueError(f"{len(prompts)} prompts for {len(sources)} images")

        captions: list[Any] = []
        for pixels in self.batches(sources, batch_size):
            part = slice(len(captions), len(captions) + len(pixels))
            found = self.caption_and_score(pixels, generation, prompts[part])
            rows = [pairs if return_scores else [caption for caption, _ in pairs] for pairs in found]
            captions += [row if generation.num_return_sequences > 1 else row[0] for row in rows]
        return captions[0] if single else captions

    def pixels(self, image: ImageInput) -> Tensor:
        """An image, decoded and on its way to the model's device: `[3, S, S]` uint8. Raises ImageError."""
        return upload(self.processor.rgb(image), self.model.device)

    def batches(self, images: Sequence[ImageInput], batch_size: int) -> Iterator[Tensor]:
        """`[I, 3, S, S]` of so many images at a time, in order; files are decoded by threads, for a GPU those of the
        next batch while it works on one. Raises ImageError at the batch of the image."""
        ahead = self.model.device.type != "cpu"  # whose cores are busy with this batch
        pool = Threads(min(decoding_threads(), len(images)) if len(images) > 1 else 0)

        def begin(at: int) -> list[Future[Tensor] | ImageInput]:
            """A batch, its files handed to the threads; other objects may come twice, and are not for two threads."""
            return [
                pool.submit(self.pixels, image) if pool.threads and isinstance(image, (str, Path, bytes)) else image
                for image in images[at : at + batch_size]
            ]

        try:
            jobs = begin(0)
            for at in range(0, len(images), batch_size):
                following = begin(at + batch_size) if ahead else []
                yield torch.stack([job.result() if isinstance(job, Future) else self.pixels(job) for job in jobs])
                jobs = following or begin(at + batch_size)
        finally:
            pool.shutdown()

    def settings(self, **explicit: Any) -> GenerationSettings:
        """How to decode: as told, else as the checkpoint's run did. Raises ConfigError."""
        own = {"num_beams": GenerationSettings.num_beams, **self.processor.decoding}
        several, longest = explicit.get("num_return_sequences"), explicit.get("max_new_tokens")
        if explicit.get("do_sample"):
            own["num_beams"] = 1
        elif isinstance(several, int) and several > own["num_beams"]:  # these have to grow
            own["num_beams"] = max(GenerationSettings.num_beams, several)
        if isinstance(longest, int) and longest < own.get("min_new_tokens", 0):
            own.pop("min_new_tokens")
        return GenerationSettings(**{**own, **explicit})

    def caption_pixels(
        self,
        pixel_values: Tensor,
        settings: GenerationSettings,
        prompts: Sequence[str | None] = (),
        with_prompt: bool = True,
    ) -> list[list[str]]:
        """Caption a batch of preprocessed images.

        Args:
            pixel_values: `[I, 3, S, S]`, uint8 as `pixels` gives them, or normalised as the processor's `pixel_values`.
            settings: how to decode.
            prompts: one an image, or none; for each that is None the checkpoint's own, which captions leave out.
            with_prompt: whether captions begin with the prompt.

        Returns:
            `num_return_sequences` captions an image, best first.
        """
        found = self.caption_and_score(pixel_values, settings, prompts, with_prompt)
        return [[caption for caption, _ in pairs] for pairs in found]

    def caption_and_score(
        self,
        pixel_values: Tensor,
        settings: GenerationSettings,
        prompts: Sequence[str | None] = (),
        with_prompt: bool = True,
    ) -> list[list[tuple[str, float]]]:
        """As `caption_pixels`, each caption with the mean log-probability of its new tokens, `[SEP]` included.

        It is the one that was searched with: what `min_new_tokens`, `no_repeat_ngram_size` and, with one beam,
        `banned_words` rule out has no probability in it, and `repetition_penalty` lowers it, so that only captions
        that were decoded alike can be compared. `score` knows none of these. Where memory runs out, half as many images
        are captioned at a time, and so on; from then on no more than what did fit.

        Raises:
            torch.OutOfMemoryError: not even one image fits.
        """
        prompts = list(prompts) or [None] * len(pixel_values)
        captions: list[list[tuple[str, float]]] = []
        too_many = 0
        while (at := len(captions)) < len(pixel_values):
            size = min(self.images_that_fit or len(pixel_values), len(pixel_values) - at)
            part = slice(at, at + size)
            try:
                captions += self._caption(pixel_values[part], settings, prompts[part], with_prompt)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise torch.OutOfMemoryError(
                        f"memory has no room for a single image with {settings.num_beams} beams: fewer beams, fewer "
                        "new tokens and bfloat16 take less"
                    ) from error
                self.images_that_fit, too_many = size // 2, size
                continue  # out of here, as the error holds on to all that lies on the device
            if too_many:
                log.warning("out of memory with %d images at a time; %d fit", too_many, size)
                too_many = 0
        return captions

    def _caption(
        self, pixel_values: Tensor, settings: GenerationSettings, prompts: Sequence[str | None], with_prompt: bool
    ) -> list[list[tuple[str, float]]]:
        """`caption_and_score`, all at once."""
        device = self.model.device
        pixel_values = self._prepared(pixel_values)
        own = self.processor.prompt
        ids = [self.processor.prompt_ids(own if prompt is None else prompt) for prompt in prompts]
        banned = BannedWords(self.processor, settings.banned_words) if settings.banned_words else None
        captions: list[list[tuple[str, float]]] = [[] for _ in ids]
        # Prompts of one length at a time: no padding, so a caption does not depend on its neighbours' prompts.
        for length in sorted({len(prompt) for prompt in ids}):
            rows = [i for i, prompt in enumerate(ids) if len(prompt) == length]
            prompt_ids = upload([ids[i] for i in rows], device)
            pixels = pixel_values if len(rows) == len(ids) else pixel_values[upload(rows, device)]
            found = generate(self.model, pixels, prompt_ids, settings, banned)
            new, scores = found.sequences[:, :, length:], found.scores
            if settings.num_beams > 1:  # sum / length ** length_penalty -> sum / length
                ended = (new == self.processor.sep_token_id).long()
                lengths = torch.where(ended.any(-1), ended.argmax(-1) + 1, settings.max_new_tokens)
                scores = scores * lengths ** (settings.length_penalty - 1)
            for i, texts, values in zip(rows, new.tolist(), scores.tolist(), strict=True):
                begins = ids[i] if with_prompt and prompts[i] is not None else []
                captions[i] = [
                    (self.processor.decode([*begins, *text]), value) for text, value in zip(texts, values, strict=True)
                ]
        return captions

    def _prepared(self, pixel_values: Tensor) -> Tensor:
        """As the model takes them, on its device."""
        return self.processor.normalize(upload(pixel_values, self.model.device)).to(self.model.dtype)

    def score(self, images: ImageInput | Sequence[ImageInput], captions: Any, prompt: str | None = None) -> Any:
        """How likely the model finds a caption of an image: the mean log-probability of its tokens, `[SEP]` included.

        Args:
            images: one image or a list, as in `__call__`.
            captions: a text, or several; for a list of images, one of these an image. They are normalised as in
                training, and cut at the model's longest.
            prompt: how captions begin; its tokens are not counted. None: as in `__call__`.

        Returns:
            A number at most 0, or a list as `captions` is.

        Raises:
            ImageError: an image cannot be read.
            ValueError: not as many captions as images, or an empty one.
        """
        if is_one(images):
            return self.score([typing.cast(ImageInput, images)], [captions], prompt)[0]
        images, prompt = list(images), self.processor.prompt if prompt is None else prompt  # type: ignore[arg-type]
        if len(captions) != len(images):
            raise ValueError(f"{len(captions)} captions for {len(images)} images")
        scores: list[Any] = []
        skip, longest = len(self.processor.prompt_ids(prompt)), self.model.config.text.max_position_embeddings
        for image, texts in zip(images, captions, strict=True):
            rows = [self.processor.encode(t, prompt, longest) for t in ([texts] if isinstance(texts, str) else texts)]
            if not rows or min(map(len, rows)) < skip + 2:
                raise ValueError(f"a caption to score is empty: {texts!r}")
            ids = torch.full((1, len(rows), max(map(len, rows))), self.processor.pad_token_id)
            labels = torch.full_like(ids, IGNORE)
            for k, row in enumerate(rows):
                ids[0, k, : len(row)] = torch.tensor(row)
                labels[0, k, skip : len(row)] = ids[0, k, skip : len(row)]
            found = self.score_pixels(self.pixels(image)[None], ids, labels)[0].tolist()
            scores.append(found[0] if isinstance(texts, str) else found)
        return scores

    @torch.inference_mode()
    def score_pixels(self, pixel_values: Tensor, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Mean log-probability of each caption's targets, `[I, K]` on the CPU; NaN for one without targets.

        Args:
            pixel_values: as in `caption_pixels`.
            input_ids: `[I, K, T]`, as in `Blip.forward`.
            labels: `[I, K, T]`, `IGNORE` where a token is not to count.
        """
        device = self.model.device
        hidden = self.model.decode(input_ids.to(device), self.model.encode(self._prepared(pixel_values)))[:, :, :-1]
        targets = labels.to(device)[:, :, 1:]
        wanted = targets != IGNORE
        log_probs = torch.zeros(targets.shape, device=device)
        logits = self.model.logits(hidden[wanted]).float()
        log_probs[wanted] = -torch.nn.functional.cross_entropy(logits, targets[wanted], reduction="none")
        return (log_probs.sum(-1) / wanted.sum(-1)).cpu()
