"""The report: what it compares and lets in, and that it works in a browser without a network."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import pytest
from conftest import edit_params
from golden_run import copy_evaluated_run, evaluate_everything
from PIL import Image

from sesam.artifacts.atomic_io import read_json, write_json
from sesam.artifacts.manifest import Manifest
from sesam.errors import SesamError
from sesam.params import Params, load_params
from sesam.reporting.report import ParamDiff, compare_params
from sesam.reporting.report_images import SIDE, Layer, ReportImage, data_url, read_report_images, write_report_images
from stages import card, report, summarize


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Manifest, Params]:
    return copy_evaluated_run(tmp_path, monkeypatch)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
URL = data_url(np.zeros((2, 2), np.uint8))
# what a person does, and sees: each layer's button, then the slider of confidence
VISIT = """
<script>
const errors = [];
window.onerror = (...what) => errors.push(what.slice(0, 3).join(" "));
window.onunhandledrejection = event => errors.push(String(event.reason));
const pause = () => new Promise(done => setTimeout(done, 200));
const canvases = () => [...document.querySelectorAll("canvas[data-round]")];
const pixels = canvas => canvas.toDataURL();
const seen = {layers: {}, legends: {}};
(async () => {
  for (const button of document.querySelectorAll("#layers button")) {
    button.click();
    await pause();
    const name = button.textContent;
    seen.layers[name] = canvases().map(canvas => [canvas.dataset.round, canvas.dataset.layer, pixels(canvas)]);
    const legends = [...document.querySelectorAll(".legend")].filter(legend => !legend.hidden);
    seen.legends[name] = legends.map(legend => legend.dataset.kind);
  }
  seen.charts = [...document.querySelectorAll(".plotly-graph-div")].map(chart => chart.querySelectorAll("svg").length);
  seen.wider = [...document.querySelectorAll(".charts > *")].filter(box => box.scrollWidth > box.clientWidth).length;
  for (const [input, value] of [[gamma, 0], [gamma, 1], [through, 0.5]]) {
    [...document.querySelectorAll("#layers button")].find(button => button.textContent === "teacher").click();
    input.value = value;
    input.dispatchEvent(new Event("input"));
    await pause();
    seen[`${input.id} ${value}`] = pixels(canvases().at(-1));
  }
  seen.errors = errors;
  document.body.dataset.seen = JSON.stringify(seen);
})();
</script>
"""


def decoded(url: str) -> np.ndarray:
    """A data URL's pixels, (H, W, 4) uint8."""
    with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as picture:
        return np.asarray(picture.convert("RGBA"))


