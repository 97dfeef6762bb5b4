"""What `--augment`, `--dropout`, `--ema`, `--layer_decay`, `--image_size`, `--patience` and `--best_metric` do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import BlipForConditionalGeneration

from blip_lite import load_pretrained
from blip_lite.captioner import Captioner
from blip_lite.data.augment import RATIO, SCALE, augment, crop
from blip_lite.data.batches import Captions, loader
from blip_lite.errors import ConfigError
from blip_lite.evaluation.metrics import cider
from blip_lite.model.pretrained import resize, save_pretrained
from blip_lite.processing.picture import Picture
from blip_lite.settings import OptimisationSettings, RegularisationSettings, TrainConfig
from blip_lite.training.loop import train
from blip_lite.training.optimizer import build_optimizer, learning_rate_share
from blip_lite.training.run import Average
from blip_lite.training.validate import Validation
from conftest import real_data, tiny_config


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(values).resize((120, 90), Image.Resampling.BICUBIC)


# ------------------------------------------------------------------------------------------------ augmentation


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 2**32))
def test_a_crop_lies_in_the_image(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = crop(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width + 1e-6 and 0 <= top < bottom <= height + 1e-6
    w, h = right - left, bottom - top
    drawn = SCALE[0] - 1e-6 <= w * h / (width * height) and RATIO[0] - 1e-6 <= w / h <= RATIO[1] + 1e-6
    largest = w == width or h == height  # no drawn one fitted
    assert drawn or largest


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=30), st.integers(1, 64), st.integers(1, 90), st.integers(1, 90))
def test_an_augmented_image_is_a_function_of_image_and_key(key: str, size: int, width: int, height: int) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8))
    one, other = (augment(image, ["a dog"], size, key) for _ in range(2))
    assert one.size == (size, size) and one.mode == "RGB" and one.tobytes() == other.tobytes()


def is_mirrored(image: Image.Image) -> bool:
    """Of a picture that is red on its left half and blue on its right."""
    values = np.asarray(image).astype(int)
    half = values.shape[1] // 2
    return values[:, :half, 2].mean() > values[:, half:, 2].mean()


SIDES = Image.new("RGB", (64, 64), "red")
SIDES.paste("blue", (32, 0, 64, 64))


@pytest.mark.parametrize(
    "captions, may",
    [
        (["a dog runs"], True),
        (["a dog copyright wrighting"], True),  # no words of sides or text, though they hold such letters
        (["a dog", "a cat to the LEFT of a dog"], False),
        (["a man turns right."], False),
        (["a stop sign"], False),
        (["a shirt that says hello"], False),
        (["player number 7"], False),
        (["the words on a poster"], False),
        (["the leftmost dog"], False),
        (["dogs run counterclockwise"], False),
        (["a left_hand glove"], False),
        (["handwriting on a chalkboard"], False),
        (["un chien à gauche"], False),
        (["左边的狗"], False),
        (['a cup with "hi" on it'], False),
        (["a man watches a leftover cake"], True),
    ],
)
def test_an_image_is_mirrored_half_the_time_unless_a_caption_would_be_wrong(captions: list[str], may: bool) -> None:
    mirrored = sum(is_mirrored(augment(SIDES, captions, 32, str(i))) for i in range(200))
    assert 70 < mirrored < 130 if may else mirrored == 0


def test_each_epoch_sees_other_pixels_and_workers_change_nothing(hf_dir: Path, photograph: Image.Image) -> None:
    _, processor = load_pretrained(hf_dir)
    examples = [Picture(f"{i}.png", photograph, ("a dog",)) for i in range(4)]

    def batches(epoch: int, workers: int, order: list[int]) -> dict[str, torch.Tensor]:
        images = Captions(examples, processor, "", 20)
        images.augment, images.epoch, images.seed = True, epoch, 7
        return {
            image_id: pixels
            for batch in loader(images, [order[:2], order[2:]], workers)
            for image_id, pixels in zip(batch.image_ids, batch.pixel_values, strict=True)
        }

    first = batches(0, 0, [0, 1, 2, 3])
    again = batches(0, 2, [3, 1, 0, 2])
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], batches(1, 0, [0, 1, 2, 3])[name]) for name in first)
    assert not torch.equal(first["0.png"], first["1.png"])


def test_augmentation_and_kept_features_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--feature_cache_gb 0"):
        TrainConfig.of(augment=True, freeze_vision=True).validate()
    TrainConfig.of(augment=True, freeze_vision=True, feature_cache_gb=0.0).validate()


def test_only_training_images_are_augmented(tmp_path: Path) -> None:
    """Validation of an untrained model gives the same loss with and without."""
    losses = []
    for augmented in (False, True):
        config = tiny_config(tmp_path, output_dir=str(tmp_path / str(augmented)), augment=augmented, max_steps=1)
        losses.append(train(config.replace(learning_rate=1e-30))["val_loss"])
    assert losses[0] == losses[1]
    assert (tmp_path / "True" / "augmented.png").is_file() and not (tmp_path / "False" / "augmented.png").exists()


# --------------------------------------------------------------------------------------- dropout, rates, average


def test_dropout_is_in_training_only_and_travels(hf_dir: Path, tmp_path: Path) -> None:
    model, processor = load_pretrained(hf_dir)
    pixels, ids = torch.randn(2, 3, 32, 32), torch.randint(5, 40, (2, 1, 6))
    plain = model(pixels, ids, ids)[0]
    model.set_dropout(0.5)
    assert torch.equal(model.eval()(pixels, ids, ids)[0], plain)
    assert not torch.equal(model.train()(pixels, ids, ids)[0], plain)
    save_pretrained(model, processor, tmp_path)
    theirs = BlipForConditionalGeneration.from_pretrained(tmp_path).config.text_config
    assert (theirs.hidden_dropout_prob, theirs.attention_probs_dropout_prob) == (0.5, 0.5)
    assert load_pretrained(tmp_path)[0].text_decoder.layers[0].dropout == 0.5


def test_layers_learn_at_their_share_of_the_rate(hf_dir: Path) -> None:
    model, _ = load_pretrained(hf_dir)  # two layers in each half
    regularisation = RegularisationSettings(layer_decay=0.5, vision_learning_rate_factor=0.1)
    shares = {name: learning_rate_share(name, model, regularisation) for name, _ in model.named_parameters()}
    for name, expected in {
        "vision_model.post_layernorm.weight": 0.1,
        "vision_model.encoder.layers.1.mlp.fc1.weight": 0.1,
        "vision_model.encoder.layers.0.mlp.fc1.weight": 0.05,
        "vision_model.embeddings.position_embedding": 0.025,
        "text_decoder.cls.predictions.transform.dense.weight": 1.0,
        "text_decoder.bert.embeddings.word_embeddings.weight": 1.0,
        "text_decoder.bert.encoder.layer.0.crossattention.self.key.weight": 0.5,
        "text_decoder.bert.embeddings.position_embeddings.weight": 0.25,
    }.items():
        assert shares[name] == pytest.approx(expected), name
    groups = build_optimizer(model, OptimisationSettings(learning_rate=1.0), regularisation).param_groups
    by_id = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert {name: by_id[id(p)] for name, p in model.named_parameters()} == shares


def test_the_average_is_the_formulas(hf_dir: Path) -> None:
    model, _ = load_pretrained(hf_dir)
    average, name = Average(model, 0.9), "vision_model.post_layernorm.weight"
    expected = dict(model.named_parameters())[name].detach().double().clone()
    for step in range(1, 120):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * step)
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * dict(model.named_parameters())[name].detach().double()
    found = dict(average.model.named_parameters())[name]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    head = average.model.text_decoder.cls.predictions.decoder.weight
    assert head is average.model.text_decoder.bert.embeddings.word_embeddings.weight


def test_best_holds_the_average_and_the_checkpoint_the_weights(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, ema=0.99, max_steps=3))
    run = tmp_path / "run"
    best, last = (load_pretrained(run / name)[0] for name in ("best", "checkpoint-000003"))
    names = [n for n, p in best.named_parameters() if not torch.equal(p, dict(last.named_parameters())[n])]
    assert len(names) > 20


# ------------------------------------------------------------------------------------------------ image size


@pytest.mark.parametrize("size", [16, 40, 64])
def test_another_image_size_is_what_transformers_interpolates(hf_dir: Path, tmp_path: Path, size: int) -> None:
    model, processor = load_pretrained(hf_dir)  # 32 pixels, patches of 8
    pixels = torch.randn(2, 3, size, size)
    oracle = BlipForConditionalGeneration.from_pretrained(hf_dir).eval()
    with torch.no_grad():
        expected = oracle.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        resize(model, processor, size)
        torch.testing.assert_close(model.encode(pixels), expected, rtol=1e-4, atol=1e-5)
    save_pretrained(model, processor, tmp_path)
    with torch.no_grad():
        theirs = BlipForConditionalGeneration.from_pretrained(tmp_path).eval().vision_model(pixels).last_hidden_state
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-5)
    caption = Captioner.from_pretrained(tmp_path)(Image.new("RGB", (50, 40), "red"))
    assert isinstance(caption, str) and json.loads((tmp_path / "config.json").read_text())["vision_config"][
        "image_size"
    ] == size  # fmt: skip


def test_an_image_size_that_no_patches_fill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--image_size 50 is no multiple of the model's patches of 16"):
        train(tiny_config(tmp_path, image_size=50))


# ---------------------------------------------------------------------------------------------- choosing the best


def test_cider_without_java_is_nearly_the_papers() -> None:
    golden = json.loads((Path(__file__).parent / "fixtures" / "golden.json").read_text())
    assert cider(golden["captions"], golden["references"]) == pytest.approx(golden["scores"]["CIDEr"], rel=1e-9)


@pytest.mark.long
def test_cider_without_java_of_the_published_captions() -> None:
    """Of 4,982 images: on the PTB tokeniser's words and on our own."""
    folder = real_data("golden_metrics", "coco_karpathy_test_magic")
    tokens = json.loads((folder / "ptb_tokenized.json").read_text())
    expected = json.loads((folder / "computed_here.json").read_text())["metrics"]["CIDEr"]
    captions = {str(r["image_id"]): r["caption"] for r in json.loads((folder / "results_coco.json").read_text())}
    references: dict[str, list[str]] = {}
    for row in json.loads((folder / "references_coco.json").read_text())["annotations"]:
        references.setdefault(str(row["image_id"]), []).append(row["caption"])
    assert len(captions) == 4982
    assert cider(captions, references) == pytest.approx(expected, abs=2e-4)
    tokenised = {i: c if isinstance(c, str) else c[0] for i, c in tokens["predictions"].items()}
    assert cider(tokenised, tokens["references"]) == pytest.approx(expected, abs=1e-4)


