import csv
import io
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.reporting.tables import Table, number

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=20)


class _Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.cells, self.inside = [], False

    def handle_starttag(self, tag, attrs):
        if tag in ("td", "th"):
            self.inside = True
            self.cells.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.cells[-1] += data


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_every_cell_survives_the_page_and_the_spreadsheet(rows):
    table = Table("a < b", ("name", "x"), rows)
    parser = _Cells()
    parser.feed(table.html())
    parser.close()
    expected = ["name", "x", *(cell for row in rows for cell in row)]
    assert parser.cells == expected
    read = list(csv.reader(io.StringIO(table.csv(), newline="")))
    assert [cell for row in read for cell in row] == expected


def test_a_document_escapes_bars_and_lines_up_numbers():
    text = Table("Title", ("name", "x"), [("a|b", "1")], "A note.").markdown()
    assert text == "### Title\n\n| name | x |\n| --- | ---: |\n| a\\|b | 1 |\n\nA note.\n"


def test_a_missing_number_is_a_dash():
    assert (number(None), number(0.25, ".0%"), number(2.0)) == ("-", "25%", "2.000")
