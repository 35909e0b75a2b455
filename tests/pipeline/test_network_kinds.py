"""One round with each kind of network, from `prepare` to `evaluate`, and its student in mmsegmentation."""

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import edit_params
from mmseg.apis import inference_model, init_model
from PIL import Image
from unit.test_backbones import narrow

from sesam.artifacts.atomic_io import read_json
from sesam.artifacts.image_io import read_label
from sesam.params import NetworkParams
from stages import (
    check_inputs,
    embed,
    evaluate,
    evaluate_labels,
    merge_labels,
    prepare,
    prompts,
    sam_masks,
    select_masks,
    teacher_predictions,
    train_baseline,
    train_student,
    weak_labels,
)

BEFORE = (check_inputs, prepare, weak_labels, embed, train_baseline)
ROUND = (teacher_predictions, prompts, sam_masks, select_masks, merge_labels, evaluate_labels, train_student, evaluate)
SEGFORMER = NetworkParams(config="segformer_mit-b0_8xb2-160k_ade20k-512x512", pretrained=None)


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        (None, "segformer"),
        pytest.param("swin_tiny_patch4_window7_224", "upernet", marks=pytest.mark.long),
        pytest.param("vit_small_patch14_dinov2", "linear", marks=pytest.mark.long),
        pytest.param("convnext_atto", "upernet", marks=pytest.mark.long),
    ],
)
def test_one_round(folder_dataset: Path, backbone: str | None, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_dataset)
    network = narrow(backbone, head, monkeypatch) if backbone else SEGFORMER
    edit_params(
        Path(),
        network=network.model_dump(mode="json"),
        schedule__max_iters=2,
        schedule__batch_size=2,
        schedule__crop_size=[32, 32],
        rounds={"r1": {"teacher": "baseline", "fill_confident": True}},
        runtime__num_workers=1,
        runtime__device="cpu",
    )
    for stage in (*BEFORE, *ROUND):
        monkeypatch.setattr(sys, "argv", [stage.__name__, *["r1"] * (stage in ROUND)])
        stage.main()
    assert 0 <= read_json(Path("metrics/networks/r1.json"))["mIoU"] <= 1
    model = init_model("models/r1/mmsegmentation.json", "models/r1/model.pth", device="cpu")
    with Image.open("mine/images/val/0.png") as image:
        theirs = inference_model(model, np.ascontiguousarray(np.array(image)[..., ::-1]))
    ours = read_label(Path("metrics/report_predictions/r1/val/0.png"))
    assert np.array_equal(theirs.pred_sem_seg.data[0].numpy(), ours)