class Scripted:
    """Validations whose numbers are given, one dictionary each."""

    def __init__(self, *numbers: dict[str, float]) -> None:
        self.numbers = iter(numbers)

    def __call__(self, run: object, stopping: object) -> Validation:
        values = {"val_bleu": 1.0, "val_cider": 1.0, "val_loss": 1.0, "val_loss_other_image": 1.0, **next(self.numbers)}
        about = {"val_commonest_caption": 0.0, "val_images": 60, "val_seconds": 0.0}
        return Validation({**values, **about}, [], ([], []))


@pytest.mark.parametrize(
    "metric, best", [("sacrebleu", 1), ("cider", 2), ("loss", 3), ("auto", 3)]
)  # auto: 6 validation images, so the loss
def test_the_best_is_chosen_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, best: int) -> None:
    numbers = [{"val_bleu": 9.0, "val_loss": 3.0}, {"val_cider": 2.0, "val_loss": 2.0}, {}]
    monkeypatch.setitem(train.__globals__, "validate", Scripted(*numbers))
    found = train(tiny_config(tmp_path, eval_every=1, max_steps=3, best_metric=metric))
    assert found["best_step"] == best
    about = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert about["step"] == best and about["chosen_by"] == ("loss" if metric == "auto" else metric)


def test_cider_of_one_validation_image_chooses_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one validation image.*--best_metric loss"):
        train(tiny_config(tmp_path, max_eval_images=1, best_metric="cider"))


