"""Training images as BLIP saw them: cropped, mirrored, turned, changed in colour. Pillow and numpy only.

BLIP's own transform is torchvision's RandomResizedCrop(scale=(0.5, 1)), RandomHorizontalFlip and two operations of
RandAugment (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719) at magnitude 5 of 10, each left out half the time. Two
things differ. An image is not mirrored where that would make a caption wrong. And brightness and sharpness are drawn
from a range, as BLIP's factor at magnitude 5 is exactly 1, which changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from blip_lite.errors import ImageError
from blip_lite.processing.images import open_image
from blip_lite.processing.picture import Picture

SCALE = (0.5, 1.0)  # of the area that a crop keeps
RATIO = (3 / 4, 4 / 3)  # of its width to its height
SHEAR, SHIFT, TURN, ENHANCE = 0.15, 5 / 384, 15.0, 0.45  # at magnitude 5; SHIFT as a share of the side, TURN in degrees
GREY = (128, 128, 128)  # where an image was moved away
OPERATIONS = (
    "identity", "contrast", "equalise", "brightness", "sharpness", "turn", "shear x", "shear y", "shift x", "shift y",
)  # fmt: skip

# Words of captions that a mirror makes wrong: sides, in some languages, and text in the picture.
ONE_WAY = re.compile(
    r"(?<![^\W_])((left|right)(most|wards?|hand(ed)?)?|(counter|anti)?clockwise|sign(s|ed|age|posts?)?|texts?"
    r"|letters?|letter(ed|ing)|words?|(hand)?writ(ing|ings|ten|es?)|sa(id|ys?|ying)|reads?|reading|inscri(bed|ptions?)"
    r"|messages?|slogans?|titles?|subtitles?|captions?|(chalk|score|bill|sign)boards?|tattoo(s|ed)?|adverts?"
    r"|advertis(ements?|ing)|printed|typed|spell(s|ed|ing)?|number(s|ed)?|numerals?|digits?|logos?|labels?|labell?ed"
    r"|banners?|posters?|clocks?|licen[cs]e|plates?|jerseys?|graffiti|newspapers?|menus?|maps?|flags?"
    r"|gauche|droite?s?|izquierd[ao]s?|derech[ao]s?|linke[nrs]?|links|rechte[nrs]?|rechts|sinistr[ao]|destr[ao]"
    r"|esquerd[ao]s?|direit[ao]s?|слева|справа|лев\w+|прав\w+|text[eo]s?|schild(er)?|schrift|letreros?|panneaux?)"
    r"(?![^\W_])|[左右字]|[\"“«„].+[\"”»“]",
    re.IGNORECASE,
)


def augment(image: Image.Image, captions: Sequence[str], size: int, key: str) -> Image.Image:
    """An image as one epoch sees it.

    Args:
        image: RGB.
        captions: all of the image's; they decide whether it may be mirrored.
        size: S, of the result.
        key: the result is a function of image and key alone, so neither order, nor resuming, nor the number of workers
            changes it.

    Returns:
        RGB, S x S.
    """
    random = np.random.default_rng(list(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()))
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=crop(image.width, image.height, random))
    mirrored = random.random() < 0.5  # drawn in any case: the draws below do not depend on the captions
    if mirrored and not any(ONE_WAY.search(caption) for caption in captions):
        image = ImageOps.mirror(image)
    for operation in random.choice(OPERATIONS, 2):
        if random.random() < 0.5:
            image = changed(image, operation, random)
    return image


def crop(width: int, height: int, random: np.random.Generator) -> tuple[float, float, float, float]:
    """A box of a drawn area and shape, as torchvision draws it: ten attempts, then the largest in the middle."""
    for _ in range(10):
        area = width * height * random.uniform(*SCALE)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = random.uniform(0, width - w), random.uniform(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, height * RATIO[1]), min(height, width / RATIO[0])
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


def changed(image: Image.Image, operation: str, random: np.random.Generator) -> Image.Image:
    """One of RandAugment's operations at magnitude 5 of 10."""
    sign, factor = random.choice((-1, 1)), 1 + random.uniform(-ENHANCE, ENHANCE)
    if operation == "contrast":
        return ImageOps.autocontrast(image)
    if operation == "equalise":
        return ImageOps.equalize(image)
    if operation == "brightness":
        return ImageEnhance.Brightness(image).enhance(factor)
    if operation == "sharpness":
        return ImageEnhance.Sharpness(image).enhance(factor)
    if operation == "turn":
        return image.rotate(sign * TURN, Image.Resampling.BILINEAR, fillcolor=GREY)
    shear, shift = sign * SHEAR, sign * SHIFT * image.width
    matrices = {
        "shear x": (1, shear, 0, 0, 1, 0),
        "shear y": (1, 0, 0, shear, 1, 0),
        "shift x": (1, 0, shift, 0, 1, 0),
        "shift y": (1, 0, 0, 0, 1, shift),
    }
    if operation not in matrices:  # identity
        return image
    return image.transform(
        image.size, Image.Transform.AFFINE, matrices[operation], Image.Resampling.BILINEAR, fillcolor=GREY
    )


def augmented_key(seed: int, epoch: int, image_id: str) -> str:
    return f"{seed}/{epoch}/{image_id}"


def sheet(examples: Sequence[Picture], size: int, seed: int, path: Path, rows: int = 6, epochs: int = 5) -> None:
    """Write a picture of the first few images that can be read, a row each: as they are, then as each of the first
    epochs sees them."""
    side = min(size, 160)
    page = Image.new("RGB", ((epochs + 1) * side, rows * side), "white")
    row = 0
    for example in examples:
        with contextlib.suppress(ImageError, OSError):  # reported where it is trained on
            image = open_image(example.open())
            keys = [augmented_key(seed, epoch, example.image_id) for epoch in range(epochs)]
            for column, version in enumerate([image, *(augment(image, example.captions, size, key) for key in keys)]):
                page.paste(version.resize((side, side)), (column * side, row * side))
            row += 1
        if row == rows:
            break
    ImageDraw.Draw(page).line((side, 0, side, page.height), "red", 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.crop((0, 0, page.width, max(1, row) * side)).save(path)
