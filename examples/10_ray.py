"""
On a Ray cluster
================

``distributed.score`` runs a fitted detector in several processes, on one machine or many, and continues if one dies
(``pip install "fewshot-ad[ray]"``). Up to some hundred thousand images ``score_samples`` is enough.
"""

import importlib.util
import tempfile

import numpy as np

from fewshot_ad import DualDistillationDetector, distributed
from fewshot_ad.demo import write_images

scratch = tempfile.TemporaryDirectory()
folder = write_images(scratch.name, n_normal=8, n_anomalous=4)
det = DualDistillationDetector(random_state=0).fit(sorted((folder / "good").glob("*"))[:4])

# %%
# Without ``address=`` or a cluster in ``RAY_ADDRESS``, one is started on this machine. The result is a Ray Dataset with
# a row for each file, ordered by path.

if importlib.util.find_spec("ray") is None:
    print('Ray is not installed: pip install "fewshot-ad[ray]"')
else:
    import ray

    rows = distributed.score(det, folder / "bad", num_actors=1).take_all()
    for row in rows:
        print(row["path"].rsplit("/", 1)[-1], f"{row['score']:.3f}", row["label"])

    # The scores equal those of this process, except for the last digits if the number of threads differs.
    print(np.allclose([row["score"] for row in rows], det.score_samples(sorted((folder / "bad").glob("*"))), atol=1e-4))
    ray.shutdown()
# sphinx_gallery_thumbnail_path = 'images/report.png'
