"""Reproduce the two leaks behind a BLEU-4 of 0.97: `python docs/leaks.py --data_dir flickr8k`; writes docs/leaks.json.

docs/why-not-0.97.md explains them. The library offers neither: this script has to go around it.
"""

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

from blip_lite import Captioner
from blip_lite.data.dataset import DataSet
from blip_lite.data.load import load_data
from blip_lite.evaluation import metrics
from blip_lite.evaluation.coco_process import coco_metrics
from blip_lite.processing.picture import Picture
from blip_lite.settings import DataSettings, TrainConfig
from blip_lite.training import setup
from blip_lite.training.loop import train

NAMES = ("Bleu_4", "METEOR", "CIDEr")


def split_rows(examples: list[Picture], seed: int = 42) -> dict[str, list[Picture]]:
    """Leak b: 90/5/5 of the rows (image, caption), as if they were independent. An image's rows in one part are its
    captions there."""
    rows = [(e, caption) for e in examples for caption in e.captions]
    random.Random(seed).shuffle(rows)
    cuts = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}
    splits = {}
    for split, (low, high) in cuts.items():
        found: dict[str, list[str]] = defaultdict(list)
        images = {e.image_id: e.image for e in examples}
        for example, caption in rows[round(low * len(rows)) : round(high * len(rows))]:
            found[example.image_id].append(caption)
        splits[split] = [Picture(i, images[i], tuple(captions)) for i, captions in found.items()]
    return splits


def numbers(captions: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    coco = coco_metrics(captions, references)
    bleu = metrics.sacrebleu(list(captions.values()), [references[i] for i in captions])["score"]
    return {"n": len(captions), "sacrebleu": bleu, **{name: coco[name] for name in NAMES}}


def without_a_model(examples: list[Picture], test: list[Picture]) -> dict[str, dict[str, float]]:
    """What copying references scores, under an honest split and under one of rows."""
    refs = {e.image_id: list(e.captions) for e in test}
    human = coco_metrics({i: r[0] for i, r in refs.items()}, refs, human=True)["human"]
    rows = {e.image_id: list(e.captions) for e in split_rows(examples)["test"]}
    copies = {i: r[0] for i, r in rows.items()}
    longer = {i: c + " on the grass" if k % 10 == 0 else c for k, (i, c) in enumerate(copies.items())}
    return {
        "one human, against the other four": {"n": len(test), **{name: human[name] for name in NAMES}},
        "a copy of reference 1, against all five": numbers({i: r[0] for i, r in refs.items()}, refs),
        "rows split: a copy of the row's own reference": numbers(copies, rows),
        "the same, three words added to each tenth": numbers(longer, rows),
    }


def caption(captioner: Captioner, examples: list[Picture], leak: bool) -> dict[str, str]:
    """Leak a: the first reference goes in as the prompt, and comes out as the beginning of the caption."""
    prompts = [e.captions[0] if leak else "" for e in examples]
    found = captioner([e.open() for e in examples], prompts, batch_size=32, num_beams=5, max_new_tokens=20)
    return {e.image_id: said for e, said in zip(examples, found, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True, help="Flickr8k, original layout")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--runs", default="runs/leaks", help="where the two models are trained")
    parser.add_argument("--table", action="store_true", help="only the table that needs no model")
    args = parser.parse_args()
    whole = load_data(DataSettings(data_dir=args.data_dir, split_scheme="official"), seed=42)
    everything = [e for split in whole.splits.values() for e in split]
    out = Path(__file__).with_name("leaks.json")
    result = json.loads(out.read_text("utf-8")) if out.is_file() else {}
    if args.table:
        result["without a model"] = without_a_model(everything, whole.splits["test"])
        out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
        return

    # A small model that sees few images often: it learns them by heart, as 224M parameters do with all of them.
    few = whole.splits["train"][:1000]
    honest = {"train": few[:900], "validation": whole.splits["validation"][:200], "test": whole.splits["test"][:400]}
    for name, splits in (("honest", honest), ("b", split_rows(few))):
        config = TrainConfig.of(
            dataset="flickr8k", data_dir=args.data_dir, model="tiny", epochs=args.epochs, batch_size=32,
            output_dir=f"{args.runs}/{name}", resume=True, learning_rate=2e-3, num_workers=1, eval_every=10_000,
        )  # fmt: skip
        setup.load_data = lambda *_, splits=splits: DataSet("flickr8k", splits, [])
        train(config)
        captioner = Captioner.from_pretrained(str(sorted(Path(args.runs, name).glob("checkpoint-*"))[-1]))
        for leak in (False, True):
            row = {"honest": "a", "b": "a + b"}[name] if leak else name
            for split in ("test", "validation"):
                captions = caption(captioner, splits[split], leak)
                references = {e.image_id: list(e.captions) for e in splits[split]}
                result.setdefault(split, {})[row] = numbers(captions, references)
                print(row, split, result[split][row], flush=True)
    out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
