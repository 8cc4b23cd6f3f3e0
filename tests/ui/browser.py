"""A page in a browser, which is held to its promises while a test looks at it."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
TIMEOUT_MS = 20_000


class Look:
    """One page, and what it did."""

    def __init__(
        self, browser: Any, address: str, *, width: int = 1280, height: int = 800, scheme: str = "light"
    ) -> None:
        self.address = address
        self.width = width
        self._context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self._context.set_default_timeout(TIMEOUT_MS)
        self.page = self._context.new_page()
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self.requests: list[Any] = []
        self.expected: tuple[str, ...] = ()
        """Parts of complaints that the test provokes."""
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        self.page.on("request", self._asked)

    def _heard(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.type}: {message.text}")

    def _asked(self, request: Any) -> None:
        self.requests.append(request)
        if not request.url.startswith("blob:"):
            self.hosts.add(urlsplit(request.url).netloc)

    def go(self, path: str) -> None:
        """Go to an address within the page, as a link from elsewhere would."""
        self.page.goto(f"http://{self.address}/ui/{path}")

    def text(self, selector: str = "main") -> str:
        """Return the text of an element."""
        return str(self.page.inner_text(selector))

    def wait_for(self, text: str, selector: str = "main") -> None:
        """Wait until an element shows a text."""
        self.page.locator(selector).get_by_text(text).first.wait_for()

    def until(self, expression: str, argument: Any = None) -> None:
        """Wait until JavaScript says true."""
        self.page.wait_for_function(expression, arg=argument)

    def focused(self) -> str:
        """Return the text, or the label, of what has the focus."""
        return str(self.page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText"))

    def screenshot(self, path: Path) -> None:
        """Keep a picture."""
        self.page.screenshot(path=path, scale="css")

    def close(self) -> None:
        """Close the page."""
        self._context.close()

    def check(self) -> None:
        """Assert that nobody complained and no other host was asked."""
        complaints = [it for it in self.complaints if not any(part in it for part in self.expected)]
        assert not complaints, complaints
        assert self.hosts <= {self.address}, self.hosts
