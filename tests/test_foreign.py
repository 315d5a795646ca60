"""Networks that are not ours: measured, loaded, and run over tiles.

The oracle is ONNX Runtime itself, or torch, on the whole mirrored scene.
"""

import importlib.util
import io
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from geounet.errors import ConfigError, ModelError, TilingError
from geounet.exactness import check_model, measure
from geounet.foreign import GRAPH, OnnxNetwork
from geounet.inference import Predictor, Stretch, predict_block, with_validity
from geounet.model import (
    BandCard,
    Card,
    ClassCard,
    Model,
    OnnxArchitecture,
    Reach,
    SmpArchitecture,
    foreign_network,
    load_model,
    save_model,
)
from geounet.pipeline import reduced, run
from geounet.planning import Recipe, lay_grid, make_engine, plan, reach, settled
from geounet.raster import Scene
from geounet.tiling import TileGrid, Window
from tests.conftest import WriteRaster

WITH_SMP = importlib.util.find_spec("segmentation_models_pytorch") is not None


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Fcn(nn.Module):
    """Not a U-Net of ours: one pooling by 4, bilinear upsampling, one skip."""

    def __init__(
        self,
        channels: int = 3,
        *,
        pooled: bool = False,
        soft: bool = False,
        align: bool = False,
    ) -> None:
        super().__init__()
        self.near = nn.Conv2d(3, 4, 3, padding=1)
        self.far = nn.Conv2d(4, 8, 3, padding=1)
        self.last = nn.Conv2d(12, channels, 3, padding=1)
        self.pooled, self.soft, self.align = pooled, soft, align

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.near(x))
        y = F.relu(self.far(F.max_pool2d(x, 4)))
        if self.pooled:
            y = y * torch.sigmoid(y.mean((2, 3), keepdim=True))
        y = F.interpolate(y, scale_factor=4, mode="bilinear", align_corners=self.align)
        answer: Tensor = self.last(torch.cat([x, y], 1))
        return answer.softmax(1) if self.soft else answer


def network_of(**options: Any) -> Fcn:
    torch.manual_seed(0)
    network = Fcn(**options).eval().requires_grad_(False)
    for weight in network.parameters():
        weight.mul_(2)  # scores that are not all alike
    return network


