"""Random layouts of images and masks: each is paired rightly or refused, in fine-tuning and in a build."""

import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.sources import find_sources
from scanfoundry.datasets.labels.label_index import open_labels
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats import discover

MARKS = ("mask", "Mask", "seg", "segmentation", "label", "labels", "gt", "GT", "masks", "annotation")
IMAGES = ("img", "image", "IMG", "volume", "scan", "Image")
PREFIXES = ("", "case", "p", "IMG", "patient_A", "gt", "seg_x", "label", "mask", "Köln", "vol", "s_1", "scan_mask")
SEPARATORS = ("_", "-", "", " ", ".")
KINDS = ("apart", "apart", "together", "together", "folders", "contrasts", "sites", "channels")
KINDS += ("inside", "two", "above")  # folders in one, two folders of masks, a folder of masks that holds the images'
IMAGE_SUFFIXES, MASK_SUFFIXES = (".png", ".PNG", ".jpg", ".nii.gz", ".NII.GZ", ".tif"), (".png", ".PNG", ".nii.gz")


@dataclass
class Layout:
    """Files of images and masks below a folder, and what belongs together: images of a case, and its masks."""

    images: str = "images"
    masks: tuple[str, ...] = ("masks",)
    truth: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    more: list[str] = field(default_factory=list)  # files that are neither

    @property
    def files(self):
        return [file for case in self.truth.items() for part in case for file in part] + self.more

    @property
    def is_possible(self):
        """Whether no two files would be one."""
        names = [unicodedata.normalize("NFC", file).casefold() for file in self.files]
        return len(set(names)) == len(names)

    def write(self, root):
        for file in self.files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
        for folder in (self.images, *self.masks):
            (root / folder).mkdir(parents=True, exist_ok=True)


def around(word, name, separator, before):
    return f"{word}{separator}{name}" if before else f"{name}{separator}{word}"


