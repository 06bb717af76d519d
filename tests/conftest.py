"What all tests share: the `--slow` option, one thread per process, and the things that are not on every machine."
import os, shutil, tempfile
from pathlib import Path

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')    # two processes with one thread each beat one with two
os.environ.setdefault('MPLBACKEND', 'Agg')
os.environ.setdefault('DISTILL_CACHE', str(Path(tempfile.gettempdir())/'distill-test-cache'))    # not the user's own
os.environ['DISTILL_HOME'] = tempfile.mkdtemp(prefix='distill-test-home-')    # a new one: its library is empty

ROOT = Path(__file__).resolve().parent.parent
CHROMES = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome', 'msedge',
           '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome',
           r'C:\Program Files\Google\Chrome\Application\chrome.exe']


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='also run slow tests and `#| slow` notebook cells')


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes minutes; runs with --slow')


FIRST = ['test_notebooks.py', 'test_train_panel_browser.py', 'test_editor_browser.py', 'test_panels_browser.py',
         'test_codes_library_browser.py', 'test_fit.py', 'test_cli.py', 'test_cli_errors.py']    # they take the longest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "A file of tests stays in one process: they share what was set up for them, and some follow one another on a page."
    from xdist.scheduler import LoadFileScheduling
    class ByFile(LoadFileScheduling):    # but a notebook is a file by itself
        def _split_scope(self, nodeid): return nodeid if 'test_notebooks.py' in nodeid else super()._split_scope(nodeid)
    return ByFile(config, log)


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))
    if config.getoption('--slow'): return
    for item in items:
        if item.get_closest_marker('slow'): item.add_marker(pytest.mark.skip(reason='slow: run with --slow'))


@pytest.fixture(scope='session')
def root():
    "The root of the repository."
    return ROOT


@pytest.fixture(scope='session')
def audio_dir():
    "The folder of real recordings: `$DISTILL_AUDIO`, else `../shared/audio` beside the repository."
    folder = Path(os.environ.get('DISTILL_AUDIO') or ROOT.parent/'shared'/'audio')
    if not folder.is_dir(): pytest.skip(f'no recordings at {folder}: set DISTILL_AUDIO')
    return folder


@pytest.fixture(scope='session')
def chromium():
    "The path of a Chromium or Chrome on this machine."
    found = next(filter(None, map(shutil.which, CHROMES)), None)
    return found or pytest.skip('no Chromium or Chrome on this machine')


@pytest.fixture(scope='module')
def browser(chromium):
    "That Chromium, running."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--autoplay-policy=no-user-gesture-required'])
        yield browser
        browser.close()
