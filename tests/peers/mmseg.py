"""Networks of mmsegmentation 1.2.2 with seeded weights: checkpoints, and what they compute.

Runs in an environment of its own (`make parity`), without the project:

    python mmseg.py list                the networks, by their names in the project's catalogue
    python mmseg.py full NAME FOLDER    NAME.pth, a checkpoint as its training writes it; outputs, NAME.npz
    python mmseg.py slide NAME FOLDER   NAME.pth, a state dict; images and their logits by windows, NAME.npz
    python mmseg.py narrow FILE         names, shapes and part of the outputs of narrow ones, for fast tests

Networks are built from the configurations that come with its wheel, with batch norm of one process.
"""

import importlib.util
import os
import sys
import types
from pathlib import Path

# Beside this torch torchvision does not import, and mmcv-lite has no compiled operations; of those that are
# imported only CCNet's is used here, which is plain torch.
SELF = Path(__file__).resolve()
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != SELF.parent]

import mmcv  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

spec = importlib.util.spec_from_file_location("seeded", SELF.parent / "seeded.py")
seeded = importlib.util.module_from_spec(spec)
spec.loader.exec_module(seeded)

ops = types.ModuleType("mmcv.ops")
ops.point_sample = ops.sigmoid_focal_loss = ops.PSAMask = None
where = Path(mmcv.__file__).parent / "ops" / "cc_attention.py"
spec = importlib.util.spec_from_file_location("mmcv.ops.cc_attention", where)
attention = importlib.util.module_from_spec(spec)
spec.loader.exec_module(attention)
ops.CrissCrossAttention = attention.CrissCrossAttention
sys.modules["mmcv.ops"] = ops

import mmseg  # noqa: E402
import mmseg.models  # noqa: E402
from mmengine import Config  # noqa: E402
from mmengine.logging import HistoryBuffer  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

SIZE, NARROW_SIZE = (91, 123), (59, 83)
WINDOW, STRIDE = 61, 41
CITYSCAPES = "4xb2-40k_cityscapes-512x1024"
CONFIGS = {
    **{f"pspnet{d}": f"pspnet/pspnet_r{d}-d8_{CITYSCAPES}" for d in (50, 101)},
    **{f"dilatedfcn{d}": f"fcn/fcn_r{d}-d8_{CITYSCAPES}" for d in (50, 101)},
    **{f"upernet{d}": f"upernet/upernet_r{d}_{CITYSCAPES}" for d in (50, 101)},
    **{f"ann{d}": f"ann/ann_r{d}-d8_{CITYSCAPES}" for d in (50, 101)},
    **{f"ccnet{d}": f"ccnet/ccnet_r{d}-d8_{CITYSCAPES}" for d in (50, 101)},
    **{f"dmnet{d}": f"dmnet/dmnet_r{d}-d8_{CITYSCAPES}" for d in (50, 101)},
    **{f"deeplabv3plus{d}": f"deeplabv3plus/deeplabv3plus_r{d}-d8_{CITYSCAPES}" for d in (50, 101)},
    "deeplabv3plus-mobilenet": "mobilenet_v2/mobilenet-v2-d8_deeplabv3plus_4xb2-80k_cityscapes-512x1024",
    **{f"hrnet{c}": f"hrnet/fcn_hr{c}_{CITYSCAPES}" for c in (18, 48)},
    **{f"ocrnet{c}": f"ocrnet/ocrnet_hr{c}_{CITYSCAPES}" for c in (18, 48)},
}
# How many times fewer channels; HRNet's stem has no such setting.
NARROWER = {"ResNetV1c": 8, "MobileNetV2": 2}
NARROW = [name for name in CONFIGS if name.endswith(("50", "mobilenet", "18"))]
# Those that its configurations for 769x769 have with align_corners.
ALIGNED = [name for name in NARROW if name.endswith("50")]


def config_of(name):
    return Config.fromfile(Path(mmseg.__file__).parent / ".mim" / "configs" / f"{CONFIGS[name]}.py")


def build(config, name, classes=19, narrow=False, aligned=False):
    model = config.model.to_dict()
    model.pop("pretrained", None)
    model["data_preprocessor"] = None
    settings(model, classes, NARROWER.get(model["backbone"]["type"], 1) if narrow else 1)
    if aligned:
        model["decode_head"]["align_corners"] = model["auxiliary_head"]["align_corners"] = True
    torch.manual_seed(0)
    network = MODELS.build(model).eval()
    state = network.state_dict()
    network.load_state_dict({key: seeded.seeded(key, t.shape) for key, t in state.items()})
    return network


