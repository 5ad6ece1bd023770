"""Lists every experiment with its topic, sweeps and figures: python -m launch.list"""

import textwrap

from launch import app, registry

_WIDTH = 88


def main(args: list[str]) -> None:
    """Prints the table."""
    for name in registry.names():
        outline = registry.outline(name)
        print(name)
        rows = {
            "topic": outline.topic,
            "presets": "default " + " ".join(outline.presets),
            "sweeps": " ".join(outline.sweeps),
            "figures": " ".join(outline.figures),
        }
        for label, text in rows.items():
            first = f"  {label:<9}"
            print(
                textwrap.fill(
                    text,
                    _WIDTH,
                    initial_indent=first,
                    subsequent_indent=" " * len(first),
                )
            )
        print()
    print("Run one:   python -m launch.run --experiment=NAME")
    print("Sweep one: python -m launch.sweep --experiment=NAME --sweep=SWEEP")


if __name__ == "__main__":
    app.run(main)
