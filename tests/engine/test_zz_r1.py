import pytest, torch
from tests.engine.test_accumulation import *
from detrex_mammo.modeling.hybrid_matching import HybridMatching
DN = "projects/deformable_detr/configs/deformable_detr_r50_two_stage_dn_50ep.py"

@pytest.mark.parametrize("equal", [True])
@pytest.mark.parametrize("iou", [0.0, 2.0])
def test_training_queries(tmp_path, equal, iou):
    model = make_detector(tmp_path, recipe=DN)
    model.hybrid = HybridMatching(64, True, 8, 2)
    model.denoising.label_noise = model.denoising.box_noise = 0.0
    model.criterion.iou_power = iou
    large = trained(model, batches(images(equal), 4))
    small = trained(model, batches(images(equal), 1), accumulate=4)
    d = max(float((a-b).detach().abs().max()) for a,b in zip(small.model.parameters(), large.model.parameters()))
    print("DIFF", d, "moved", moved(large.model, model))
    names=[n for n in large.storage.histories() if n.startswith('loss')]
    print(len(names), names)
    assert d < 1e-9
    for n in names:
        assert history(small, n) == pytest.approx(history(large, n), rel=1e-5), n
