"""Laws of a page: HTML that is balanced, self-contained, and has a text for every picture."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "hr", "input", "col", "wbr"}
INLINE_ONLY = {"p", "h1", "h2", "h3", "span", "b", "strong", "figcaption", "summary"}
BLOCKS = {"p", "div", "table", "ul", "section", "article", "figure", "pre", "details"}
PARENTS = {
    "li": {"ul", "ol"},
    "tr": {"thead", "tbody"},
    "td": {"tr"},
    "th": {"tr"},
    "thead": {"table"},
    "tbody": {"table"},
    "caption": {"table"},
    "figcaption": {"figure"},
    "summary": {"details"},
}


class Page(HTMLParser):
    """Collects `problems`, the ids, the headings and the text of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.problems = [], [], []
        self.tags, self.text, self.headings = [], [], []
        self.feed(text)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self.open]
        self.problems += [f"id {i} twice" for i in {*self.ids} if self.ids.count(i) > 1]
        if not text.startswith("<!DOCTYPE html>"):
            self.problems.append("no doctype")
        used = re.findall(r'(?:url\(#|href="#)([^")]+)', text)
        self.problems += [f"no id {name}" for name in {*used} - {*self.ids}]

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        given = dict(attributes)
        where = f"line {self.getpos()[0]}: <{tag}>"
        if len(names) != len(given):
            self.problems.append(f"{where} has an attribute twice")
        parent = self.open[-1] if self.open else ""
        if tag in PARENTS and parent not in PARENTS[tag] and "svg" not in self.open:
            self.problems.append(f"{where} in <{parent}>")
        if tag in BLOCKS and INLINE_ONLY & {*self.open}:
            self.problems.append(f"{where} inside of {self.open}")
        for name in ("src", "href", "srcset", "action", "data", "xlink:href"):
            value = given.get(name) or "#"
            if not value.startswith(("#", "data:")):
                self.problems.append(f"{where} loads {value}")
        if tag in ("script", "iframe", "object", "embed", "base"):
            self.problems.append(f"{where} is not wanted")
        if tag == "img" and not (given.get("alt") or "").strip():
            self.problems.append(f"{where} has no alt")
        if tag == "svg" and not (given.get("aria-label") or "").strip():
            self.problems.append(f"{where} has no text")
        self.ids += [given["id"]] if "id" in given else []
        self.tags.append((tag, given))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            if "svg" not in self.open[:-1]:
                self.problems.append(f"<{tag}/> is no HTML")
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            line = self.getpos()[0]
            self.problems.append(f"line {line}: </{tag}> closes nothing")

    def handle_data(self, data):
        if self.open[-1:] == ["style"]:
            if re.search(r"@import|url\((?!#|data:)|@font-face", data):
                self.problems.append("the style loads something")
            return
        self.text.append(data)
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)

    @property
    def words(self):
        """The text that a reader sees."""
        return " ".join(" ".join(self.text).split())
