"""Write the parts of the documentation that come from the registry: `python docs/generate.py`, or `make docs`.

README.md, docs/methods.md and docs/interventions.md have markers; what stands between them is made here from
`heatproof.methods()`, the table of interventions, and the docstrings of both. `tests/test_docs.py` fails while a file is stale.
The README's table of cards takes minutes and has times in it: `python docs/generate.py audit` writes it.
"""

import dataclasses
import inspect
import re
import sys
from pathlib import Path

import heatproof as hp
from heatproof.proof.battery import OF_METHODS, TESTS, markdown

ROOT = Path(__file__).resolve().parent.parent


def between(text: str, name: str, content: str) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    if not re.search(pattern, text, re.DOTALL):
        raise ValueError(f"there are no markers <!-- {name} --> and <!-- /{name} -->; put them back.")
    return re.sub(pattern, lambda found: f"{found[1]}\n{content}\n\n{found[2]}", text, flags=re.DOTALL)


def reference() -> str:
    """Every method's docstring, by family, with its options and their defaults."""
    parts = []
    for family in dict.fromkeys(row.family for row in hp.methods()):
        parts.append(f"## {family}")
        for row in hp.methods():
            if row.family == family:
                options = ", ".join(f"`{name}={value!r}`" for name, value in row.options.items()) or "none"
                text = inspect.getdoc(row.kind()) or ""
                parts.append(f"### `{row.name}`\n\n{_blocks(text)}\n\nOptions: {options}.")
    return "\n\n".join(parts)


def interventions() -> str:
    """Every intervention's docstring, with its options and their defaults."""
    parts = []
    for name, kind in (TESTS | OF_METHODS).items():
        options = ", ".join(f"`{f.name}={f.default!r}`" for f in dataclasses.fields(kind))
        parts.append(f"### `{name}`\n\n{_blocks(inspect.getdoc(kind) or '')}\n\nOptions: {options}.")
    return "\n\n".join(parts)


def _blocks(text: str) -> str:
    """A docstring as Markdown: its `Args:`, `Returns:` and `Raises:` blocks become paragraphs and lists."""
    lines = []
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises):", line):
            lines += [f"*{line}*", ""]
        elif re.match(r"    \w[\w, ]*: ", line):
            name, rest = line.strip().split(": ", 1)
            lines.append(f"- `{name}`: {rest}")
        elif line.startswith("        "):
            lines.append("  " + line.strip())
        else:
            lines.append(line.strip())
    return "\n".join(lines)


def pages() -> dict[Path, str]:
    """Each generated file, and what it should hold."""
    table = hp.methods().markdown()
    readme, methods, proof = ROOT / "README.md", ROOT / "docs" / "methods.md", ROOT / "docs" / "interventions.md"
    return {
        readme: between(readme.read_text("utf-8"), "methods", table),
        methods: between(between(methods.read_text("utf-8"), "methods", table), "reference", reference()),
        proof: between(between(proof.read_text("utf-8"), "tests", markdown()), "reference", interventions()),
    }


def cards() -> str:
    """The card of every method, as `heatproof audit --all --markdown` prints them."""
    from heatproof.audit import audit
    from heatproof.proof.card import markdown as table

    return table([audit(name) for name in hp.methods().names])


if __name__ == "__main__":
    if "audit" in sys.argv[1:]:
        readme = ROOT / "README.md"
        readme.write_text(between(readme.read_text("utf-8"), "audit", cards()), "utf-8")
    for path, text in pages().items():
        path.write_text(text, "utf-8")
        print(path.relative_to(ROOT))
