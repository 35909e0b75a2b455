"""Training the bundled SAM: its examples, its samples, and that it resumes."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sesam.errors import SesamError
from sesam.sam.bundled import EfficientNetLite0
from tools.bundled_sam import train
from tools.bundled_sam.examples import draw_example, find_photographs, read_labeled
from tools.bundled_sam.samples import MIN_AREA, SIZE, Batches, Plan, connected_numbers, draw_points, with_neighbors


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Six photographs in two sets, each with a left and a right region; two annotators drew the first set."""
    rng = np.random.default_rng(0)
    for name in ("streets", "horses"):
        for kind in ("images", "regions"):
            (tmp_path / kind / name).mkdir(parents=True)
        for k in range(3):
            numbers = np.zeros((60, 90), np.uint8)
            numbers[5:55, 5:40], numbers[5:55, 40:85] = 1, 2
            image = np.where(numbers[..., None] == 1, 200, 60) + rng.integers(0, 30, (60, 90, 3))
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"images/{name}/{k}.jpg")
            for end in (".1", ".2") if name == "streets" else ("",):
                Image.fromarray(numbers).save(tmp_path / f"regions/{name}/{k}{end}.png")
    return tmp_path


def test_photographs_and_their_maps(photographs: Path) -> None:
    sets = find_photographs(photographs)
    assert [len(photo.maps) for name in ("horses", "streets") for photo in sets[name]] == [1, 1, 1, 2, 2, 2]
    rng, file = np.random.default_rng(0), photographs / "regions/horses/0.png"
    example = sets["streets"][0].read(rng)
    assert example.image.shape == (60, 90, 3) and set(np.unique(example.maps[0])) == {0, 1, 2}
    Image.fromarray(np.full((60, 90), 1000, np.uint16)).save(file)
    assert sets["horses"][0].read(rng).maps[0].max() == 1000  # 16 bits
    Image.new("RGB", (90, 60)).save(file)
    with pytest.raises(SesamError, match=r"0\.png has mode RGB"):
        sets["horses"][0].read(rng)
    Image.new("L", (9, 9)).save(file)
    with pytest.raises(SesamError, match=r"0\.png is \(9, 9\), its photograph \(90, 60\) pixels"):
        sets["horses"][0].read(rng)
    file.unlink()
    with pytest.raises(SesamError, match="has no regions"):
        find_photographs(photographs)
    with pytest.raises(SesamError, match="holds no images"):
        find_photographs(photographs / "regions")


def test_batches_are_a_function_of_their_index(photographs: Path) -> None:
    drawn = draw_example((1, 2, 3))
    assert all(numbers.min() >= 1 for numbers in drawn.maps)
    batches = Batches([Plan(4, 3, 5)] * 6, [drawn], find_photographs(photographs), 0.3)
    for t in range(6):
        images, targets, points = batches[t]
        assert images.shape == (4, 3, SIZE, SIZE) and targets.shape == (12, SIZE, SIZE) and points.shape == (12, 5, 2)
        assert (targets.sum((1, 2)) >= MIN_AREA).all()
        x, y = points.long().unbind(-1)
        assert targets[torch.arange(12)[:, None], y, x].all()
        assert all(torch.equal(a, b) for a, b in zip(batches[t], (images, targets, points), strict=True))
    assert not torch.equal(batches[0].images, batches[1].images)


def test_region_numbers_of_a_canvas_are_unique(photographs: Path) -> None:
    batches = Batches([], [], find_photographs(photographs), 0.0)
    sizes = set()
    for seed in range(12):
        _, numbers = batches._canvas(np.random.default_rng(seed), drawn=False)
        areas = connected_numbers(numbers)[1]
        assert areas[0] == 0 and areas.sum() == (numbers > 0).sum()
        half = SIZE // 2
        quarters = [set(np.unique(numbers[y : y + half, x : x + half])) - {0} for y in (0, half) for x in (0, half)]
        sizes.add(len(set.union(*quarters)))
    assert max(sizes) > 2  # four crops


def test_regions_are_joined_with_neighbors() -> None:
    numbers = np.tile(np.repeat([1, 2, 0, 3], 10), (20, 1))
    for seed in range(8):
        joined = with_neighbors(numbers == 1, numbers, np.random.default_rng(seed))
        assert set(np.unique(numbers[joined])) == {1, 2}  # the third does not touch them
    assert (with_neighbors(numbers == 3, numbers, np.random.default_rng(0)) == (numbers == 3)).all()