def settings(part, classes, narrower):
    """Plain batch norm, so many classes, so many times fewer channels, in all dicts of a configuration."""
    for key, value in part.items():
        if isinstance(value, dict):
            settings(value, classes, narrower)
        elif isinstance(value, list):
            for each in value:
                if isinstance(each, dict):
                    settings(each, classes, narrower)
        elif value == "SyncBN":
            part[key] = "BN"
        elif key == "num_classes":
            part[key] = classes
    if narrower == 1:
        return
    if part.get("type") in ("ResNetV1c", "ResNet"):
        part.update(base_channels=64 // narrower, stem_channels=64 // narrower)
    elif part.get("type") == "MobileNetV2":
        part["widen_factor"] = 1 / narrower
    for key in ("in_channels", "channels", "project_channels", "c1_in_channels"):
        if key in part:
            part[key] = narrow_channels(part[key], narrower)


def narrow_channels(value, narrower):
    if isinstance(value, list | tuple):
        return [narrow_channels(each, narrower) for each in value]
    return 16 if value == 24 else value // narrower  # MobileNetV2's are multiples of eight


def outputs(network, size, dtype):
    network = network.to(dtype)
    with torch.no_grad():
        image = seeded.seeded_image(*size).to(dtype)
        logits = network.encode_decode(image, [{"img_shape": size, "ori_shape": size, "pad_shape": size}])
    return logits[0].numpy()


def write_full(name, folder):
    config = config_of(name)
    network = build(config, name)
    history = HistoryBuffer([0.5, 0.25], [1, 1])
    torch.save(
        {
            "meta": {
                "cfg": config.pretty_text, "iter": np.int64(40000), "mmseg_version": mmseg.__version__,
                "dataset_meta": {"classes": ("road", "sidewalk")},
            },
            "state_dict": network.state_dict(),
            "message_hub": {"log_scalars": {"train/loss": history}, "lr": np.float64(0.01)},
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]},
            "param_schedulers": [{"last_step": 40000}],
        },
        folder / f"{name}.pth",
    )  # fmt: skip
    single = outputs(network, SIZE, torch.float32)
    np.savez(folder / f"{name}.npz", single=single, double=outputs(network, SIZE, torch.float64))


def write_sliding(name, folder):
    """Of images larger than the window, smaller, and both."""
    config = config_of(name)
    network = build(config, name)
    torch.save(network.state_dict(), folder / f"{name}.pth")
    network.test_cfg = Config({"crop_size": (WINDOW, WINDOW), "stride": (STRIDE, STRIDE)})
    mean, std = (np.float32(config.model.data_preprocessor[key]) for key in ("mean", "std"))
    content = {"window": WINDOW, "stride": STRIDE}
    for i, size in enumerate(((91, 123), (50, 100), (40, 51))):
        image = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        x = torch.from_numpy((image - mean) / std).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = network.slide_inference(x, [{"ori_shape": size, "pad_shape": size}])
        content |= {f"image{i}": image, f"logits{i}": logits[0].numpy()}
    np.savez(folder / f"{name}.npz", **content)


def write_narrow(file):
    content = {}
    for name in NARROW:
        network = build(config_of(name), name, classes=5, narrow=True)
        shapes = {key: "x".join(map(str, t.shape)) for key, t in network.state_dict().items()}
        logits = outputs(network, NARROW_SIZE, torch.float64)
        content[f"{name}.keys"] = np.array("\n".join(f"{key}\t{shape}" for key, shape in shapes.items()))
        content[f"{name}.logits"] = logits.reshape(-1)[::83]
        content[f"{name}.largest"] = np.abs(logits).max()
        if name in ALIGNED:
            network = build(config_of(name), name, classes=5, narrow=True, aligned=True)
            content[f"{name}.aligned"] = outputs(network, NARROW_SIZE, torch.float64).reshape(-1)[::83]
        print(name, logits.shape, float(np.abs(logits).max()), flush=True)
    np.savez_compressed(file, **content)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1] == "full":
        write_full(sys.argv[2], Path(sys.argv[3]))
    elif sys.argv[1] == "slide":
        write_sliding(sys.argv[2], Path(sys.argv[3]))
    elif sys.argv[1] == "list":
        print("\n".join(CONFIGS))
    else:
        write_narrow(sys.argv[2])
