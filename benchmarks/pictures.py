"""Take the pictures of leaderboard pages that the README shows; needs Chromium and its driver, and selenium (`make test`).

    .venv/bin/python benchmarks/pictures.py boards/mob/index.html page_mob models scores
    .venv/bin/python benchmarks/pictures.py boards/her2st/index.html page_her2st models scores
    .venv/bin/python benchmarks/pictures.py boards/ten_backbones/index.html page_ten_backbones models scores
    .venv/bin/python benchmarks/pictures.py boards/auxiliary_weight/index.html page_auxiliary_weight models scores
    .venv/bin/python benchmarks/pictures.py stexpr-demo/leaderboard/index.html page_maps maps

The parts of the page are named by their ids. No picture of HER2ST's tissue may be published: take none of its maps.
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
WIDTH, MARGIN = 1280, 16


def main(page: str, name: str, *parts: str) -> None:
    options = webdriver.ChromeOptions()
    with tempfile.TemporaryDirectory() as profile:
        for flag in [*FLAGS.split(), "disable-component-update", "hide-scrollbars", f"user-data-dir={profile}"]:
            options.add_argument(f"--{flag}")
        driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        try:
            resize(driver, 900)
            driver.get(Path(page).resolve().as_uri())
            WebDriverWait(driver, 60).until(lambda one: one.execute_script(READY))
            resize(driver, int(driver.execute_script("return document.documentElement.scrollHeight")))
            WebDriverWait(driver, 60).until(lambda one: one.execute_script(READY))
            boxes = [driver.execute_script(BOX, part) for part in parts]
            picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
        finally:
            driver.quit()
    left, top = (min(box[i] for box in boxes) - MARGIN for i in (0, 1))
    right, bottom = (max(box[i] for box in boxes) + MARGIN for i in (2, 3))
    crop = picture.crop((max(0, left), top + MARGIN, min(WIDTH, right), bottom))
    target = Path(__file__).parent / "pictures" / f"{name}.png"
    crop.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target}: {crop.width} x {crop.height} px")


READY = "return [...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))"
BOX = """const box = document.getElementById(arguments[0]).getBoundingClientRect();
return [box.left, box.top, box.right, box.bottom].map(Math.round)"""


def resize(driver: webdriver.Chrome, height: int) -> None:
    size = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


if __name__ == "__main__":
    main(*sys.argv[1:])