def visit(page: Path, script: str = VISIT) -> dict:
    """What a headless browser without a network shows of a page, and what it had to complain of."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    visited = page.with_name("visited.html")
    visited.write_text(page.read_text().replace("</body>", script + "</body>"))
    options = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --virtual-time-budget=15000 --dump-dom"
    command = [CHROMIUM, *options.split(), "--window-size=1300,900", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [f"--user-data-dir={page.parent / 'browser'}", visited.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(seen[1])) | {"console": console}


def test_report_in_a_browser_without_a_network(workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, _ = workspace
    edit_params(Path(), rounds__r2__teacher="baseline", report__num_images=2)
    evaluate_everything(load_params(), monkeypatch)
    page = Path("metrics/report.html").resolve()
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=[\"'](?!data:)", page.read_text())
    seen = visit(page)
    assert seen["errors"] == [] and seen["console"] == []
    assert list(seen["layers"]) == [
        *("image", "fine", "weak", "teacher", "teacher's confidence"),
        *("SAM's masks", "pseudo-label", "source", "student", "student's confidence"),
    ]
    assert len(seen["charts"]) == 8 and all(seen["charts"])  # each drew something
    assert seen["wider"] == 0  # and none more than its place
    for name, canvases in seen["layers"].items():
        assert len(canvases) == 4  # two of each round
        for round_name, layer, _ in canvases:
            assert layer == ("none" if name.startswith("teacher") and round_name == "r1" else name)
    assert seen["legends"]["source"] == ["sources"] and seen["legends"]["pseudo-label"] == ["classes"]
    fine = decoded(seen["layers"]["fine"][-1][2])
    assert (fine[0, :, 3] == 0).all()  # unlabeled pixels let the background through
    assert (fine[1:, :6, :3] == manifest.palette[0]).all() and (fine[1:, 6:, :3] == manifest.palette[1]).all()
    pale, bold = decoded(seen["gamma 1"]), decoded(seen["gamma 0"])
    assert (pale[:, :4] == bold[:, :4]).all() and (pale[:, 4:, :3] != bold[:, 4:, :3]).any(-1).all()
    assert seen["through 0.5"] != seen["gamma 1"]


def test_browser_reports_errors(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<body><canvas id="gamma"></canvas></body>')
    seen = visit(page, '<script>document.body.dataset.seen = "{}"; console.error("told"); fails();</script>')
    assert len(seen["console"]) == 2


def test_text_of_the_data_is_escaped(workspace) -> None:
    edit_params(Path(), dataset__root="</script><script>alert(1)</script>")
    shown = [ReportImage("<b>1", [Layer("</script><i>", "image", URL)], ["<u>"])]
    for name in ("r1", "r2"):
        write_report_images(Path(f"metrics/report_images/{name}.json"), shown)
    report.main()
    page = Path("metrics/report.html").read_text()
    assert not [raw for raw in ("<b>1", "</script><i>", "<u>", "<script>alert") if raw in page]


def test_files_of_removed_rounds_are_kept_and_not_read(workspace) -> None:
    edit_params(Path(), rounds={"r1": {"teacher": "none", "fill_confident": False}})
    stale = [Path(f"metrics/{folder}/r2.json") for folder in ("report_images", "labels", "networks")]
    for path in stale:
        path.write_text("of a removed round")
    summarize.main()
    report.main()
    labels = ("label_precision", "label_recall", "label_mIoU")
    assert list(read_json(Path("metrics/summary.json"))) == ["val_mIoU_baseline", "val_mIoU_r1", *labels]
    assert not [path for path in Path("metrics/plots").rglob("*") if "r2" in path.name]
    assert "student r2" not in Path("metrics/report.html").read_text()
    assert all(path.read_text() == "of a removed round" for path in stale)


DELETED = object()
DAMAGED = {
    "empty": ("networks/r1", (), {}),
    "null": ("labels/r1", (), None),
    "missing key": ("networks/r1", ("loss",), DELETED),
    "unknown key": ("labels/r1", ("more",), 1),
    "text as score": ("networks/r1", ("mIoU",), "x"),
    "score above 1": ("networks/baseline", ("class_iou", "left"), 1.5),
    "text as loss": ("networks/r1", ("loss", 0, 1), "x"),
    "null as scores": ("labels/r2", ("scores",), None),
    "text as correlation": ("labels/r2", ("ranking_spearman",), "x"),
    "older file": ("labels/r1", ("contested_pixels", "unknown"), DELETED),
    "unknown outcome": ("labels/r1", ("component_outcomes", "left", "missed"), 1),
    "missing class": ("labels/r1", ("class_scores", "pseudo_labels", "left"), DELETED),
    "missing class of components": ("labels/r1", ("component_outcomes", "left"), DELETED),
    "unknown class": ("networks/r1", ("class_iou", "other"), 0.5),
    "missing row": ("networks/r1", ("confusion_matrix", 3), DELETED),
    "missing column": ("labels/r1", ("confusion_matrix", "sam", 0, 4), DELETED),
    "fraction of a pixel": ("labels/r1", ("confusion_matrix", "pseudo_labels", 0, 0), 0.5),
    "number as matrix": ("networks/r2", ("confusion_matrix",), 3),
}


@pytest.mark.parametrize(("name", "keys", "value"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_metrics_are_refused(workspace, monkeypatch, name: str, keys: tuple, value: object) -> None:
    path = Path(f"metrics/{name}.json")
    root = {"document": read_json(path)}
    *parents, last = ("document", *keys)
    inner = reduce(getitem, parents, root)
    inner[last] = value
    if value is DELETED:
        del inner[last]
    write_json(path, root["document"])
    monkeypatch.setattr("sys.argv", ["card", path.stem])
    for stage in (summarize, report, card) if name.startswith("labels") else (summarize, report):
        with pytest.raises(SesamError, match=rf"metrics/{name}\.json is not from this run \(.*`dvc repro`"):
            stage.main()


LAYER = {"name": "a", "kind": "image", "picture": URL}
IMAGE = {"id": "a", "layers": [LAYER], "components": []}


BAD_LAYERS = [
    LAYER | bad for bad in ({"picture": "https://a.b/c.png"}, {"picture": f'{URL}"'}, {"kind": "new"}, {"n": 1})
]
BAD_IMAGES = [IMAGE | bad for bad in ({"layers": []}, {"more": 1}, *({"layers": [layer]} for layer in BAD_LAYERS))]


@pytest.mark.parametrize("content", ["{", "[]]", *(json.dumps([image]) for image in BAD_IMAGES)])
def test_a_damaged_report_image_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r1.json"
    path.write_text(content)
    with pytest.raises(SesamError, match=r"r1\.json"):
        read_report_images(path)


def test_large_pictures_are_made_smaller() -> None:
    labels = np.zeros((100, 5 * SIDE), np.uint8)
    labels[:, SIDE:] = 255
    shown = decoded(data_url(labels, ((1, 2, 3),), transparent=255))
    assert shown.shape == (20, SIDE, 4)
    assert shown[0, 0].tolist() == [1, 2, 3, 255] and shown[0, -1, 3] == 0


def test_params_are_compared_with_the_last_commit() -> None:
    now = {"a": {"b": 90.0, "c": None}, "d": [1], "runtime": {"num_workers": 1}}
    then = {"a": {"b": 90, "c": 2}, "e": {}}
    assert compare_params(now, then) == [
        ParamDiff("a.b", "90.0", None),
        ParamDiff("a.c", "null", "2"),
        ParamDiff("d", "[1]", "–"),
        ParamDiff("e", "–", "{}"),
    ]
    assert all(param.committed is None for param in compare_params(now, now))
