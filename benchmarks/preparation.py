"""What preparing a store costs against the number of images, and what batches from it cost against decoding files.

Command: python -m benchmarks.preparation --images 1000 10000 50000 --out results/preparation.json

What lives here: a corpus in MIMIC-CXR's layout that is quick to write (small JPEGs under many names), its preparation
in a process of its own for each size, the estimate for MIMIC-CXR-JPG, and the throughput of batches beside that of
decoding full-size JPEGs, interleaved in one process on one core. What must not: anything that a trial uses.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

NUM_MIMIC = 377_110
"""Images of MIMIC-CXR-JPG 2.0.0."""
FULL_SIZE = (3000, 2500)
_LABELS = ("Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
           "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices")
_REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough.

 FINDINGS:

 Heart size is normal. There is a {size} cm nodule in the {side} lung. No pleural effusion or pneumothorax is seen.
 Lungs are otherwise clear. Compared to ___, there is no relevant change.

 IMPRESSION:

 1.  {side} nodule of {size} cm.
 2.  No acute cardiopulmonary process.
"""


def picture(height: int, width: int, seed: int) -> Image.Image:
    """A smooth shape under noise, which a JPEG compresses about as a radiograph."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:height * 1j, -1:1:width * 1j]
    smooth = 140 + 70 * np.cos(3 * x) * np.cos(2 * y + seed)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 6, (height, width)), 0, 255).astype(np.uint8))


def write_corpus(root: Path, num_images: int, size: tuple[int, int] = (64, 56), images_per_study: int = 2) -> None:
    """Studies of a frontal and a lateral each, four a patient."""
    jpg, text = root / "mimic-cxr-jpg", root / "mimic-cxr"
    jpg.mkdir(parents=True)
    templates = []
    for seed in range(8):
        path = root / "template.jpg"
        picture(*size, seed).save(path, quality=90)
        templates.append(path.read_bytes())
    (root / "template.jpg").unlink()
    (root / "dataset.json").write_text(json.dumps({"name": "benchmark", "credentialed": False}))
    with (open(jpg / "mimic-cxr-2.0.0-metadata.csv", "w") as metadata,
          open(jpg / "mimic-cxr-2.0.0-split.csv", "w") as split,
          open(jpg / "mimic-cxr-2.0.0-chexpert.csv", "w") as labels):
        metadata.write("dicom_id,subject_id,study_id,ViewPosition,Rows,Columns,StudyDate,StudyTime\n")
        split.write("dicom_id,study_id,subject_id,split\n")
        labels.write(f"subject_id,study_id,{_LABELS}\n")
        for number in range(num_images):
            study_number = number // images_per_study
            subject, study = 10_000_000 + study_number // 4, 50_000_000 + study_number
            is_first = number % images_per_study == 0
            dicom = f"{number:08x}-00000000-00000000-00000000-00000000"
            folder = f"files/p{str(subject)[:2]}/p{subject}"
            path = jpg / folder / f"s{study}" / f"{dicom}.jpg"
            if is_first:
                path.parent.mkdir(parents=True)
                labels.write(f"{subject},{study},1.0,,,0.0,,,,,,-1.0,,,,\n")
                report = text / folder / f"s{study}.txt"
                report.parent.mkdir(parents=True, exist_ok=True)
                report.write_text(_REPORT.format(size=study % 90 / 10, side=("left", "right")[study % 2]))
            path.write_bytes(templates[number % len(templates)])
            metadata.write(f"{dicom},{subject},{study},{'PA' if is_first else 'LATERAL'},{size[0]},{size[1]},"
                           f"2150{study_number % 4 + 1:02d}01,{study_number % 86400}.0\n")
            split.write(f"{dicom},{study},{subject},{('train', 'train', 'test')[subject % 3]}\n")


_PREPARE = """
import json, resource, sys, time
from pathlib import Path
from medst.data.sources import Source
from medst.data.store import prepare_set
if __name__ == "__main__":
    root, out, size, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, time_before = time.perf_counter(), time.process_time()
    store = prepare_set(out, "mimic-cxr-jpg", Source(str(root / "mimic-cxr-jpg"), str(root / "mimic-cxr")),
                        image_size=size, is_credentialed=False, num_workers=workers)
    seconds = time.perf_counter() - start
    own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = sum(part.ru_utime + part.ru_stime for part in (own, workers)) - time_before
    print(json.dumps({"num_images": len(store.mimic.images), "seconds": seconds, "cpu_seconds": cpu,
                      "idle_mb": idle / 1024, "peak_mb": own.ru_maxrss / 1024,
                      "worker_peak_mb": workers.ru_maxrss / 1024}))
