"""
On a Ray cluster
================

``distributed.score`` puts a fitted detector into each of several processes, of one machine or of many, and goes on when
one dies (``pip install "fewshot-ad[ray]"``). Up to some hundred thousand images plain ``score_samples`` will do.
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
# Without ``address=``, and without a cluster in ``RAY_ADDRESS``, one is started on this machine. The result is a Ray
# Dataset with a row for each file, in the order of their paths.

if importlib.util.find_spec("ray") is None:
    print('Ray is not installed: pip install "fewshot-ad[ray]"')
else:
    import ray

    rows = distributed.score(det, folder / "bad", num_actors=1).take_all()
    for row in rows:
        print(row["path"].rsplit("/", 1)[-1], f"{row['score']:.3f}", row["label"])

    # The same numbers as in this process, but for the last digits where the number of threads differs.
    print(np.allclose([row["score"] for row in rows], det.score_samples(sorted((folder / "bad").glob("*"))), atol=1e-4))
    ray.shutdown()
