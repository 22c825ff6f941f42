"""The page in a real browser: it works, with the keyboard too, and neither loads nor runs anything of a stranger's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from xtoken_align import Mapping

pytest.importorskip("selenium")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

Open = Callable[[Mapping], Any]


def texts(browser: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.textContent)"
    return browser.execute_script(script, selector)


def column(browser: Any, number: int) -> list[str]:
    return texts(browser, f"#body td:nth-child({number})")


def search(browser: Any, query: str) -> None:
    field = browser.find_element(By.ID, "query")
    field.send_keys(Keys.CONTROL + "a")
    field.send_keys(Keys.DELETE, query)
    assert field.get_property("value") == query


def shown(browser: Any) -> int:
    """How many rows the search has found."""
    return int(texts(browser, "#count")[0].split(" of ")[0].replace(",", ""))


def header(browser: Any, name: str) -> Any:
    return browser.find_element(By.CSS_SELECTOR, f"[data-column={name}]")


def order(browser: Any, name: str) -> str:
    return header(browser, name).find_element(By.XPATH, "..").get_attribute("aria-sort")


def media(browser: Any, *, kind: str = "", scheme: str = "light") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": kind, "features": features})


def test_the_page_opens_silently_and_asks_for_nothing(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    search(browser, "a")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked == [browser.current_url]
    assert browser.get_log("browser") == []


def test_no_token_runs_or_becomes_an_element(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    browser.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert browser.execute_script("return window.broken") is None
    counted = "return ['script', 'img', 'title', 'style'].map((name) => document.getElementsByTagName(name).length)"
    scripts, images, _, styles = browser.execute_script(counted)
    assert (scripts, images, styles) == (3, 0, 1)
    assert browser.title.endswith(": vocabulary mapping")


def test_a_token_is_shown_as_it_is_but_for_its_escapes(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    search(browser, "</script>")
    assert "</script><script>window.broken=1</script>" in column(browser, 2)
    search(browser, "id:9")
    assert column(browser, 2) == [r"a\u202eb\u2066c"]
    assert texts(browser, "#body td:nth-child(2) .esc") == [r"\u202e", r"\u2066"]


def test_the_policy_refuses_what_is_put_into_the_page(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    refused = browser.execute_async_script(
        """const done = arguments[0];
        const seen = [];
        document.addEventListener("securitypolicyviolation", (event) => {
          seen.push(event.effectiveDirective);
          if (seen.length === 2) done(seen.sort());
        });
        const image = document.createElement("img");
        image.src = "http://127.0.0.1:9/x.png";
        const script = document.createElement("script");
        script.textContent = "window.broken = 1";
        document.body.append(image, script);"""
    )
    assert refused == ["img-src", "script-src-elem"]
    assert browser.execute_script("return window.broken") is None


def test_searching_finds_a_part_of_a_token_whatever_its_case(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    everything = shown(browser)
    search(browser, "WINDOW.broken")
    assert 0 < shown(browser) < everything
    assert all("window.broken" in text for text in column(browser, 2))
    search(browser, "")
    assert shown(browser) == everything


def test_quotes_keep_spaces_and_case(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    search(browser, '"two   "')
    assert shown(browser) == 0
    search(browser, '"  two  "')
    assert shown(browser) > 0
    search(browser, '"TWO"')
    assert shown(browser) == 0


def test_class_rule_and_id_narrow_the_search_together(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    search(browser, "class:digits_2 1")
    found = column(browser, 2)
    assert found
    assert all(len(text) == 2 and "1" in text for text in found)
    assert set(column(browser, 3)) == {"digits_2"}
    search(browser, 'rule:"split by digits" class:digits_3')
    assert set(column(browser, 4)) == {"split by digits"}
    search(browser, "rule:reserved")
    assert column(browser, 2) == ["<unused0>"]
    search(browser, "id:3 class:digits")
    assert shown(browser) == 0


def test_a_search_without_results_says_so(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    search(browser, "no such token")
    assert browser.find_element(By.ID, "none").is_displayed()
    assert not browser.find_element(By.ID, "window").is_displayed()
    assert texts(browser, "#page") == ["page 1 of 1"]


def test_a_ready_search_is_a_search(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    button = browser.find_element(By.XPATH, "//button[starts-with(., 'split by digits')]")
    button.click()
    assert set(column(browser, 4)) == {"split by digits"}
    assert button.get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("key", ["click", Keys.ENTER, Keys.SPACE])
def test_a_header_sorts_up_then_down_then_not_at_all(show: Open, nasty: Mapping, key: str) -> None:
    browser = show(nasty)
    before = column(browser, 1)
    states = []
    for _ in range(3):
        header(browser, "id").click() if key == "click" else header(browser, "id").send_keys(key)
        states.append((order(browser, "id"), column(browser, 1)))
    up, down, none = states
    assert up[0] == "ascending"
    assert [int(text) for text in up[1]] == sorted(int(text) for text in up[1])
    assert down[0] == "descending"
    assert [int(text) for text in down[1]] == sorted((int(text) for text in down[1]), reverse=True)
    assert down[1][0] != up[1][-1]
    assert none == ("none", before)


def test_every_column_sorts_and_a_search_keeps_the_order(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    for name, number in (("surface", 2), ("class", 3), ("reason", 4)):
        header(browser, name).click()
        found = [text.replace("no text", "") for text in column(browser, number)]
        assert found == sorted(found, key=lambda text: text.encode("utf-16-be"))
    header(browser, "count").click()
    header(browser, "count").click()
    search(browser, "class:digits")
    assert set(column(browser, 5)) == {"3"}


def test_pages_turn_by_buttons_and_keys_and_stop_at_the_ends(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    first = column(browser, 1)
    pages = -(-shown(browser) // 50)
    region = browser.find_element(By.ID, "window")
    assert not browser.find_element(By.ID, "previous").is_enabled()
    browser.find_element(By.ID, "next").click()
    second = column(browser, 1)
    assert not set(first) & set(second)
    for key, page in ((Keys.PAGE_UP, 1), (Keys.PAGE_UP, 1), (Keys.PAGE_DOWN, 2), (Keys.END, pages), (Keys.HOME, 1)):
        region.send_keys(key)
        assert texts(browser, "#page") == [f"page {page} of {pages}"]
    region.send_keys(Keys.END)
    assert not browser.find_element(By.ID, "next").is_enabled()


def test_the_number_of_rows_can_be_chosen(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    browser.find_element(By.ID, "size").send_keys("200")
    assert len(column(browser, 1)) == 200


def test_weights_are_shown_beside_their_pieces(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    search(browser, '"120" class:digits')
    assert texts(browser, "#body .piece") == ["10.9009", "20.0901", "00.009"]


def test_the_first_stop_of_the_keyboard_skips_to_the_report(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    browser.switch_to.active_element.send_keys(Keys.TAB)
    skip = browser.switch_to.active_element
    assert skip.get_attribute("class") == "skip"
    assert skip.rect["x"] >= 0
    skip.send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "main"


def test_the_keyboard_reaches_every_control_and_its_focus_is_seen(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    reached = set()
    while True:
        browser.switch_to.active_element.send_keys(Keys.TAB)
        described = browser.execute_script(
            """const at = document.activeElement;
            if (at === document.body) return null;
            const all = [...document.querySelectorAll("*")];
            return [all.indexOf(at), getComputedStyle(at).outlineStyle];"""
        )
        if described is None or described[0] in reached:
            break
        assert described[1] == "solid"
        reached.add(described[0])
    controls = browser.execute_script(
        """const all = [...document.querySelectorAll("*")];
        const controls = "a, button:enabled, input, select, summary, [tabindex='0']";
        return all.filter((one) => one.matches(controls) && one.checkVisibility()).map((one) => all.indexOf(one));"""
    )
    assert set(controls) == reached


def test_arrows_walk_through_the_numerals(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    grid = browser.find_element(By.ID, "grid")
    said = []
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.PAGE_DOWN, Keys.ARROW_LEFT, Keys.END):
        grid.send_keys(key)
        said.append(texts(browser, "#numeral")[0])
    assert [text.split(":")[0] for text in said] == ["0", "1", "11", "111", "110", "999"]
    assert said[0] == "0: not a token"
    assert said[2].startswith("11: digits, 1")


@pytest.mark.parametrize("width", [320, 400, 768])
def test_a_narrow_window_never_scrolls_sideways(show: Open, nasty: Mapping, width: int) -> None:
    browser = show(nasty)
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(show: Open, nasty: Mapping, scheme: str) -> None:
    browser = show(nasty)
    media(browser, scheme=scheme)
    faint = browser.execute_script(
        """const channels = (text) => text.match(/[0-9.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
          .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
          .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
        const ground = (one) => {
          for (let at = one; at; at = at.parentElement) {
            const colour = channels(getComputedStyle(at).backgroundColor);
            if (colour.length === 3) return colour;
          }
          return [255, 255, 255];
        };
        const faint = [];
        for (const one of document.querySelectorAll("body *:not(script, title, noscript)")) {
          const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
          if (!own || !one.checkVisibility() || one.disabled) continue;
          const style = getComputedStyle(one);
          const colour = one instanceof SVGElement ? style.fill : style.color;
          const pair = [light(channels(colour)), light(ground(one))].sort((a, b) => b - a);
          const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
          if (contrast < 4.5) faint.push([one.outerHTML.slice(0, 80), contrast]);
        }
        return faint;"""
    )
    assert faint == []


def test_paper_has_no_controls_but_a_note_on_what_the_table_leaves_out(show: Open, nasty: Mapping) -> None:
    browser = show(nasty)
    media(browser, kind="print", scheme="dark")
    assert not browser.find_element(By.ID, "query").is_displayed()
    assert not browser.find_element(By.ID, "next").is_displayed()
    assert "On paper" in browser.find_element(By.CSS_SELECTOR, ".print").text
    colours = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    assert browser.execute_script(colours) == ["rgb(27, 32, 39)", "rgb(255, 255, 255)"]
