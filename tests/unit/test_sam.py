"""Batched SAM against segment-anything's SamPredictor; the embedding cache; checkpoints; superpixels."""

import errno
import os
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from segment_anything import SamPredictor
from segment_anything.build_sam import _build_sam
from segment_anything.modeling import ImageEncoderViT, Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.testing import CompileCounter

from sesam.artifacts.atomic_io import sha256
from sesam.artifacts.manifest import ImageRecord
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError
from sesam.geometry.regions import connected_regions
from sesam.geometry.rle import counts_to_rle, mask_to_rle, rle_to_mask
from sesam.params import Dtype, Params, Runtime, SamParams
from sesam.prompting import sample_points
from sesam.sam import checkpoints, encoder
from sesam.sam.batched_sam import BatchedSam, ImagePrompt, OomBatcher, explain_full_gpu, load_meta_sam, to_float16
from sesam.sam.bundled import build_bundled_sam
from sesam.sam.cache import EmbeddingCache, cache_dir, engine_fingerprint
from sesam.sam.checkpoints import download, resolve_weights
from sesam.sam.inference import load_sam_from_params
from sesam.sam.registry import MODELS
from sesam.sam.sam_model import MaskPredictions, Prompt, SamModel
from sesam.sam.superpixels import Superpixels, candidates_for
from sesam.sam.upscaling import iter_counts, make_axis
from tools.bundled_sam.score import SAMPLING, SEED, draw_labeled, score

# the official architecture, 1024 pixels and all, with a short ViT
small_vit = partial(
    _build_sam, encoder_embed_dim=32, encoder_depth=2, encoder_num_heads=2, encoder_global_attn_indexes=[1]
)
CPU = torch.device("cpu")
WEIGHTS = MODELS["bundled"].url


@pytest.fixture(scope="module", params=["bundled", "vit"])
def sam(request):
    torch.manual_seed(0)
    return (build_bundled_sam if request.param == "bundled" else small_vit)().eval()


