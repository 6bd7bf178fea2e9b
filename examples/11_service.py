"""
A web service
=============

The service takes an image and returns its score, p-value, regions and overlay
(``pip install "fewshot-ad[examples]"``).
To serve a file from ``fewshot-ad fit``, save this page as ``service.py``::

    FEWSHOT_AD_MODEL=model.fsad uvicorn service:app

    curl -F image=@new.png http://127.0.0.1:8000/score
"""

import base64
import importlib.util
import io
import os
import tempfile

from PIL import Image

from fewshot_ad import DualDistillationDetector, demo
from fewshot_ad.exceptions import ImageError
from fewshot_ad.explanation import overlay

MOST_BYTES = int(os.environ.get("FEWSHOT_AD_MOST_BYTES", 20_000_000))

# %%
# Load the detector once. Small files of huge images (more than ``fewshot_ad.images.MAX_PIXELS``) are refused before
# they are decoded; lower that limit for images from strangers.

scratch = tempfile.TemporaryDirectory()
folder = demo.write_images(scratch.name, n_normal=4, n_anomalous=1)
if "FEWSHOT_AD_MODEL" in os.environ:
    det = DualDistillationDetector.load(os.environ["FEWSHOT_AD_MODEL"])
else:
    det = DualDistillationDetector(random_state=0).fit(sorted((folder / "good").glob("*")))
det.set_params(n_jobs=1)  # each request has a thread of its own

# %%
# ``score`` is a plain function, not a coroutine, so FastAPI calls it in a thread and stays responsive. Long uploads are
# refused by their header, before they are received, and so are uploads without a length.

if importlib.util.find_spec("fastapi") is None:
    print('FastAPI is not installed: pip install "fewshot-ad[examples]"')
else:
    from fastapi import FastAPI, HTTPException, Request, UploadFile
    from fastapi.responses import JSONResponse
    from fastapi.testclient import TestClient

    app = FastAPI(title="fewshot_ad")

    @app.middleware("http")
    async def refuse_what_is_too_long(request: Request, answer):
        length = request.headers.get("content-length", "")
        if request.method == "POST" and not length.isdecimal():
            return JSONResponse({"detail": "The request must say its Content-Length."}, 411)
        if length and int(length) > MOST_BYTES:
            return JSONResponse({"detail": f"{length} bytes are more than the {MOST_BYTES} that are accepted."}, 413)
        return await answer(request)

    @app.post("/score")
    def score(image: UploadFile):
        try:
            (found,) = det.explain([image])
        except ImageError as error:
            raise HTTPException(415, str(error)) from error
        png = io.BytesIO()
        Image.fromarray(overlay(found)).save(png, "PNG")
        return {
            "name": image.filename,
            "score": found.relative,  # 1 is the threshold, high = anomalous
            "anomalous": found.decision < 0,
            "p_value": float(det.normal_pvalue([image])[0]),  # share of normal images expected to score as high
            "regions": [
                {"box": one.box, "area": one.area, "peak": one.peak, "polygon": one.polygon.tolist()}
                for one in found.regions
            ],
            "overlay": base64.b64encode(png.getvalue()).decode(),
        }

    # %%
    # Send a request, without a network.

    with TestClient(app) as client, open(next((folder / "bad").glob("*")), "rb") as file:
        reply = client.post("/score", files={"image": file}).json()
    print({name: value for name, value in reply.items() if name != "overlay"})
    overlaid = Image.open(io.BytesIO(base64.b64decode(reply["overlay"])))
    print(f"overlay: {overlaid.width} x {overlaid.height}")
# sphinx_gallery_thumbnail_path = 'images/why.jpg'
