"""Numbers -> what they say, in words, each with what to do next. Where they do not allow a verdict there is none.

The verdicts of an evaluation are `of_result`, those of a run's log `of_log`; both are put together of functions of
plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from blip_lite.data.look import FEW

# A share of so many images is known to about ±20 points; of fewer, chance alone makes whatever it likes.
ENOUGH_IMAGES = 20
# What most people say is a little nearer to the others than one person is, so a model may score above one human. The
# leaks of docs/why-not-0.97.md score four times as much.
ABOVE_HUMAN = 1.25
# One human says word for word what another said of the same photograph in a few of a hundred images, no more.
WORD_FOR_WORD = 0.3
# The usual level: one in twenty tests of equal systems errs.
SIGNIFICANT = 0.05
# One caption for more than every second image describes none of them.
COMMONEST = 0.5
# A tenth of the different captions that a human writes for the same images: some templates, chosen by a glance.
VARIETY = 0.1
# Of the loss. Smaller rises come and go between two validations of a run that still learns.
RISE = 0.02

LEAK = "possible leak"


class Verdict(TypedDict):
    """`name` in two or three words, `text` with the numbers, `advice` in one sentence."""

    name: str
    text: str
    advice: str


def leak(score: float, low: float, human: float | None, exact_match_rate: float, images: int) -> list[Verdict]:
    """Too good to be true.

    Args:
        score, low: sacreBLEU, and the lower end of its interval.
        human: that of one human against the others; None where images have one caption.
        exact_match_rate: share of captions that are a reference, word for word.
        images: how many were scored.
    """
    if images < ENOUGH_IMAGES:
        return []
    signs = []
    if human and score > ABOVE_HUMAN * human and low > human:
        signs.append(
            f"sacreBLEU {score:.1f} is more than {ABOVE_HUMAN} times what one human scores against the others "
            f"({human:.1f})"
        )
    if exact_match_rate > WORD_FOR_WORD:
        signs.append(f"{exact_match_rate:.0%} of the captions are one of their references, word for word")
    advice = "Look for images that were trained on with `blip-lite audit`, and for references in the prompt."
    return [{"name": LEAK, "text": "; ".join(signs), "advice": advice}] if signs else []


def against(what: str, score: float, other: float, p_value: float, images: int, good: str, bad: str) -> list[Verdict]:
    """Better than another system or not, by the paired bootstrap test of the same images.

    Args:
        what: the other system.
        score, other: sacreBLEU of the two.
        p_value: the chance of so large a difference between equal systems.
        good, bad: what to do if it is better, if not.
    """
    if images < ENOUGH_IMAGES:
        return []
    text = f"sacreBLEU {score:.1f} against {other:.1f}, p = {p_value:.3f}"
    if p_value >= SIGNIFICANT:
        return [{"name": f"no better than {what}", "text": f"{text}, which chance may explain", "advice": bad}]
    if score > other:
        return [{"name": f"better than {what}", "text": text, "advice": good}]
    return [{"name": f"worse than {what}", "text": text, "advice": bad}]


def collapsed(
    images: int, distinct: int, commonest: float, human_distinct: int, human_commonest: float
) -> list[Verdict]:
    """The same few captions for all images, where a human writes others.

    Args:
        distinct, human_distinct: how many different captions, of the model and of one human.
        commonest, human_commonest: share of images with the commonest of them.
    """
    few = distinct < VARIETY * human_distinct
    if images < ENOUGH_IMAGES or human_commonest > COMMONEST or not (few or commonest > COMMONEST):
        return []
    text = (
        f"{distinct} different {'caption' if distinct == 1 else 'captions'} for {images} images, the commonest for "
        f"{commonest:.0%} of them; one human writes {human_distinct}"
    )
    advice = (
        "See whether images match their captions with `train.py --sanity`; else train longer, or lower --learning_rate."
    )
    return [{"name": "collapsed", "text": text, "advice": advice}]


def overfitted(lines: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """The validation loss rose from some step on, over two validations or more, while the training loss fell.

    Args:
        lines: of `metrics.jsonl`.
    """
    validations = [(line["step"], line["val_loss"]) for line in lines if _number(line.get("val_loss"))]
    if len(validations) < 3:
        return []
    best = min(range(len(validations)), key=lambda i: validations[i][1])
    (step, lowest), (last_step, last) = validations[best], validations[-1]
    if best > len(validations) - 3 or last < (1 + RISE) * lowest:
        return []

    def training_loss(number: int) -> float | None:
        """Mean of what was logged between a validation and the one before."""
        begin = validations[number - 1][0] if number else 0
        logged = [x["loss"] for x in lines if begin < x["step"] <= validations[number][0] and _number(x.get("loss"))]
        return sum(logged) / len(logged) if logged else None

    before, after = training_loss(best), training_loss(len(validations) - 1)
    if before is None or after is None or after >= before:
        return []
    text = (
        f"the validation loss rose from {lowest:.3f} at step {step} to {last:.3f} at step {last_step}, while the "
        f"training loss fell from {before:.3f} to {after:.3f}"
    )
    advice = f"Train on more images, or for fewer epochs: what came after step {step} was learnt by heart."
    return [{"name": "overfitted", "text": text, "advice": advice}]


def few_images(validations: int, images: int) -> list[Verdict]:
    """The best checkpoint was chosen, among several validations, on so few images that chance chose it."""
    if validations < 2 or images >= FEW:
        return []
    text = (
        f"the best of {validations} validations was chosen on {images} images, too few to tell the best from the "
        "luckiest"
    )
    advice = f"Validate on {FEW} or more: name more, draw more with --validation_share, or raise --max_eval_images."
    return [{"name": "chosen on few images", "text": text, "advice": advice}]


def scored_on_few(images: int) -> list[Verdict]:
    """So few images were scored that nothing can be said of shares and differences."""
    if images >= ENOUGH_IMAGES:
        return []
    text = f"{images} {'image was' if images == 1 else 'images were'} scored; of so few, chance makes what it likes"
    advice = f"Score {ENOUGH_IMAGES} or more: leave out --max_eval_images, take --split all, or name more images."
    return [{"name": "scored on few images", "text": text, "advice": advice}]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def of_log(lines: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """What a run's `metrics.jsonl` says."""
    counts = [line["val_images"] for line in lines if line.get("val_images")]
    return overfitted(lines) + (few_images(len(counts), counts[-1]) if counts else [])


