import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.finetune.cases.volumes import resize
from scanfoundry.finetune.inference.resampling import PlaneResampler

sizes = st.tuples(*[st.integers(1, 17)] * 3)


@settings(max_examples=60, deadline=None)
@given(source=sizes, target=sizes, piece=st.integers(1, 6))
def test_plane_by_plane_equals_the_whole_volume(source, target, piece):
    scores = torch.randn(2, 3, *source, generator=torch.Generator().manual_seed(sum(source)))
    resampler = PlaneResampler(source, target)
    made = [part for planes in scores.split(piece, 2) for part in resampler.feed(planes)]
    found = torch.cat(made, 2)
    for member, each in zip(scores, found, strict=True):
        assert torch.allclose(each, torch.from_numpy(resize(member.numpy(), target)), atol=1e-5)


def test_few_planes_are_held():
    resampler = PlaneResampler((200, 3, 3), (260, 3, 3))
    for planes in torch.randn(1, 2, 200, 3, 3).split(1, 2):
        list(resampler.feed(planes))
        assert resampler.held.shape[2] <= 2
