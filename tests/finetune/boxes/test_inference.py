import numpy as np
import torch

from scanfoundry.finetune.boxes.inference import find
from scanfoundry.finetune.boxes.windows import sliding_windows

CPU = torch.device("cpu")


def bright(limit=0.5):
    """A detector in plain sight: the bounding box of what is bright, and its mean as the score."""

    def detect(images):
        found = []
        for image in images[:, 0]:
            lit = torch.nonzero(image > limit)
            none = torch.zeros(0, 6), torch.zeros(0), torch.zeros(0, dtype=torch.long)
            if not len(lit):
                found.append(none)
                continue
            box = torch.cat([lit.min(0).values, lit.max(0).values + 1]).float()
            found.append((box[None], image[image > limit].mean()[None], torch.tensor([1])))
        return found

    return detect


def scene(place=(3, 20, 41)):
    image = torch.zeros(1, 8, 32, 64)
    d, h, w = place
    image[0, d : d + 2, h : h + 4, w : w + 6] = 0.8
    return image, [d, h, w, d + 2, h + 4, w + 6]


def test_windows_mirrors_and_members_that_agree_give_the_box_itself():
    image, box = scene()
    windows = sliding_windows((8, 32, 64), (8, 16, 16), 0.5)
    for members, mirrors in [(1, [()]), (2, [(), (1,), (2,), (1, 2)])]:
        found = find([bright()] * members, image, 0.0, windows, mirrors, 3, CPU)
        best = found.corners[0]
        assert np.allclose(best, box, atol=0.5)
        assert found.labels[0] == 1
        assert abs(found.scores[0] - 0.8) < 0.1
        assert (found.scores[1:] < 0.5).all()


def test_one_window_gives_what_the_detector_gives():
    image, box = scene()
    found = find([bright()], image, 0.0, sliding_windows((8, 32, 64), (8, 32, 64), 0.5), [(), (0, 1, 2)], 1, CPU)
    assert found.corners.round(4).tolist() == [box]
    assert np.allclose(found.scores, 0.8)


def test_a_member_that_misses_lowers_the_score():
    image, _ = scene()
    windows = sliding_windows((8, 32, 64), (8, 32, 64), 0.5)
    found = find([bright(), bright(limit=0.9)], image, 0.0, windows, [()], 1, CPU)
    assert np.allclose(found.scores, 0.4)


def test_an_empty_scan_has_no_box_and_a_small_one_is_padded():
    image = torch.zeros(1, 4, 10, 12)
    windows = sliding_windows((4, 10, 12), (8, 16, 16), 0.5)
    assert len(find([bright()], image, 0.0, windows, [()], 1, CPU).scores) == 0
    image[0, 1:3, 2:5, 4:8] = 1
    found = find([bright()], image, 0.0, windows, [(), (2,)], 1, CPU)
    assert found.corners.round(4).tolist() == [[1, 2, 4, 3, 5, 8]]


def test_the_number_of_windows_at_a_time_changes_nothing():
    image, _ = scene((2, 9, 30))
    windows = sliding_windows((8, 32, 64), (8, 16, 16), 0.5)
    first, second = (find([bright()], image, 0.0, windows, [(), (2,)], n, CPU) for n in (1, 7))
    assert len(first)
    assert first == second


def test_only_the_best_boxes_of_a_pass_are_clustered(monkeypatch):
    """Whatever the number of windows that they come from."""
    image = torch.zeros(1, 1, 8, 64)
    for i in range(8):
        image[0, 0, 2:6, 8 * i + 2 : 8 * i + 6] = 0.55 + 0.05 * i
    windows = sliding_windows((1, 8, 64), (1, 8, 8), 0.0)
    assert len(find([bright()], image, 0.0, windows, [()], 3, CPU).scores) == 8
    monkeypatch.setattr("scanfoundry.finetune.boxes.inference.PER_PASS", 3)
    found = find([bright()], image, 0.0, windows, [()], 3, CPU)
    assert np.allclose(found.scores, [0.9, 0.85, 0.8])
