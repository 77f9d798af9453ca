"""torchvision imports here, and its nms is right whichever implementation it has."""

import sys

import torch

from scanfoundry.backbones.torchvision_cpu import ensure_torchvision, plain_nms


def naive_nms(boxes, scores, threshold):
    order, kept = sorted(range(len(boxes)), key=lambda i: -float(scores[i])), []
    for i in order:
        for j in kept:
            x1, y1 = max(boxes[i][0], boxes[j][0]), max(boxes[i][1], boxes[j][1])
            x2, y2 = min(boxes[i][2], boxes[j][2]), min(boxes[i][3], boxes[j][3])
            inter = max(x2 - x1, 0) * max(y2 - y1, 0)
            area = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[j])]
            if inter / (area[0] + area[1] - inter) > threshold:
                break
        else:
            kept.append(i)
    return kept


def test_nms_equals_the_naive_loop():
    low = torch.rand(60, 2, dtype=torch.float64) * 10
    boxes = torch.cat((low, low + 1 + torch.rand(60, 2, dtype=torch.float64) * 4), dim=1)
    scores = torch.rand(60, dtype=torch.float64)
    expected = naive_nms(boxes.tolist(), scores, 0.3)
    assert 5 < len(expected) < 60
    ensure_torchvision()
    from torchvision.ops import batched_nms, nms

    assert plain_nms(boxes, scores, 0.3).tolist() == expected
    assert nms(boxes, scores, 0.3).tolist() == expected
    assert batched_nms(boxes, scores, torch.zeros(60, dtype=torch.int64), 0.3).tolist() == expected
    assert plain_nms(boxes[:0], scores[:0], 0.3).tolist() == []


def test_it_is_idempotent():
    ensure_torchvision()
    module = sys.modules["torchvision"]
    ensure_torchvision()
    assert sys.modules["torchvision"] is module
