"""Before Start: what it takes, measured when asked; after the run: how that came out."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import open_tab
from tests.server import Studio

PANEL = "#before-you-start"


@pytest.fixture
def train(page: Page, studio: Studio) -> Page:
    page.goto(studio.url)
    open_tab(page, "Train")
    expect(page.locator(PANEL)).to_contain_text("What it takes")
    return page


def fill(page: Page, setting: str, value: str) -> None:
    """Type into a field of the form and leave it."""
    field = page.locator(f"#set-{setting}").locator("input, textarea").first
    # The last letter by itself: a page under load may not listen yet when the field appears.
    field.fill(value[:-1])
    field.press_sequentially(value[-1:])
    field.blur()


def open_all_settings(page: Page) -> None:
    page.get_by_role("button", name="All settings").click()
    page.get_by_role("button", name="Training: memory, speed and cost").click()


def test_the_panel_says_memory_time_disk_and_cost_and_why(train: Page) -> None:
    panel = train.locator(PANEL)
    expect(panel).to_contain_text(re.compile(r"Memory\s*[\d.]+ of [\d.]+ GiB"))
    expect(panel).to_contain_text(re.compile(r"Time\s*about [\d.]+ (s|min|h) \([\d.]+ (s|min) a step\)"))
    expect(panel).to_contain_text(re.compile(r"Disk\s*[\d.]+ GiB"))
    expect(panel).to_contain_text("How it is done")
    expect(panel).not_to_contain_text("Cost")
    open_all_settings(train)
    fill(train, "training-price_per_hour", "2.5")
    expect(panel).to_contain_text(re.compile(r"Cost\s*about \d+\.\d\d"))
    fill(train, "training-price_per_hour", "-1")
    expect(panel).to_contain_text('Price per hour must be at least 0, got "-1"')
    expect(train.get_by_role("button", name="Mend 1 setting to start")).to_be_disabled()
    expect(train.get_by_role("button", name="Measure it")).to_be_disabled()
    fill(train, "training-price_per_hour", "")
    expect(train.get_by_role("button", name="Start training")).to_be_enabled()
    expect(train.get_by_role("button", name="Measure it")).to_be_enabled()
    fill(train, "training-micro_batch_tokens", "8")
    expect(panel).to_contain_text('Micro-batch tokens must be at least 16, got "8"')


def test_a_measurement_takes_the_forecasts_place_and_stays(train: Page) -> None:
    panel = train.locator(PANEL)
    train.get_by_role("button", name="Measure it").click()
    expect(train.get_by_role("button", name="Measuring…")).to_be_disabled()
    expect(train.locator("#measuring")).to_contain_text("Measuring cited-answers-r16")
    expect(train.locator("#strip")).to_contain_text("measuring cited-answers-r16")
    expect(panel).to_contain_text("measured here", timeout=120_000)
    expect(train.locator("#measuring")).to_have_count(0)
    expect(train.get_by_role("button", name="Measure it")).to_be_enabled()
    expect(train.get_by_role("button", name="Start training")).to_be_enabled()
    fill(train, "lora-r", "8")
    expect(panel).not_to_contain_text("measured here")
    fill(train, "lora-r", "16")
    expect(panel).to_contain_text("measured here")
    train.reload()
    open_tab(train, "Train")
    expect(panel).to_contain_text("measured here")


def test_a_measurement_can_be_stopped(train: Page) -> None:
    fill(train, "lora-r", "24")
    # The panel has followed the field when the recipe of the button's click is known to be the new one.
    expect(train.locator(PANEL)).not_to_contain_text("measured here")
    train.get_by_role("button", name="Measure it").click()
    train.get_by_role("button", name="Stop measuring").click()
    expect(train.locator(PANEL)).to_contain_text("Measuring was stopped.", timeout=60_000)
    expect(train.get_by_role("button", name="Measure it")).to_be_enabled()


def test_a_finished_run_shows_its_forecast_beside_its_outcome(train: Page) -> None:
    open_all_settings(train)
    fill(train, "training-max_steps", "4")
    expect(train.locator(PANEL)).to_contain_text("4 of 8 rows")
    train.get_by_role("button", name="Start training").click()
    expect(train.locator("#run-head")).to_contain_text("State completed", timeout=180_000)
    table = train.locator("#forecast-outcome")
    for name in ("Peak memory", "Time a step", "Total time", "Disk"):
        expect(table).to_contain_text(name)
    expect(table).to_contain_text(re.compile(r"[+-]?\d+ %"))