def test_points_are_in_their_region() -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:50, 20:28] = mask[42:50, 20:70] = True
    close = 0
    for seed in range(40):
        x, y = draw_points(mask, 5, np.random.default_rng(seed)).astype(int).T
        assert mask[y, x].all()
        close += max(np.ptp(x), np.ptp(y)) <= 5
    assert 0 < close < 20  # now and then a dot


def test_labeled_images_are_checked(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind / "val").mkdir(parents=True)
    with pytest.raises(SesamError, match="to evaluate on"):
        read_labeled(tmp_path, [255])
    Image.fromarray(np.array([[0, 7], [1, 255]], np.uint8)).save(tmp_path / "labels/val/a.png")
    with pytest.raises(SesamError, match="has no image"):
        read_labeled(tmp_path, [255])
    Image.new("RGB", (2, 2)).save(tmp_path / "images/val/a.png")
    ((image, labels),) = read_labeled(tmp_path, [7])
    assert image.shape == (2, 2, 3) and labels.tolist() == [[0, 255], [1, 255]]
    Image.new("RGB", (3, 2)).save(tmp_path / "images/val/b.png")
    Image.new("L", (2, 2)).save(tmp_path / "labels/val/b.png")
    assert len(read_labeled(tmp_path, [7], 1)) == 1
    with pytest.raises(SesamError, match=r"b\.png is 2x2 pixels, its image 3x2"):
        read_labeled(tmp_path, [7])
    (tmp_path / "labels/val/b.png").write_bytes(b"no PNG")
    with pytest.raises(SesamError, match=r"b\.png is not an image"):
        read_labeled(tmp_path, [7])


@pytest.mark.long
def test_interrupted_training_resumes(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = tmp_path / "lite0.pth"
    torch.manual_seed(3)
    torch.save({f"_{k}": value for k, value in enumerate(EfficientNetLite0().state_dict().values())}, backbone)
    monkeypatch.setattr(train.score, "draw_labeled", lambda count: [])
    monkeypatch.setattr(train.score, "score", lambda sam_model, pairs: {})
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    options = f"--steps 3 --shared-steps 1 --images 1 --prompts 2 --scenes 1 --workers 0 --backbone {backbone}".split()

    def run(name: str, *more: str) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(sys, "argv", ["train", str(photographs), "--out", str(tmp_path / name), *options, *more])
        train.main()
        return torch.load(tmp_path / name, weights_only=True)

    uninterrupted = run("whole.pth")
    compute_loss = train.compute_loss

    def interrupt(sam, batch, step, shared):
        if step == 2:
            raise KeyboardInterrupt
        return compute_loss(sam, batch, step, shared)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "compute_loss", interrupt)
        run("parts.pth")
    assert (tmp_path / "parts.state").exists()
    with pytest.raises(SesamError, match=r"parts\.state is after 2 steps: give more --steps"):
        run("parts.pth", "--steps", "2")
    resumed = run("parts.pth")
    assert not (tmp_path / "parts.state").exists()
    assert all(torch.equal(value, resumed[key]) for key, value in uninterrupted.items())
    first = next(iter(torch.load(backbone, weights_only=True).values()))
    assert not torch.equal(uninterrupted["image_encoder.backbone.stem.1.weight"].float(), first)  # it is trained
    assert sum(value.numel() for value in uninterrupted.values()) * 2 < 12e6  # bytes in float16
    start = ("--start", str(tmp_path / "whole.pth"))
    further = run("further.pth", *start)
    weights = [key for key, value in further.items() if value.is_floating_point() and "running" not in key]
    moved = max(float((further[key] - uninterrupted[key]).abs().max()) for key in weights)
    assert 0 < moved < 0.01  # starts from --start: learning rates begin small
    mean = run("mean.pth", *start, "--average")
    for key in weights:
        torch.testing.assert_close(mean[key], (uninterrupted[key] + further[key]) / 2, atol=2e-3, rtol=2e-3)
    assert not torch.equal(mean[weights[0]], further[weights[0]])
    torch.save({"a": torch.zeros(3)}, backbone)
    with pytest.raises(SesamError, match="does not hold the weights of EfficientNet-Lite0"):
        run("other.pth")