@st.composite
def layouts(draw):
    """A layout as people have them; some hold what can only be refused."""
    pick = lambda values: draw(st.sampled_from(values))  # noqa: E731
    count, start, pad = draw(st.integers(2, 6)), pick((0, 0, 1, 9)), pick((1, 1, 2, 3, 4, 4))
    prefix, separator = pick(PREFIXES), pick(SEPARATORS)
    names = [f"{prefix}{separator if prefix else ''}{k:0{pad}d}" for k in range(start, start + count)]
    kind = pick(
        (
            "apart",
            "apart",
            "together",
            "together",
            "folders",
            "contrasts",
            "sites",
            "channels",
            "inside",
            "two",
            "above",
        )
    )
    word, mark = pick(("", "", *IMAGES)), pick(("", *MARKS, *MARKS))
    if kind in ("together", "contrasts") and not mark:
        mark = "mask"
    inner, outer, behind = pick(SEPARATORS), pick(SEPARATORS), draw(st.booleans())
    labelled = [k == 0 or draw(st.booleans()) for k in range(count)] if draw(st.booleans()) else [True] * count
    suffix, mask_suffix = pick(IMAGE_SUFFIXES), pick(MASK_SUFFIXES)
    whole, several = draw(st.booleans()), draw(st.booleans()) and draw(st.booleans())
    odd = draw(st.integers(0, 3 * count))
    layout = Layout()
    if kind in ("together", "contrasts", "inside"):
        layout.images, layout.masks = ".", (".",)
    elif kind in ("two", "above"):
        layout.masks = ("masks/0", "masks/1") if kind == "two" else (".",)
    sub = pick(("", "", "train/", "a/b/"))
    for k, name in enumerate(names):
        image = around(word, name, inner, not behind) if word else name
        stem = image if whole else name
        mask = around(mark, stem, outer, not behind and not whole) if mark else stem
        if odd == k and mark:
            mask = stem  # one is called otherwise
        elif odd == count + k and not mark:
            mask = f"{stem}_seg"
        at, place = "images/", "masks/"
        if kind == "together":
            at = place = sub
        elif kind == "folders":
            at, place, image, mask = f"images/{name}/", f"masks/{name}/", word or "image", mark or "mask"
        elif kind == "contrasts":
            at = place = f"{name}/"
            image, mask = "t1", mark
        elif kind == "inside":
            at, place = f"{sub}images/", f"{sub}{pick(('masks', 'labels'))}/"
        elif kind == "two":
            place = f"masks/{k % 2}/"
        elif kind == "sites":
            at, place = f"images/site{k % 2}/", f"masks/site{k % 2}/"
            image, mask = (f"{each}".replace(name, names[k // 2]) for each in (image, mask))
        images = [f"{at}{image}{suffix}"]
        if kind == "channels":
            images = [f"{at}{image}_{channel:04d}{suffix}" for channel in range(1 + (start + pad) % 3)]
        elif kind == "contrasts" and draw(st.booleans()):
            images.append(f"{at}flair{suffix}")
        masks = [f"{place}{mask}{mask_suffix}"]
        if several and mark:
            masks.append(f"{place}{mask}{pick(('_1', '_2', '-1', '_left'))}{mask_suffix}")
        if not labelled[k]:
            masks = []
        if kind == "contrasts":
            layout.truth |= {(each,): tuple(masks) for each in images}
        else:
            layout.truth[tuple(images)] = tuple(masks)
    extra = pick(("", "", "", "hidden", "scan", "numbered", "decomposed", "copy"))
    first = next(iter(layout.truth))[0]
    folder = first.rpartition("/")[0]
    if extra == "hidden":
        layout.more = [f"{folder}/._x.png".lstrip("/"), f"{layout.masks[0]}/.DS_Store"]
    elif extra == "scan":
        layout.truth[(f"{folder}/localiser{suffix}".lstrip("/"),)] = ()
    elif extra == "numbered":
        layout.truth[(first.removesuffix(suffix) + f"_1{suffix}",)] = ()
    elif extra == "copy" and suffix != ".jpg":
        layout.truth[(first.removesuffix(suffix) + ".jpg",)] = ()
    elif extra == "decomposed":
        layout.truth = {
            case: tuple(unicodedata.normalize("NFD", file) for file in masks) for case, masks in layout.truth.items()
        }
    return layout


def pairs_of_a_study(root, layout):
    data = LabelledData(images=root / layout.images, labels=[root / each for each in layout.masks], modality="us")
    found = discover(data, SegmentationTask())
    parts = {case: getattr(case.target, "parts", (case.target,)) for case in found.cases}
    pairs = {shown(root, case.images): shown(root, parts[case]) for case in found.cases}
    return pairs | {shown(root, case.images): () for case in found.unlabelled}, found.left_out.get(STRAYS, 0)


def pairs_of_a_build(root, layout):
    """As `build` finds them: the first channel has the mask, each of the others is a scan of its own."""
    book = open_labels([], [root / each for each in layout.masks], False)
    planned, _ = find_sources([root / layout.images], b"0" * 32, None, book, lambda where, files: ([], []))
    unused = book.unused([each.source.relative for each in planned])
    pairs = {}
    for each in planned:
        ref = each.labels
        masks = () if ref is None else (ref.mask, *ref.more_masks)
        pairs[shown(root, [each.source.root / each.source.relative])] = shown(root, masks)
    return pairs, unused


def shown(root, files):
    return tuple(sorted(Path(str(file)).relative_to(root).as_posix() for file in files if file is not None))


STRAYS = "scans without a label that are of no channel"


def outcome_of_a_study(root, layout, expected):
    try:
        found, strays = pairs_of_a_study(root, layout)
    except UserError as error:
        return "refused" if "\n" not in str(error) else str(error)
    told = {case: masks for case, masks in expected.items() if case not in found and not masks}
    return "paired" if found | told == expected and len(told) == strays else f"wrong: {found}"


def outcome_of_a_build(root, layout, expected):
    try:
        found, unused = pairs_of_a_build(root, layout)
    except UserError as error:
        return "refused" if "\n" not in str(error) else str(error)
    first = {(image,): masks if image == min(case) else () for case, masks in expected.items() for image in case}
    return "paired" if found == first and not unused else f"wrong: {found}, {unused}"


def test_a_layout_is_paired_rightly_or_refused(tmp_path_factory):
    outcomes: Counter[str] = Counter()

    @settings(max_examples=450, derandomize=True, deadline=None, database=None)
    @given(layouts())
    def run(layout):
        assume(layout.is_possible)
        root = tmp_path_factory.mktemp("layout")
        layout.write(root)
        expected = {tuple(sorted(case)): tuple(sorted(masks)) for case, masks in layout.truth.items()}
        for way in (outcome_of_a_study, outcome_of_a_build):
            outcome = way(root, layout, expected)
            assert outcome in ("paired", "refused")
            outcomes[outcome] += 1

    run()
    assert outcomes.total() >= 2 * 400
    assert outcomes["paired"] > outcomes["refused"]  # most are as people have them
