"""A swarm, its gateway and a real Chromium before it.

The swarm is `llamanet.testing`'s: whole nodes with scripted models, which die on command as by `kill -9`. It and the
gateway live in a thread of their own, on the real clock; the gateway has a real port, and the browser is a process.
"""

import json
import shutil
import threading

import attrs
import pytest
import trio
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from llamanet.gateway.config import GatewayConfig
from llamanet.gateway.service import serve_gateway
from llamanet.testing.backend import END, ScriptedBackend
from llamanet.testing.cluster import Cluster

WAIT_S = 30
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
PIECE = 5
"""Characters of a recited token."""


@attrs.define
class RecitingBackend(ScriptedBackend):
    """Answers everything with `text`."""

    text: str = ""

    def draw(self, slot, position):
        super().draw(slot, position)
        return position + 1 if position * PIECE < len(self.text) else END

    def piece(self, token):
        return self.text[(token - 1) * PIECE : token * PIECE].encode()


class World:
    """A swarm, with a gateway from its first nodes on. All methods may be called from the test's thread."""

    def __init__(self, **config):
        self._config = GatewayConfig(http_port=0, **config)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._run,))
        self.url = None

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(WAIT_S)
        return self

    def __exit__(self, *_):
        self._sync(self._nursery.cancel_scope.cancel)
        self._thread.join()

    async def _run(self):
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._token = trio.lowlevel.current_trio_token()
            self._cluster = Cluster(nursery)
            self._ready.set()
            await trio.sleep_forever()

    def _sync(self, function, *args):
        return trio.from_thread.run_sync(function, *args, trio_token=self._token)

    def start_nodes(self, *labels, **options):
        trio.from_thread.run(self._start_nodes, labels, options, trio_token=self._token)

    async def _start_nodes(self, labels, options):
        for label in labels:
            await self._cluster.start_node(label, **options)
        if self.url is None:
            client = await self._cluster.start_client()
            self._server = await self._nursery.start(serve_gateway, client, self._config)
            self.url = self._server.url + "/"

    def kill(self, label):
        self._sync(self._cluster.kill, label)

    def stop_gateway(self):
        """Have it drain."""
        self._sync(self._server.stop.set)

    def running(self):
        """Requests that the nodes compute or keep waiting."""

        def count():
            engines = [
                engine for node in self._cluster.nodes.values() for engine in node.host.endpoint.engines.values()
            ]
            return sum(engine.state().running + engine.state().waiting for engine in engines)

        return self._sync(count)


class Page:
    """The page in a browser's tab. Elements are found by CSS selectors."""

    def __init__(self, driver, world):
        self.driver = driver
        self.world = world
        self.expected = ()
        """Parts of console messages that a test provokes."""

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.check()
        self.driver.get("about:blank")

    def open(self, *, width=1280, height=800, dark=False):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.prefer(**{"prefers-color-scheme": "dark" if dark else "light"})
        self.driver.get(self.world.url)
        return self

    def prefer(self, **features):
        told = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": told})

    def js(self, script, *args):
        return self.driver.execute_script(script, *args)

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        # In one step, for the page may change between two.
        return self.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def text(self, selector):
        return " | ".join(self.texts(selector))

    def wait(self, condition, *args):
        """Wait until `condition(*args)` is true; its value."""
        return WebDriverWait(self.driver, WAIT_S, poll_frequency=0.05).until(lambda _: condition(*args))

    def wait_texts(self, selector, wanted):
        """Wait until the elements have texts that are `wanted`: equal to a list, or containing a string."""

        def fits():
            found = self.texts(selector)
            return wanted in " | ".join(found) if isinstance(wanted, str) else wanted == found

        try:
            self.wait(fits)
        except TimeoutException:
            pytest.fail(f"{selector} never was {wanted!r}; at last it was {self.texts(selector)!r}")

    def wait_nodes(self, *labels):
        self.wait_texts("#nodes tbody th button", list(labels))

    def say(self, text):
        self.find("#composer-text").send_keys(text)
        self.find("#send").click()

    def wait_answered(self):
        self.wait(lambda: self.find("#send").is_displayed() and self.all(".message.assistant"))
        return self.texts(".message.assistant .body")[-1]

    def requested(self):
        """The addresses of all requests so far."""
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [
            entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"
        ]

    def check(self):
        """The page asked nobody else, and complained of nothing that was not expected."""
        for url in self.requested():
            assert url.startswith((self.world.url, "data:")), url
        for entry in self.driver.get_log("browser"):
            assert any(part in entry["message"] for part in self.expected), entry["message"]


def start_chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
