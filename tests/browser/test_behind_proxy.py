"""What the page says behind a proxy that does not pass its address on."""

from playwright.sync_api import Browser, Route, expect

from tests.server import Studio

FRONT = "http://front.example"


def test_a_proxy_that_keeps_the_host_to_itself_is_told_on_the_page(browser: Browser, studio: Studio) -> None:
    def pass_on(route: Route) -> None:
        url = route.request.url.replace(FRONT, studio.url.rstrip("/"))
        route.fulfill(response=route.fetch(url=url))

    context = browser.new_context()
    context.route(f"{FRONT}/**", pass_on)
    shown = context.new_page()
    shown.goto(f"{FRONT}/")
    told = shown.locator("#proxy")
    expect(told).to_contain_text(f"this page is {FRONT}")
    expect(told).to_contain_text("Let the proxy send Host unchanged")
    shown.goto(studio.url)
    expect(shown.get_by_role("tab", name="Train", exact=True)).to_be_visible()
    expect(told).to_have_count(0)
    context.close()
