"""Instance AP, of every class whatever their number and whatever is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.evaluation import COCOEvaluator


class AveragePrecisionEvaluator(COCOEvaluator):
    """Detectron2's evaluator of boxes and masks, which leaves the AP of classes out where there is
    one class, or where nothing was found.

    The measure is pycocotools'. Every evaluation gives the same scores, `AP-<class>` of every class
    among them; where nothing was found all are NaN.

    Contains synchronisation, so every process of a distributed run has to call it.

    Args:
        dataset_name: registered, with the instances and `thing_classes` of COCO's evaluators.
        tasks: `bbox`, `segm` or both.
        output_dir: predictions are written there, if given.
    """

    def __init__(
        self, dataset_name: str, tasks: Sequence[str], output_dir: str | None = None
    ) -> None:
        # The fast implementation needs Detectron2's compiled part, and is unofficial.
        super().__init__(dataset_name, tuple(tasks), output_dir=output_dir, use_fast_impl=False)

    def evaluate(self, img_ids: Sequence[int] | None = None) -> Mapping[str, Any] | None:
        """AP in percent by task: of all classes `AP`, `AP50`, `AP75`, and of small, medium and
        large objects `APs`, `APm`, `APl`; of each class `AP-<class>`.

        None in all processes but the main one; empty where no image was processed.

        Args:
            img_ids: of the images to score, all if None.
        """
        results: Mapping[str, Any] | None = super().evaluate(img_ids)
        for scores in (results or {}).values():
            if "AP" in scores:
                for name in self._metadata.get("thing_classes") or ():
                    # Of one class it is that of all, where nothing was found NaN like that.
                    scores.setdefault(f"AP-{name}", scores["AP"])
        return results
