"""The page in a real browser, before a real gateway."""

import pytest
from browser import CHROMEDRIVER, CHROMIUM, Page, RecitingBackend, World, start_chromium
from selenium.webdriver.common.keys import Keys

from llamanet.testing.backend import scripted_text, scripted_tokens

SLOW = {"step_time": 0.03}


@pytest.fixture(scope="module")
def driver():
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip("Chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
    driver = start_chromium()
    yield driver
    driver.quit()


@pytest.fixture
def page(driver):
    with World() as world, Page(driver, world) as page:
        yield page


@pytest.fixture
def page_with_keys(driver, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("alice sk-alice-0123456789abcdef\n")
    keys.chmod(0o600)
    with World(api_key_file=keys) as world, Page(driver, world) as page:
        yield page


def answer_to(text, count):
    """What a scripted node answers, as it is shown: without the space that begins it."""
    return scripted_text(scripted_tokens(f"<user> {text} <assistant>", count)).strip()


def set_knobs(page, **knobs):
    page.js("document.getElementById('settings').open = true")
    for name, value in knobs.items():
        field = page.find(f"#settings [name={name}]")
        field.clear()
        field.send_keys(str(value))


def test_it_shows_the_swarm(page):
    page.world.start_nodes("oslo", "lima", step_time=0.01)
    page.world.start_nodes("kyoto", model="beta", slots=2)
    page.open()
    page.wait_nodes("kyoto", "lima", "oslo")
    page.wait_texts("#models b", ["alpha", "beta"])
    assert page.driver.title == "LlamaNet"
    assert page.text("#link .words") == "live"
    assert sorted(page.texts(".ring .node .name")) == ["kyoto", "lima", "oslo"]
    assert page.text("#figure-slots") == "0 / 10"
    page.wait(lambda: "3 nodes on the id ring" in page.find("#ring").get_attribute("aria-label"))
    assert "0 tokens/s" in page.find("#rate-chart svg").get_attribute("aria-label")
    assert page.texts("#model option") == ["auto", "alpha", "beta"]

    page.find("#nodes tbody th button").click()
    page.wait_texts("#nodes .details .facts", "10.0.")
    head = page.find("#nodes thead th:nth-child(2) button")
    head.click()
    page.wait_texts("#nodes tbody td.models-column", ["alpha", "alpha", "beta"])
    head.click()
    page.wait_texts("#nodes tbody td.models-column", ["beta", "alpha", "alpha"])


def test_nodes_come_and_die(page):
    page.world.start_nodes("oslo")
    page.open().wait_nodes("oslo")
    page.world.start_nodes("lima")
    page.wait_nodes("lima", "oslo")
    page.wait_texts("#log .joined", "lima joined")
    page.world.kill("oslo")
    page.wait_nodes("lima")
    page.wait_texts("#log .left", "oslo left")
    assert "oslo" in page.texts(".ring .node.ghost .name")


def test_a_chat(page):
    page.world.start_nodes("oslo", **SLOW)
    page.open().wait_nodes("oslo")
    set_knobs(page, max_tokens=24, temperature=0, system="Be brief.")
    page.say("Tell me")
    page.wait_texts(".ring .hub .count", "1")
    page.wait(lambda: page.all(".ring .wire"))
    expected = scripted_text(scripted_tokens("<system> Be brief. <user> Tell me <assistant>", 24)).strip()
    assert page.wait_answered() == expected
    page.wait_texts(".message.assistant .meta", "oslo")
    meta = page.text(".message.assistant .meta span")
    assert "24 tokens" in meta
    assert "tokens/s" in meta
    assert "first token" in meta
    assert "cut at max tokens" in meta
    page.wait_texts("#log .request", "24 tokens in")

    # The next turn has the first one before it, and all of it is there after a reload.
    page.say("More")
    first = f"<system> Be brief. <user> Tell me <assistant> {expected} <user> More <assistant>"
    page.wait(lambda: len(page.all(".message.assistant")) == 2)
    assert page.wait_answered() == scripted_text(scripted_tokens(first, 24)).strip()
    shown = page.texts(".message .body")
    page.open()
    assert page.texts(".message .body") == shown
    assert page.find("[name=max_tokens]").get_attribute("value") == "24"

    page.find("#chat-new").click()
    assert page.texts(".message") == []
    page.find("#chat-history").click()
    page.wait_texts("#conversations .open", ["Tell me"])
    page.find("#conversations .open").click()
    assert page.texts(".message .body") == shown
    page.find("#chat-history").click()
    page.find("#conversations li .quiet").click()
    assert page.texts(".message") == []
    assert page.js("return localStorage.getItem('llamanet-conversations')") == "[]"


def test_stop_retry_and_edit(page):
    page.world.start_nodes("oslo", **SLOW)
    page.open().wait_nodes("oslo")
    set_knobs(page, temperature=0)
    page.say("Tell me")
    page.wait(lambda: len(page.text(".message.assistant .body")) > 20)
    assert page.world.running() == 1
    page.find("#stop").click()
    page.wait(lambda: page.world.running() == 0)
    said = page.wait_answered()
    assert answer_to("Tell me", 400).startswith(said)
    assert "stopped" in page.text(".message.assistant .meta")
    page.wait_texts("#log .request", "was told to stop")

    set_knobs(page, max_tokens=10)
    page.find(".message.assistant .actions button:last-child").click()
    page.wait(lambda: len(page.all(".message.assistant")) == 1)
    page.wait_texts(".message.assistant .meta", "10 tokens")
    assert page.wait_answered() == answer_to("Tell me", 10)

    page.find(".message.user .actions button").click()
    assert page.texts(".message") == []
    text = page.find("#composer-text")
    assert text.get_attribute("value") == "Tell me"
    text.send_keys(" more", Keys.ENTER)
    page.wait_texts(".message.assistant .meta", "10 tokens")
    assert page.wait_answered() == answer_to("Tell me more", 10)


def test_failover_in_the_middle_of_an_answer(page):
    page.world.start_nodes("lima", "oslo", **SLOW)
    page.open().wait_nodes("lima", "oslo")
    set_knobs(page, temperature=0, max_tokens=60)
    page.say("Tell me")
    page.wait(lambda: len(page.text(".message.assistant .body")) > 20)
    page.wait(lambda: page.texts(".message.assistant .meta .node"))
    [answers] = page.texts(".message.assistant .meta .node")
    [other] = {"lima", "oslo"} - {answers}
    page.world.kill(answers)
    page.wait_texts(".message.assistant .meta .hop", f"moved from {answers} to {other}")
    page.wait(lambda: page.all(".ring .failover"))
    assert page.wait_answered() == answer_to("Tell me", 60)
    page.wait_texts(".message.assistant .meta .node", [other])
    page.wait_texts("#log .moved", f"{answers} lost a request")
    page.wait_nodes(other)


EVIL = """<script>window.pwned = 1</script><img src=x onerror="window.pwned = 2"> <b>bold?</b>

[one](javascript:window.pwned=3) [two](JaVaScRiPt:window.pwned=4)
[three](data:text/html,<script>window.pwned=5</script>) [four](https://llamanet.invalid/?q="onmouseover=window.pwned=6)
![five](https://llamanet.invalid/spy.png) <https://a.b>

# <svg onload=window.pwned=7>

- <iframe src="javascript:window.pwned=8"></iframe>

| a | b |
|---|---|
| <style>body{display:none}</style> | `</code><script>window.pwned=9</script>` |

```html "><script>window.pwned=10</script>
</pre><script>window.pwned = 11</script>
```
"""


def test_what_a_model_writes_stays_text(page):
    page.world.start_nodes("oslo", make_backend=RecitingBackend, text=EVIL)
    page.open().wait_nodes("oslo")
    page.say("<img src=y onerror='window.pwned = 12'>")
    said = page.wait_answered()
    for part in ("<script>window.pwned = 1</script>", 'onerror="window.pwned = 2"', "<b>bold?</b>", "<svg onload"):
        assert part in said
    assert "[one](javascript:window.pwned=3)" in said
    assert page.texts(".message.user .body") == ["<img src=y onerror='window.pwned = 12'>"]
    inside = page.js("return [...document.querySelectorAll('.message .body *')].map((e) => e.localName)")
    allowed = {"p", "a", "h3", "ul", "li", "div", "table", "thead", "tbody", "tr", "th", "td", "code", "pre", "span"}
    assert set(inside) <= allowed | {"button"}
    links = page.js("return [...document.querySelectorAll('.message .body a')].map((e) => e.href)")
    assert links
    assert all(link.startswith("https://") for link in links)
    rels = page.js("return [...document.querySelectorAll('.message .body a')].map((e) => e.rel)")
    assert all("noopener" in rel for rel in rels)
    # What runs now runs after all that the page may have started.
    page.open()
    page.wait(lambda: page.texts(".message.assistant .body"))
    assert page.js("return window.pwned ?? null") is None


# Run in the page: renders texts made at random of what Markdown and HTML are made of, and says what must not be.
FUZZ = """
const [seed, count, parts, allowed] = arguments, done = arguments[4];
let state = seed;
const random = (below) => ((state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32 * below) | 0;
import(new URL("static/markdown.js", location)).then(({ render }) => {
  const wrong = [];
  const check = (container, source, marks) => {
    for (const element of container.querySelectorAll("*")) {
      if (!(element.localName in allowed)) wrong.push([source, element.localName]);
      for (const { name, value } of element.attributes) {
        if (!allowed[element.localName]?.includes(name)) wrong.push([source, `${element.localName} ${name}=${value}`]);
        if (name === "href" && !/^(https?:|mailto:)/.test(value)) wrong.push([source, value]);
      }
    }
    const links = [...container.querySelectorAll("a")].map((a) => a.getAttribute("href"));
    const shown = container.textContent + links.join(" ");
    for (const mark of marks) if (!shown.toLowerCase().includes(mark)) wrong.push([source, `lacks ${mark}`]);
  };
  for (let number = 0; number < count && !wrong.length; number += 1) {
    const container = document.createElement("div");
    let source = "";
    const marks = [];
    for (let left = 1 + random(25); left; left -= 1) {
      source += parts[random(parts.length)];
      if (random(2)) source += marks[marks.push(`w${marks.length}x`) - 1];
      if (!random(4)) render(container, source);
    }
    render(container, source);
    check(container, source, marks);
    const fresh = document.createElement("div");
    render(fresh, source);
    if (fresh.innerHTML !== container.innerHTML) wrong.push([source, "grown piece by piece it looks different"]);
  }
  done(wrong.slice(0, 3));
}, (error) => done(String(error)));
"""
PARTS = [
    *("*", "**", "***", "_", "__", "~~", "`", "``", "```", "\n", "\n\n", "\n```html\n", "\n~~~\n", " ", "  \n", "\\"),
    *("\n# ", "\n###### ", "\n- ", "\n  - ", "\n1. ", "\n    ", "\n> ", "\n>> ", "\n---\n", "\n|a|b|\n|-|-|\n|", "|"),
    *(
        "[",
        "](",
        ")",
        "![",
        "](javascript:",
        "](https://a.b/",
        "](mailto:a@b.c)",
        "](data:text/html,",
        "](//evil.test)",
    ),
    *(
        "<script>",
        "</script>",
        "<img src=x onerror=alert(1)>",
        '"',
        "'",
        "&lt;",
        "<",
        ">",
        "https://a.b/?",
        "http://[",
        "é",
    ),
]
PLAIN = "p h3 h4 h5 h6 hr br blockquote ul li em strong del table thead tbody tr td code span"
ALLOWED = {
    **{name: [] for name in PLAIN.split()},
    "th": ["scope"],
    "ol": ["start"],
    "a": ["href", "target", "rel"],
    "div": ["class", "tabindex", "role", "aria-label"],
    "pre": ["tabindex", "role", "aria-label"],
    "button": ["type", "class"],
}


def test_any_text_is_shown_as_text(page):
    page.world.start_nodes("oslo")
    page.open()
    page.driver.set_script_timeout(60)
    assert page.driver.execute_async_script(FUZZ, 7, 10_000, PARTS, ALLOWED) == []


def test_long_texts_are_shown_in_time(page):
    page.world.start_nodes("oslo")
    page.open()
    page.driver.set_script_timeout(60)
    script = (
        "const done = arguments[1]; import(new URL('static/markdown.js', location)).then(({ render }) => {"
        "const begun = performance.now(); for (const text of arguments[0]) render(document.createElement('div'), text);"
        "done(performance.now() - begun) })"
    )
    size = 20_000
    parts = (
        "*",
        "_",
        "[",
        "`",
        "[a](",
        "# ",
        "```",
        "> ",
        "- ",
        "|",
        "\n- ",
        "\n> ",
        "**a ",
        "http://",
        "``` ",
        "~~",
        " ",
    )
    texts = [end + part * (size // len(part)) + end for part in parts for end in ("", "x", "# ", "`")]
    assert page.driver.execute_async_script(script, texts) < 10_000


def test_the_policy_stops_what_would_be_injected_all_the_same(page):
    page.world.start_nodes("oslo")
    page.open()
    page.js(
        "const holder = document.createElement('div'); document.body.append(holder);"
        'holder.innerHTML = \'<img src="static/icon.svg" onload="window.pwned = 1">\';'
        "const script = document.createElement('script'); script.textContent = 'window.pwned = 2';"
        "holder.append(script);"
    )
    page.wait(lambda: page.js("return document.querySelector('body > div img').complete"))
    assert page.js("return window.pwned ?? null") is None
    page.expected = ("violates the following Content Security Policy",)


def test_when_nobody_can_answer(page):
    page.expected = ("404",)
    page.world.start_nodes("oslo")
    page.open().wait_nodes("oslo")
    page.js(
        "const model = document.getElementById('model'); model.options[1].value = 'gone'; model.value = 'gone';"
        "model.dispatchEvent(new Event('change', { bubbles: true }))"
    )
    page.say("Hello?")
    page.wait_texts(".message.assistant .meta .error", "gone")
    assert page.texts(".message.assistant .actions button") == ["Retry"]


def test_the_page_notices_when_the_gateway_goes(page):
    page.expected = ("ERR_",)
    page.world.start_nodes("oslo")
    page.open().wait_nodes("oslo")
    page.world.stop_gateway()
    page.wait_texts("#link .words", "connection lost")


def test_with_the_keyboard_alone(page):
    page.world.start_nodes("oslo", **SLOW)
    page.open().wait_nodes("oslo")
    focused = page.driver.switch_to.active_element
    focused.send_keys(Keys.TAB)
    assert page.driver.switch_to.active_element.text == "Skip to the chat"
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.wait(lambda: page.driver.switch_to.active_element.get_attribute("id") == "composer-text")
    page.driver.switch_to.active_element.send_keys("Hi", Keys.SHIFT, Keys.ENTER, Keys.NULL, "there", Keys.ENTER)
    page.wait(lambda: len(page.text(".message.assistant .body")) > 10)
    assert page.texts(".message.user .body") == ["Hi\nthere"]
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.wait_answered()
    page.wait(lambda: page.world.running() == 0)

    reached = set()
    for _ in range(60):
        element = page.driver.switch_to.active_element
        style = page.js(
            "const s = getComputedStyle(arguments[0]); return [s.outlineStyle, arguments[0].matches(':focus-visible')]",
            element,
        )
        if element.tag_name != "body":
            assert style == ["solid", True], element.get_attribute("outerHTML")[:200]
            assert element.accessible_name, element.get_attribute("outerHTML")[:200]
        reached.add(element.get_attribute("id") or element.tag_name)
        element.send_keys(Keys.TAB)
    assert {"theme", "composer-text", "send", "model", "chat-new", "chat-history", "log", "messages"} <= reached
    assert page.find("#announce").get_attribute("aria-live") == "polite"


def test_narrow_and_dark(page):
    page.world.start_nodes("oslo", "a-node-with-a-rather-long-label")
    page.open(width=320, height=640, dark=True)
    page.wait_nodes("a-node-with-a-rather-long-label", "oslo")
    widths = "return ['html', '.swarm', '.chat'].map((name) => document.querySelector(name).scrollWidth)"
    assert max(page.js(widths)) <= 320
    assert page.js("return document.scrollingElement.scrollHeight") <= 640  # One bar scrolls, that of the swarm.
    assert not page.find("#chat").is_displayed()
    page.find("#view-chat").click()
    assert page.find("#composer-text").is_displayed()
    assert not page.find("#swarm").is_displayed()
    assert max(page.js(widths)) <= 320
    brightness = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).slice(0, 3)"
    assert max(page.js(brightness)) < 60
    page.find("#theme").click()
    assert min(page.js(brightness)) > 200
    page.open(width=320, height=640, dark=True)
    assert min(page.js(brightness)) > 200
    assert page.find("#theme").accessible_name == "Theme: light"
    page.find("#theme").click()
    page.find("#theme").click()


def test_reduced_motion(page):
    page.world.start_nodes("oslo", **SLOW)
    page.open()
    page.prefer(prefers_reduced_motion="reduce")
    page.wait_nodes("oslo")
    page.say("Tell me")
    page.wait(lambda: page.all(".ring .wire .flow"))
    assert page.js("return document.getAnimations().length") == 0
    page.find("#stop").click()
    page.wait_answered()


def test_an_api_key(page_with_keys):
    page = page_with_keys
    page.expected = ("401",)
    page.world.start_nodes("oslo")
    page.open()
    page.wait(lambda: page.find("#key-dialog").is_displayed())
    assert page.text("#link .words") == "locked: needs an API key"
    page.find("#key").send_keys("wrong", Keys.ENTER)
    page.wait_texts("#key-error", "Incorrect API key")
    page.find("#key").send_keys("sk-alice-0123456789abcdef", Keys.ENTER)
    page.wait_nodes("oslo")
    set_knobs(page, max_tokens=5, temperature=0)
    page.say("Hi")
    assert page.wait_answered() == answer_to("Hi", 5)
    assert page.js("return sessionStorage.getItem('llamanet-key')") == "sk-alice-0123456789abcdef"
    assert page.js("return Object.values(localStorage).join().includes('sk-alice')") is False
