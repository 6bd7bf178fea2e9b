"""The student's two forms: shapes, sizes, signs, seeds."""

import pytest
import torch

from fewshot_ad.method.student import Decoder, build_student
from fewshot_ad.method.teacher import build_backbone
from fewshot_ad.method.weighting import LearnToWeight

PAPER_CHANNELS = (256, 512, 1024, 2048)


def squares(*sides):
    return tuple((side, side) for side in sides)


def small_decoder(shapes, channels=(8, 16, 24, 32), signed=False, blocks=(1, 1, 1)) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Decoder(channels, shapes, (signed,) * 3, blocks)


def run(net, shapes, *shape):
    with torch.no_grad():
        return net.eval()(torch.randn(shape, generator=torch.Generator().manual_seed(0)), shapes)


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def teacher(toy):
    return build_backbone(toy["backbone"], toy["image_size"], weights=toy["weights"])


def build(teacher, toy, form="decoder", seed=0):
    return build_student(form, teacher, toy["backbone"], attention=True, sharpness=1.0, seed=seed)


def test_size_for_the_paper_teacher():
    with torch.device("meta"):
        decoder = Decoder(PAPER_CHANNELS, squares(32, 16, 8, 4), (False,) * 3)
        weighting = LearnToWeight(PAPER_CHANNELS[:3])
    assert n_parameters(decoder) == pytest.approx(24.9e6, abs=5e4)
    assert n_parameters(weighting) == 1_378_048


@pytest.mark.parametrize(
    "shapes",
    [
        squares(32, 16, 8, 4),
        squares(25, 13, 7, 4),  # sides rounded up, as in most convolutional networks
        squares(25, 12, 6, 3),  # and down
        squares(14, 14, 14, 14),  # a plain transformer
        ((8, 16), (4, 8), (2, 4), (1, 2)),
    ],
)
def test_decoder_has_the_teachers_shapes(shapes):
    maps = run(small_decoder(shapes), shapes[:3], 2, 32, *shapes[3])
    assert [tuple(m.shape) for m in maps] == [(2, c, *shape) for c, shape in zip((8, 16, 24), shapes[:3], strict=True)]


@pytest.mark.parametrize(("blocks", "scales"), [((1, 1, 1), 3), ((2, 1, 0), 2), ((1, 0, 0), 1)])
def test_zero_blocks_omit_a_scale(teacher, toy, blocks, scales):
    """The deeper scales are bitwise identical to those of the full decoder."""
    images = torch.rand(2, 3, 32, 32)
    features = teacher(images)
    shapes = [m.shape[2:] for m in features[:3]]
    options = {"attention": True, "sharpness": 1.0, "seed": 0}
    student = build_student("decoder", teacher, toy["backbone"], blocks=blocks, **options).eval()
    whole = build_student("decoder", teacher, toy["backbone"], blocks=[max(n, 1) for n in blocks], **options).eval()
    whole.load_state_dict({**whole.state_dict(), **{k: v for k, v in student.state_dict().items() if k[:3] == "net"}})
    found = student(features[-1], shapes)
    assert len(found) == scales == student.n_scales == len(student.weighting.phi)
    assert all(torch.equal(a, b) for a, b in zip(found, whole(features[-1], shapes)[3 - scales :], strict=True))
    assert [t.shape for t in student.targets(features)] == [m.shape for m in found]


def test_one_decoder_serves_maps_of_any_shape():
    decoder = small_decoder(squares(32, 16, 8, 4))
    shapes = ((20, 52), (10, 26), (5, 13))
    assert [tuple(m.shape[2:]) for m in run(decoder, shapes, 2, 32, 3, 7)] == list(shapes)


def test_decoder_of_a_teacher_without_an_embedding():
    maps = run(small_decoder(squares(16, 8, 4), channels=(8, 16, 24)), squares(16, 8, 4), 2, 24, 4, 4)
    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 16), (2, 16, 8, 8), (2, 24, 4, 4)]


@pytest.mark.parametrize("signed", [False, True])
def test_decoder_has_the_teachers_signs(signed):
    maps = run(small_decoder(squares(16, 8, 4, 2), signed=signed, blocks=(1, 2, 1)), squares(16, 8, 4), 2, 32, 2, 2)
    assert [bool((m < 0).any()) for m in maps] == [signed] * 3


@pytest.mark.parametrize("form", ["decoder", "encoder"])
def test_every_weight_is_trained(teacher, toy, form):
    student = build(teacher, toy, form)
    images = torch.rand(4, 3, 32, 32)
    features = teacher(images)
    maps = student(student.inputs(images, features), [m.shape[2:] for m in features[:3]])
    references, _ = student.weighting(maps, maps)
    sum(((m + r) ** 2).sum() for m, r in zip(maps, references, strict=True)).backward()
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize("form", ["decoder", "encoder"])
def test_built_student_has_the_teachers_shapes(teacher, toy, form):
    student = build(teacher, toy, form).eval()
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        features = teacher(images)
        maps = student(student.inputs(images, features), [m.shape[2:] for m in features[:3]])
    assert [m.shape for m in maps] == [f.shape for f in features[:3]]
    assert [bool((m < 0).any()) for m in maps] == list(teacher.signed[:3])
    assert [phi.in_channels for phi in student.weighting.phi] == list(teacher.channels[:3])


def test_inputs_of_each_form(teacher, toy):
    images = torch.rand(2, 3, 32, 32)
    features = teacher(images)
    assert build(teacher, toy, "encoder").inputs(images, features) is images
    assert build(teacher, toy, "decoder").inputs(images, features) is features[-1]


def test_encoder_is_untrained_and_trainable(teacher, toy):
    net = build(teacher, toy, "encoder", seed=5).net
    pretrained = teacher.state_dict()
    convolutions = {key: value for key, value in net.named_parameters() if value.ndim == 4}
    assert convolutions
    assert not any(torch.equal(value, pretrained[key]) for key, value in convolutions.items())
    assert all(p.requires_grad for p in net.parameters())
    torch.testing.assert_close(net.mean, teacher.mean)


@pytest.mark.parametrize("form", ["decoder", "encoder"])
def test_seed(teacher, toy, form):
    before = torch.get_rng_state()
    first, again, other = (build(teacher, toy, form, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    drawn = [key for key, value in first.items() if value.ndim == 4]
    assert drawn
    assert not any(torch.equal(first[key], other[key]) for key in drawn)


@pytest.mark.parametrize("attention", [False, True])
def test_attention_is_passed_on(teacher, toy, attention):
    student = build_student("decoder", teacher, toy["backbone"], attention=attention, sharpness=0.25, seed=0)
    assert (student.weighting.attention, student.weighting.sharpness) == (attention, 0.25)
