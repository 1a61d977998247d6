from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fullres.models.backbones.resnet import ResNet
from fullres.models.catalogue import build, parameter_count
from fullres.models.count import count_macs
from fullres.models.spgnet import (
    SPG,
    Decoder,
    FPNDecoder,
    GatherExcite,
    ImagePool,
    SPGNet,
    Unguided,
    squeeze_excite,
)
from fullres.pipeline.train.objectives import spgnet_objective
from tests.models import base
from tests.networks import with_statistics

torch.set_num_threads(1)

CLASSES = 5
FULL = (1025, 2049)
MASKS = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.exp() / x.exp().sum((2, 3), keepdim=True),
    "sum": lambda x: x,
}


def published(*depths, channels=128, **arguments):
    with torch.device("meta"):
        return SPGNet([ResNet(depth) for depth in depths], 19, channels, **arguments)


def figures(network, size=FULL):
    """Millions of parameters and billions of operations."""
    return parameter_count(network) / 1e6, count_macs(network, *size) / 1e9


def narrow(depths=(18, 18), channels=8, **arguments):
    return SPGNet([ResNet(depth, 1 / 16) for depth in depths], CLASSES, channels, **arguments)


def trained(**arguments):
    torch.manual_seed(0)
    return with_statistics(narrow(**arguments)).double()


def module(make, *arguments, **keywords):
    torch.manual_seed(0)
    return with_statistics(make(*arguments, **keywords)).double()


def random(*shape):
    return torch.rand(shape, dtype=torch.float64)


