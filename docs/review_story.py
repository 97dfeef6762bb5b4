"""The story of docs/review.md: pictures that a checkpoint is bad at, and somebody who corrects its captions.

    python docs/review_story.py draw                  # photos/, to be captioned; heldout/, to measure with
    python docs/review_story.py correct captions.jsonl reviewed.csv 30

The pictures are drawn scenes on brown paper; the checkpoint was trained on white. The second command plays the person
at the page: it looks at the doubtful ones first, approves a caption that is true, and edits one that is not as little as it
can. It knows the truth, as a person sees it.
"""

import csv
import difflib
import sys
from pathlib import Path

from PIL import Image, ImageChops

from blip_lite.captioning.review import Review
from blip_lite.data.sources.shapes import draw_scene, scene_captions, scene_ids

PAPER = (150, 115, 80)
TRAINED_ON = 2000  # scenes of `--dataset shapes --scenes 2000`, which are in neither folder


def draw() -> None:
    known = set(scene_ids(TRAINED_ON, seed=42))
    fresh = [scene for scene in scene_ids(1500, seed=1) if scene not in known]
    for folder, scenes in ((Path("photos"), fresh[:200]), (Path("heldout"), fresh[200:600])):
        folder.mkdir()
        rows = []
        for number, scene in enumerate(scenes):
            picture = ImageChops.multiply(draw_scene(scene), Image.new("RGB", (64, 64), PAPER))
            picture.save(folder / f"{number:03d}.png")
            rows += [(f"{number:03d}.png", caption) for caption in scene_captions(scene)]
        truth = folder.with_name("truth.csv") if folder.name == "photos" else folder / "metadata.csv"
        with open(truth, "w", newline="") as file:
            csv.writer(file).writerows([("file_name", "caption"), *rows])


def correct(captions: Path, output: Path, count: int) -> None:
    truth: dict[str, list[str]] = {}
    with open("truth.csv", newline="") as file:
        for row in csv.DictReader(file):
            truth.setdefault(row["file_name"], []).append(row["caption"])
    with Review(captions, output) as review:
        for item in sorted(review.items, key=lambda item: item.order)[:count]:
            said, true = item.captions[0], truth[Path(item.name).name]
            nearest = max(true, key=lambda text: difflib.SequenceMatcher(None, text.split(), said.split()).ratio())
            review.decide(item.key, "approved", [nearest])
        print(review.progress())


if __name__ == "__main__":
    if sys.argv[1] == "draw":
        draw()
    else:
        correct(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
