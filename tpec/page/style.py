"""The page's style sheet: the report's two themes, by what the reader's system prefers, from a phone's width on."""

from .theme import THEMES, Theme


def _colours(theme: Theme) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in theme._asdict().items())


STYLE = f"""
:root {{ color-scheme: light; {_colours(THEMES["light"])} }}
@media (prefers-color-scheme: dark) {{ :root {{ color-scheme: dark; {_colours(THEMES["dark"])} }} }}
""" + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
main { max-width: 1440px; margin: 0 auto; padding: clamp(20px, 4vw, 56px); }
h1 { margin: 0 0 .5em; font-size: clamp(1.6rem, 3.2vw, 2.6rem); line-height: 1.15; letter-spacing: -.015em;
  text-wrap: balance; }
h2 { margin: 0 0 .6em; font-size: 1.1rem; }
h3 { margin: 0 0 14px; font-size: .9rem; font-weight: 600; }
p { margin: 0 0 .6em; }
code { font: .9em/1.4 ui-monospace, "SF Mono", Consolas, "Liberation Mono", monospace; overflow-wrap: anywhere; }
small, .quiet, dt, footer, .tick, .numbers, .legend, .worst span { color: var(--quiet); }
small { font-size: .85em; font-weight: 400; }
i.plain, .legend .plain::before { background: var(--plain); }
i.result, .legend .result::before { background: var(--result); }
.legend .mark::before { background: var(--mark); }
rect.plain { fill: var(--plain); } rect.result { fill: var(--result); } rect.mark { fill: var(--mark); }
rect.band { fill: var(--grid); opacity: .45; }
main > * { margin-bottom: clamp(32px, 4vw, 56px); }

header { display: grid; grid-template-columns: minmax(0, 1fr); gap: 28px; }
.eyebrow { color: var(--result); font-weight: 600; font-size: .85rem; margin-bottom: .4em; }
.names { font-size: 1.02rem; }
.sizes .row { display: grid; grid-template-columns: 3.6em minmax(0, 1fr) 4.8em; gap: 10px; align-items: center;
  margin-bottom: 8px; }
.sizes .row > span { color: var(--quiet); }
.sizes .row > b { text-align: right; }
.sizes i { display: block; height: 22px; border-radius: 3px; min-width: 2px; }
.sizes p { text-align: right; color: var(--quiet); }
.sizes strong { color: var(--ink); font-size: 1.25em; }

.notes { list-style: none; padding: 0; }
.notes li { padding: 4px 0 4px 14px; border-left: 3px solid var(--plain); margin-bottom: 6px; overflow-wrap: anywhere; }
.notes .warning { border-color: var(--mark); }

.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 24px; padding: 0; margin: 0 0 26px;
  font-size: .9rem; }
.legend li::before { content: ""; display: inline-block; width: 12px; height: 12px; border-radius: 2px;
  margin-right: 8px; vertical-align: -1px; }
.plots { display: flex; flex-wrap: wrap; gap: 34px 28px; }
.plot { flex: 1 1 0; min-width: 200px; padding-left: 46px; }
.bare { align-self: flex-end; }
.area { position: relative; height: clamp(150px, 20vw, 250px); }
.bare .area { height: 10px; }
.area svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.tick { position: absolute; left: -46px; right: 0; font-size: .75rem; line-height: 1; }
.tick { border-bottom: 1px solid var(--grid); padding-bottom: 3px; }
.rank { position: absolute; transform: translate(-50%, -3px); color: var(--mark); font-size: .85rem; line-height: 1; }
.numbers { position: relative; height: 1.6em; font-size: .75rem; }
.numbers span { position: absolute; top: 6px; transform: translateX(-50%); }
@media (max-width: 640px) { .numbers .wide { display: none; } .plot { flex-basis: 100%; } }

.columns { display: grid; grid-template-columns: minmax(0, 1fr); gap: clamp(32px, 4vw, 56px); }
.worst { margin: 0; padding-left: 1.6em; }
.worst li { margin-bottom: 14px; padding-left: .3em; }
.worst li::marker { color: var(--mark); font-weight: 600; }
.worst b { color: var(--ink); }
.pair { position: relative; height: 10px; }
.pair i { position: absolute; inset: 0 auto 0 0; border-radius: 2px; min-width: 1px; }
.pair .result { top: 2px; bottom: 2px; }
.worst .pair { margin: 5px 0; }
summary { cursor: pointer; }
.kept details { border-bottom: 1px solid var(--grid); padding: 8px 0; }
.kept details p { margin: 8px 0 4px; }
.kept summary small { margin-left: 4px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 6px 18px; margin: 0; }
dt { max-width: 11em; }
dd { margin: 0; overflow-wrap: anywhere; }

.all > summary { font-size: 1.1rem; font-weight: 600; margin-bottom: 16px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: 5px 14px 5px 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, td[colspan], th:last-child, td:last-child { text-align: left; }
td:first-child { min-width: 15em; white-space: normal; }
td:nth-child(2) { min-width: 130px; }
td[colspan] { white-space: normal; color: var(--quiet); }
td b { color: var(--mark); }
thead th { color: var(--quiet); font-weight: 400; border-bottom: 1px solid var(--grid); }
tbody th { padding-top: 18px; overflow-wrap: anywhere; white-space: normal; }
tbody td { border-bottom: 1px solid var(--grid); }
footer { font-size: .85rem; margin: 0; }

@media (min-width: 900px) {
  header { grid-template-columns: minmax(0, 1.5fr) minmax(300px, 1fr); gap: 64px; align-items: end; }
  .two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .three { grid-template-columns: repeat(3, minmax(0, 1fr)); }
}
"""