def of_result(result: Mapping[str, Any]) -> list[Verdict]:
    """What an evaluation's numbers say, the worst first.

    Args:
        result: as in `coco_metrics.json`; where its references are `templates`, a model is expected to match them
            word for word.
    """
    images, score, rows = result["num_images"], result["sacrebleu"], result["baselines"]
    low, human = result["intervals_95"]["sacrebleu"][0], rows["human"]
    found = scored_on_few(images)
    found += [] if result["templates"] else leak(score, low, human["sacrebleu"], result["exact_match_rate"], images)
    commonest = result["failure_groups"]["commonest_caption"]
    found += collapsed(
        images, result["distinct_captions"], commonest, human["distinct_captions"], human["commonest_caption"]
    )
    advice = {
        "most_common_caption": (
            "one caption for every image",
            "See next how far it is from what one human scores.",
            "Train longer, and see with `train.py --sanity` that the model can learn these captions at all.",
        ),
        "base": (
            "the untouched base",
            "This training was worth it: next, look at the worst images of the report.",
            "Train longer, change --learning_rate, or use the base as it is.",
        ),
    }
    for name, (what, good, bad) in advice.items():
        if (row := rows.get(name)) and "p_value" in row:
            found += against(what, score, row["sacrebleu"], row["p_value"], images, good, bad)
    return found


def say(verdicts: Sequence[Verdict]) -> list[str]:
    """Lines for a terminal."""
    return [f"{v['name']}: {v['text']}. {v['advice']}" for v in verdicts]
