"""The batched engine against segment-anything's own SamPredictor, and what may be wrong with a checkpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from segment_anything import SamPredictor
from segment_anything.build_sam import _build_sam

from stages.common.dataset import Item
from stages.common.errors import SesamError
from stages.common.files import sha256
from stages.common.scenes import draw_scene
from stages.embedded_sam.score import SEED, score
from stages.sam import models
from stages.sam.cache import EmbeddingCache
from stages.sam.embedded import build_embedded_sam
from stages.sam.models import Prompt, SamSegmenter, check_checkpoint, engine_fingerprint, load_sam

# the official architecture, 1024 pixels and all, with a short ViT
small_vit = partial(
    _build_sam, encoder_embed_dim=32, encoder_depth=2, encoder_num_heads=2, encoder_global_attn_indexes=[1]
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["embedded", "vit"])
def sam(request):
    torch.manual_seed(0)
    return (build_embedded_sam if request.param == "embedded" else small_vit)().eval()


def make_prompts(kind: str, size: tuple[int, int], count: int = 7) -> list[Prompt]:
    rng = np.random.default_rng(3)
    height, width = size
    if kind == "points":
        return [Prompt(points=rng.integers(0, (width, height), (n, 2))) for n in rng.integers(1, 6, count)]
    if kind == "box":
        return [Prompt(box=np.array([k, 2 * k, width - 3 * k, height - k])) for k in range(count)]
    masks = np.zeros((count, *size), bool)
    for k in range(count):
        masks[k, k : height // 2 + k, 3 * k : width // 2] = True
    return [Prompt(mask=mask) for mask in masks]


@pytest.mark.parametrize("kind", ["points", "box", "mask"])
@pytest.mark.parametrize("size", [(120, 200), (90, 64)])
def test_masks_equal_those_of_sam_predictor(sam, kind: str, size: tuple[int, int]) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    segmenter, predictor = SamSegmenter(sam, CPU), SamPredictor(sam)
    predictor.set_image(photo)
    embedding = segmenter.encode(photo)
    expected = predictor.features[0].numpy()
    assert np.abs(embedding - expected).max() <= np.abs(expected).max() * 2**-10  # float16's rounding
    predictor.features = torch.from_numpy(embedding)[None].float()

    prompts = make_prompts(kind, size)
    for prompt, (masks, quality) in zip(prompts, segmenter.decode(embedding, size, prompts), strict=True):
        given = {"point_coords": prompt.points, "box": prompt.box}
        if kind == "points":
            given["point_labels"] = np.ones(len(prompt.points), int)
        if kind == "mask":
            small = segmenter._shrink(prompt.mask)
            given["mask_input"] = np.where(small.numpy(), 8.0, -8.0).astype(np.float32)[None]
        reference, scores, _ = predictor.predict(**given, multimask_output=True)
        assert masks.shape == reference.shape == (3, *size)
        assert (masks == reference).mean() >= 0.9999
        np.testing.assert_allclose(quality, scores, rtol=1e-4, atol=1e-5)


def test_a_mask_prompt_covers_the_mask_and_not_the_padding(sam) -> None:
    segmenter = SamSegmenter(sam, CPU)
    mask = np.zeros((60, 200), bool)
    mask[30, 3] = True  # a single pixel must not vanish
    small = segmenter._shrink(mask)
    side = sam.prompt_encoder.mask_input_size[0]
    assert small.shape == (side, side) and small.sum() >= 1
    assert not segmenter._shrink(np.ones((60, 200), bool))[round(side * 60 / 200) + 1 :].any()


def test_more_prompts_than_are_decoded_together(sam, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, prompts, size = SamSegmenter(sam, CPU), make_prompts("points", (64, 48)), (64, 48)
    embedding = segmenter.encode(np.random.default_rng(2).integers(0, 256, (*size, 3)).astype(np.uint8))
    at_once = list(segmenter.decode(embedding, size, prompts))
    monkeypatch.setattr("stages.sam.models.DECODED_TOGETHER", 2)
    for (masks, quality), (few, fewer) in zip(at_once, segmenter.decode(embedding, size, prompts), strict=True):
        assert (masks == few).mean() >= 0.9999
        np.testing.assert_allclose(quality, fewer, rtol=1e-4, atol=1e-5)


def test_no_prompts_no_masks(sam) -> None:
    segmenter = SamSegmenter(sam, CPU)
    embedding = segmenter.encode(np.zeros((30, 40, 3), np.uint8))
    assert list(segmenter.decode(embedding, (30, 40), [])) == []


def test_embeddings_come_back_from_the_cache(tmp_path: Path) -> None:
    class Counter:
        def encode(self, image):
            return np.full((2, 3), image.mean(), np.float16)

    from PIL import Image

    path = tmp_path / "photo.png"
    Image.fromarray(np.full((4, 5, 3), 7, np.uint8)).save(path)
    item, cache = Item("photo", str(path), 4, 5, sha256(path)), EmbeddingCache("0" * 64, tmp_path / "cache")
    assert cache.load(item) is None
    made = cache.compute(Counter(), item)
    assert item in cache and (cache.load(item) == made).all() and (made == 7).all()
    assert EmbeddingCache("1" * 64, tmp_path / "cache").load(item) is None  # other weights, other embeddings
    next((tmp_path / "cache").rglob("*.npy")).write_bytes(b"torn")
    assert item not in cache and cache.load(item) is None


def test_a_checkpoint_loads_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    good = tmp_path / "good.pth"
    torch.save(small_vit().state_dict(), good)
    assert isinstance(load_sam(small_vit, good, CPU), SamSegmenter)
    assert engine_fingerprint("a", "0") == engine_fingerprint("a", "0") != engine_fingerprint("b", "0")

    with pytest.raises(SesamError, match=r"sam.model is 'vit_x'; known are embedded, vit_b"):
        check_checkpoint("vit_x", good)
    with pytest.raises(SesamError, match=r"missing\. Fetch it with `python -m stages.sam.fetch vit_h`"):
        check_checkpoint("vit_h", tmp_path / "none.pth")
    with pytest.raises(SesamError, match="not the official vit_b checkpoint"):
        check_checkpoint("vit_b", good)
    with pytest.raises(SesamError, match=r"good.pth does not hold the weights"):
        load_sam(build_embedded_sam, good, CPU)
    torn = tmp_path / "torn.pth"
    torn.write_bytes(good.read_bytes()[:1000])
    with pytest.raises(SesamError, match=r"torn.pth does not hold the weights"):
        load_sam(small_vit, torn, CPU)


def test_the_embedded_weights_find_components() -> None:
    segmenter = models.MODELS["embedded"].load(ROOT / "models/embedded_sam.pth", CPU)
    found = score(segmenter, [draw_scene((*SEED, 1000 + k)) for k in range(3)])
    assert found["components"] > 30
    assert found["best_of_three"] > 0.7  # the model card has the score on 200 scenes
