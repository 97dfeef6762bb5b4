"""A split -> captions -> numbers -> files.

Captions are made from pixels alone: the examples that reach the model carry no references, which are kept in
another object until the scoring.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from blip_lite.captioner import pick_dtype
from blip_lite.data.dataset import DataSet, subsample
from blip_lite.data.load import limit, load_data
from blip_lite.data.look import spread
from blip_lite.data.sources.shapes import draw_scene
from blip_lite.data.sources.table import captions_in, read_table
from blip_lite.errors import CheckpointError, ConfigError
from blip_lite.evaluation import files, metrics, verdicts
from blip_lite.evaluation.captions import caption_with
from blip_lite.evaluation.coco_process import coco_metrics, tokenize
from blip_lite.evaluation.spice import spice
from blip_lite.model.location import WHOLE, locate
from blip_lite.model.pretrained import own_decoding
from blip_lite.processing.picture import Picture
from blip_lite.processing.text import normalize_caption
from blip_lite.reports.dashboards import log_evaluation
from blip_lite.reports.metric_names import HEADLINES, METRICS
from blip_lite.reports.model_card import EXAMPLES, model_card
from blip_lite.settings import FROM_SCRATCH, SPLITS, EvalConfig, TrainConfig, did_you_mean
from blip_lite.storage import command, is_run, lines_of, newest, read_metrics, read_run_config, step_in, write_text


def find_checkpoint(config: EvalConfig) -> tuple[str, Path | None]:
    """The checkpoint to load and the run it belongs to (None for a Hub id, or a directory outside a run).

    Raises:
        ConfigError: there is no such run, or it has no such checkpoint.
    """
    run = Path(config.run) if config.run else None
    if run and not is_run(run) and is_run(run.resolve().parent) and config.ckpt == "best":  # --run runs/a/best
        return str(run), run.resolve().parent
    if config.ckpt not in ("best", "latest"):
        path = Path(config.ckpt)
        if path.is_file() and path.name in WHOLE:
            return find_checkpoint(dataclasses.replace(config, ckpt=str(path.parent)))
        if is_run(path):
            return find_checkpoint(dataclasses.replace(config, run=str(path), ckpt="best"))
        if run and not path.exists() and (run / path).is_dir():  # its name in the run
            return str(run / path), run
        if "/" not in config.ckpt and not path.exists() and (meant := did_you_mean(config.ckpt, ("best", "latest"))):
            raise ConfigError(f"--ckpt {config.ckpt}: no such directory{meant}")
        return config.ckpt, run or (path.resolve().parent if is_run(path.resolve().parent) else None)
    run = run or newest_run(f"--ckpt {config.ckpt}")
    found_path = run / "best" if config.ckpt == "best" else newest(run)
    if found_path == run / "best" and not found_path.is_dir():
        found_path = run / ".old-best"  # a run was killed, or is busy, between two renames
    if found_path is None or not found_path.is_dir():
        raise ConfigError(
            f"{run} has no {config.ckpt} checkpoint" + (" yet" if run.is_dir() else "; there is no such directory")
        )
    return str(found_path), run


def newest_run(what: str) -> Path:
    """The run under `runs/` that was begun last. Raises ConfigError, where `what` asked for it, if there is none."""
    found = sorted(Path("runs").glob("*/config.json"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise ConfigError(f"{what}: there is no run under runs/; name one with --run, or a checkpoint with --ckpt PATH")
    return found[-1].parent


def list_evaluations(config: EvalConfig) -> str:
    """All evaluations of a run, as a table. Raises ConfigError if there is no such run."""
    run = Path(config.run) if config.run else newest_run("--list")
    read_run_config(run)
    return files.table(run)


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Caption a split and score it; or score the captions in `config.predictions`.

    Writes `captions.jsonl` (one line an image), `coco_metrics.json` (what is returned, on the main process) and
    `report.html` where `evaluation.files` says, and prints what they say. For predictions, only `config.output`.

    Raises:
        ConfigError, DataError, CheckpointError: before any image is captioned; CheckpointError for weights of `compare`
            that cannot be read, and ConfigError where no image could be decoded, after.
    """
    check_options(config)
    plan = prepare(config)
    ckpt, run, run_config, data, split, examples = plan[:6]
    state = PartialState()
    folder = Path(config.output_dir or run or ".")
    if not config.predictions:
        files.check_writable(folder / "captions")
    about: dict[str, Any] = {"dataset": data.name, "split": split}
    failures: dict[str, str] = {}
    others: dict[str, dict[str, str]] = {}
    other_provenance: dict[str, dict[str, Any]] = {}
    if config.predictions:
        captions = read_predictions(Path(config.predictions), examples)
        about |= {"predictions": config.predictions}
    else:
        kept = folder / "captions"
        captions, failures, provenance = caption_with(ckpt, examples, run_config, config.dtype, kept)
        about |= provenance
        more = {"compare": plan.compare} if plan.compare else {}
        if run and config.base and run_config.model.model not in (*FROM_SCRATCH, ckpt):
            more["base"] = run_config.model.model
        for name, other in more.items():
            try:
                others[name], _, other_provenance[name] = caption_with(other, examples, run_config, config.dtype, kept)
            except CheckpointError as error:
                if name == "compare":  # the user asked for it
                    raise
                other_provenance[name] = {"checkpoint": other, "reason": str(error)}
                state.print(f"the untouched {other} is left out: {error}")
    if not captions:
        raise ConfigError(f"no image of {data.name}, {split}, could be decoded, e.g. {next(iter(failures.values()))}")
    result: dict[str, Any] = {}
    if state.is_main_process:
        references = {e.image_id: list(e.captions) for e in examples if e.image_id in captions}
        train = Counter(normalize_caption(c) for e in data.splits["train"] for c in e.captions)
        if train:
            others["most_common_caption"] = dict.fromkeys(captions, train.most_common(1)[0][0])
            other_provenance["most_common_caption"] = {"caption": train.most_common(1)[0][0]}
        numbers, per_image = score(captions, references, others)
        numbers |= metrics.variety(list(captions.values()), train if run and plan.own_data else ())
        numbers["templates"] = metrics.are_templates(list(references.values()), train)
        if config.spice:
            add_spice(numbers, per_image, captions, references, config)
        about |= {
            "num_images": len(captions),
            "num_references": sum(map(len, references.values())),
            "failed_images": failures,
            "data_fingerprint": data.fingerprint(),
        }
        result = {**about, **numbers}
        for name, provenance in other_provenance.items():
            result["baselines"][name] = {**provenance, **result["baselines"].get(name, {})}
        result["evaluated"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        if config.predictions:
            result |= judge(result, [])
            print(summary(result))
            if config.output:
                Path(config.output).parent.mkdir(parents=True, exist_ok=True)
                Path(config.output).write_text(json.dumps(result, indent=2) + "\n", "utf-8")
        else:
            result |= {"step": step_in(ckpt), "differs": plan.differs, "left_out": plan.left_out}
            keep(config, plan, folder, result, captions, per_image)
    state.wait_for_everyone()
    return result


def check_options(config: EvalConfig) -> None:
    """Raises ConfigError for options that would do nothing, and for a file that cannot be written or is read."""
    if config.sweep and (other := next((n for n in ("predictions", "compare", "spice") if getattr(config, n)), "")):
        raise ConfigError(f"--{other} does not go with --sweep")
    if config.predictions and config.compare:
        raise ConfigError("--compare captions with another checkpoint: it does not go with --predictions")
    if config.output and not config.predictions:
        raise ConfigError("--output is for --predictions; --output_dir names the folder of an evaluation's files")
    if config.output and Path(config.output).resolve() == Path(str(config.predictions)).resolve():
        raise ConfigError(f"--output {config.output}: is read as --predictions, it cannot be written as well")
    if config.output and Path(config.output).is_dir():
        raise ConfigError(f"--output {config.output}: is a folder; name a file, like metrics.json")


def judge(result: dict[str, Any], log: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The `verdicts` on an evaluation and on the log of its run; those of a leak are `warnings` besides."""
    found = verdicts.of_result(result) + verdicts.of_log(log)
    return {"verdicts": found, "warnings": verdicts.say([v for v in found if v["name"] == verdicts.LEAK])}


def keep(
    config: EvalConfig,
    plan: Plan,
    folder: Path,
    result: dict[str, Any],
    captions: dict[str, str],
    per_image: dict[str, dict[str, float]],
) -> None:
    """Write the files; say what they say, where they are and what comes next. The run's own evaluation reaches the
    model card and the dashboard."""
    run, shown = plan.run, {e.image_id: e for e in plan.examples if e.image_id in captions}
    where, why = files.place(folder, result, asked=bool(config.output_dir))
    lines = [
        {"image_id": i, "caption": captions[i], "references": e.captions, "scores": scores_of(per_image, i)}
        for i, e in shown.items()
    ]
    files.keep_what_was_known(result, lines, where)
    of_the_run = run is not None and "/" not in plan.differs.get("ckpt", "best")
    result |= judge(result, read_metrics(run) if run and of_the_run else [])
    files.write(where, result, lines, {i: e.open for i, e in shown.items()}, run)
    own = run and not why and not config.output_dir
    if run and own:
        if result["dataset"] == "shapes":
            draw_examples(run / EXAMPLES, lines)
        write_text(run / "README.md", model_card(run))
        log_evaluation(run, plan.split, result)
    print(summary(result))
    if why:
        print(f"this evaluation has files of its own ({why}); those of {folder} stay as they are")
    print(f"written: {', '.join(map(str, where))}" + (f", {run / 'README.md'}" if run and own else ""))
    print(f"next: open {shlex.quote(str(where.report))}; {command('caption')} PHOTO --ckpt {shlex.quote(plan.ckpt)}")


def draw_examples(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Six of the drawn scenes, evenly spread, and their captions, for the model card."""
    folder.mkdir(exist_ok=True)
    few = spread(lines, 6)
    for number, line in enumerate(few, 1):
        draw_scene(line["image_id"], 192).save(folder / f"{number}.png", optimize=True)
    write_text(folder / "captions.json", json.dumps([line["caption"] for line in few], indent=1) + "\n")


class Plan(NamedTuple):
    """What is to be evaluated.

    Attributes:
        ckpt, run: the checkpoint, and the run it belongs to.
        config: the run's settings, and over them those that were asked for.
        examples: the images of `split`, or those of them that were asked for.
        differs: what was asked for that is not the run's own: checkpoint, data, decoding, precision.
        left_out: how many images of the split were not asked for.
        own_data: the data are those that the run was trained on.
        compare: the second checkpoint.
    """

    ckpt: str
    run: Path | None
    config: TrainConfig
    data: DataSet
    split: str
    examples: list[Picture]
    differs: dict[str, Any]
    left_out: int
    own_data: bool
    compare: str | None


def prepare(config: EvalConfig) -> Plan:
    """Find everything. Raises as `evaluate` does."""
    # The variable is not read by PartialState itself. Days, as the others wait while one process computes SPICE.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timedelta(days=30))
    ckpt, run = ("", None) if config.predictions else find_checkpoint(config)
    if config.run and config.predictions:
        run = Path(config.run)
    if not (run or config.overrides.get("dataset")):
        raise ConfigError(
            f"{config.predictions or f'--ckpt {ckpt}'} belongs to no run: say which images with --dataset"
        )
    with state.main_process_first():
        base = read_run_config(run) if run else TrainConfig.of(batch_size=8)
        if ckpt:  # decoded as the checkpoint says, as everywhere: a run may have been resumed with other settings
            base = base.replace(**own_decoding(locate(ckpt).folder))
    # All images, unless told otherwise: a run's limit was for its validations.
    run_config = base.replace(**{"max_eval_images": None, **config.overrides})
    run_config.validate()
    with state.main_process_first():
        data = load_data(run_config.data, run_config.optimisation.seed, needed=())
    own_data = run is not None and (not differing(config, base, "data") or trained_on(run, base, data))
    split, foreign = config.split or "test", run is None or not (own_data or same_place(run_config, base))
    if config.split is None and foreign and data.drawn:  # nobody trained on these, and a twentieth is no test
        split = "all"
        state.print(f"{data.name}: names no splits; all of its images are taken (--split test takes a twentieth)")
    elif data.drawn and split != "all" and data.name != "shapes":
        whole = sum(map(len, data.splits.values()))
        part = f"{len(data.splits[split])} of {whole} images"
        state.print(f"{data.name}: {part}, as the data name no splits; --split all takes all")
    splits = SPLITS if split == "all" else (split,)
    # A run's own limit of training images makes these its whole training split.
    asked = [s for s in splits if s != "train" or "max_train_images" in config.overrides]
    left_out = sum(data.left_out.get(s, 0) for s in asked)
    every = [e for s in splits for e in data.splits[s]]
    examples = subsample(every, run_config.data.max_eval_images, run_config.optimisation.seed)
    if not examples:
        raise ConfigError(f"{data.name}: the {split} split has no images")
    differs = {} if run is None or own_data else differing(config, base, "data")
    differs |= differing(config, base, "decoding")
    if run and ckpt and (name := files.checkpoint_name(ckpt, run)) != "best":
        differs = {"ckpt": name, **differs}
    if pick_dtype(config.dtype, state.device) != pick_dtype("auto", state.device):
        differs["dtype"] = config.dtype
    left_out += len(every) - len(examples)
    compare = None
    if config.compare:  # a name in the run, too
        compare = find_checkpoint(dataclasses.replace(config, ckpt=config.compare, run=str(run) if run else None))[0]
        with state.main_process_first():
            locate(compare)  # is it there? Not only when the first one's captions are made
    return Plan(ckpt, run, run_config, data, split, examples, differs, left_out, own_data, compare)


# What says where the data lie, or how many are taken, not which they are.
WHERE = ("image_root", "allow_urls", "max_bad_images", "max_train_images", "max_eval_images")


def differing(config: EvalConfig, base: TrainConfig, group: str) -> dict[str, Any]:
    """The settings of a group that were asked for and are not those of the run, or of the checkpoint."""
    known, own = config.settings(), base.flat()
    asked = {name: v for name, v in config.overrides.items() if known[name].group == group and name not in WHERE}
    return {name: value for name, value in asked.items() if value != own[name]}


def same_place(one: TrainConfig, other: TrainConfig) -> bool:
    """Whether `--dataset` names the same, in whatever spelling: `photos`, `./photos/` and `/here/photos`."""
    a, b = one.data.dataset, other.data.dataset
    return a == b or (Path(a).exists() and Path(a).resolve() == Path(b).resolve())


def trained_on(run: Path, base: TrainConfig, data: DataSet) -> bool:
    """Whether these are the data of the run, wherever they lie now."""
    about, splits = json.loads((run / "config.json").read_text("utf-8")), dict(data.splits)
    limit(splits, base.data, base.optimisation.seed)
    found = DataSet(data.name, splits, []).fingerprint(in_row_order="order" not in about)
    return found == about.get("data_fingerprint")


def read_predictions(path: Path, examples: Sequence[Picture]) -> dict[str, str]:
    """Anyone's captions: lines of `{"image_id", "caption"}`, a JSON list of these (COCO's result format), or what
    `blip-lite caption` wrote, as JSON, JSON lines or CSV. Images may be named by their id, path, stem or number.

    Raises:
        ConfigError: it cannot be read, or its images are not those of the split.
    """
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            rows = [row for _, row in read_table(path)]
        else:
            text = path.read_text("utf-8-sig")
            rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines_of(text)]
        rows = [row for row in rows if not row.get("error")]  # of `blip-lite caption`: it has no caption
        found = {str(row["image_id"] if "image_id" in row else row["image"]): row["caption"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f'{path}: expected lines of {{"image_id", "caption"}} ({type(error).__name__} {error})'
        ) from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row["caption"], str):
            raise ConfigError(f"{path}, row {number}: its caption is {row['caption']!r}; expected a text")
        if len(captions_in(row["caption"])) > 1:  # a list in a cell
            raise ConfigError(f"{path}, row {number}: {row['caption'][:60]!r} are several captions; one is expected")
    wanted = [e.image_id for e in examples]
    found = by_id(found, wanted)
    missing, unknown = [i for i in wanted if i not in found], sorted(set(found) - set(wanted))
    if missing or unknown or len(rows) != len(found):
        raise ConfigError(
            f"{path}: {len(rows)} captions of {len(found)} images for a split of {len(wanted)}; "
            f"{len(missing)} have none"
            + (f" (e.g. {missing[0]})" if missing else "")
            + (f", {len(unknown)} are not in the split (e.g. {unknown[0]})" if unknown else "")
        )
    return {image_id: found[image_id] for image_id in wanted}


def by_id(found: dict[str, str], wanted: Sequence[str]) -> dict[str, str]:
    """Captions by the ids of the images, where all are named in another way that tells these apart."""
    ways: list[Callable[[str], str]] = [lambda name: PurePath(name).name, lambda name: PurePath(name).stem]
    if all(map(str.isdecimal, found)):  # COCO's
        ways.append(lambda name: (re.findall(r"\d+", PurePath(name).stem) or [name])[-1].lstrip("0"))
    if not set(found) <= set(wanted):
        for way in ways:
            ids, names = {way(i): i for i in wanted}, {way(name): name for name in found}
            if len(ids) == len(wanted) and len(names) == len(found) and names.keys() <= ids.keys():
                return {ids[key]: found[name] for key, name in names.items()}
    return found


def score(
    captions: dict[str, str], references: dict[str, list[str]], others: dict[str, dict[str, str]]
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """All numbers, each with a 95% interval, beside those of humans and of others' captions of the same images.

    Args:
        captions, references: by image id.
        others: captions by name and image id; each is tested for a real difference.

    Returns:
        (numbers, per-image scores by metric and image id).
    """
    if any(set(each) != set(captions) for each in others.values()):
        raise ConfigError("the checkpoints did not caption the same images")
    refs = list(references.values())
    bleu = metrics.sacrebleu(list(captions.values()), refs)
    coco = coco_metrics(captions, references, others, human=True)
    coco |= {"SPICE": None, "reasons": {**coco["reasons"], "SPICE": "not asked for (--spice)"}}
    per_image = coco.pop("per_image", {})
    found, human = coco.pop("others", {}), coco.pop("human", None)
    interval, tests = metrics.sacrebleu_test(
        list(captions.values()), refs, {name: list(each.values()) for name, each in others.items()}
    )
    exact = [normalize_caption(c) in map(normalize_caption, references[i]) for i, c in captions.items()]
    human_bleu = metrics.human_agreement(refs)
    one = [normalize_caption(each[0]) for each in refs]  # what one human says of each image
    says = {"distinct_captions": len(set(one)), "commonest_caption": metrics.failure_groups(one)["commonest_caption"]}
    baselines = {"human": {"sacrebleu": human_bleu, **(human or {}), **says}}
    for name, each in others.items():
        bleu_of_it = metrics.sacrebleu(list(each.values()), refs)["score"]
        baselines[name] = {"sacrebleu": bleu_of_it, **tests[name], **found.get(name, {})}
    result: dict[str, Any] = {
        "sacrebleu": bleu["score"],
        "sacrebleu_signature": bleu["signature"],
        "human_agreement_sacrebleu": human_bleu,
        **coco,
        "intervals_95": {
            "sacrebleu": interval,
            **{
                name: metrics.bootstrap(list(per_image[name].values()))
                for name in per_image
                if METRICS[name].mean_of_images
            },
        },
        "exact_match_rate": sum(exact) / len(exact),
        "failure_groups": metrics.failure_groups(list(captions.values())),
        "baselines": baselines,
    }
    return result, per_image


def add_spice(
    result: dict[str, Any],
    per_image: dict[str, dict[str, float]],
    captions: dict[str, str],
    references: dict[str, list[str]],
    config: EvalConfig,
) -> None:
    """Add SPICE, its interval, categories, n and the human row; or the reason why there is none."""
    try:
        model = tokenize({i: [caption] for i, caption in captions.items()})
        found = spice(tokenize(references), model, subsample=config.spice_subsample, spice_dir=config.spice_dir)
    except (RuntimeError, OSError) as error:  # SpiceError; the tokeniser's; no room for a temporary file
        result["reasons"]["SPICE"] = str(error)
        return
    del result["reasons"]["SPICE"]
    result |= {"SPICE": found.model.mean, "spice": found.as_dict()}
    result["intervals_95"]["SPICE"] = found.model.interval_95
    result["baselines"]["human"]["SPICE"] = found.human.mean if found.human else None
    per_image["SPICE"] = found.model.per_image


def scores_of(per_image: dict[str, dict[str, float]], image_id: str) -> dict[str, float]:
    return {name: values[image_id] for name, values in per_image.items() if image_id in values}  # SPICE: a subsample


def summary(result: dict[str, Any]) -> str:
    """A few lines for people."""
    speed = f", {result['images_per_second']:.1f} images/s" if "images_per_second" in result else ""
    images = result["num_images"]
    lines = [f"{result['dataset']}, {result['split']}: {images} image{'s' * (images != 1)}{speed}"]
    low, high = result["intervals_95"]["sacrebleu"]
    human = result["human_agreement_sacrebleu"]
    lines.append(
        f"  sacreBLEU {result['sacrebleu']:.2f} [{low:.2f}, {high:.2f}]"
        + (f"   (one human against the others: {human:.2f})" if human else "")
    )
    names = HEADLINES[1:]  # sacreBLEU has a line of its own
    known = [f"{name} {result[name]:.4f}" for name in names if result.get(name) is not None]
    missing = {result["reasons"][name] for name in names if result.get(name) is None}
    lines += [f"  {'   '.join(known)}"] if known else []
    lines += [f"  not computed: {reason}" for reason in sorted(missing)]
    if spice := result.get("spice"):
        low, high = spice["model"]["interval_95"]
        beside = f"   (one human against the others: {spice['human']['mean']:.4f})" if spice["human"] else ""
        lines.append(
            f"  SPICE {result['SPICE']:.4f} [{low:.4f}, {high:.4f}] of {spice['n']} of {spice['images']} images{beside}"
        )
        for count, why in ((len(spice["too_long"]), "text too long"), (len(spice["failed"]), "SPICE failed")):
            lines += [f"  left out of SPICE, {why}: {count} images"] * bool(count)
    elif "not asked for" not in result["reasons"].get("SPICE", "not asked for"):
        lines.append(f"  no SPICE: {result['reasons']['SPICE']}")
    if result["failed_images"]:
        lines.append(
            f"  {len(result['failed_images'])} images could not be decoded: "
            f"{', '.join(list(result['failed_images'])[:5])}"
        )
    base = result["baselines"].get("base", {})
    if "p_value" in base:
        low, high = base["interval_95"]
        lines.append(f"  the untouched {base['checkpoint']}: sacreBLEU {base['sacrebleu']:.2f} [{low:.2f}, {high:.2f}]")
    if other := result["baselines"].get("compare"):
        p = other["p_value"]
        verdict = f"p = {p:.3f}: {'a real difference' if p < 0.05 else 'no difference that these images can show'}"
        low, high = other["interval_95"]
        lines.append(f"  {other['checkpoint']}: sacreBLEU {other['sacrebleu']:.2f} [{low:.2f}, {high:.2f}], {verdict}")
    lines += [f"  {line}" for line in verdicts.say(result["verdicts"])]
    return "\n".join(lines)
