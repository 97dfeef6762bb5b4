"""How people call splits, images and captions: matched here and nowhere else, without regard to case, blanks and
signs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import PurePosixPath

_WORDS = {
    "train": (
        *("train", "training", "trainset", "trainingset", "restval", "trn", "imagestr"),  # the last: nnU-Net's
        *("trainings", "entrenamiento", "treino", "treinamento", "entraînement", "addestramento"),
        *("训练", "训练集", "訓練"),
    ),
    "validation": (
        *("validation", "validate", "valid", "val", "dev", "devel", "development", "eval", "evaluation", "valset"),
        *("validationset", "devset", "validierung", "validierungs", "validación", "validação", "validazione"),
        *("验证", "验证集", "検証"),
    ),
    "test": (
        *("test", "testing", "testset", "holdout", "heldout", "imagests", "tests", "prueba", "pruebas", "teste"),
        *("testes", "测试", "测试集", "テスト"),
    ),
}
SPLIT_WORDS = {word: split for split, words in _WORDS.items() for word in words}

# Words that say nothing about the split: in the name of a folder they may stand beside one that does.
_PLAIN = {
    *("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "captions", "caption", "annotations"),
    *("annotation", "data", "dataset", "set", "split", "splits", "part", "files", "coco", "flickr", "folder", "the"),
    *("list", "lists", "ids", "names", "id", "daten", "bilder", "final", "official", "new", "my", "v", "version"),
}

DERIVED = {  # words for pictures that are made from others
    *("mask", "masks", "depth", "depths", "crop", "crops", "thumbnail", "thumbnails", "thumbs", "segmentation"),
    *("segmentations", "panoptic", "edges", "canny", "normals", "heatmap", "heatmaps", "saliency", "mattes"),
}

# The first name that is there is taken.
IMAGE_COLUMNS = (
    *("image", "filename", "imagename", "imagefile", "imagefilename", "imagepath", "imgpath", "filepath", "path"),
    *("file", "fname", "localpath", "localfile", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "images"),
    *("imageurl", "imgurl", "url"),
)
ID_COLUMNS = ("imageid", "id")  # where no other names the image: its file's name without the suffix
CONVERSATIONS = ("conversations", "conversation", "messages")
CAPTION_COLUMNS = (
    *("caption", "captions", "text", "texts", "sentences", "sentence", "raw", "description", "comment", "txt"),
    *("captionstr", "captiontext", "imagecaption", "alttext"),
    *CONVERSATIONS,
)
LISTS_OF_CAPTIONS = ("captions", "texts", "sentences", "descriptions", "comments")  # where `|` separates several
SPLIT_COLUMNS = ("split", "splits", "datasplit", "datasetsplit", "splitname", "setname")
MAYBE_SPLIT_COLUMNS = ("partition", "subset", "set", "phase", "fold", "usage", "stage")  # or about something else

# What label tools and people write of a caption that is not to be used; and of one that is.
REJECTED = {
    *("reject", "rejected", "spam", "discard", "discarded", "exclude", "excluded", "skip", "skipped"),
    *("ignore", "ignored", "delete", "deleted", "drop", "dropped", "junk", "unusable"),
}
ACCEPTED = {"accept", "accepted", "approve", "approved", "keep", "kept", "include", "included", "usable", "ok", "good"}
# The same, but only in a column of verdicts or as its name: elsewhere these may be about what is seen.
BAD = REJECTED | {"bad", "poor", "wrong", "incorrect", "invalid", "unacceptable"}
GOOD = ACCEPTED | {"use", "useful", "valid", "correct", "acceptable"}
_VERDICTS = {"quality", "rating", "review", "status", "verdict", "decision", "answer", "judgement", "feedback"}
# Words that may stand beside these in a column's name: `is_caption_ok`, `do_not_use`, `text_quality`.
_BESIDE = {"is", "do", "to", "be", "caption", "captions", "text", "annotation", "row", "sample", "item"}

_SIGNS = re.compile(r"[\W_]+")


def plain(name: object) -> str:
    """A name without case, blanks, signs and accents' spelling: `File Name`, `file_name` and `FILE-NAME` are one."""
    return _SIGNS.sub("", unicodedata.normalize("NFKC", str(name)).casefold())


def find_column(columns: Sequence[str], names: Iterable[str]) -> str | None:
    """The column that is called by the first of `names` that is there."""
    there = {plain(column): column for column in reversed(columns)}
    return next((there[name] for name in map(plain, names) if name in there), None)


def caption_columns(columns: Sequence[str]) -> list[str]:
    """The columns of captions: that with the first usual name, and those that are called so with a number (`caption_0`,
    `raw 2`); else the `suffix` that PaliGemma's data have beside a `prefix`."""
    for name in CAPTION_COLUMNS:
        numbered = [c for c in columns if re.fullmatch(rf"{name}\d+", plain(c))]
        if (exact := find_column(columns, [name])) or numbered:
            return [*([exact] if exact else []), *numbered]
    suffix = find_column(columns, ("suffix",)) if find_column(columns, ("prefix",)) else None
    return [suffix] if suffix else []


