"""The input path: images a second from the prepared store, against the published path and against what a step needs.

The published path reads the raw files again for every item: a full-size JPEG decoded, scaled, padded and cropped, the
caption tokenised. What must not live here: the loader.

Legend: N images, S side of a stored image.
"""

from __future__ import annotations

import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from benchmarks.measuring import interleave, spread
from medst.config import Config
from medst.data.images import read_square
from medst.data.loader import TrainLoader, crop, to_unit_range
from medst.data.store import MimicStore, Store
from medst.data.tokenizer import Tokenizer, build_tokenizer

_RAW_SIDES = (3050, 2500)
"""Height and width of a typical image of MIMIC-CXR-JPG."""
_NUM_RAW = 4
ACCELERATOR_OPERATIONS = 0.45 * 989.0e12
"""Operations a second of an assumed accelerator: an NVIDIA H100's peak in bfloat16, at a utilisation of 45 %."""
_WORDS = ("there", "is", "a", "small", "left", "pleural", "effusion", "no", "focal", "consolidation", "unchanged",
          "heart", "size", "normal", "lungs", "are", "clear", "right", "lower", "lobe", "opacity", "pneumothorax",
          "interval", "improvement")


def made_up_store(folder: Path, config: Config, num_studies: int) -> Store:
    """A store of random images in memory-mapped files, every patient with as many studies as a sequence, every other
    study with a lateral."""
    rng = np.random.default_rng(0)
    side, length = config.data.image_size, config.data.sequence_length
    num_laterals = num_studies // 2
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8,
                                       shape=(num_studies + num_laterals, side, side))
    for row in range(len(images)):
        images[row] = rng.integers(0, 256, (side, side), dtype=np.uint8)
    images.flush()
    number = np.arange(num_studies)
    has_lateral = number % 2 == 0
    reports = [" ".join(rng.choice(_WORDS, size=int(size))) for size in rng.integers(20, 60, num_studies)]
    studies = pd.DataFrame({
        "subject_id": (number // length).astype(str), "study_id": number.astype(str),
        "time": pd.Timestamp("2100-01-01") + pd.to_timedelta(number, unit="D"), "split": "train", "frontal": number,
        "frontal_view": np.where(number % 3 == 0, "AP", "PA"), "other_frontals": [[] for _ in number],
        "lateral": np.where(has_lateral, num_studies + number // 2, -1),
        "lateral_view": np.where(has_lateral, "LATERAL", ""), "report_released": reports, "report_corrected": reports,
    })
    mimic = MimicStore(np.load(folder / "images.npy", mmap_mode="r"), pd.DataFrame(), studies, None, None)
    return Store(path=folder, fingerprint="made up", name="made up", is_credentialed=False, image_size=side, steps=(),
                 problems=pd.DataFrame(), mimic=mimic, ms_cxr_t=None, ms_cxr=None, rsna=None, covidx=None)


def write_raw_images(folder: Path) -> list[Path]:
    """Grey JPEGs of full size, smooth with some noise, so that they take about as long to decode as an X-ray."""
    rng = np.random.default_rng(0)
    height, width = _RAW_SIDES
    paths = []
    for number in range(_NUM_RAW):
        waves = np.sin(np.linspace(0, 6 + number, height))[:, None] * np.cos(np.linspace(0, 5, width))[None]
        pixels = (128 + 80 * waves + rng.normal(0, 6, (height, width))).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def published_item(
    path: Path, text: str, tokenizer: Tokenizer, config: Config, rng: np.random.Generator
) -> torch.Tensor:
    """One image and its caption, from the raw file."""
    pixels = read_square(path, config.data.image_size)
    corners = rng.integers(0, config.data.image_size - config.data.crop_size + 1, size=(1, 2))
    tokenizer.encode_batch([text], config.data.caption_tokens)
    return to_unit_range(crop(pixels[None], corners, config.data.crop_size))


def measure_input(
    config: Config, pairs_per_second: float, operations_per_pair: float, *, seconds: float, num_studies: int
) -> dict[str, Any]:
    """Images a second on one core, against what the measured step takes and what an assumed accelerator would.

    Args:
        pairs_per_second: what the training step takes, from `benchmarks.training`.
        operations_per_pair: floating-point operations of its forward and backward pass.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = made_up_store(folder, config, num_studies)
        tokenizer = build_tokenizer(store, config.data, config.model.text.word_aggregation)
        raw = write_raw_images(folder)
        loader = TrainLoader(store, tokenizer, config, "cpu")
        assert store.mimic is not None
        text = store.mimic.studies["report_corrected"].iloc[0]
        rng = np.random.default_rng(0)
        numbers = count()
        num_images = 0

        def epoch() -> None:
            nonlocal num_images
            num_images = sum(len(batch.frontal) + len(batch.lateral) for batch in loader.batches(next(numbers)))

        def published() -> None:
            for path in raw:
                published_item(path, text, tokenizer, config, rng)

        times = interleave({"ours": epoch, "published": published}, "cpu", seconds=seconds)
        images_per_pair = num_images / (len(loader) * config.training.pairs_per_batch)
        ours, theirs = num_images / times.of("ours"), len(raw) / times.of("published")
        return {
            "images_per_second": {"ours": spread(ours), "published": spread(theirs)},
            "ratio": spread(ours / theirs), "images_per_pair": images_per_pair,
            "step_images_per_second": pairs_per_second * images_per_pair,
            "times_what_the_step_takes": spread(ours / (pairs_per_second * images_per_pair)),
            "accelerator_operations_per_second": ACCELERATOR_OPERATIONS,
            "cores_for_an_accelerator": spread(ACCELERATOR_OPERATIONS / operations_per_pair * images_per_pair / ours),
        }


