"""The pages: whole, offline, small, and safe against what captions and names hold."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blip_lite.data.audit import Pair, counts, vocabulary
from blip_lite.data.audit import page as audit_page
from blip_lite.data.dataset import DataSet
from blip_lite.evaluation.sweep import page as sweep_page
from blip_lite.processing.picture import Picture
from blip_lite.reports import charts, plot, report
from blip_lite.reports import page as pages
from blip_lite.reports.charts import best_step
from blip_lite.reports.metric_names import digits, hundredths
from blip_lite.settings import TrainConfig
from conftest import ROOT, charts_of, real_data

LOG = [
    {"step": 5, "loss": 3.0, "lr": 1e-4},
    {"step": 5, "val_loss": 3.1, "val_bleu": 4.0, "val_best_so_far": True},
    {"step": 10, "loss": 2.0, "lr": 5e-5},
    {"step": 10, "val_loss": 2.5, "val_bleu": 9.0, "val_best_so_far": True},
    {"step": 15, "loss": None, "lr": 1e-5},
    {"step": 15, "val_loss": float("nan"), "val_bleu": 8.0, "val_best_so_far": False},
]


def result(text: str = "x", images: int = 2) -> dict[str, Any]:
    """The content of a coco_metrics.json, with `text` wherever a stranger's words may be."""
    return {
        "dataset": text, "split": "test", "num_images": images, "num_references": 2 * images, "checkpoint": text,
        "decoding": {"num_beams": 3, "prompt": text, "banned_words": [text]}, "sacrebleu": 21.3456,
        "CIDEr": 0.61234, "METEOR": 0.2, "SPICE": None, "reasons": {"SPICE": text}, "failed_images": {text: text},
        "intervals_95": {"sacrebleu": [19.6, 23.2], "CIDEr": [0.4, 0.8]}, "exact_match_rate": 0.1,
        "failure_groups": {"empty": 0.0}, "warnings": [text],
        "verdicts": [{"name": "leak", "text": text, "advice": text}],
        "baselines": {
            "human": {"sacrebleu": 22.6, "CIDEr": 0.7886},
            "most_common_caption": {"sacrebleu": 3.0, "caption": text},
            "base": {"checkpoint": text, "reason": text},
        },
    }  # fmt: skip


def test_a_number_that_a_log_never_had_gets_no_curve() -> None:
    old, new = LOG[:4], [{**line, "val_cider": 0.1} if "val_loss" in line else line for line in LOG]
    assert charts.curves("CIDEr", {"old": (old, "val_cider")}) is None
    made = charts.curves("CIDEr", {"old": (old, "val_cider"), "new": (new, "val_cider")})
    assert made and [each["label"] for each in made["series"]] == ["new", "new, best: step 10"]
    assert {each["colour"] for each in made["series"]} == {0}  # the mark is of its curve's colour


def row(image_id: str, caption: str, cider: float = 0.5) -> dict[str, Any]:
    return {"image_id": image_id, "caption": caption, "references": [caption, "b"], "scores": {"CIDEr": cider}}


def picture(size: int = 8) -> Image.Image:
    return Image.new("RGB", (size, size), "red")


def a_report(text: str) -> str:
    return report.page(
        result(text), [row(text, text), row("other", "a dog", 0.1)], {text: picture, "other": picture}, LOG
    )


def an_audit(text: str) -> str:
    one, two = Picture(text, picture, (text,)), Picture(f"{text}2", picture, (text, "a dog runs"))
    data = DataSet(text, {"train": [one], "validation": [], "test": [two]}, [])
    found: dict[str, Any] = {"validation": counts([], [], None, TrainConfig())}
    for split in ("train", "test"):
        found[split] = {
            "images": 1,
            "captions": 1,
            "bad_images": {text: text},
            "words": {"min": 1, "median": 1, "max": 2},
        }
    found |= {
        "dataset": text, "notes": [text], "token_lengths_unknown": text, "leaks": 1, "near_duplicates": [], "flat_pictures": 1,
        "near_duplicates_not_looked_for": None, "vocabulary": vocabulary(data),
        "captions_in_several_splits": {"count": 1, "examples": [[text, ["train", "test"]]]},
    }  # fmt: skip
    return audit_page(found, data, [Pair("train", one, "test", two, text)], [(1.0, "train", one, text)])