def make_prompts(kind: str, size: tuple[int, int], count: int = 4) -> list[Prompt]:
    rng = np.random.default_rng(3)
    height, width = size
    if kind == "points":
        return [Prompt(points=rng.integers(0, (width, height), (n, 2))) for n in rng.integers(1, 6, count)]
    if kind == "box":
        return [Prompt(box=np.array([k, 2 * k, width - 3 * k, height - k])) for k in range(count)]
    masks = np.zeros((count, *size), bool)
    for k in range(count):
        masks[k, k : height // 2 + k, 3 * k : width // 2] = True
    if kind == "background":
        points = [np.array([[4 + k, 5], [9, 9 + k]]) for k in range(count)]
        box, mask = np.array([1, 2, width - 3, height - 1]), mask_to_rle(masks[0])
        others = [
            {"num_background_points": 1},
            {"num_background_points": 2, "box": box},
            {"num_background_points": 2, "mask": mask},
        ]
        return [Prompt(points=points[k], **others[k % 3]) for k in range(count)]
    return [Prompt(mask=mask_to_rle(mask)) for mask in masks]


def photo(size: tuple[int, int], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def decode(sam_model: SamModel, image: np.ndarray, prompts: list[Prompt]) -> list[MaskPredictions]:
    embeddings = sam_model.encode([sam_model.preprocess(image)])
    return sam_model.decode(embeddings, [image.shape[:2]], [prompts])[0]


def bundled_sam_model(dtype: Dtype = "float32") -> BatchedSam:
    return BatchedSam(load_meta_sam(build_bundled_sam, WEIGHTS), CPU, dtype)


def to_masks(candidates: MaskPredictions, size: tuple[int, int]) -> np.ndarray:
    return np.stack([rle_to_mask(counts_to_rle(counts, size), size) for counts in candidates.counts])


def nearly_equal(masks: np.ndarray, others: np.ndarray) -> bool:
    """At most one pixel in 10,000 differs, or one: another order of sums may change a pixel on an edge."""
    return np.count_nonzero(masks != others) <= max(1, masks.size // 10_000)


def predict(predictor: SamPredictor, prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
    arguments = {"point_coords": prompt.points, "box": prompt.box}
    if prompt.points is not None:
        arguments["point_labels"] = prompt.point_labels
    if prompt.mask is not None:
        mask = rle_to_mask(prompt.mask, predictor.original_size)
        small = BatchedSam(predictor.model, CPU)._downsample(mask)
        arguments["mask_input"] = np.where(small.numpy(), 8.0, -8.0).astype(np.float32)[None]
    masks, quality, _ = predictor.predict(**arguments, multimask_output=True, return_logits=True)
    return masks, quality


@pytest.mark.parametrize(
    ("kind", "size"),
    [("points", (120, 200)), ("points", (90, 64)), ("box", (90, 64)), ("mask", (90, 64)), ("background", (90, 64))],
)
def test_masks_equal_those_of_sam_predictor(sam, kind: str, size: tuple[int, int]) -> None:
    image, predictor = photo(size), SamPredictor(sam)
    predictor.set_image(image)
    sam_model = BatchedSam(sam, CPU)
    (embedding,) = sam_model.encode([sam_model.preprocess(image)])
    expected = predictor.features[0]
    assert (embedding - expected).abs().max() <= expected.abs().max() * 2**-10  # float16's rounding
    predictor.features = embedding[None].float()

    prompts = make_prompts(kind, size)
    (decoded,) = sam_model.decode([embedding], [size], [prompts])
    side = 4 * sam.prompt_encoder.image_embedding_size[0]
    for prompt, candidates in zip(prompts, decoded, strict=True):
        logits, quality = predict(predictor, prompt)
        np.testing.assert_allclose(candidates.predicted_iou, quality, rtol=1e-4, atol=1e-5)
        assert nearly_equal(to_masks(candidates, size), logits > 0)
        low, _ = sam_model.logits(sam_model.to_maps(embedding[None].float()), [ImagePrompt(0, size, prompt)])
        low = F.pad(low, (0, side - low.shape[3], 0, side - low.shape[2]))  # the decoder leaves out the padding
        full = sam.postprocess_masks(low, sam_model.resized(size), size)[0].numpy()
        assert np.linalg.norm(full - logits) <= 1e-4 * np.linalg.norm(logits)


def test_several_images_are_decoded_together(sam) -> None:
    sizes = [(64, 48), (40, 90), (64, 48)]
    images = [photo(size, seed) for seed, size in enumerate(sizes)]
    prompts = [make_prompts("points", sizes[0]), [], make_prompts("points", sizes[2], 3)]
    sam_model = BatchedSam(sam, CPU)
    sam_model.prompt_batcher.batch_size, sam_model.image_batcher.batch_size = 3, 2
    embeddings = sam_model.encode([sam_model.preprocess(image) for image in images])
    together = sam_model.decode(embeddings, sizes, prompts)
    assert [len(candidates) for candidates in together] == [4, 0, 3]
    for k, image in enumerate(images):
        alone = decode(BatchedSam(sam, CPU), image, prompts[k])
        for a, b in zip(together[k], alone, strict=True):
            assert nearly_equal(to_masks(a, sizes[k]), to_masks(b, sizes[k]))
            np.testing.assert_allclose(a.predicted_iou, b.predicted_iou, rtol=1e-4, atol=1e-5)
    assert sam_model.decode(embeddings, sizes, [[], [], []]) == [[], [], []]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.AcceleratorError("CUDA error: out of memory\nSearch for"),
    ],
)
def test_out_of_memory_halves_the_batch(error: RuntimeError, capsys: pytest.CaptureFixture) -> None:
    def compute(items: list[int], error: RuntimeError = error) -> list[int]:
        calls.append(len(items))
        if len(items) > 2:
            raise error
        return [2 * item for item in items]

    calls, batcher = [], OomBatcher("images", 8)
    assert batcher.map(compute, range(5)) == [0, 2, 4, 6, 8]
    assert calls == [5, 4, 2, 2, 1] and batcher.batch_size == 2
    assert capsys.readouterr().out.splitlines()[-1] == "GPU out of memory: from here on 2 images at once"
    with pytest.raises(SesamError, match="one of the prompts at a time"):
        OomBatcher("prompts", 1).map(lambda items: compute([0] * 3), [0])
    with pytest.raises(RuntimeError, match="no kernel"):
        OomBatcher("images", 8).map(partial(compute, error=RuntimeError("no kernel")), range(3))


def make_vit(side: int, depth: int, heads: int = 2, **options: object) -> ImageEncoderViT:
    torch.manual_seed(2)
    return ImageEncoderViT(side, 16, 3, 32, depth, heads, use_rel_pos=True, **options).eval()


# blockwise: some queries, some heads, some windows or images; folded, as on a GPU in bfloat16
@pytest.mark.parametrize("queries, folded", [(50, False), (150, False), (10**4, False), (1, True)])
def test_encoder_equals_that_of_segment_anything(queries: int, folded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # a grid that the windows do not divide: 12 by 12 tokens, windows of 5 by 5
    vit = make_vit(192, 3, window_size=5, global_attn_indexes=(1,))
    for parameter in vit.parameters():  # the position tables and embeddings begin with zeros
        torch.nn.init.normal_(parameter, std=0.2)
    images = torch.randn(2, 3, 192, 192)
    monkeypatch.setitem(encoder.MAX_SCORES_PER_CALL, "cpu", queries * 144)  # parts of batches, of heads and of queries
    with torch.inference_mode():
        expected, ours = vit(images), encoder.ViTEncoder(vit, folded=folded)
        assert (ours(images) - expected).norm() <= 1e-5 * expected.norm()
        rounded = encoder.ViTEncoder(vit, torch.bfloat16, folded)(images)
        assert 1e-4 * expected.norm() < (rounded - expected).norm() <= 3e-2 * expected.norm()


def test_blocks_of_a_kind_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    vit = make_vit(64, 12, window_size=3, global_attn_indexes=(2, 5, 8, 11))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = vit(images)
        ours = encoder.ViTEncoder(vit, folded=True, compiled=True)
        assert (ours(images) - expected).norm() <= 1e-5 * expected.norm()
    assert counter.frame_count == 2


def test_encoder_that_cannot_be_compiled_runs_uncompiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*block: object) -> torch.Tensor:
        raise BackendCompilerFailed(lambda: None, RuntimeError("no kernel\nat all"), None)

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: fail)
    vit, images = make_vit(64, 1, global_attn_indexes=(0,)), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, ours = vit(images), encoder.ViTEncoder(vit, folded=True, compiled=True)
        for _ in range(2):
            assert (ours(images) - expected).norm() <= 1e-5 * expected.norm()
    assert capsys.readouterr().out.count("SAM's encoder runs uncompiled") == 1


@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 9), st.sampled_from([0.0, 0.7]))
@settings(max_examples=25, deadline=None)
def test_upscaling_by_tiles_equals_postprocess_masks(height: int, width: int, seed: int, blur: float) -> None:
    rng, model = np.random.default_rng(seed), SimpleNamespace(image_encoder=SimpleNamespace(img_size=64))
    resized = ResizeLongestSide.get_preprocess_shape(height, width, 64)
    assume(min(resized) >= 1)  # nor does SAM take it
    logits = torch.from_numpy(rng.normal(blur, 1, (5, 16, 16)).astype(np.float32))
    expected = Sam.postprocess_masks(model, logits[None], resized, (height, width))[0] > 0
    axes = [make_axis(16, 64, r, n, CPU) for r, n in zip(resized, (height, width), strict=True)]
    rles = [counts_to_rle(counts, (height, width)) for counts in iter_counts(logits, 0.0, *axes)]
    masks = [rle_to_mask(rle, (height, width)) for rle in rles]
    assert nearly_equal(np.stack(masks), expected.numpy()) and rles == [mask_to_rle(mask) for mask in masks]


