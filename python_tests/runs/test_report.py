"""The page of a run: well formed, self-contained, escaped."""

from html.parser import HTMLParser

from catapult_ext.runs import report


class Strict(HTMLParser):
    """Checks that tags close in order and that nothing is loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        assert all(not str(v).startswith(("http", "//", "file")) for _, v in attrs)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] in ("td", "h1", "p"):
            self.cells.append(text)


def test_report_is_well_formed_self_contained_and_escaped():
    rows = [{"c": "0.5", "phase": "lazy"}, {"c": "<9>", "phase": "divergent"}]
    page = report.page("A & B", ["<found>"], rows, {"a < b": b"png"}, {"Config": {"x": "</pre>"}})
    parser = Strict()
    parser.feed(page)
    assert parser.open == []
    assert parser.cells == ["A & B", "<found>", "0.5", "lazy", "<9>", "divergent"]
    assert '<tr class="divergent">' in page
    assert "data:image/png;base64,cG5n" in page


def test_pages_have_a_dark_form_and_tables_that_scroll():
    page = report.page("A", ["found"], [{"c": "1", "phase": "flat"}], {}, {})
    assert "@media screen and (prefers-color-scheme: dark)" in page
    assert "color-scheme: light dark" in page
    assert '<div class="wide"><table>' in page
    assert "overflow: auto; max-height: 85vh" in page
    assert "tr.flat td" in page