def graph_of(network: nn.Module, *shape: int) -> bytes:
    """Export a network; without a shape for images of any size and number."""
    file = io.BytesIO()
    free = {name: {0: "n", 2: "h", 3: "w"} for name in ("x", "y")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that traces is the old one
        torch.onnx.export(
            network,
            (torch.zeros(shape or (1, 3, 64, 64)),),
            cast("Any", file),  # its types know of paths alone
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=None if shape else free,
            dynamo=False,
        )
    return file.getvalue()


def card_of(found: Reach, **changes: Any) -> Card:
    names = ("building", "road", "water")[: changes.pop("classes", 3)]
    return Card(
        name="elsewhere",
        architecture=changes.pop("architecture", OnnxArchitecture()),
        reach=found,
        classes=tuple(ClassCard(name=n, colour="#d7301f") for n in names),
        bands=tuple(
            BandCard(name=n, mean=110, std=60) for n in ("red", "green", "blue")
        ),
        ground_size=2.0,
        ground_size_range=(0.5, 4.0),
        **changes,
    )


def saved(path: Path, graph: bytes, **changes: Any) -> Path:
    network = OnnxNetwork(graph)
    save_model(path, network, card_of(measure(network, bands=3), **changes))
    return path


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a graph that takes images of any size."""
    path = tmp_path_factory.mktemp("free") / "free.safetensors"
    return saved(path, graph_of(network_of()))


@pytest.fixture
def scene(write_raster: WriteRaster) -> Path:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (3, 150, 210), dtype=np.uint8)
    return write_raster(pixels, res=2.0)


def whole_input(opened: Scene, halo: int, stride: int) -> NDArray[np.float32]:
    """The mirrored scene, z-scored, with a halo around it, for one pass over all."""
    rows, cols = (-(-n // stride) * stride for n in (opened.height, opened.width))
    window = Window(
        row_off=-halo, col_off=-halo, height=rows + 2 * halo, width=cols + 2 * halo
    )
    pixels, _ = opened.read(window, (1, 2, 3))
    scored: NDArray[np.float32] = (pixels[None] - np.float32(110)) / np.float32(60)
    return scored


def natively(graph: bytes, image: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    answer: NDArray[np.float32] = session.run(None, {"x": image})[0][0]
    return answer


def scores_of(model: Model, scene: Scene, grid: TileGrid) -> NDArray[np.uint8]:
    predictor = Predictor(model, device="cpu")
    block = grid.blocks(max(grid.shape))[0]
    return predict_block(predictor, scene, block, grid, bands=(1, 2, 3)).scores


# --- how far they look ------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
def test_an_onnx_graph_and_the_network_it_was_made_of_reach_equally_far(
    soft: bool,
) -> None:
    network = network_of(soft=soft)
    found = measure(OnnxNetwork(graph_of(network)), bands=3)
    assert found == Reach(stride=4, halo=12, exact=True)
    assert measure(network, bands=3) == found


def test_a_graph_that_takes_any_size_has_the_stride_of_its_pooling() -> None:
    class AnySize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + F.interpolate(F.max_pool2d(x, 8), size=x.shape[2:])

    found = measure(OnnxNetwork(graph_of(AnySize().eval())), bands=3)
    assert found == Reach(stride=8, halo=0, exact=True)


def test_a_graph_of_one_size_and_one_batch_is_measured_within_it() -> None:
    network = OnnxNetwork(graph_of(network_of(), 2, 3, 256, 256))
    assert measure(network, bands=3) == Reach(
        stride=4, halo=12, exact=True, tile_size=256, batch_size=2
    )


@pytest.mark.parametrize("shape", [(), (1, 3, 128, 128)], ids=["free", "fixed"])
@pytest.mark.parametrize("what", ["pooled", "align"])
def test_what_no_halo_mends_is_found_and_told(
    what: str, shape: tuple[int, ...]
) -> None:
    options = {what: True}
    found = measure(OnnxNetwork(graph_of(network_of(**options), *shape)), bands=3)
    assert not found.exact
    (reason,) = found.reasons
    told = "global pooling" if what == "pooled" else "where in the image"
    assert (told if not shape else "too small") in reason
    assert found.halo > 0
    assert 128 % found.stride == 0
    if shape:
        assert found.tile_size == 128
        assert 4 * found.halo <= 128


def test_a_halo_that_is_one_stride_narrower_is_not_enough(scene: Path) -> None:
    graph, opened = graph_of(network_of()), Scene.open(scene)
    whole = natively(graph, whole_input(opened, 12, 4))
    tile = whole_input(opened, 12, 4)[..., :64, :64]
    for halo, enough in ((12, True), (8, False)):
        inner = slice(halo, 64 - halo)
        apart = natively(graph, tile)[:, inner, inner] - whole[:, inner, inner]
        assert (np.abs(apart).max() < 1e-4) == enough


def test_a_torch_network_of_one_size_is_a_black_box() -> None:
    class Fixed(Fcn):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2:] != (224, 224):
                raise ValueError("224 x 224 px or nothing")
            return super().forward(x)

    torch.manual_seed(0)
    found = measure(Fixed().eval(), bands=3)
    assert found == Reach(stride=4, halo=12, exact=True, tile_size=224)


def test_a_network_that_sees_nothing_is_not_called_exact() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 0 + 1

    found = measure(OnnxNetwork(graph_of(Constant().eval())), bands=3)
    assert not found.exact
    assert "nothing can be measured" in found.reasons[0]


def test_the_check_of_a_model_takes_a_graph(free: Path) -> None:
    model = load_model(free)
    found = check_model(model.network, bands=3, stride=model.stride, halo=model.halo)
    assert found.exact
    assert (found.field.stride, found.field.halo) == (4, 12)
    assert found.float64 is None
    assert found.float32 is not None and found.float32 < 1e-4
    narrow = check_model(model.network, bands=3, stride=2, halo=8)
    assert narrow.problems == (
        "declares stride 2, but 4 is needed",
        "declares halo 8, but 12 is needed",
    )


# --- one file ---------------------------------------------------------------------


def test_a_graph_comes_back_as_it_was_saved(free: Path) -> None:
    graph = graph_of(network_of())
    model = load_model(free)
    assert model.card.architecture == OnnxArchitecture()
    assert (model.stride, model.halo) == (4, 12)
    image = np.random.default_rng(0).normal(size=(1, 3, 64, 96)).astype(np.float32)
    answer = model.network(torch.from_numpy(image))
    np.testing.assert_array_equal(answer[0], natively(graph, image))


def test_a_graph_is_shared_by_copies_and_travels_by_its_bytes(free: Path) -> None:
    network = load_model(free).network
    assert deepcopy(network) is network
    image = torch.ones(1, 3, 32, 32)
    other = pickle.loads(pickle.dumps(network))
    torch.testing.assert_close(other(image), network(image), rtol=0, atol=0)


REACH = Reach(stride=4, halo=12, exact=True)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"reach": None}, "reach: it must be known"),
        ({"background": 4}, "channels 0 to 3, got 4"),
        ({"background": -1}, "channels 0 to 3, got -1"),
        ({"architecture": {"kind": "unet"}}, "follows from its architecture"),
        (
            {"architecture": {"kind": "unet"}, "reach": None, "background": 0},
            "no background",
        ),
        (
            {"architecture": {"kind": "unet"}, "reach": None, "activation": "softmax"},
            "activation sigmoid",
        ),
        (
            {
                "architecture": {
                    "kind": "smp",
                    "name": "Unet",
                    "arguments": {"classes": 3},
                }
            },
            "classes: the rest of the card says so",
        ),
        ({"reach": {"stride": 4, "halo": 6, "exact": True}}, "multiple of stride 4"),
        (
            {"reach": {"stride": 4, "halo": 32, "exact": True, "tile_size": 64}},
            "more than two halos",
        ),
    ],
)
def test_a_card_says_nothing_that_cannot_be(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Card.model_validate(card_of(REACH).model_dump() | changes)


@pytest.mark.parametrize(
    ("bands", "channels", "complaint"),
    [(4, 3, "takes 3 channels, and 4"), (3, 4, "answers 3 channels, and 4")],
)
def test_a_graph_that_is_not_what_its_card_says_is_refused(
    bands: int, channels: int, complaint: str
) -> None:
    graph = graph_of(network_of(), 1, 3, 64, 64)
    weights = {GRAPH: torch.frombuffer(bytearray(graph), dtype=torch.uint8)}
    with pytest.raises(ModelError, match=complaint) as caught:
        foreign_network(
            OnnxArchitecture(), weights, bands=bands, channels=channels, source="a"
        )
    assert caught.value.code == "MODEL_MISMATCH"


@pytest.mark.parametrize(
    ("graph", "complaint"),
    [
        (lambda: b"", "cannot load the graph"),
        (lambda: b"no graph", "cannot load the graph"),
        (lambda: graph_of(network_of(), 1, 3, 64, 128), "not square"),
        (lambda: graph_of(nn.Flatten(2), 1, 3, 8, 8), "before any argmax"),
        (lambda: graph_of(nn.ReLU(), 1, 3, 8), "wanted one image"),
    ],
)
def test_a_graph_that_maps_no_image_to_an_image_is_refused(
    graph: Callable[[], bytes], complaint: str
) -> None:
    with pytest.raises(ModelError, match=complaint):
        OnnxNetwork(graph())


@pytest.mark.parametrize(
    ("library", "extra", "architecture"),
    [
        ("onnxruntime", "onnx", OnnxArchitecture()),
        ("segmentation_models_pytorch", "smp", SmpArchitecture(name="Unet")),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_what_brings_it(
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    extra: str,
    architecture: OnnxArchitecture | SmpArchitecture,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    weights = {GRAPH: torch.zeros(1, dtype=torch.uint8)}
    with pytest.raises(ModelError) as caught:
        foreign_network(architecture, weights, bands=3, channels=1, source="a")
    assert caught.value.code == "MODEL_EXTRA"
    assert f'pip install "geounet[{extra}]"' in str(caught.value)


def test_a_network_that_is_not_ours_is_not_trained_on(free: Path) -> None:
    with pytest.raises(ModelError, match="can run and not train"):
        load_model(free).card.network()


# --- tiles ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2, 3, 64, 64)], ids=["free", "fixed"])
def test_tiles_equal_the_native_runtime_on_the_whole_scene(
    tmp_path: Path, scene: Path, shape: tuple[int, ...]
) -> None:
    network = network_of()
    file = tmp_path / "a.safetensors"
    onnx = OnnxNetwork(graph_of(network, *shape))
    size = {"tile_size": 64, "batch_size": 2} if shape else {}
    save_model(file, onnx, card_of(Reach(stride=4, halo=12, exact=True, **size)))
    model, opened = load_model(file), Scene.open(scene)
    recipe = settled(Recipe(tile_size=None if shape else 96), model.card)
    grid = lay_grid(opened.height, opened.width, recipe, **reach(model.card))
    image = whole_input(opened, 12, 4)
    wanted = natively(graph_of(network), image)[:, 12:162, 12:222]

    predictor = Predictor(model, device="cpu")
    assert predictor.dtype == torch.float32
    for tile in grid:
        read = with_validity(*opened.read(tile.read, (1, 2, 3)))
        found = predictor.logits(read[None], whole=False)[0]
        rows, cols = tile.core.ranges
        kept = found[:, : tile.core.height, : tile.core.width].numpy()
        np.testing.assert_allclose(
            kept, wanted[:, slice(*rows), slice(*cols)], rtol=0, atol=1e-4
        )
    steps = 254 / (1 + np.exp(-wanted))
    scores = scores_of(model, opened, grid)
    assert scores.std() > 20
    assert np.abs(scores - steps).max() <= 0.51


@pytest.mark.parametrize("background", [0, 2, None])
@pytest.mark.parametrize("activation", ["softmax", "none", "sigmoid"])
def test_channels_become_probabilities_as_the_card_says(
    free: Path, scene: Path, activation: str, background: int | None
) -> None:
    model, opened = load_model(free), Scene.open(scene)
    card = card_of(
        REACH,
        activation=activation,
        background=background,
        classes=3 if background is None else 2,
    )
    graph = graph_of(network_of(soft=activation == "none"))
    model = Model(network=OnnxNetwork(graph), card=card, sha256="")
    grid = lay_grid(150, 210, Recipe(blend="crop"), **reach(card))
    logits = natively(graph_of(network_of()), whole_input(opened, 12, 4))
    odds = np.exp(logits[:, 12:162, 12:222].astype(np.float64))
    wanted = odds / (1 + odds) if activation == "sigmoid" else odds / odds.sum(0)
    if background is not None:
        wanted = np.delete(wanted, background, 0)
    assert np.abs(scores_of(model, opened, grid) - 254 * wanted).max() <= 0.51


def test_logits_that_the_card_takes_for_probabilities_are_refused(scene: Path) -> None:
    card = card_of(REACH, activation="none")
    model = Model(network=network_of(), card=card, sha256="")
    grid = lay_grid(150, 210, Recipe(blend="crop"), **reach(card))
    with pytest.raises(ModelError, match="says that these are probabilities"):
        scores_of(model, Scene.open(scene), grid)


def test_other_channels_than_the_card_says_are_refused_when_they_come(
    scene: Path,
) -> None:
    card = card_of(REACH, background=0)
    model = Model(network=network_of(), card=card, sha256="")
    grid = lay_grid(150, 210, Recipe(blend="crop"), **reach(card))
    with pytest.raises(ModelError, match=r"answers 3 channels.*speaks of 4") as caught:
        scores_of(model, Scene.open(scene), grid)
    assert caught.value.code == "MODEL_MISMATCH"


def test_a_number_for_each_band_stretches_each_by_its_own() -> None:
    model = Model(network=network_of(), card=card_of(REACH), sha256="")
    predictor = Predictor(model, device="cpu")
    stretch = Stretch(low=(0, 100, 7), high=(1000, 300, 7))
    pixels = np.full((3, 1, 1), 200, dtype=np.uint16)
    tile = with_validity(pixels, np.ones((1, 1), dtype=bool))[None]
    found = predictor.normalised(tile, stretch)[0, :, 0, 0] * 60 + 110
    assert found.tolist() == pytest.approx([51, 127.5, 0], abs=1e-3)
    alike = Stretch(low=(100,) * 3, high=(300,) * 3)
    one = Stretch(low=(100,), high=(300,))
    torch.testing.assert_close(
        predictor.normalised(tile, one), predictor.normalised(tile, alike)
    )
    with pytest.raises(ConfigError, match="as many least values"):
        Stretch(low=(1,), high=(2, 3))


# --- plans ------------------------------------------------------------------------

INEXACT = Reach(stride=4, halo=16, exact=False, reasons=("it has global pooling",))


def test_what_cannot_be_exact_is_blended_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    card = card_of(INEXACT).model_copy(update={"name": "told once"})
    for blend, expected in ((None, "hann"), ("crop", "crop"), ("linear", "linear")):
        assert settled(Recipe(blend=blend), card).blend == expected
    (said,) = caplog.messages
    assert "told once cannot be exact" in said
    assert "it has global pooling" in said
    assert settled(Recipe(), card_of(REACH)).blend == "crop"


def test_the_blend_that_was_chosen_decides_what_the_result_is(
    tmp_path: Path, scene: Path
) -> None:
    prints = []
    for reached in (REACH, INEXACT):
        file = tmp_path / f"{reached.exact}.safetensors"
        save_model(file, OnnxNetwork(graph_of(network_of())), card_of(reached))
        for blend in ("crop", "hann", None):
            work = plan(scene, tmp_path, recipe=Recipe(model=str(file), blend=blend))
            prints.append(work.fingerprint)
            assert work.engine.blend == (work.recipe.blend or "")
    assert prints[0] == prints[2] != prints[1]
    assert prints[3] != prints[4] == prints[5]


def test_one_tile_size_is_not_halved_where_memory_is_short(
    tmp_path: Path, scene: Path
) -> None:
    file = tmp_path / "a.safetensors"
    only = Reach(stride=4, halo=12, exact=True, tile_size=128, batch_size=2)
    graph = graph_of(network_of(), 2, 3, 128, 128)
    save_model(file, OnnxNetwork(graph), card_of(only))
    work = plan(scene, tmp_path, recipe=Recipe(model=str(file)))
    with pytest.raises(ModelError, match="does not hold the smallest tile") as caught:
        reduced(work, 1)
    assert caught.value.code == "OUT_OF_MEMORY"


def test_one_tile_size_and_one_batch_are_kept_to(free: Path) -> None:
    only = Reach(stride=4, halo=12, exact=True, tile_size=64, batch_size=3)
    card = card_of(only)
    recipe = Recipe(blend="crop", batch_size=5)
    assert lay_grid(500, 700, recipe, **reach(card)).tile_shape == (64, 64)
    assert make_engine(free, card, recipe).batch_size == 3
    with pytest.raises(TilingError, match="tiles of 64 px and no others"):
        lay_grid(500, 700, Recipe(tile_size=128), **reach(card))
    faded = lay_grid(
        500,
        700,
        Recipe(blend="hann"),
        **reach(card_of(Reach(stride=4, halo=16, exact=False, tile_size=64))),
    )
    assert (faded.tile_shape, faded.halo) == ((64, 64), 16)


def test_imported_networks_run_in_float32_unless_told_otherwise(free: Path) -> None:
    smp = card_of(REACH, architecture=SmpArchitecture(name="Unet"))
    onnx = card_of(REACH)
    for card in (smp, onnx):
        assert make_engine(free, card, Recipe(device="cpu")).precision == "float32"
    half = Recipe(device="cpu", precision="bfloat16")
    assert make_engine(free, smp, half).precision == "bfloat16"
    with pytest.raises(ConfigError, match="ONNX graph"):
        make_engine(free, onnx, half)


# --- a whole run ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["free", "fixed", "pooled"])
def test_a_run_of_a_graph_leaves_what_a_run_leaves(
    tmp_path: Path, free: Path, scene: Path, kind: str
) -> None:
    file = free
    if kind == "fixed":
        file = saved(tmp_path / "a.safetensors", graph_of(network_of(), 2, 3, 128, 128))
    if kind == "pooled":
        file = saved(tmp_path / "a.safetensors", graph_of(network_of(pooled=True)))
    for name, workers in (("one", 1), ("two", 2)):
        out = tmp_path / name
        run(scene, out, model=file, scores=True, device="cpu", workers=workers)
    first, second = (
        Scene.open(next((tmp_path / name).glob("*_scores.tif")))
        for name in ("one", "two")
    )
    window = Window(row_off=0, col_off=0, height=150, width=210)
    (one, _), (two, _) = (s.read(window, (1, 2, 3)) for s in (first, second))
    np.testing.assert_array_equal(one, two)
    if kind != "pooled":
        logits = natively(
            graph_of(network_of()), whole_input(Scene.open(scene), 12, 4)
        )[:, 12:162, 12:222]
        assert np.abs(one - 254 / (1 + np.exp(-logits))).max() <= 0.51
    else:
        assert one.std() > 10


# --- segmentation_models_pytorch --------------------------------------------------


@pytest.mark.skipif(not WITH_SMP, reason="needs segmentation_models_pytorch")
def test_a_network_of_smp_is_saved_measured_and_run(
    tmp_path: Path, scene: Path
) -> None:
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    arguments = {"encoder_name": "resnet18", "encoder_depth": 3}
    arguments |= {"decoder_channels": (32, 16, 8)}
    theirs = smp.Unet(encoder_weights=None, in_channels=3, classes=3, **arguments)
    architecture = SmpArchitecture(name="Unet", arguments=arguments)
    network = foreign_network(
        architecture, theirs.state_dict(), bands=3, channels=3, source="theirs"
    )
    found = measure(network, bands=3)
    assert found.exact
    assert found.stride == 8
    file = tmp_path / "smp.safetensors"
    save_model(file, network, card_of(found, architecture=architecture))
    model, opened = load_model(file), Scene.open(scene)
    recipe = settled(Recipe(tile_size=2 * found.halo + 64), model.card)
    grid = lay_grid(150, 210, recipe, **reach(model.card))
    image = torch.from_numpy(whole_input(opened, found.halo, 8))
    with torch.inference_mode():
        whole = theirs.eval()(image)[0].numpy()
    rim = slice(found.halo, found.halo + 150), slice(found.halo, found.halo + 210)
    steps = 254 / (1 + np.exp(-whole[:, *rim]))
    assert np.abs(scores_of(model, opened, grid) - steps).max() <= 0.51


@pytest.mark.skipif(not WITH_SMP, reason="needs segmentation_models_pytorch")
@pytest.mark.parametrize(
    ("name", "arguments"), [("Nothing", {}), ("Unet", {"encoder_name": "nothing"})]
)
def test_a_network_that_smp_does_not_have_is_refused(
    name: str, arguments: dict[str, Any]
) -> None:
    architecture = SmpArchitecture(name=name, arguments=arguments)
    with pytest.raises(ModelError, match="segmentation_models_pytorch") as caught:
        foreign_network(architecture, {}, bands=3, channels=1, source="a")
    assert caught.value.code == "MODEL_MISMATCH"
