"""Images that eight bits don't hold: refused, or converted by a rule that the user chooses."""

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import read_image as read_with_detectron2
from PIL import Image

from crbp_d2.data import (
    DatasetError,
    PanopticMapper,
    PanopticSource,
    ensure_prepared,
    prepare,
    read_image,
    register_from_file,
    register_panoptic,
)
from crbp_d2.data.pathfinder.folder import read_pair
from crbp_d2.data.reading import require_eight_bits

from .panoptic_data import HEIGHT, WIDTH, Written, write_panoptic
from .test_cache import contents

GREY = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) + 1000).astype(np.uint16)
COLOUR = np.stack([GREY, GREY[::-1], GREY + 500], axis=2)


def cv2_bytes(ending: str, values: np.ndarray) -> bytes:
    return cv2.imencode(ending, values)[1].tobytes()


def pillow_bytes(kind: str, image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pages(kind: str) -> bytes:
    images = [Image.new("RGB", (WIDTH, HEIGHT), (60 * number, 0, 0)) for number in range(3)]
    return pillow_bytes(kind, images[0], save_all=True, append_images=images[1:])


def half_transparent(mode: str) -> Image.Image:
    image = Image.new("RGBA", (WIDTH, HEIGHT), (10, 200, 30, 255))
    image.paste((1, 2, 3, 0), (0, 0, WIDTH // 2, HEIGHT))
    return image.convert(mode)


DEEP = {
    "16-bit grey PNG": lambda: cv2_bytes(".png", GREY),
    "16-bit grey TIFF": lambda: cv2_bytes(".tif", GREY),
    "16-bit PGM": lambda: cv2_bytes(".pgm", GREY),
    "32-bit TIFF": lambda: cv2_bytes(".tif", GREY.astype(np.int32)),
    "float TIFF": lambda: cv2_bytes(".tif", GREY.astype(np.float32)),
    "16-bit colour PNG": lambda: cv2_bytes(".png", COLOUR[..., ::-1]),
    "16-bit colour TIFF": lambda: cv2_bytes(".tif", COLOUR[..., ::-1]),
    "16-bit PPM": lambda: cv2_bytes(".ppm", COLOUR[..., ::-1]),
    "16-bit PNG with opaque alpha": lambda: cv2_bytes(
        ".png", np.dstack([COLOUR[..., ::-1], np.full_like(GREY, 65535)])
    ),
}
LOST: dict[str, tuple[Callable[[], bytes], str]] = {
    "pages of a TIFF": (lambda: pages("tiff"), "3 pages or frames"),
    "animated GIF": (lambda: pages("gif"), "3 pages or frames"),
    "animated PNG": (lambda: pages("png"), "3 pages or frames"),
    "fourth channel": (
        lambda: pillow_bytes("tiff", Image.new("RGBX", (WIDTH, HEIGHT))),
        "4 channels, of which only 3",
    ),
    "transparent PNG": (lambda: pillow_bytes("png", half_transparent("RGBA")), "transparent in"),
    "transparent grey": (lambda: pillow_bytes("png", half_transparent("LA")), "transparent in"),
    "transparent palette": (
        lambda: pillow_bytes("gif", half_transparent("RGBA")),
        "transparent in",
    ),
    "turned TIFF": (
        lambda: pillow_bytes("tiff", Image.new("RGB", (WIDTH, HEIGHT)), tiffinfo={274: 3}),
        "a TIFF that is stored turned",
    ),
    "JPEG 2000": (lambda: cv2_bytes(".jp2", COLOUR), "the format JPEG2000"),
}
KEPT = {
    "opaque alpha": lambda: pillow_bytes("png", Image.new("RGBA", (WIDTH, HEIGHT), "red")),
    "palette": lambda: pillow_bytes("png", Image.new("P", (WIDTH, HEIGHT), 3)),
    "black and white": lambda: pillow_bytes("png", Image.new("1", (WIDTH, HEIGHT))),
    "CMYK": lambda: pillow_bytes("jpeg", Image.new("CMYK", (WIDTH, HEIGHT))),
    "YCbCr": lambda: pillow_bytes("tiff", Image.new("YCbCr", (WIDTH, HEIGHT))),
    "TIFF with a thumbnail": lambda: with_thumbnail(),
    "five bits a colour": lambda: packed_bmp(),
    "eight-bit PPM": lambda: pillow_bytes("ppm", Image.new("RGB", (WIDTH, HEIGHT), "red")),
    "4-bit grey": lambda: pillow_bytes("png", Image.new("L", (WIDTH, HEIGHT), 17), bits=4),
}


def packed_bmp() -> bytes:
    """16 bits a pixel: five for each colour."""
    pixels = np.arange(HEIGHT * WIDTH, dtype="<u2").tobytes()
    sizes = struct.pack("<iiHHIIiiII", WIDTH, HEIGHT, 1, 16, 0, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IIII", 54 + len(pixels), 0, 54, 40) + sizes + pixels


def with_thumbnail() -> bytes:
    """The second page says of itself that it is a reduced version."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "red")
    small = image.resize((WIDTH // 4, HEIGHT // 4))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    return pillow_bytes("tiff", image, save_all=True, append_images=[small])


def with_image(folder: Path, content: bytes) -> Written:
    """A data set of which one image is of another kind; Pillow doesn't go by the ending."""
    data = write_panoptic(folder)
    (data.images / "1.jpg").write_bytes(content)
    return data


def converted(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (values.astype(np.float64) - low) / (high - low) * 255
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


@pytest.mark.parametrize("case", DEEP)
def test_deep_image_is_refused_unless_a_range_is_given(
    tmp_path: Path, request: pytest.FixtureRequest, case: str
) -> None:
    data = with_image(tmp_path / "data", DEEP[case]())
    message = r"images/1.jpg: values of more than the 8 bits .* here 1000 to \d+; give the data"
    name = request.node.name
    register_panoptic(name, **data.arguments(), cache=tmp_path / "cache")
    with pytest.raises(DatasetError, match=message):
        ensure_prepared(name, workers=1)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock"]

    register_panoptic(f"{name} as 8 bits", **data.arguments(), intensity_range=(1200, 3000))
    record = DatasetCatalog.get(f"{name} as 8 bits")[1]
    # Detectron2's own mapper, and all else that opens the record's file, gets the converted values.
    cfg = get_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TEST = HEIGHT
    expected = converted(
        COLOUR
        if "colour" in case or "alpha" in case or "PPM" in case
        else np.repeat(GREY[..., None], 3, 2),
        1200,
        3000,
    )
    for mapper in (DatasetMapper, PanopticMapper):
        image = mapper(cfg, is_train=False)(record)["image"].numpy().transpose(1, 2, 0)
        np.testing.assert_array_equal(image, expected)
    assert len(np.unique(image)) > 200
    # The others stay as they are, and where they are.
    others = [DatasetCatalog.get(f"{name} as 8 bits")[number] for number in (0, 2)]
    assert {Path(other["file_name"]).parent for other in others} == {data.images}
    # What reads the original converts it alike.
    np.testing.assert_array_equal(
        read_image(str(data.images / "1.jpg"), "RGB", (1200, 3000)), expected
    )


@pytest.mark.parametrize("case", LOST)
def test_what_pillow_would_lose_is_refused(tmp_path: Path, case: str) -> None:
    make, message = LOST[case]
    data = with_image(tmp_path / "data", make())
    for values in (None, (0, 4000)):
        source = PanopticSource.locate(**data.arguments(), intensity_range=values)
        with pytest.raises(DatasetError, match=f"images/1.jpg: {message}"):
            prepare(source, workers=1)
    with pytest.raises(DatasetError, match=f"images/1.jpg: {message}"):
        read_image(str(data.images / "1.jpg"), "RGB")


@pytest.mark.parametrize("case", KEPT)
def test_other_kinds_of_images_are_read_as_detectron2_does(tmp_path: Path, case: str) -> None:
    data = with_image(tmp_path / "data", KEPT[case]())
    assert not prepare(PanopticSource.locate(**data.arguments()), workers=1).converted
    path = str(data.images / "1.jpg")
    require_eight_bits(path)
    np.testing.assert_array_equal(read_image(path, "RGB"), read_with_detectron2(path, "RGB"))


def test_what_pillow_cannot_read_is_refused(tmp_path: Path) -> None:
    data = with_image(tmp_path / "data", cv2_bytes(".tif", GREY.astype(np.float64)))
    with pytest.raises(DatasetError, match=r"1.jpg: can't be read \(no format that Pillow knows"):
        prepare(PanopticSource.locate(**data.arguments()), workers=1)


def test_upright_after_conversion(tmp_path: Path) -> None:
    turned = Image.fromarray(GREY.T[::-1].copy())
    exif = Image.Exif()
    exif[274] = 6
    data = with_image(tmp_path / "data", pillow_bytes("png", turned, exif=exif))
    source = PanopticSource.locate(**data.arguments(), intensity_range=(1000, 4000))
    manifest = prepare(source, workers=1)
    assert manifest.converted == [11]
    pixels = np.array(Image.open(source.converted_images / "1.jpg.png"))
    np.testing.assert_array_equal(pixels, converted(GREY, 1000, 4000))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((5000, 9000), r"all values \(1000 to 3399\) become 0 with an intensity_range of 5000 to"),
        ((0, 10), r"all values \(1000 to 3399\) become 255"),
    ],
)
def test_range_without_contrast_is_refused(
    tmp_path: Path, values: tuple[float, float], message: str
) -> None:
    data = with_image(tmp_path / "data", DEEP["16-bit grey PNG"]())
    source = PanopticSource.locate(**data.arguments(), intensity_range=values)
    with pytest.raises(DatasetError, match=f"images/1.jpg: {message}"):
        prepare(source, workers=1)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    values = GREY.astype(np.float32)
    values[3, 4] = np.nan
    data = with_image(tmp_path / "data", cv2_bytes(".tif", values))
    source = PanopticSource.locate(**data.arguments(), intensity_range=(0, 4000))
    with pytest.raises(DatasetError, match=r"images/1.jpg: some values are NaN or infinite"):
        prepare(source, workers=1)


@pytest.mark.parametrize("values", [(1,), (1, 2, 3), (2, 1), (0, float("nan")), "ab", 3, (True, 4)])
def test_range_must_be_two_numbers(tmp_path: Path, values: object) -> None:
    data = write_panoptic(tmp_path / "data")
    with pytest.raises(DatasetError, match="intensity_range is .*, must be the two values"):
        register_panoptic("never", **data.arguments(), intensity_range=values)
    listing = tmp_path / "data.json"
    entry = {"name": "never", **{key: str(path) for key, path in data.arguments().items()}}
    listing.write_text(json.dumps([{**entry, "intensity_range": values}]))
    with pytest.raises(DatasetError, match=r"data.json, data set 1: intensity_range is"):
        register_from_file(listing)
    assert "never" not in DatasetCatalog


def test_range_from_a_file_and_in_the_metadata(
    tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_panoptic(tmp_path / "data")
    name = request.node.name
    entry = {"name": name, **{key: str(path) for key, path in data.arguments().items()}}
    listing = tmp_path / "data.json"
    listing.write_text(json.dumps([{**entry, "intensity_range": [0, 4095]}]))
    register_from_file(listing)
    assert MetadataCatalog.get(name).intensity_range == (0, 4095)
    with caplog.at_level("WARNING", logger="crbp_d2"):
        ensure_prepared(name)
    assert "no image has more than 8 bits, so intensity_range is without effect" in caplog.text


def test_other_ranges_have_other_caches(tmp_path: Path) -> None:
    data = with_image(tmp_path / "data", DEEP["16-bit grey PNG"]())
    sources = [
        PanopticSource.locate(**data.arguments(), intensity_range=values)
        for values in ((0, 4000), (0, 5000))
    ]
    for source in sources:
        prepare(source, workers=1)
    kept = contents(sources[0].derived)
    assert kept != contents(sources[1].derived)
    prepare(sources[0])
    assert contents(sources[0].derived) == kept


def test_mapper_refuses_deep_images_of_any_data_set(tmp_path: Path) -> None:
    """Detectron2's own registration doesn't prepare anything."""
    path = tmp_path / "deep.png"
    path.write_bytes(DEEP["16-bit grey PNG"]())
    record = {"file_name": str(path), "height": HEIGHT, "width": WIDTH, "annotations": []}
    with pytest.raises(DatasetError, match=r"deep.png: .*mode I;16\); save it with 8 bits"):
        PanopticMapper(get_cfg(), is_train=True)(record)


@pytest.mark.parametrize("deep", ["image", "mask"])
def test_deep_pathfinder_files_are_refused(tmp_path: Path, deep: str) -> None:
    for kind in ("image", "mask"):
        values = np.full((20, 20), 200, dtype=np.uint16 if kind == deep else np.uint8)
        (tmp_path / f"{kind}.png").write_bytes(cv2_bytes(".png", values))
    with pytest.raises(DatasetError, match=f"{deep}.png: values of more than the 8 bits"):
        read_pair(tmp_path / "image.png", tmp_path / "mask.png", 20)


def test_deep_or_lossy_segment_ids_are_refused(tmp_path: Path) -> None:
    data = write_panoptic(tmp_path / "data")
    (data.pngs / "0.png").write_bytes(cv2_bytes(".png", COLOUR))
    jpeg = Image.open(data.pngs / "1.png")
    (data.pngs / "1.png").write_bytes(pillow_bytes("jpeg", jpeg))
    with pytest.raises(DatasetError) as caught:
        prepare(PanopticSource.locate(**data.arguments()), workers=1)
    assert "0.png: more than 8 bits a value, but segment ids are" in str(caught.value)
    assert "1.png: a JPEG, which doesn't keep segment ids" in str(caught.value)