"""


def measure_preparation(root: Path, out: Path, image_size: int, workers: int) -> dict[str, float]:
    """Prepare a corpus in a process of its own, whose peak memory is that of the preparation."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = out.with_name("prepare.py")
    script.write_text(_PREPARE)
    printed = subprocess.run([sys.executable, str(script), str(root), str(out), str(image_size), str(workers)],
                             check=True, env={**environment, "PYTHONPATH": os.getcwd()}, stdout=subprocess.PIPE).stdout
    found: dict[str, float] = json.loads(printed)
    found["images_per_second"] = found["num_images"] / found["seconds"]
    found["images_per_cpu_second"] = found["num_images"] / found["cpu_seconds"]
    found["store_mb"] = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    return found


def measure_batches(store: Path, folder: Path, num_files: int, rounds: int) -> dict[str, float]:
    """Images/s of training batches from the store and of decoding full-size JPEGs, in turns, medians of the rounds."""
    import torch

    from medst.config import load_config
    from medst.data.images import read_square
    from medst.data.loader import TrainLoader, centre_crop
    from medst.data.store import open_store
    from medst.data.tokenizer import build_tokenizer

    torch.set_num_threads(1)
    config = load_config(overrides={"data.root": str(store), "data.image_size": 256, "data.crop_size": 224,
                                    "training.pairs_per_batch": 40, "model.image.patch_size": 16})
    opened = open_store(config.data)
    loader = TrainLoader(opened, build_tokenizer(opened, config.data, config.model.text.word_aggregation), config)
    folder.mkdir()
    paths = []
    for seed in range(num_files):
        paths.append(folder / f"{seed}.jpg")
        picture(*FULL_SIZE, seed).save(paths[-1], quality=90)
    fast, slow = [], []
    for number in range(rounds):
        start, num_images = time.process_time(), 0
        for batch in loader.batches(number):
            num_images += len(batch.frontal) + len(batch.lateral)
        fast.append(num_images / (time.process_time() - start))
        start = time.process_time()
        for path in paths:
            centre_crop(read_square(path, 256)[None], 224)
        slow.append(num_files / (time.process_time() - start))
    return {"from_store": float(np.median(fast)), "from_files": float(np.median(slow)),
            "ratio": float(np.median(fast) / np.median(slow)),
            "jpeg_mb": float(np.mean([path.stat().st_size for path in paths]) / 1e6)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 50_000])
    parser.add_argument("--full-size", type=int, default=60, help="full-size JPEGs to prepare and to decode")
    parser.add_argument("--image-size", type=int, default=64, help="side of the stored squares in the scaling runs")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("results/preparation.json"))
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the corpora; removed at the end")
    arguments = parser.parse_args()
    results: dict[str, object] = {"workers": arguments.workers, "scale": [], "image_size": arguments.image_size}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        scale: list[dict[str, float]] = []
        for num_images in arguments.images:
            root, out = Path(folder) / "corpus", Path(folder) / "store"
            write_corpus(root, num_images)
            scale.append(measure_preparation(root, out, arguments.image_size, arguments.workers))
            now = scale[-1]
            print(f"{num_images:>7} images: {now['seconds']:.1f} s, {now['images_per_second']:.0f} images/s "
                  f"({now['images_per_cpu_second']:.0f} a CPU second), peak {now['peak_mb']:.0f} MB, "
                  f"{now['idle_mb']:.0f} MB before; workers {now['worker_peak_mb']:.0f} MB", flush=True)
            shutil.rmtree(root)
            shutil.rmtree(out)
        results["scale"] = scale
        root, out = Path(folder) / "full", Path(folder) / "full-store"
        write_corpus(root, arguments.full_size, FULL_SIZE)
        full = measure_preparation(root, out, 256, arguments.workers)
        results["full_size"] = full
        root, out = Path(folder) / "batches", Path(folder) / "batch-store"
        write_corpus(root, 2000)
        measure_preparation(root, out, 256, arguments.workers)
        batches = measure_batches(out, Path(folder) / "jpegs", min(arguments.full_size, 20), 5)
        results["batches"] = batches
    # Of CPU time, on as many cores as there are workers: what a quiet machine needs.
    hours = NUM_MIMIC / batches["from_files"] / arguments.workers / 3600
    growth = (scale[-1]["peak_mb"] - scale[0]["peak_mb"]) / max(scale[-1]["num_images"] - scale[0]["num_images"], 1)
    peak = scale[-1]["peak_mb"] + growth * (NUM_MIMIC - scale[-1]["num_images"])
    results["mimic"] = {"hours": hours, "store_gb": NUM_MIMIC * 256**2 / 1e9, "peak_mb": peak}
    print(f"full-size JPEGs ({batches['jpeg_mb']:.1f} MB): {full['images_per_second']:.1f} images/s\n"
          f"batches: {batches['from_store']:.0f} images per CPU second from the store, {batches['from_files']:.1f} "
          f"from files, ratio {batches['ratio']:.0f}\n"
          f"MIMIC-CXR-JPG, {NUM_MIMIC} images at 256 pixels, {arguments.workers} workers: {hours:.1f} hours, "
          f"{NUM_MIMIC * 256**2 / 1e9:.1f} GB of images, peak about {peak:.0f} MB")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
