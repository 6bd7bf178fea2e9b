"""Create the picture in docs/report.md: screenshots of a report on the demo's images.

python tools/report_picture.py --out docs/images/report.png

Needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from fewshot_ad import DualDistillationDetector, demo
from fewshot_ad.report import write_report

WIDTH, HEIGHT = 1180, 700


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("report.png"))
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        folder = demo.write_images(scratch)
        good, bad = (sorted((folder / kind).glob("*.png")) for kind in ("good", "bad"))
        det = DualDistillationDetector(random_state=0).fit(good[:4])
        y = [1] * len(good[4:]) + [-1] * len(bad)
        report = folder / "report.html"
        write_report(det, [*good[4:], *bad], report, y=y, title="Scratched photographs")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(report.as_uri())
            page.wait_for_timeout(500)
            shots = [page.screenshot()]
            page.emulate_media(color_scheme="dark")
            page.locator(".card").nth(1).click()
            page.wait_for_timeout(500)
            shots.append(page.screenshot())
            browser.close()
    picture = Image.new("RGB", (WIDTH, 2 * HEIGHT))
    for i, shot in enumerate(shots):
        picture.paste(Image.open(io.BytesIO(shot)), (0, i * HEIGHT))
    small = picture.resize((WIDTH * 3 // 5, 2 * HEIGHT * 3 // 5), Image.Resampling.LANCZOS)
    small.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