def test_mask_prompt_covers_the_mask_but_not_the_padding(sam) -> None:
    sam_model = BatchedSam(sam, CPU)
    mask = np.zeros((60, 200), bool)
    mask[30, 3] = True  # a single pixel must not vanish
    small = sam_model._downsample(mask)
    side = sam.prompt_encoder.mask_input_size[0]
    assert small.shape == (side, side) and small[30 * side // 200, 3 * side // 200] and small.sum() <= 6
    full, rows = sam_model._downsample(np.ones((60, 200), bool)), round(side * 60 / 200)
    assert full[:rows].all() and not full[rows:].any()


def test_bfloat16_masks_are_close_to_float32() -> None:
    exact, rounded = (bundled_sam_model(dtype) for dtype in ("float32", "bfloat16"))
    overlaps, rng = [], np.random.default_rng(0)
    for scene in (draw_scene((*SEED, 2000)), draw_scene((*SEED, 2001))):
        size, surely = scene.labels.shape, np.zeros_like(scene.labels)
        components = [region for _, region in connected_regions(scene.labels, min_area=64)]
        prompts = [Prompt(points=np.array(sample_points(x, SAMPLING, surely, rng))) for x in components]
        for x, y in zip(decode(exact, scene.image, prompts), decode(rounded, scene.image, prompts), strict=True):
            a, b = to_masks(x, size), to_masks(y, size)
            overlaps += list(((a & b).sum((1, 2)) + 1e-9) / ((a | b).sum((1, 2)) + 1e-9))
    assert len(overlaps) > 60 and 0.98 <= np.mean(overlaps) < 1


def save_embedding(cache: EmbeddingCache, record: ImageRecord, age: int = 0) -> None:
    """0.25 MB on disk."""
    cache.save(record, np.zeros(125_000 - 136, np.float16))
    for path in (cache.folder / f"{record.sha256}.npz", cache.folder):
        os.utime(path, (1e9 - age, 1e9 - age))


RECORDS = [ImageRecord(f"{k}", f"{k}.png", 4, 5, f"{k}" * 64) for k in range(4)]


def test_cached_embeddings_are_loaded_and_damaged_ones_are_not(tmp_path: Path) -> None:
    record, cache = RECORDS[0], EmbeddingCache("0" * 64, tmp_path / "cache")
    embedding = np.full((2, 3), 7, np.float16)
    assert cache.load(record) is None
    cache.save(record, embedding)
    assert record in cache and (cache.load(record).numpy() == embedding).all()
    assert EmbeddingCache("1" * 64, tmp_path / "cache").load(record) is None  # other weights, other embeddings
    file = next((tmp_path / "cache").rglob("*.npz"))
    content = file.read_bytes()
    for k in range(content.index(b"NUMPY"), content.index(embedding.tobytes()) + embedding.nbytes):
        file.write_bytes(content[:k] + bytes([content[k] ^ 64]) + content[k + 1 :])
        assert cache.load(record) is None  # one bit is flipped, in the header or in the values
    file.write_bytes(b"torn")
    assert record not in cache and cache.load(record) is None

    line = f"3 embeddings of 2 MB, 0.006 GB, are kept in {cache.folder}"
    assert cache.reserve([record] * 3, 2_000_000, 1) == (True, [line])
    for embedding_bytes, limit, reason in (
        (2_000_000, 0.005, "more than runtime.embedding_cache_gb (0.005)"),
        (10**15, 10**9, "more than the disk has free"),
    ):
        keep, lines = cache.reserve([record] * 3, embedding_bytes, limit)
        assert not keep and reason in lines[-1]


def test_embeddings_of_other_engines_are_evicted_oldest_first(tmp_path: Path) -> None:
    caches = [EmbeddingCache(f"{k}" * 64, tmp_path) for k in range(4)]
    for age, cache in zip((2, 3, 1), caches, strict=False):
        save_embedding(cache, RECORDS[0], age)
    keep, lines = caches[3].reserve(RECORDS[:1], 250_000, 0.0006)
    assert keep and [cache.folder.exists() for cache in caches] == [False, False, True, True]
    removed = f"0.00025 GB of an earlier engine removed, {caches[1].folder}: runtime.embedding_cache_gb is 0.0006"
    assert lines[0] == removed and caches[2].load(RECORDS[0]) is not None
    assert len(caches[3].reserve(RECORDS[:1], 250_000, 0.0006)[1]) == 1  # nothing more to remove
    chapters = [tmp_path / folder / "chapter.tex" for folder in ("thesis", "0123456789abcdef", caches[2].folder.name)]
    for chapter in chapters:
        chapter.parent.mkdir(exist_ok=True)
        chapter.write_text("x" * 10**6)
    assert caches[3].reserve(RECORDS[:1], 250_000, 0.0003)[0]
    assert all(chapter.exists() for chapter in chapters) and RECORDS[0] not in caches[2]  # only embeddings are removed


def test_eviction_skips_what_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:  # as where another experiment writes to the folder, or another user owns it
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    old, new = (EmbeddingCache(f"{k}" * 64, tmp_path) for k in range(2))
    save_embedding(old, RECORDS[0])
    monkeypatch.setattr("sesam.sam.cache._remove", fail)
    keep, lines = new.reserve(RECORDS[:1], 250_000, 0.0004)
    reason = f"in {tmp_path} cannot be removed (Directory not empty)"
    assert keep and RECORDS[0] in old and lines[0] == f"0.00025 GB {reason}: runtime.embedding_cache_gb is 0.0004"


def test_embeddings_of_other_images_are_evicted_oldest_first(tmp_path: Path) -> None:
    cache = EmbeddingCache("0" * 64, tmp_path)
    for age, record in zip((1, 3, 2, 0), RECORDS, strict=True):
        save_embedding(cache, record, age)
    assert len(cache.reserve(RECORDS[:1], 250_000, 0.001)[1]) == 1 and all(record in cache for record in RECORDS)
    keep, lines = cache.reserve(RECORDS[:1], 250_000, 0.0006)
    assert keep and lines[0] == "0.0005 GB of other images removed: runtime.embedding_cache_gb is 0.0006"
    assert [record in cache for record in RECORDS] == [True, False, False, True]


def test_an_embedding_that_float16_cannot_hold_is_refused() -> None:
    whole, beyond = torch.ones(2, 3), torch.tensor([[1.0, 7e4]])
    assert [x.dtype for x in to_float16(whole)] == [torch.float16] * 2
    with pytest.raises(SesamError, match=r"float16 cannot hold.*sam\.checkpoint"):
        to_float16(beyond)
    with pytest.raises(SesamError, match=r"Lower runtime\.encoder_batch_size"), explain_full_gpu():
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_lack_of_memory_is_not_taken_for_wrong_weights(tmp_path: Path) -> None:
    def build() -> Sam:
        sam = build_bundled_sam()
        sam.load_state_dict = Mock(side_effect=MemoryError)
        return sam

    torch.save({}, tmp_path / "sam.pth")
    with pytest.raises(MemoryError):
        load_meta_sam(build, tmp_path / "sam.pth")


def test_experiments_share_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime()
    for folder, expected in (
        (tmp_path, Path("data/embeddings")),
        (tmp_path / ".dvc/tmp/exps/tmpabc", tmp_path / "data/embeddings"),
        (tmp_path / ".dvc/tmp/exps/standalone/tmpabc/below", tmp_path / "data/embeddings"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)
        assert cache_dir(runtime) == expected
    assert cache_dir(runtime.model_copy(update={"embedding_cache": "/scratch/sam"})) == Path("/scratch/sam")
    with pytest.raises(ValidationError, match="must be an absolute path"):
        Runtime(embedding_cache="scratch/sam")


@pytest.mark.parametrize("model", ["bundled", "superpixels"])
def test_embedding_bytes_are_those_of_the_model(model: str, params: Params, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # the bundled weights are found from anywhere
    sam_model = load_sam_from_params(params.model_copy(update={"sam": params.sam.model_copy(update={"model": model})}))
    (embedding,) = sam_model.encode([sam_model.preprocess(draw_scene(1).image)])
    assert embedding.nbytes == MODELS[model].embedding_bytes


@pytest.mark.parametrize("capabilities", [{"avx2": True, "avx512_bf16": False}, {"avx2": True, "avx512_bf16": True}])
def test_a_cpu_without_bfloat16_is_told(capabilities, params: Params, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    for dtype in ("float32", "bfloat16"):
        sam = params.sam.model_copy(update={"model": "bundled", "dtype": dtype})
        load_sam_from_params(params.model_copy(update={"sam": sam}))
        slow = dtype == "bfloat16" and not capabilities["avx512_bf16"]
        assert ("slower than float32" in capsys.readouterr().out) == slow


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    good, torn = tmp_path / "good.pth", tmp_path / "torn.pth"
    torch.save(small_vit().state_dict(), good)
    torn.write_bytes(good.read_bytes()[:1000])
    assert load_meta_sam(small_vit, good)
    for build, weights in ((build_bundled_sam, good), (small_vit, torn)):
        with pytest.raises(SesamError, match=rf"{weights.name} does not hold sam.model's weights"):
            load_meta_sam(build, weights)


def test_weights_are_verified(tmp_path: Path) -> None:
    custom, other = tmp_path / "custom.pth", tmp_path / "other.pth"
    custom.write_bytes(b"custom")
    other.write_bytes(b"other")
    published = SamParams(model="bundled", dtype="float32")
    assert resolve_weights(published) == (WEIGHTS, sha256(WEIGHTS))
    ours = published.model_copy(update={"checkpoint": str(custom), "sha256": sha256(custom)})
    assert resolve_weights(ours) == (custom, sha256(custom))
    rounded = published.model_copy(update={"dtype": "bfloat16"})
    assert len({engine_fingerprint(sam, resolve_weights(sam)) for sam in (published, ours, rounded)}) == 3
    for change, reason in (
        ({"checkpoint": str(other)}, r"other.pth has SHA-256 \w+; expected for bundled: \w+"),
        ({"checkpoint": str(tmp_path / "no.pth")}, r"no.pth \(sam.checkpoint\) cannot be read: No such file"),
        ({"model": "vit_x"}, r"sam.model is 'vit_x'; known are bundled, vit_b"),
    ):
        with pytest.raises(SesamError, match=reason):
            resolve_weights(ours.model_copy(update=change))
    with pytest.raises(ValidationError, match="checkpoint and sha256 go together"):
        SamParams(model="bundled", checkpoint="a.pth")


def test_published_weights_are_downloaded_once_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    served = tmp_path / "served/sam.pth"
    served.parent.mkdir()
    served.write_bytes(b"weights")
    digest = sha256(served)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(served.parent)))
    Thread(target=server.serve_forever, daemon=True).start()
    official = replace(MODELS["vit_b"], url=f"http://127.0.0.1:{server.server_port}/sam.pth")
    monkeypatch.setitem(MODELS, "vit_b", replace(official, sha256=digest))
    path = download("vit_b")
    assert path.read_bytes() == b"weights" and path.is_relative_to(tmp_path / "cache")
    server.shutdown()
    server.server_close()
    monkeypatch.delattr(checkpoints, "sha256")  # the download has verified it: 2.5 GB are not read twice
    assert resolve_weights(SamParams(model="vit_b")) == (path, digest)  # no network needed
    monkeypatch.setitem(MODELS, "vit_b", official)  # other bytes than the published ones
    with pytest.raises(SesamError, match=r"cannot be downloaded .*set sam.checkpoint and sam.sha256"):
        download("vit_b")


def test_bundled_sam_finds_components() -> None:
    scores = score(bundled_sam_model(), draw_labeled(3))
    assert scores["components"] > 30
    assert scores["best_of_three"] > 0.7  # the model card has the score on 200 scenes


def test_superpixels_find_a_block_of_one_color() -> None:
    rng = np.random.default_rng(0)
    block = np.zeros((96, 128), bool)
    block[20:70, 30:90] = True
    image = np.where(block[..., None], (200, 30, 30), (120, 120, 120)) + rng.integers(0, 9, (96, 128, 3))
    points = Prompt(points=np.array([[40, 30], [60, 50], [80, 60]]))
    prompts = [points, Prompt(box=np.array([28, 18, 92, 72])), Prompt(mask=mask_to_rle(block))]
    for prompt, candidates in zip(prompts, decode(Superpixels(), image.astype(np.uint8), prompts), strict=True):
        masks = to_masks(candidates, block.shape)
        best = masks[int(candidates.predicted_iou.argmax())]
        assert (best & block).sum() / (best | block).sum() > 0.9
        if prompt is points:  # coarser regions hold the finer ones
            assert masks[0].sum() <= masks[1].sum() <= masks[2].sum()


@pytest.mark.parametrize("noise", [0, 2])
def test_superpixels_of_an_image_without_contrast(noise: int) -> None:
    """The whole image may become one region before the last scale."""
    image = 120 + np.random.default_rng(0).integers(0, noise + 1, (60, 80, 3))
    (candidates,) = decode(Superpixels(), image.astype(np.uint8), [Prompt(points=np.array([[5.0, 5.0]]))])
    assert len(candidates.counts) == 3 and candidates.counts[-1].tolist() == [0, 60 * 80]


def test_superpixels_take_prompts_smaller_than_their_pixels() -> None:
    regions = np.zeros((3, 144, 256), int)
    regions[:, 100:] = 1
    thin = np.zeros((1024, 1820), bool)
    thin[1021:, :700] = True
    corner = (Prompt(box=np.array([1818, 1021, 1820, 1024])), Prompt(points=np.array([[1819, 1023]])))
    for prompt in (Prompt(mask=mask_to_rle(thin)), *corner):
        assert np.isfinite(candidates_for(regions, prompt, thin.shape).predicted_iou).all()