def says_captions(columns: Iterable[str]) -> bool:
    """Whether a column is called after captions, and not just after texts."""
    return any(plain(column).startswith("caption") for column in columns)


def split_of_flag(column: str) -> str | None:
    """The split that a column of yes and no is about: `is_test`, `in_train`."""
    found = re.fullmatch(r"(?:is|in|for)(.+)", plain(column))
    return split_of_name(found[1], strict=True) if found else None


def may_be_about_splits(column: str) -> bool:
    """Whether a column's name has a word about splits, among others: `train_test`, `cv_fold`, `split2`, `kfold`."""
    words = re.findall(r"[^\W\d_]+", column.casefold())
    about = {*SPLIT_WORDS, *SPLIT_COLUMNS, "fold", "folds", "kfold", "partition", "partitions", "subset", "subsets"}
    return any(word in about for word in words) or plain(column).startswith(SPLIT_COLUMNS)


def verdict_of_flag(column: str) -> bool | None:
    """What a column of yes and no says of a caption with its yes: False for `rejected` and `is_spam`, which speak
    against it, True for `approved`, `use` and `is_ok`; None for any other, as for `in_valid`, which is about a split
    and not `invalid`. `not` turns it round."""
    if words_in(column)[:1] in (["in"], ["for"]) and split_of_flag(column):
        return None
    words = [word for word in words_in(column) if word not in _BESIDE and word != "image"]
    word = "".join(word for word in words if word != "not").removeprefix("is")
    return (word in GOOD) != ("not" in words) if word in BAD | GOOD else None


def is_about_verdicts(column: str) -> bool:
    """Whether a column's name says that its cells judge the caption: `quality`, `review_status`."""
    words = set(words_in(column))
    return bool(words & _VERDICTS) and words <= _VERDICTS | _BESIDE


def may_be_usable(column: str) -> bool:
    """Whether a column of yes and no may be about the validation part, as fastai's, or about what can be used."""
    return plain(column) in ("valid", "isvalid")


def says_nothing(word: str) -> bool:
    """Whether a word in a folder's name says nothing of its pictures: `images`, `jpg`, `dataset`."""
    return word in _PLAIN or word in ("jpg", "jpeg", "png", "pics", "picture", "frames", "photo")


def is_derived(folder: str) -> bool:
    """Whether a folder is called after pictures that are made from others: `masks`, `train_depth`."""
    return not DERIVED.isdisjoint(words_in(folder))


def words_in(name: str) -> list[str]:
    """`isOk_2` -> `is`, `ok`, `2`."""
    return re.findall(r"[^\W_]+", spaced(name))


def spaced(name: str) -> str:
    """`isOk_2` -> `is ok_2`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name)).casefold()


@lru_cache(100_000)
def split_of_name(name: str, strict: bool = False) -> str | None:
    """train, validation or test, if a name says one of them: `Val`, `test2017`, `train_captions`,
    `cc3m-validation-0000`. None if it says none, or two (`trainval`, `train_val`).

    Args:
        name: of a split, a folder, a file without its suffix, a shard.
        strict: nothing else may be said, but words like `images`: for folders, which may be about anything.
    """
    name = spaced(name)
    if found := SPLIT_WORDS.get(re.sub(r"[\W\d_]+", "", name)):  # `hold-out`, `rest_val`, `2014val`
        return found
    words = [part for word in re.findall(r"[^\W\d_]+", name) for part in parted(word)]
    if strict and not all(word in SPLIT_WORDS or word in _PLAIN for word in words):
        return None
    splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    if splits == {"test", "validation"} and {"test", "dev"} <= set(words):  # VQA's test-dev is a part of the test
        return "test"
    return splits.pop() if len(splits) == 1 else None


def parted(word: str) -> tuple[str, ...]:
    """`testimages` -> `test`, `images`; any other word is itself."""
    for split in SPLIT_WORDS:
        if word.startswith(split) and word[len(split) :] in _PLAIN:
            return split, word[len(split) :]
        if word.endswith(split) and word[: -len(split)] in _PLAIN:
            return word[: -len(split)], split
    return (word,)


def splits_of_folders(folders: Iterable[str]) -> dict[str, str | None]:
    """The split that each relative folder's path says, by itself or because its name differs in that from the names
    beside it (`x_train/`, `x_test/`)."""
    paths = {folder: PurePosixPath(folder, "image") for folder in set(folders)}
    beside: dict[PurePosixPath, dict[PurePosixPath, str]] = {}
    for folder in {parent for path in paths.values() for parent in path.parents if parent.name}:
        if split := split_of_name(folder.name):
            beside.setdefault(folder.parent, {})[folder] = split
    siblings = {f: split for named in beside.values() if len(set(named.values())) > 1 for f, split in named.items()}
    return {
        folder: split_of_path(path) or next((siblings[p] for p in path.parents if p in siblings), None)
        for folder, path in paths.items()
    }


def split_of_path(path: PurePosixPath) -> str | None:
    """The split that the folders of a relative path name, at any depth. Of several, the test comes first, then
    validation: what one folder keeps out of training, another must not bring in."""
    splits = {split_of_name(part, strict=True) for part in path.parts[:-1]}
    return next((split for split in ("test", "validation", "train") if split in splits), None)