def resized(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


@pytest.mark.parametrize(
    ("depths", "channels", "gap", "parameters", "operations"),
    [
        ((18,), 128, False, 11.6, 107.5),
        ((18,), 128, True, 11.7, 107.6),
        ((50,), 128, True, 24.7, 212.9),
        ((101,), 128, True, 43.7, 371.7),
        ((152,), 128, True, 59.4, 530.1),
        ((18, 18), 128, True, 23.9, 218.0),
        ((18, 18, 18), 128, True, 36.2, 328.5),
        ((18, 50), 128, True, 38.4, 336.0),
        ((50, 18), 128, True, 38.0, 329.9),
        ((50, 50), 128, True, 55.6, 467.6),
        ((101, 101), 128, True, 93.5, 785.3),
        ((50, 50), 256, True, 59.8, 654.8),
        ((101, 101), 256, True, 97.8, 972.4),
    ],
)
def test_figures_of_tables_3_to_12(depths, channels, gap, parameters, operations):
    counted = figures(published(*depths, channels=channels, gap=gap))
    assert round(counted[0], 1) == parameters
    assert counted[1] == pytest.approx(operations, rel=1e-3)


@pytest.mark.parametrize(
    "variant",
    [{"excite": "sum"}, {"excite": "softmax"}, {"identity": False}, {"supervise": False}],
    ids=str,
)
def test_figures_of_the_variants_of_table_3(variant):
    parameters, operations = figures(published(18, 18, guide=partial(SPG, **variant)))
    assert round(parameters, 1) == 23.9
    assert operations == pytest.approx(218.0, abs=0.05)


def test_guidance_adds_one_percent_to_the_baseline_of_table_3():
    """The paper counts the baseline's first prediction, which is for the loss alone."""
    parameters, operations = figures(published(18, 18, guide=Unguided))
    operations += 257 * 513 * 128 * 19 / 1e9
    assert round(parameters, 1) == 23.9
    assert operations == pytest.approx(215.5, abs=0.05)
    assert figures(published(18, 18))[1] / operations - 1 == pytest.approx(0.01, abs=0.002)


def test_figures_of_fpn_in_table_11():
    """The paper has 11.5M parameters, and its operations to the last digit."""
    parameters, operations = figures(published(18, decode=FPNDecoder, gap=False))
    assert round(parameters, 1) == 11.6
    assert operations == pytest.approx(118.6, abs=0.05)


def test_figures_of_tiles_and_average_pooling_in_table_12():
    network = published(18, crop=(769, 769))
    assert figures(network, (769, 769))[1] == pytest.approx(30.6, abs=0.05)
    assert figures(network)[1] == pytest.approx(107.6, abs=0.05)


@pytest.mark.parametrize("identity", [True, False])
@pytest.mark.parametrize("excite", MASKS)
def test_guidance_is_section_3_4(excite, identity):
    spg, x = module(SPG, 8, CLASSES, 6, excite=excite, identity=identity), random(2, 8, 5, 7)
    with torch.no_grad():
        logits = spg.predict(x)
        mask = MASKS[excite](spg.attend(logits))
        y = mask + spg.transform(x) if excite == "sum" else mask * spg.transform(x)
        out, own = spg(x)
        torch.testing.assert_close(out, spg.output(x + y) if identity else spg.output(y))
        torch.testing.assert_close(own, logits)
        torch.testing.assert_close(spg.attention(logits), mask)


def test_squeeze_and_excite_averages_the_image():
    se, x = module(squeeze_excite, 32, CLASSES, 6), random(2, 32, 5, 7)
    with torch.no_grad():
        down, _, up = se.attend
        squeezed = x.mean((2, 3), keepdim=True)
        mask = up(down(squeezed).clamp(min=0)).sigmoid()
        out, logits = se(x)
        torch.testing.assert_close(out, se.output(x + mask * se.transform(x)))
    assert logits is None
    assert down.out_channels == 2  # SENet's reduction


def test_gather_and_excite_averages_cells():
    ge, x = module(GatherExcite, 32, CLASSES, 6, extent=2), random(2, 32, 4, 6)
    with torch.no_grad():
        cells = x.reshape(2, 32, 2, 2, 3, 2).mean((3, 5))
        mask = ge.attend(cells).sigmoid().repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(ge(x)[0], ge.output(x + mask * ge.transform(x)))


@pytest.mark.parametrize("pooled", [True, False])
def test_decoder_adds_what_is_above(pooled):
    decoder = module(Decoder, (4, 8, 16, 32), 8, pooled)
    sizes = [(9, 13), (5, 7), (3, 4), (2, 2)]
    features = [random(1, c, *size) for c, size in zip((4, 8, 16, 32), sizes, strict=True)]
    above = random(1, 8, 1, 1) if pooled else None
    with torch.no_grad():
        levels = decoder(features, above)
        for i in (3, 2, 1, 0):
            x = decoder.reduce[i](features[i])
            if above is not None:
                x = decoder.fuse[i](x + resized(above, sizes[i]))
            torch.testing.assert_close(levels[i], x)
            above = x


def test_fpn_decoder_repeats_what_is_above():
    decoder = module(FPNDecoder, (4, 8), 8, True)
    features, above = [random(1, 4, 4, 6), random(1, 8, 2, 3)], random(1, 8, 1, 1)
    with torch.no_grad():
        coarse = decoder.reduce[1](features[1]) + above
        fine = decoder.reduce[0](features[0]) + coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
        levels = decoder(features, above)
        torch.testing.assert_close(levels[0], decoder.smooth(fine))
        torch.testing.assert_close(levels[1], coarse)


@pytest.mark.parametrize("crop", [(97, 65), (128, 96), (2000, 33)])
def test_average_pooling_sees_as_much_as_a_training_crop(crop):
    pool, x = module(ImagePool, 4, 8, crop), random(2, 4, 7, 9)
    window = [min(-(-c // 32), n) for c, n in zip(crop, x.shape[2:], strict=True)]
    with torch.no_grad():
        pooled = pool(x)
        assert pooled.shape == (2, 8, 7, 9)
        for i, j in [(0, 0), (3, 4), (6, 8), (2, 7)]:
            top, left = (
                min(max(k - (w - 1) // 2, 0), n - w)
                for k, w, n in zip((i, j), window, x.shape[2:], strict=True)
            )
            seen = x[:, :, top : top + window[0], left : left + window[1]].mean((2, 3), keepdim=True)
            torch.testing.assert_close(pooled[:, :, i : i + 1, j : j + 1], pool.conv(seen))
        pool.train()
        torch.testing.assert_close(pool(x), pool.conv(x.mean((2, 3), keepdim=True)))


def test_average_pooling_of_one_crop_is_global():
    pooled, windows = trained(), trained(crop=(96, 128))
    image = random(1, 3, 96, 128)
    with torch.no_grad():
        torch.testing.assert_close(windows(image), pooled(image))
        assert not torch.allclose(windows(random(1, 3, 200, 128)), pooled(random(1, 3, 200, 128)))


def test_a_built_network_can_pool_over_crops():
    network, windows = trained(), trained(crop=(96, 96))
    network.pool_over((96, 96))
    image = random(1, 3, 200, 128)
    with torch.no_grad():
        assert network(image).equal(windows(image))


@pytest.mark.parametrize("name", ["spgnet18-no-gap", "spgnet18-fpn"])
def test_what_pools_nothing_pools_over_nothing(name):
    with pytest.raises(ValueError, match="no pooling to change"):
        build(name, 5, 1 / 16).pool_over((96, 96))


def layers(encoder):
    return encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4


def test_two_stages_are_figure_2():
    network, image = trained(depths=(50, 18)), random(2, 3, 45, 65)
    first, second = network.stages
    (guide,) = network.guides
    with torch.no_grad():
        c = first.encoder(image)
        d = first.decoder(c, first.pool(c[-1]))
        x, early = guide(first.output(d[0]))
        features = []
        for i, layer in enumerate(layers(second.encoder)):
            x = layer(x) + second.from_encoder[i](c[i]) + second.from_decoder[i](d[i])
            features.append(x)
        d = second.decoder(features, second.pool(x))
        late = network.classifier(second.output(d[0]))
        torch.testing.assert_close(network(image), resized(late, (45, 65)))
    assert early.shape == late.shape == (2, CLASSES, 12, 17)


def test_only_the_first_encoder_has_a_stem_and_all_keep_their_weights():
    encoders = [with_statistics(ResNet(18, 1 / 16)) for _ in range(3)]
    before = [{k: t.clone() for k, t in e.state_dict().items()} for e in encoders]
    network = SPGNet(encoders, CLASSES, 8)
    for i, (stage, weights) in enumerate(zip(network.stages, before, strict=True)):
        own = stage.encoder.state_dict()
        assert own.keys() == {k for k in weights if i == 0 or k.startswith("layer")}
        assert all(torch.equal(t, weights[k]) for k, t in own.items())


def test_the_stages_that_are_supervised():
    image, labels = base.image(2, (65, 49)), torch.randint(0, CLASSES, (2, 65, 49))
    for guide, count in [(SPG, 3), (Unguided, 3), (partial(SPG, supervise=False), 1), (GatherExcite, 1)]:
        output = narrow((18, 18, 18), guide=guide).train()(image)
        assert [x.shape for x in output.stages] == [(2, CLASSES, 65, 49)] * count
        assert output.logits is output.stages[-1]
        loss = spgnet_objective(output.stages, labels)
        assert count * 0.5 < loss.item() < count * 10


def test_attention_is_the_norm_of_the_channels_a_class_contributes_to_most():
    network, image = trained(channels=32, depths=(18, 18, 18)), random(2, 3, 33, 49)
    for stage in (0, 1):
        spg = network.guides[stage]
        with torch.no_grad():
            decoded = [x for x, _ in network._run(image)][stage]
            mask = spg.attend(spg.predict(decoded)).sigmoid()
            maps = network.attention(image, stage)
            for c in range(CLASSES):
                weights = spg.attend.weight[:, c, 0, 0]
                most = sorted(range(32), key=lambda k: -weights[k])[:15]
                norm = resized(mask[:, most].norm(dim=1, keepdim=True), (33, 49))[:, 0]
                for n in range(2):
                    expected = (norm[n] - norm[n].min()) / (norm[n].max() - norm[n].min())
                    torch.testing.assert_close(maps[n, c], expected)


def test_attention_of_a_network_without_guidance():
    with pytest.raises(ValueError, match=r"behind stage 0 is Unguided, which attends to no class"):
        narrow(guide=Unguided).attention(base.image(1, (33, 33)))
    with pytest.raises(ValueError, match=r"behind stage 0 is no other stage"):
        narrow(depths=(18,)).attention(base.image(1, (33, 33)))


@pytest.mark.parametrize(
    ("arguments", "training_only"),
    [
        ({"depths": (18, 50)}, ("auxiliary.",)),
        ({"guide": Unguided, "gap": False}, ("guides.0.auxiliary",)),
        ({"guide": GatherExcite, "decode": FPNDecoder, "crop": (64, 64), "channels": 16}, ("auxiliary.",)),
    ],
    ids=["spg", "unguided", "gather"],
)
def test_network(arguments, training_only):
    base.check_network(partial(narrow, **arguments), CLASSES, training_only=training_only)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (31, 64)])
def test_any_size(size):
    with torch.no_grad():
        for arguments in ({"crop": (64, 64)}, {"guide": GatherExcite, "decode": FPNDecoder, "gap": False}):
            assert trained(**arguments)(random(1, 3, *size)).shape == (1, CLASSES, *size)


@pytest.mark.slow
@pytest.mark.parametrize("crop", [None, (32, 32)])
def test_export(crop):
    base.check_export(partial(narrow, crop=crop))
