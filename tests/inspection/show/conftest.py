"""One Chromium for all tests of pages."""

import pytest

from tests.helpers.page_browser import tabs


@pytest.fixture(scope="session")
def shown(tmp_path_factory):
    """Gives the result of a script in a page, in a tab of a Chromium that all tests share."""
    with tabs(tmp_path_factory.mktemp("tabs")) as show:
        yield show