def curves(text: str) -> str:
    return plot.page({text: LOG, "other": LOG})


def a_sweep(text: str) -> str:
    rows = [
        {"num_beams": 1, "images_per_second": 2.0, "sacrebleu": 9.0},
        {"num_beams": 3, "images_per_second": 1.0, "sacrebleu": 9.5},
    ]
    return sweep_page(text, rows, ["num_beams"])


class Elements(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: set[str] = set()
        self.loads: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "poster")]


PAGES: dict[str, Callable[[str], str]] = {"report": a_report, "audit": an_audit, "curves": curves, "sweep": a_sweep}
NASTY = st.sampled_from(["</script>", "<script>", "<!--", '"', "'", "<img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "&", "\\", "\u2028", "é", "\udcff", "]]>", " onload=x "])  # fmt: skip


@pytest.mark.parametrize("make", PAGES.values(), ids=PAGES)
@given(text=st.lists(NASTY | st.text(max_size=4), min_size=1, max_size=4).map("".join))
@settings(max_examples=25, deadline=None)
def test_hostile_texts_stay_texts(make: Callable[[str], str], text: str) -> None:
    """A page with hostile captions and names has the elements of the same page with harmless ones."""
    hostile, harmless = Elements(make(text)), Elements(make("harmless"))
    # an empty caption, or one without words, has other lengths, but no other elements
    assert set(hostile.tags) <= set(harmless.tags) and hostile.names <= harmless.names
    assert hostile.tags.count("script") == harmless.tags.count("script")
    assert all(load.startswith("data:image/webp;base64,") for load in hostile.loads)
    assert charts_of(make(text)), "the charts' data are JSON still"


@pytest.mark.parametrize("make", PAGES.values(), ids=PAGES)
def test_pages_load_nothing(make: Callable[[str], str]) -> None:
    page = make("plain")
    assert (
        "@import" not in page
        and "url(" not in page
        and not [load for load in Elements(page).loads if load[:5] != "data:"]
    )
    assert page.startswith("<!doctype html>") and 'name="viewport"' in page and "prefers-color-scheme: dark" in page


def test_a_sentence_ends_once() -> None:
    assert "counted: no such directory.</p>" in an_audit("no such directory.")


def test_the_report_shows_scores_as_their_intervals_allow() -> None:
    """Hundredths; human, one caption for all and verdicts beside them."""
    assert [
        hundredths("CIDEr", 0.61234, digits("CIDEr", {"CIDEr": [0.4, 0.8]})),
        hundredths("sacrebleu", 21.3456, 1),
    ] == [
        "61",
        "21.3",
    ]
    assert (
        digits("METEOR", {"sacrebleu": [21.0, 21.2]}) == 2
        and digits("sacrebleu", {"sacrebleu": [0.0, 0.0]}) == 1
        and hundredths("CIDEr", None) == "–"
    )
    page = report.page(result("a dog"), [row("1", "a dog")], {"1": picture}, LOG)
    for wanted in (
        "<td>21.3 (19.6 to 23.2)</td><td>22.6</td><td>3.0</td>",
        "<td>61 (40 to 80)</td><td>79</td>",
        "one caption for every image",
        'class="verdicts"',
    ):
        assert wanted in page, wanted
    loss, bleu, _ = charts_of(page)
    assert best_step(LOG) == 10 and loss["series"][2]["label"] == "validation, best: step 10"
    assert loss["at"] == [5, 10] and loss["series"][0]["y"] == [3.0, 2.0] and loss["series"][2]["y"] == [None, 2.5]
    assert bleu["series"][0]["y"] == [4.0, 9.0, 8.0]
    assert 'data-is="exact' in page and "cannot be opened" not in page


