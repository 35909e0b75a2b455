"""What a network is trained on: sample t is a pure function of the task and (seed, t), in whichever process."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from mmcv.transforms import RandomGrayscale
from mmengine.structures import PixelData
from mmseg.datasets.transforms import PhotoMetricDistortion, RandomCrop, RandomCutOut, RandomFlip, Resize
from mmseg.structures import SegDataSample
from torch.utils.data import Sampler

from sesam.artifacts.drawn_prompts import read_drawn_prompts
from sesam.artifacts.manifest import ImageRecord, Manifest, load_image, load_label
from sesam.artifacts.sources import FINE, NONE, SAM, WEAK, load_sources
from sesam.artifacts.supervision import load_supervision
from sesam.labels import IGNORE_INDEX, fill_boxes
from sesam.params import BASELINE, LossWeights, Schedule
from sesam.seeds import seed_of


@dataclass(frozen=True)
class TrainingTask:
    """module: the stage's, for `python -m` in each process of a distributed training. round_name: None: the baseline.

    sources: None if every labeled pixel is the annotators'. init: folder of the trained network that it starts from;
    None for `network.pretrained`. sam_sample_prob: the probability that a sample uses its SAM pixels.
    unannotated_ratio: the fraction of the samples from images without annotation.
    """

    module: str
    labels: Path
    schedule: Schedule
    loss_weights: LossWeights
    round_name: str | None = None
    sources: Path | None = None
    sam_sample_prob: float = 0.0
    unannotated_ratio: float = 0.0
    init: Path | None = None

    @property
    def network(self) -> str:
        """The name of the trained network: "baseline", or the round's."""
        return self.round_name or BASELINE

    @property
    def group(self) -> Literal["baseline", "student"]:
        """The group of params.yaml that overrides `schedule`."""
        return "student" if self.round_name else "baseline"

    @property
    def name(self) -> str:
        """Shown in messages, seeds the training and names its unfinished work."""
        return f"student-{self.round_name}" if self.round_name else BASELINE

    @property
    def work_dir(self) -> Path:
        """The unfinished training: checkpoint and mmengine's files."""
        return Path("models/.work", self.name)


def random_blur(results: dict[str, Any]) -> dict[str, Any]:
    """A transform like mmseg's: blurs every other `img` by a Gaussian of up to two pixels."""
    if np.random.uniform() < 0.5:
        results["img"] = cv2.GaussianBlur(results["img"], (0, 0), np.random.uniform(0.1, 2.0))
    return results


class TrainingDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Sample t of a training: an image, resized, cropped, flipped and recolored at random.

    Beside annotated images, those without annotation may also turn gray, blurred and get a hole without labels: a
    student gains more from a teacher's labels where it sees less than the teacher did (ST++, Yang et al., CVPR 2022).
    """

    def __init__(self, task: TrainingTask, manifest: Manifest, seed: int) -> None:
        self.task, self.num_classes, self.seed = task, len(manifest.classes), seed
        self.kinds = load_supervision(manifest.train)
        self.annotated = [record for record in manifest.train if self.kinds[record.id] != "none"]
        self.unannotated = [record for record in manifest.train if self.kinds[record.id] == "none"]
        self.ratio = Fraction(str(task.unannotated_ratio)) if self.unannotated else Fraction(0)
        if not self.annotated:
            self.ratio = Fraction(1)
        self.orders: dict[str, tuple[int, np.ndarray]] = {}  # of each pool, an epoch and its permutation
        self.after_resize = [RandomCrop(tuple(task.schedule.crop_size)), RandomFlip(prob=0.5), PhotoMetricDistortion()]
        holes = [(side, side) for side in (0.2, 0.3, 0.4, 0.5)]  # of the sample's
        self.harder = [
            RandomGrayscale(prob=0.2, keep_channels=True),
            random_blur,
            RandomCutOut(prob=0.5, n_holes=1, cutout_ratio=holes, seg_fill_in=IGNORE_INDEX),
        ]

    def __len__(self) -> int:
        return self.task.schedule.max_iters * self.task.schedule.batch_size

    def record(self, t: int) -> ImageRecord:
        """The image of sample t: of those with and those without annotation, each once per epoch in a new order."""
        before, after = floor(t * self.ratio), floor((t + 1) * self.ratio)  # samples without annotation
        if before < after:
            return self._draw("unannotated", self.unannotated, before)
        return self._draw("order", self.annotated, t - before)

    def _draw(self, pool: str, records: Sequence[ImageRecord], t: int) -> ImageRecord:
        epoch, place = divmod(t, len(records))
        if pool not in self.orders or self.orders[pool][0] != epoch:  # cached: a million images take 11 ms
            generator = np.random.default_rng(seed_of(self.seed, pool, epoch))
            self.orders[pool] = epoch, generator.permutation(len(records))
        return records[self.orders[pool][1][place]]

    def __getitem__(self, t: int) -> dict[str, Any]:
        """inputs: (3, h, w) uint8 BGR; data_samples: gt_sem_seg (2, h, w) uint8, class ids and sources.

        h, w is the crop size, or less if the image is smaller; the network's preprocessor pads.
        """
        seed, record = seed_of(self.seed, "sample", t), self.record(t)
        random.seed(seed)  # mmseg's transforms draw from the global generators
        np.random.seed(seed % 2**32)
        labels = load_label(self.task.labels, record, self.num_classes)
        if self.task.sources is None:
            source = FINE if self.kinds[record.id] == "fine" else WEAK
            if source == WEAK:  # what fine masks leave out has no class
                boxes = read_drawn_prompts(self.task.labels, record, self.num_classes).boxes
                labels = fill_boxes(labels, [(x.class_id, x.box) for x in boxes])
            sources = np.where(labels == IGNORE_INDEX, NONE, source).astype(np.uint8)
        else:
            sources = load_sources(self.task.sources, record)
        if np.random.uniform() >= self.task.sam_sample_prob:
            sources = np.where(sources == SAM, NONE, sources).astype(np.uint8)
        results: dict[str, Any] = {"img": cv2.cvtColor(load_image(record), cv2.COLOR_RGB2BGR)}
        results |= {"gt_seg_map": np.dstack([labels, sources]), "seg_fields": ["gt_seg_map"]}
        factor, min_factor = np.random.uniform(*self.task.schedule.scale_range), 1 / min(labels.shape)
        resize = Resize(scale_factor=max(factor, min_factor))  # each side keeps a pixel
        harder = self.harder if self.annotated and self.kinds[record.id] == "none" else ()
        for transform in (resize, *self.after_resize, *harder):
            results = transform(results)
        inputs, targets = (torch.from_numpy(results[key].transpose(2, 0, 1).copy()) for key in ("img", "gt_seg_map"))
        return {"inputs": inputs, "data_samples": SegDataSample(gt_sem_seg=PixelData(data=targets))}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`inputs` and `targets` (gt_sem_seg) of a batch, for `split`: a tensor of each, or lists of them if sizes differ.

    One tensor passes from a reading process to the training in a quarter of the time of sixteen.
    """
    inputs = [sample["inputs"] for sample in samples]
    targets = [sample["data_samples"].gt_sem_seg.data for sample in samples]
    if len({x.shape for x in inputs}) > 1:
        return {"inputs": inputs, "targets": targets}
    return {"inputs": torch.stack(inputs), "targets": torch.stack(targets)}


def split(batch: dict[str, Any]) -> dict[str, list[Any]]:
    """The samples of a batch that `collate` made, as mmsegmentation's preprocessor takes them."""
    samples = [SegDataSample(gt_sem_seg=PixelData(data=targets)) for targets in batch["targets"]]
    return {"inputs": list(batch["inputs"]), "data_samples": samples}


class ResumableSampler(Sampler[int]):
    """0, 1, 2, … count-1; mmengine calls `skip` to resume without loading earlier samples.

    In a distributed training process `rank` has its share of every batch of `batch_size` samples.
    """

    def __init__(self, count: int, batch_size: int = 1, rank: int = 0, processes: int = 1) -> None:
        self.indices: Sequence[int] = range(count)
        if processes > 1:
            per_process = batch_size // processes
            self.indices = [t for t in self.indices if t % batch_size // per_process == rank]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def skip(self, samples: int) -> None:
        self.indices = self.indices[samples:]
