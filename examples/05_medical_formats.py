"""
Medical formats
===============

DICOM, NIfTI and 16-bit TIFF are read directly (``pip install "fewshot-ad[medical]"``). This detector is fitted on
slices of a NIfTI volume and scores DICOM files. All images are synthetic.
"""

import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import tifffile
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from fewshot_ad import DualDistillationDetector
from fewshot_ad.data.images import frames
from fewshot_ad.plotting import AnomalyMapDisplay

# %%
# Each image is a body in Hounsfield units, seen from below: fat around soft tissue, two lungs, a spine, and noise.


def render(rng, lesion=False):
    rows, columns = np.mgrid[-1:1:160j, -1:1:160j]
    rows, columns = rows + rng.uniform(-0.03, 0.03), columns + rng.uniform(-0.03, 0.03)
    wide = rng.uniform(0.95, 1.05)

    def inside(y, x, height, width):
        return ((rows - y) / height) ** 2 + ((columns - x) / width / wide) ** 2 < 1

    body = np.full(rows.shape, -1000.0)
    body[inside(0, 0, 0.72, 0.88)] = -90
    body[inside(0, 0, 0.64, 0.8)] = 40
    for side in (-1, 1):
        body[inside(-0.05, 0.4 * side, 0.45, 0.26)] = -800
    body[inside(0.45, 0, 0.12, 0.12)] = 500
    if lesion:
        body[inside(rng.uniform(-0.25, 0.15), 0.4, 0.09, 0.08)] = 20
    return body + rng.normal(0, 25, body.shape)


rng = np.random.default_rng(0)
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)

# %%
# Write a volume of eight normal slices. The first two axes of a NIfTI array run from left to right and from back to
# front.

slices = np.stack([render(rng)[::-1, ::-1].T for _ in range(8)], axis=-1)
nibabel.save(nibabel.Nifti1Image(slices.astype(np.int16), np.eye(4)), folder / "ct.nii.gz")

# %%
# Write four DICOM files, the last two with a lesion. As in a scanner's files, a slope and an intercept convert stored
# values to Hounsfield units.


def write_dicom(path, values):
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan = pydicom.Dataset()
    scan.file_meta = meta
    scan.SOPClassUID, scan.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    scan.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    scan.Rows, scan.Columns = values.shape
    scan.SamplesPerPixel, scan.PhotometricInterpretation = 1, "MONOCHROME2"
    scan.BitsAllocated, scan.BitsStored, scan.HighBit, scan.PixelRepresentation = 16, 16, 15, 0
    scan.RescaleSlope, scan.RescaleIntercept = 1, -1024
    scan.PixelData = (values.round() + 1024).clip(0).astype(np.uint16).tobytes()
    scan.save_as(path, enforce_file_format=True)


for i in range(4):
    write_dicom(folder / f"{i}.dcm", render(rng, lesion=i >= 2))

# %%
# Set one input window (low, high) for all files: ``value_range`` is in the file's units, here Hounsfield units.
# ``frames`` lists the images of a volume.

support = frames(folder / "ct.nii.gz")
queries = [folder / f"{i}.dcm" for i in range(4)]
print(*map(str, (frame.index for frame in support)))

det = DualDistillationDetector(value_range=(-1350, 150), augment=False, random_state=0).fit(support)
for path, decision in zip(queries, det.decision_function(queries), strict=True):
    print(f"{path.name}: {decision:+.2f}")
AnomalyMapDisplay.from_estimator(det, queries[1:3], y=[1, -1])

# %%
# By default 65535 is white in a 16-bit TIFF, so set the window here too. ``frames`` also lists pages.

pages = np.stack([render(rng), render(rng, lesion=True)])
tifffile.imwrite(folder / "pages.tif", (pages + 1024).clip(0).astype(np.uint16), photometric="minisblack")
of_tiff = DualDistillationDetector(value_range=(-1350 + 1024, 150 + 1024), augment=False, random_state=0)
tifffile.imwrite(
    folder / "normal.tif",
    np.stack([render(rng) + 1024 for _ in range(8)]).clip(0).astype(np.uint16),
    photometric="minisblack",
)
print(of_tiff.fit(frames(folder / "normal.tif")).predict(frames(folder / "pages.tif")))
