"""What data ask for: their measures, the rules, and the config that these make."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge

from crbp_d2.config import read_config, value_of
from crbp_d2.data import DatasetError, PanopticSource, prepare
from crbp_d2.data.measures import Measures, measure, measured
from crbp_d2.data.suggest import ANCHOR_STRIDES, suggest
from crbp_d2.data.suggestion_file import as_yaml, require_folder, write_suggestions
from crbp_d2.engine import argument_parser, main
from tests.modeling.conftest import CONFIGS

from .panoptic_data import CUP, DOG, ROAD, SKY, segment_ids, write_panoptic
from .real_data import needs_real_data, real_arguments
from .test_tools import panoptic_arguments, refusal, tool

QUICK, LITE = CONFIGS / "quick" / "shapes_feedforward.yaml", CONFIGS / "lite0_FPN_crbp.yaml"


def config(path: Path = QUICK, *overrides: object) -> CfgNode:
    return read_config(str(path), list(map(str, overrides)))


def drawn(images: Sequence[tuple[int, int]], objects: Sequence[Sequence[int]]) -> Measures:
    """Images with square objects of some sides, and all else of one stuff."""
    content: dict[str, Any] = {
        "images": [
            {"id": number, "height": height, "width": width}
            for number, (height, width) in enumerate(images)
        ],
        "categories": [{"id": 4, "isthing": 1}, {"id": 2, "isthing": 0}],
        "annotations": [],
    }
    for number, sides in enumerate(objects):
        squares = [
            {"category_id": 4, "iscrowd": 0, "area": side**2, "bbox": [0, 0, side, side]}
            for side in sides
        ]
        height, width = images[number]
        rest = height * width - sum(side**2 for side in sides)
        stuff = {"category_id": 2, "iscrowd": 0, "area": rest, "bbox": [0, 0, width, height]}
        content["annotations"].append({"image_id": number, "segments_info": [*squares, stuff]})
    return measured(content)


def suggested(measures: Measures, cfg: CfgNode) -> dict[str, Any]:
    return {one.key: one.value for one in suggest(measures, cfg)}


def reasons(measures: Measures, cfg: CfgNode) -> dict[str, str]:
    return {one.key: one.reason for one in suggest(measures, cfg)}


def test_measures_are_those_of_the_pixels_and_need_no_png(tmp_path):
    data = write_panoptic(tmp_path / "data")
    source = PanopticSource.locate(**data.arguments())
    prepare(source, workers=1)
    shutil.rmtree(data.pngs)
    shutil.rmtree(data.images)
    found = measure(source)
    ids = segment_ids()
    counts = {segment: int((ids == segment).sum()) for segment in np.unique(ids)}
    assert found.images.tolist() == [[40, 60]] * 3
    # The crowd is no object.
    assert found.objects.tolist() == [2, 2, 2] and found.image_of.tolist() == [0, 0, 1, 1, 2, 2]
    assert sorted(found.areas[:2]) == sorted([counts[DOG], counts[CUP]])
    assert sorted(map(tuple, found.boxes[:2])) == [(10, 8), (20, 20)]
    assert sorted(found.stuff[:2]) == sorted([counts[SKY], counts[ROAD]])
    assert found.pixels[12] == 3 * counts[SKY] and found.pixels[1] == 3 * counts[DOG]
    assert sum(found.pixels.values()) == 3 * (ids > 0).sum()
    np.testing.assert_allclose(found.shares, found.sizes / np.sqrt(2400))


@pytest.mark.parametrize("shortest", [0, 64, 800])
def test_images_are_resized_as_detectron2_resizes_them(shortest):
    sizes = [(480, 640), (300, 90), (50, 400), (77, 77)]
    found = drawn(sizes, [[]] * 4).scales(shortest, 333)
    for (height, width), scale in zip(sizes, found, strict=True):
        if shortest:
            augmentation = ResizeShortestEdge([shortest], 333, "choice")
            transform = augmentation.get_transform(np.zeros((height, width, 3), np.uint8))
            resized = (transform.new_h, transform.new_w)
        else:
            resized = (height, width)
        assert resized == pytest.approx((height * scale, width * scale), abs=0.51)


@pytest.mark.parametrize(
    ("images", "sides", "expected"),
    [
        # Objects of 16 pixels and more: images as they are, in whole strides.
        ((300, 410), [20] * 10, (288, 416)),
        # Small ones, then so small that it can't be enough.
        ((256, 256), [12] * 10, (352, 352)),
        ((256, 256), [4] * 10, (512, 512)),
        # Nor do few small ones count.
        ((256, 256), [4] + [30] * 20, (256, 256)),
        ((3000, 4000), [100] * 9, (800, 1088)),
        ((100, 900), [30] * 9, (96, 192)),
        ((20, 24), [9] * 9, (32, 64)),
    ],
)
def test_inputs_follow_the_images_and_enlarge_small_objects(images, sides, expected):
    found = suggested(drawn([images], [sides]), config())
    assert (found["INPUT.MIN_SIZE_TEST"], found["INPUT.MAX_SIZE_TEST"]) == expected
    assert found["INPUT.MAX_SIZE_TRAIN"] == expected[1]
    shares = [side / expected[0] for side in found["INPUT.MIN_SIZE_TRAIN"]]
    assert shares[-1] == 1 and min(shares) == pytest.approx(0.8, abs=0.21)


def test_a_size_that_the_user_can_afford_takes_the_other_keys_with_it():
    measures = drawn([(512, 1000)], [[40] * 10])
    found = {one.key: one for one in suggest(measures, config(), 192)}
    values = {key: one.value for key, one in found.items()}
    assert values["INPUT.MIN_SIZE_TEST"] == 192 and values["INPUT.MAX_SIZE_TEST"] == 384
    assert values["INPUT.MIN_SIZE_TRAIN"] == [160, 176, 192]
    assert found["INPUT.MIN_SIZE_TEST"].reason.startswith("as asked; the shorter side of the im")
    # Anchors are in pixels of the input.
    first = values["MODEL.ANCHOR_GENERATOR.SIZES"][0][0]
    assert first < suggested(measures, config())["MODEL.ANCHOR_GENERATOR.SIZES"][0][0]


def test_a_base_that_draws_from_a_range_gets_its_ends():
    cfg = config(QUICK, "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN", (64, 96))
    measures = drawn([(512, 512)], [[20]])
    assert suggested(measures, cfg)["INPUT.MIN_SIZE_TRAIN"] == [416, 512]
    assert suggested(measures, config())["INPUT.MIN_SIZE_TRAIN"] == [416, 464, 512]


def test_the_reason_gives_the_figure_and_the_cure_for_what_is_too_large():
    found = reasons(drawn([(3000, 4000)], [[30] * 9]), config())["INPUT.MIN_SIZE_TEST"]
    assert "3000 pixels (median)" in found and "smaller than 30 pixels in the files" in found
    assert "than 8 in this size: cut the images into tiles" in found
    assert "tiles" not in reasons(drawn([(300, 400)], [[30]]), config())["INPUT.MIN_SIZE_TEST"]


@pytest.mark.parametrize(
    ("features", "least", "most"),
    [
        (["p2", "p3", "p4", "p5", "p6"], 9, 60),
        (["p2", "p3", "p4", "p5", "p6"], 3, 12),
        (["p2", "p3", "p4", "p5", "p6"], 40, 500),
        (["p3", "p4", "p5"], 20, 100),
    ],
)
def test_objects_find_an_anchor_of_their_size(features, least, most):
    cfg = config(QUICK, "MODEL.RPN.IN_FEATURES", features)
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(np.log(least), np.log(most), 300)).round().astype(int)
    measures = drawn([(640, 640)] * 10, sides.reshape(10, 30).tolist())
    found = suggested(measures, cfg)
    sizes = np.array(found["MODEL.ANCHOR_GENERATOR.SIZES"])
    strides = 2.0 ** np.array([int(name[1]) for name in features])
    assert sizes.shape == (len(features), 1)
    assert (sizes[:, 0] >= ANCHOR_STRIDES[0] * strides - 0.5).all()
    assert (sizes[:, 0] <= ANCHOR_STRIDES[1] * strides + 0.5).all()
    scale = measures.scales(found["INPUT.MIN_SIZE_TEST"], found["INPUT.MAX_SIZE_TEST"])[0]
    inside = np.sort(sides)[30:285] * scale
    far = np.abs(np.log2(inside[:, None] / sizes[:, 0])).min(axis=1)
    # Half an octave is an overlap of a half. Strides keep anchors from very small objects.
    reachable = inside >= ANCHOR_STRIDES[0] * strides[0] / np.sqrt(2)
    assert reachable.any() and (far[reachable] <= 0.55).all()


def test_levels_of_other_names_get_no_anchors(caplog):
    cfg = config(QUICK, "MODEL.RPN.IN_FEATURES", ["fine", "coarse"])
    assert "MODEL.ANCHOR_GENERATOR.SIZES" not in suggested(drawn([(64, 64)], [[20]]), cfg)
    assert "no sizes of anchors are suggested" in caplog.text


@pytest.mark.parametrize(
    ("base", "most", "proposals", "detections"), [(QUICK, 150, 300, 200), (LITE, 20, 1000, 100)]
)
def test_proposals_and_detections_do_for_the_image_with_most_objects(
    base, most, proposals, detections
):
    measures = drawn([(400, 300), (200, 200)], [[8] * most, [9, 9]])
    found, why = suggested(measures, config(base)), reasons(measures, config(base))
    for phase in ("TRAIN", "TEST"):
        assert found[f"MODEL.RPN.POST_NMS_TOPK_{phase}"] == proposals
        assert found[f"MODEL.RPN.PRE_NMS_TOPK_{phase}"] >= proposals
    assert found["TEST.DETECTIONS_PER_IMAGE"] == detections
    assert f"up to {most} objects" in why["MODEL.RPN.POST_NMS_TOPK_TEST"]
    said = "the base has 50" if base == QUICK else "the base's 1000 do"
    assert said in why["MODEL.RPN.POST_NMS_TOPK_TEST"]


def test_the_limit_of_stuff_is_below_nearly_all_true_regions():
    key = "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT"
    small = drawn([(20 + number, 10) for number in range(21)], [[]] * 21)
    # 5 % of 200, 210, ... 400.
    assert suggested(small, config())[key] == 210
    assert suggested(drawn([(300, 300)], [[]]), config())[key] == 4096


def test_data_without_things_or_stuff_get_keys_for_what_they_have():
    without_things = suggested(drawn([(64, 64)], [[]]), config())
    assert {key.split(".")[0] for key in without_things} == {"INPUT", "MODEL"}
    assert not any("RPN" in key or "ANCHOR" in key for key in without_things)
    only_things = measured(
        {
            "images": [{"id": "a", "height": 64, "width": 64}],
            "categories": [{"id": 1, "isthing": 1}],
            "annotations": [
                {
                    "image_id": "a",
                    "segments_info": [
                        {"category_id": 1, "iscrowd": 0, "area": 900, "bbox": [0, 0, 30, 30]}
                    ],
                }
            ],
        }
    )
    assert not any("STUFF" in key for key in suggested(only_things, config()))


def test_every_key_has_a_comment_and_is_read_over_its_base(tmp_path):
    measures = drawn([(300, 410), (256, 256)], [[12] * 70, [30] * 4])
    target = tmp_path / "mine" / "suggested.yaml"
    target.parent.mkdir()
    suggestions = suggest(measures, config())
    write_suggestions(target, suggestions, base=QUICK, about="What 2 images ask for")
    read = read_config(str(target))
    for one in suggestions:
        value = value_of(read, one.key)
        assert (list(value) if isinstance(value, tuple) else value) == one.value
    # And nothing else changes.
    assert read.MODEL.FPN == config().MODEL.FPN and read.SOLVER == config().SOLVER
    lines = target.read_text().splitlines()
    assert lines[0] == "# What 2 images ask for." and max(map(len, lines)) <= 100
    values = [number for number, line in enumerate(lines) if re.search(r"[A-Z]: \S", line)]
    assert len(values) == len(suggestions)
    assert all(lines[number - 1].lstrip().startswith("#") for number in values)
    assert yaml.safe_load(as_yaml(suggestions)).keys() == {"INPUT", "MODEL", "TEST"}


def test_a_base_is_found_from_wherever_the_file_is(tmp_path, monkeypatch):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    (tmp_path / "base.yaml").write_text(f"_BASE_: {json.dumps(str(QUICK))}\nSEED: 77\n")
    monkeypatch.chdir(tmp_path)
    write_suggestions(require_folder("link/x.yaml"), [], base="base.yaml", about="None")
    for path in ("link/x.yaml", "real/deep/x.yaml"):
        assert read_config(path).SEED == 77


def test_a_file_of_somebody_stays_and_a_repeated_call_does_nothing(tmp_path):
    path = tmp_path / "mine.yaml"
    suggestions = suggest(drawn([(64, 64)], [[20]]), config())
    for _ in range(2):
        write_suggestions(path, suggestions, base=QUICK, about="a")
    path.write_text("SEED: 1\n")
    with pytest.raises(DatasetError, match=r"mine\.yaml: exists, and says something else; remove"):
        write_suggestions(path, suggestions, base=QUICK, about="a")
    assert path.read_text() == "SEED: 1\n"


def test_the_tool_prints_and_writes_what_data_ask_for(tmp_path, capsys):
    data = write_panoptic(tmp_path / "data")
    target = tmp_path / "suggested.yaml"
    options = [f"--config-file={QUICK}", f"--suggest={target}"]
    small = tmp_path / "small.yaml"
    tool("prepare_panoptic")([*panoptic_arguments(data.folder), "--size=96", f"--suggest={small}"])
    assert read_config(str(small)).INPUT.MIN_SIZE_TEST == 96
    assert "| resized to 96, at most 160 " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tool("prepare_panoptic")([*panoptic_arguments(data.folder), "--size=20"])
    assert "20: pixels of a side, from 32 to 4096" in capsys.readouterr().err
    for _ in range(2):
        tool("prepare_panoptic")([*panoptic_arguments(data.folder), *options])
    output = capsys.readouterr().out
    pixels = int((segment_ids() == SKY).sum())
    sky = f"| {3 * pixels:>8} | {100 * pixels / 2400:>5.2f} |"
    assert "| objects in an image " in output and sky in output
    assert as_yaml(suggest_of(data.folder)) in output
    assert target.read_text().startswith("# What 3 images of from_tool ask for.\n_BASE_: ")
    assert read_config(str(target)).TEST.DETECTIONS_PER_IMAGE == 100


def suggest_of(folder: Path) -> Any:
    (derived,) = (folder / "cache").glob("panoptic-*/panoptic.json")
    return suggest(measured(json.loads(derived.read_text())), config())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--suggest=absent/x.yaml", "absent: no such folder; make it, or name another file"),
        ("--suggest=.", "a folder; name a file in it"),
        ("--suggest=~nobody_of_that_name/x.yaml", "nobody_of_that_name"),
        ("--config-file=absent.yaml", "config file absent.yaml: no such file"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(option, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = write_panoptic(tmp_path / "data")
    assert message in refusal("prepare_panoptic", [*panoptic_arguments(data.folder), option])
    assert not (data.folder / "cache").exists()


@needs_real_data
def test_of_nuclei_the_quick_config_has_too_few_proposals(tmp_path):
    source = PanopticSource.locate(**real_arguments("nuclei", tmp_path, split="train", images=240))
    prepare(source)
    measures = measure(source)
    assert len(measures.images) == 240 and measures.objects.sum() == 7533
    suggestions = {one.key: one for one in suggest(measures, config())}
    proposals = suggestions["MODEL.RPN.POST_NMS_TOPK_TEST"]
    most = int(measures.objects.max())
    assert most >= 150 and proposals.value >= 2 * most > 50
    assert f"up to {most} objects" in proposals.reason and "the base has 50" in proposals.reason
    assert suggestions["TEST.DETECTIONS_PER_IMAGE"].value >= most
    assert suggestions["INPUT.MIN_SIZE_TEST"].value == 512
    assert suggestions["MODEL.ANCHOR_GENERATOR.SIZES"].value[0][0] <= 16


@pytest.mark.slow
def test_a_suggested_config_trains(tmp_path):
    data = write_panoptic(tmp_path / "data")
    listed = {"name": "test_suggest", "images": "data/images"}
    listed |= {"panoptic_json": "data/panoptic.json", "panoptic_pngs": "data/pngs"}
    (tmp_path / "sets.json").write_text(json.dumps([listed]))
    target = tmp_path / "suggested.yaml"
    options = [f"--config-file={QUICK}", f"--suggest={target}"]
    tool("prepare_panoptic")([*panoptic_arguments(data.folder), *options])
    words = [
        *("--config-file", target, "DATASETS.FILE", tmp_path / "sets.json", "OUTPUT_DIR"),
        *(tmp_path / "run", "DATASETS.TRAIN", "('test_suggest',)", "DATASETS.TEST"),
        *("('test_suggest',)", "SOLVER.MAX_ITER", 1, "SOLVER.IMS_PER_BATCH", 1),
    ]
    results = main(argument_parser().parse_args(list(map(str, words))))
    assert results["panoptic_seg"]["PQ"] >= 0
    DatasetCatalog.remove("test_suggest")
    MetadataCatalog.remove("test_suggest")
