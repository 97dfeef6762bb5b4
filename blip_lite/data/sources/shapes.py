"""The embedded data set: scenes of coloured shapes, drawn by a seeded generator, five captions each.

A real learning problem that needs no download: colour, size, count and relative position must be seen in the
image to be said.
"""

from __future__ import annotations

import random
from functools import lru_cache, partial

from PIL import Image, ImageDraw

from blip_lite.data.dataset import Listing
from blip_lite.processing.picture import Picture

SCENES = 8000  # of some 9,000 that there are

COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 160, 60),
    "blue": (40, 90, 210),
    "yellow": (240, 200, 30),
    "purple": (140, 60, 170),
    "orange": (245, 130, 30),
}


SHAPES = ("circle", "square", "triangle", "star")


SIZES = {"small": 9, "large": 15}  # radius in pixels of a 64-pixel scene


NUMBERS = {2: "two", 3: "three", 4: "four"}


# relation: (captions' wording, the opposite wording, centre of the first, centre of the second)
RELATIONS = {
    "left": ("to the left of", "to the right of", (16, 32), (48, 32)),
    "above": ("above", "below", (32, 16), (32, 48)),
}


GRID = {2: [(18, 32), (46, 32)], 3: [(32, 17), (17, 46), (47, 46)], 4: [(17, 17), (47, 17), (17, 47), (47, 47)]}


def scene_ids(count: int, seed: int) -> list[str]:
    """`count` different scenes, e.g. `left-large-red-circle-small-blue-star`, `count-3-small-red-circle` or
    `group-2-small-red-circle-large-blue-star`. The id says all that a caption can say, so no two scenes have the same
    captions."""
    rng = random.Random(f"shapes-{seed}")
    scenes: dict[str, None] = {}
    while len(scenes) < count:
        a, b = _thing(rng), _thing(rng)
        kind = rng.choice(("left", "above", "left", "above", "group", "group", "count"))
        if kind == "count":
            scenes[f"count-{rng.choice(list(NUMBERS))}-{a}"] = None
        elif a != b:
            number = f"{rng.choice((2, 3))}-" if kind == "group" else ""
            scenes[f"{kind}-{number}{a}-{b}"] = None
    return list(scenes)


def _thing(rng: random.Random) -> str:
    return f"{rng.choice(list(SIZES))}-{rng.choice(list(COLOURS))}-{rng.choice(SHAPES)}"


def scene_captions(scene: str) -> list[str]:
    """Five paraphrases of a scene."""
    kind, *rest = scene.split("-")
    if kind in ("count", "group"):
        things = f"{NUMBERS[int(rest[0])]} {' '.join(rest[1:4])}s"
        if kind == "group":
            things += f" and a {' '.join(rest[4:])}"
        return [
            things,
            f"there are {things}",
            f"a picture of {things}",
            f"{things} on a white background",
            f"{things} and nothing else",
        ]
    relation, opposite, _, _ = RELATIONS[kind]
    a, b = (f"a {' '.join(thing)}" for thing in (rest[:3], rest[3:]))
    return [
        f"{a} {relation} {b}",
        f"there is {a} {relation} {b}",
        f"{b} {opposite} {a}",
        f"a picture of {a} {relation} {b}",
        f"{a} is {relation} {b}",
    ]


@lru_cache(10_000)  # 0.1 GB, as an epoch would else spend a third of its time on drawing the same pictures again
def draw_scene(scene: str, size: int = 64) -> Image.Image:
    """Draw a scene, `size` x `size` pixels, RGB; the same picture at every call, so leave it as it is."""
    rng = random.Random(scene)
    kind, *rest = scene.split("-")
    if kind in ("count", "group"):
        members = [rest[1:4]] * int(rest[0]) + ([rest[4:]] if kind == "group" else [])
        rng.shuffle(members)
        centres = GRID[len(members)]
    else:
        _, _, *centres = RELATIONS[kind]
        members = [rest[:3], rest[3:]]
    scale = 4 * size / 64  # drawn 4 times as large, for smooth edges
    image = Image.new("RGB", (4 * size, 4 * size), (255, 255, 255))
    for centre, (name, colour, shape) in zip(centres, members, strict=True):
        radius = SIZES[name]
        x, y, r = centre[0] + rng.uniform(-2, 2), centre[1] + rng.uniform(-2, 2), radius * rng.uniform(0.92, 1.0)
        shade = tuple(max(0, min(255, v + rng.randrange(-12, 13))) for v in COLOURS[colour])
        _draw_shape(ImageDraw.Draw(image), shape, x * scale, y * scale, r * scale, shade)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: tuple[int, ...]) -> None:
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "square":
        draw.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=fill)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=fill)
    else:
        # ten corners on two circles, the first at the top; (sin, cos) of multiples of 36 degrees
        waves = [(0.0, 1.0), (0.5878, 0.8090), (0.9511, 0.3090), (0.9511, -0.3090), (0.5878, -0.8090)]
        waves += [(-s, -c) for s, c in waves]
        corners = [
            (x + s * r * (0.45 if i % 2 else 1.1), y - c * r * (0.45 if i % 2 else 1.1))
            for i, (s, c) in enumerate(waves)
        ]
        draw.polygon(corners, fill=fill)


def load_shapes(count: int, seed: int) -> Listing:
    """`count` drawn scenes; held-out ones show combinations that were never trained on."""
    rows = (Picture(s, partial(draw_scene, s), tuple(scene_captions(s)), s) for s in scene_ids(count, seed))
    return Listing("shapes", rows, [])