def test_of_many_images_the_worst_and_the_best_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "IMAGES", 4)
    rows = [row(f"image{n}", f"number {n}", n) for n in range(9)]
    page = report.page(result(images=9), rows, {f"image{n}": picture for n in range(9)}, [])
    assert [n for n in range(9) if f'alt="number {n}"' in page] == [0, 1, 7, 8] and "the best 4 of 9 images" in page


def test_a_picture_that_is_gone_leaves_its_captions(tmp_path: Path) -> None:
    page = report.page(result(), [row("1", "a dog")], {"1": lambda: tmp_path / "gone.jpg"}, [])
    assert "cannot be opened" in page and "a dog" in page


@pytest.mark.long
def test_a_report_of_a_thousand_photographs_is_under_10_mb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs of full size, and of COCO, each taken as often as it must be."""
    photos = sorted((real_data("flickr8k") / "Flicker8k_Dataset").glob("*.jpg"))[:100]
    photos += sorted(real_data("coco_mini").rglob("*.jpg"))[:100]
    names = {f"{n:04d}.jpg": photos[n % len(photos)] for n in range(1000)}
    caption = "a man in a red shirt stands on a rock beside the sea and looks at the waves"
    rows = [{**row(name, caption), "references": [caption] * 5} for name in names]
    opens = {name: (lambda path=path: path) for name, path in names.items()}
    made = {path: pages.picture(lambda path=path: path, **report.THUMBNAIL) for path in photos}
    monkeypatch.setattr(report, "picture", lambda load, **_: made[load()])
    size = len(report.page(result(images=1000), rows, opens, LOG).encode())
    assert len(photos) == 200 and 5e6 < size < 10e6, size


def test_the_wheel_holds_templates_and_vendor() -> None:
    """Each file beside the code is named by package-data."""
    text = (ROOT / "pyproject.toml").read_text()
    patterns = json.loads(text.split("[tool.setuptools.package-data]\nblip_lite = ")[1].split("\n")[0])
    package = ROOT / "blip_lite"
    files = [p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    names = [str(p.relative_to(package)) for p in files]
    assert len(names) > 8 and not [name for name in names if not any(fnmatch.fnmatch(name, p) for p in patterns)]


@pytest.mark.long
def test_in_a_browser(tmp_path: Path) -> None:
    """Charts are drawn, hover shows values, search and filter hide cards, and nothing reaches beyond the width."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium and chromedriver here")
    rows = [row("1", "a dog"), row("2", "a cat", 0.9), {**row("3", "a cat", 0.1), "references": ["two cats"]}]
    (tmp_path / "report.html").write_text(report.page(result("x", 3), rows, dict.fromkeys("123", picture), LOG))
    options = webdriver.ChromeOptions()
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(f"file://{tmp_path / 'report.html'}")
        assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        js: Callable[..., Any] = driver.execute_script
        assert js("return document.querySelectorAll('.chart canvas').length") == 3
        assert js("return document.documentElement.scrollWidth <= innerWidth")
        chart = driver.find_element("css selector", ".chart")
        chart.send_keys("\ue014\ue014")  # arrow right, twice
        legend = [e.text for e in chart.find_elements("css selector", ".u-value")]
        assert legend == ["10", "2", "2.5", "2.5"]
        assert js("return [123456, 1234.56, 0.00012345].map(brief)") == ["123456", "1235", "1.23e-4"]
        shown = "return [...document.querySelectorAll('.card')].filter(c => !c.hidden).map(c => c.querySelector('b').textContent)"
        driver.find_element("id", "find").send_keys("cat")
        assert (
            js(shown) == ["a cat", "a cat"] and js("return document.getElementById('count').textContent") == "2 images"
        )
        driver.find_element("css selector", "#show option[value=exact]").click()
        assert js(shown) == ["a cat"]
        driver.find_element("css selector", "#show option[value='']").click()
        driver.find_element("id", "find").clear()
        js("document.getElementById('find').oninput()")
        driver.find_element("css selector", "#sort option[value='order -1']").click()
        assert js(shown) == ["a cat", "a dog", "a cat"]
    finally:
        driver.quit()
