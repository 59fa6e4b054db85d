"""The page: whole in itself, and in a browser what it promises."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import heatproof as hp
from heatproof.cli import main
from heatproof.overlay import heat, overlay, scale
from heatproof.report.charts import curve, distribution, points, stages
from heatproof.report.page import Extras, Figure, Finding, page, write_page
from tiny import GapNet, images, seeded

LABELS = ["ant", "<b>bee</b>", "cat", "dog & eel", "fox"]
METHODS = ["gradcam", "gradient-x-input", "edges"]


@pytest.fixture(scope="module")
def explanations():
    return hp.explain(hp.wrap(seeded(GapNet), labels=LABELS), images(2), method=METHODS, target=[[0, 1], [2, 3]])


@pytest.fixture(scope="module")
def html(explanations):
    line, null = np.linspace(1, 0, 5), np.random.default_rng(0).random((20, 5))
    figure = Figure(curve(np.arange(5.0), line, null, ("removed", "score")), "Falls & falls.")
    findings = {
        ("gradcam", 0): Finding("Supported", True, "removing <it> costs 0.5.", [("p", "0.01")], [figure]),
        ("edges", 0): Finding("Not supported", False, "removing it costs nothing."),
        ("edges", 1): Finding("Says nothing", None, "the map is constant."),
    }
    classes = [
        {"class": "ant", "index": 0, "score": 1.5, "softmax": 0.7},
        {"class": "cat", "index": 2, "score": -1.0, "softmax": 0.3},
    ]
    return page(explanations, 0, Extras(classes, findings, ["a note"], {"verdicts": {"p": float("nan")}}))


def document(html):
    return json.loads(re.search(r'<script type="application/json" id="heatproof">(.*?)</script>', html, re.DOTALL).group(1))


def test_nothing_comes_from_elsewhere(html):
    # a namespace is a name, not an address that is asked
    addresses = [a for a in re.findall(r"https?://[^\s\"'<>]+", html) if "www.w3.org" not in a]
    assert addresses == [] and "default-src 'none'" in html
    assert set(re.findall(r'(?:src|href)="([^":]*:?)', html)) - {"#"} <= {"data:"} | {
        a for a in re.findall(r'href="(#[^"]*)"', html)
    }
    assert len(html) < 3e6


def test_what_users_wrote_is_text_not_markup(html):
    assert "<b>bee" not in html and "&lt;b&gt;bee" in html and "dog & eel" not in html
    assert "removing <it>" not in html and "removing &lt;it&gt; costs 0.5." in html


def test_the_json_inside_says_what_the_page_says(html, explanations):
    found = document(html)
    assert [(one["method"], one["t"]) for one in found["maps"]] == [(m, t) for m in METHODS for t in range(2)]
    first = found["maps"][0]
    assert first["target"] == "ant" and first["supported"] is True and first["verdict"] == "removing <it> costs 0.5."
    assert first["score"] == pytest.approx(explanations["gradcam"].scores[0, 0].item())
    assert found["verdicts"] == {"p": None} and found["model"] == "GapNet"


def test_each_map_is_there_once_in_its_colours(html, explanations):
    sources = re.findall(
        r'<img class="heat" src="data:image/png;base64,([^"]+)"[^>]*data-method="([^"]+)" data-target="(\d)"', html
    )
    assert [(method, int(t)) for _, method, t in sources] == [(m, t) for t in range(2) for m in METHODS]
    for code, method, t in sources:
        picture = Image.open(io.BytesIO(base64.b64decode(code))).convert("RGBA")
        one = explanations[method]
        values = scale(one.maps[0, int(t)].numpy(), one.signed)
        if values is not None:
            strength = np.abs(values) if one.signed else values
            alpha = np.asarray(picture)[..., 3]
            strongest = strength >= 0.99
            assert picture.size == (40, 24) and alpha[strongest].min() >= alpha[~strongest].max() - 3


def test_the_layer_of_colour_makes_the_overlay():
    rng = np.random.default_rng(0)
    photo, values = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8), rng.standard_normal((6, 7)).astype(np.float32)
    for signed in (True, False):
        layer = np.asarray(heat(values, signed).convert("RGBA")).astype(float)
        grey = (photo @ np.array([0.299, 0.587, 0.114])).round()[..., None]
        expected = grey * (1 - layer[..., 3:] / 255) + layer[..., :3] * layer[..., 3:] / 255
        assert np.abs(np.asarray(overlay(photo, values, signed)) - expected).max() <= 1.5
    zero = heat(np.array([[-1.0, 0.0, 1.0]], np.float32), True).convert("RGBA")
    assert zero.getpixel((1, 0))[3] < 10 and zero.getpixel((0, 0))[2] > zero.getpixel((0, 0))[0]
    assert heat(np.zeros((3, 3), np.float32), False) is None and heat(np.full((3, 3), np.nan, np.float32), True) is None


def test_a_map_of_nothing_and_a_method_without_a_model(explanations):
    nothing = hp.Explanation(
        torch.zeros(1, 1, 4, 6), torch.zeros(1, 1, 4, 6), torch.zeros(1, 4, 6, 3, dtype=torch.uint8), False, "gradcam"
    )
    text = page({"gradcam": nothing})
    assert "constant, says nothing" in text and "no model" in text
    with pytest.raises(hp.InputError, match="2 came with 2 kinds of shape"):
        page({"a": nothing, "b": explanations["gradcam"]})
    with pytest.raises(hp.InputError, match="0 came"):
        page({})


def test_five_large_and_noisy_maps_are_less_than_three_megabytes():
    noise = torch.randn(5, 1, 1, 640, 800, generator=torch.Generator().manual_seed(0))
    pixels = (255 * torch.rand(1, 640, 800, 3, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    html = page({str(n): hp.Explanation(one, one, pixels, True, str(n)) for n, one in enumerate(noise)})
    assert len(html) < 3e6 and 'width="800" height="640"' in html


def test_a_verdict_is_told_once(explanations):
    said = [("Says nothing.", "Says nothing: the map is constant."), ("Supported.", "Removing it costs 0.5.")]
    for word, sentence in said:
        extras = Extras(findings={("gradcam", 0): Finding(word, None, sentence)})
        card = re.search(r'<p class="verdict[^>]*>(.*?)</p>', page({"gradcam": explanations["gradcam"]}, 0, extras))[1]
        told = card.replace("<strong>", "").replace("</strong>", "")
        assert card.startswith("<strong>") and told in (sentence, f"{word} {sentence}") and told.count("nothing") <= 1


def test_written_whole_or_not_at_all(tmp_path):
    assert write_page("text", tmp_path / "a.html").read_text() == "text"
    with pytest.raises(hp.InputError, match="cannot be written"):
        write_page("text", tmp_path / "none" / "a.html")
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_charts_are_svg_that_says_what_it_shows():
    null = np.random.default_rng(0).normal(size=(30, 4))
    drawn = [
        curve(np.arange(4.0), np.ones(4), null, ("x", "y")),
        curve(np.arange(4.0), np.ones(4), null[:0], ("x", "y")),
        distribution(0.5, null[:, 0], {"edges": 0.1}, "effect"),
        distribution(0.5, np.zeros(9), {}, "effect"),
        stages(["fc", "layer4"], {"SSIM": ([1, 0.5], [0, 0.1])}, "similarity"),
        points(np.arange(3.0), np.arange(3.0), ("a", "b")),
    ]
    assert all(text.startswith("<svg") and text.rstrip().endswith("</svg>") and "<metadata" not in text for text in drawn)
    assert "edges" in drawn[2] and "layer4" in drawn[4] and "95% of null maps" in drawn[0]
    assert drawn[0] == curve(np.arange(4.0), np.ones(4), null, ("x", "y"))


def test_explain_html_writes_one_page_per_image(tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    arguments = ["explain", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--html", "--json", "--method"]
    assert main([*arguments, "gradcam,edges"]) == 0
    told = json.loads(capsys.readouterr().out)["images"][0]
    text = (tmp_path / "out" / "a.html").read_text()
    assert told["page"].endswith("a.html") and len(document(text)["classes"]) == 5 and "What the model says" in text
    assert main([*arguments, "entropy"]) == 0
    assert "no model" in (tmp_path / "out" / "a.html").read_text()


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="the browser is driven by selenium")
    if CHROMIUM is None or shutil.which("chromedriver") is None:
        pytest.skip("no Chromium with its driver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1000,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def test_in_a_browser_slider_switch_and_keyboard_work(browser, html, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.get(f"file://{write_page(html, tmp_path / 'page.html')}")
    find = lambda selector: browser.find_element(By.CSS_SELECTOR, selector)  # noqa: E731
    shown = find(".viewer .heat")
    assert find(".controls").is_displayed() and find(".say").text == "removing <it> costs 0.5."
    assert shown.size["width"] > 200 and browser.execute_script("return arguments[0].naturalWidth", shown) == 40

    slider = find("input[name=opacity]")
    slider.send_keys(Keys.ARROW_LEFT * 10)
    assert find("output").text == "90 %" and float(shown.value_of_css_property("opacity")) == pytest.approx(0.9)

    find("input[name=method]").send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    card = find(".card .heat[data-method=edges][data-target='0']")
    assert shown.get_attribute("src") == card.get_attribute("src") and find(".say").text == "removing it costs nothing."
    find("input[name=target][value='1']").click()
    assert find(".say").text == "the map is constant."

    photo = find(".viewer .photo")
    assert photo.value_of_css_property("filter") == "grayscale(1)"
    find("input[name=grey]").click()
    assert photo.value_of_css_property("filter") == "none"
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_in_a_browser_without_scripts_the_pictures_are_there(browser, html, tmp_path):
    from selenium.webdriver.common.by import By

    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(f"file://{write_page(html, tmp_path / 'page.html')}")
        assert not browser.find_element(By.CSS_SELECTOR, ".controls").is_displayed()
        heats = browser.find_elements(By.CSS_SELECTOR, ".card .heat")
        assert len(heats) == 6 and all(one.is_displayed() and one.size["width"] > 100 for one in heats)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_in_a_browser_five_maps_stand_side_by_side_and_a_phone_needs_no_sideways_scrolling(browser, tmp_path):
    from selenium.webdriver.common.by import By

    noise = torch.randn(5, 1, 1, 60, 90, generator=torch.Generator().manual_seed(0))
    pixels = torch.zeros(1, 60, 90, 3, dtype=torch.uint8)
    names = ["gradient-x-input", "integrated-gradients", "spectral-residual", "ablationcam", "center-surround"]
    drawn = Figure(curve(np.arange(5.0), np.ones(5), np.zeros((0, 5)), ("removed", "score")), "Falls.")
    found = {
        (name, 0): Finding("Supported", True, "removing it " + "costs " * 40, [("p", "0.01")], [drawn] * 5) for name in names
    }
    long = {"layers": list(range(200))}
    maps = {name: hp.Explanation(one, one, pixels, True, name, options=long) for name, one in zip(names, noise, strict=True)}
    browser.get(f"file://{write_page(page(maps, 0, Extras(findings=found)), tmp_path / 'page.html')}")
    size = {"deviceScaleFactor": 1, "mobile": False, "height": 900}
    for width in (1200, 390):
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"width": width})
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        rows = {card.rect["y"] for card in browser.find_elements(By.CSS_SELECTOR, ".card")}
        assert len(rows) == (1 if width == 1200 else 5)
        assert len(browser.find_elements(By.CSS_SELECTOR, ".evidence figure")) == 25
        words = browser.find_elements(By.CSS_SELECTOR, ".provenance th")
        heights = browser.execute_script(
            "return arguments[0].map(e => { const r = document.createRange(); r.selectNodeContents(e);"
            " return r.getClientRects().length; })",
            words,
        )
        assert len(words) >= 6 and set(heights) == {1}  # no name is broken in two
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_both_papers_are_readable(browser, html, tmp_path, scheme):
    from selenium.webdriver.common.by import By

    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get(f"file://{write_page(html, tmp_path / 'page.html')}")
    paper = luminance(browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color"))
    assert (paper > 0.5) == (scheme == "light")
    for selector in ("body", ".lead", ".verdict strong", "figcaption", "th"):
        ink = luminance(browser.find_element(By.CSS_SELECTOR, selector).value_of_css_property("color"))
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, selector  # WCAG 2.1, contrast AA
    card = luminance(browser.find_element(By.CSS_SELECTOR, ".card").value_of_css_property("background-color"))
    for text in browser.find_elements(By.CSS_SELECTOR, "figure svg text"):
        ink = luminance(text.value_of_css_property("fill"))
        assert (max(ink, card) + 0.05) / (min(ink, card) + 0.05) >= 4.5, text.text


def luminance(colour):
    linear = [
        c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
        for c in (int(n) / 255 for n in re.findall(r"\d+", colour)[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