def test_patience_ends_a_run_and_resuming_with_more_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    falling = [{"val_bleu": 5.0}, {"val_bleu": 4.0}, {"val_bleu": 3.0}, {"val_bleu": 6.0}, *[{"val_bleu": 2.0}] * 9]
    monkeypatch.setitem(train.__globals__, "validate", Scripted(*falling))
    config = tiny_config(tmp_path, eval_every=1, max_steps=9, best_metric="sacrebleu", patience=2)
    train(config)
    assert "stopped early: no better one in 2 validations" in capsys.readouterr().out
    last = json.loads((tmp_path / "run" / "checkpoint-000003" / "state" / "progress.json").read_text())
    assert (last["step"], last["not_better"], last["best_step"]) == (3, 2, 1)
    train(config.replace(patience=3, resume=True))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 7  # better at 4, then three that are not


def test_settings_that_shape_a_run_cannot_change_on_resume(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, max_steps=1))
    shaping = {"augment": True, "dropout": 0.1, "ema": 0.9, "layer_decay": 0.5, "image_size": 32, "optimizer": "muon"}
    for name, value in {**shaping, "parallel_prediction": 0.5}.items():
        with pytest.raises(ConfigError, match=f"another run: {name} was"):
            train(tiny_config(tmp_path, max_steps=2, resume=True, **{name: value}))
    before = (tmp_path / "run" / "config.json").read_text()
    for name, value in {"layer_decay": 0.5, "image_size": 32, "optimizer": "muon"}.items():
        with pytest.raises(ConfigError, match="other weights have moments"):
            train(tiny_config(tmp_path, max_steps=2, resume=True, allow_config_change=True, **{name: value}))
    assert (tmp_path / "run" / "config.json").read_text() == before
    train(tiny_config(tmp_path, max_steps=2, resume=True, ema=0.9, allow_config_change=True))  # begins with the weights


@pytest.mark.parametrize("name, value", [("ema", 1.0), ("dropout", 1.0), ("layer_decay", 1.5), ("patience", 0)])
def test_shares_beyond_their_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{name} must be"):
        TrainConfig.of(**{name: value}).validate()
