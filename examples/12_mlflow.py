"""
An MLflow model
===============

MLflow stores models with the runs that made them, and serves them as ``pyfunc``
(``pip install "fewshot-ad[examples]"``). The detector's file is an artifact of the model: MLflow
pickles the small class below, not the detector.
"""

import importlib.util
import tempfile

import pandas as pd

from fewshot_ad import DualDistillationDetector, demo

scratch = tempfile.TemporaryDirectory()
folder = demo.write_images(scratch.name, n_normal=6, n_anomalous=2)
normal, bad = (sorted(map(str, (folder / kind).glob("*.png"))) for kind in ("good", "bad"))
det = DualDistillationDetector(random_state=0).fit(normal[:4])
det.save(folder / "model.fsad", support=True)

# %%
# The model takes a table with paths in its first column. It returns a table with the score on the scale of tables and
# reports (1 is the threshold, high = anomalous) and the label (-1 = anomalous).

if importlib.util.find_spec("mlflow") is None:
    print('MLflow is not installed: pip install "fewshot-ad[examples]"')
else:
    import mlflow

    class Detector(mlflow.pyfunc.PythonModel):
        def load_context(self, context):
            self.det = DualDistillationDetector.load(context.artifacts["detector"])

        def predict(self, context, model_input, params=None):
            from fewshot_ad.explanation import relative_score

            scores = self.det.score_samples(model_input.iloc[:, 0].tolist())
            labels = [1 if score >= self.det.offset_ else -1 for score in scores]
            return pd.DataFrame({"score": relative_score(scores, self.det.offset_), "label": labels})

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("demo", artifact_location=(folder / "runs").as_uri()))
    with mlflow.start_run():
        mlflow.log_params({"n_support": len(det.support_scores_), "image_size": det.image_size})
        logged = mlflow.pyfunc.log_model(
            name="detector",
            python_model=Detector(),
            artifacts={"detector": str(folder / "model.fsad")},
            pip_requirements=["fewshot-ad"],
        )

    # %%
    # Elsewhere, load the model by its address alone:

    model = mlflow.pyfunc.load_model(logged.model_uri)
    found = model.predict(pd.DataFrame({"path": [*normal[4:], *bad]}))
    print(found)
    print("as the detector says:", found["label"].tolist() == det.predict([*normal[4:], *bad]).tolist())
# sphinx_gallery_thumbnail_path = 'images/maps.png'
