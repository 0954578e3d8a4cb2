"""The style sheets: light and dark, wide and narrow, screen and paper."""

# Also of a plot that stands alone, where :root is the plot.
_PALETTE = """
:root { color-scheme: light dark; --ink: #1a1c20; --mute: #5a6069; --page: #fff; --soft: #f4f6f8;
  --rule: #d9dee4; --accent: #08457c;
  --c0: #0062a3; --c1: #c24e00; --c2: #00785a; --c3: #a5437c; --c4: #6a6f00; --c5: #5b4bb5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaee; --mute: #a3abb5; --page: #14171b;
  --soft: #1d2126; --rule: #343a42; --accent: #7cc0f5;
  --c0: #5db4f5; --c1: #f79b57; --c2: #4fcaa5; --c3: #ea93c5; --c4: #c9ce55; --c5: #b1a5f5; } }
"""
_COLOURS = "\n".join(
    f".s{n} {{ stroke: var(--c{n}); }} circle.s{n}, rect.s{n}, polygon.s{n} {{ fill: var(--c{n}); "
    f"stroke: none; }} svg .t{n} {{ fill: var(--c{n}); font-weight: 600; }}"
    for n in range(6)
)
FIGURE_STYLE = (
    _PALETTE
    + """
svg { font-size: 12.5px; }
svg text { fill: var(--ink); }
svg .mute { fill: var(--mute); }
svg .strong { font-weight: 650; }
.grid { stroke: var(--rule); stroke-width: 1; }
.bar { stroke-width: 2.5; }
.line { fill: none; stroke-width: 2.2; }
.thin { fill: none; stroke-width: 1; opacity: .4; }
.band { opacity: .13; stroke: none; }
.whisker { stroke-width: 1.5; }
.box { opacity: .85; }
.median { stroke: var(--page); stroke-width: 2; }
.own { stroke: var(--c1); stroke-width: 3; }
"""
    + _COLOURS
)
PAGE_STYLE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main, header { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
main { padding-bottom: 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.015em; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; padding-top: 1rem;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
body { overflow-wrap: anywhere; }
p { max-width: 44rem; margin: .5rem 0; }
.lead { font-size: 1.1rem; }
.mute, caption { color: var(--mute); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1.1rem 0 0; font-size: .93rem; }
a { color: var(--accent); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13.5rem, 1fr)); gap: .8rem;
  margin: 1.3rem 0; }
.card { background: var(--soft); border-radius: 8px; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.55rem; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.card span { color: var(--mute); font-size: .88rem; }
.scroll { overflow-x: auto; margin: .9rem 0; }
.scroll:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: .88rem; padding-bottom: .35rem; }
th, td { padding: .28rem .9rem .28rem 0; text-align: left; vertical-align: top; font-weight: 400;
  border-bottom: 1px solid var(--rule); overflow-wrap: normal; }
td:nth-child(2):not(.n) { min-width: 9rem; }
thead th { font-weight: 600; border-bottom: 2px solid var(--ink); }
.n { text-align: right; white-space: nowrap; }
.marked > * { font-weight: 650; }
figure { margin: 1rem 0; }
figcaption { color: var(--mute); font-size: .88rem; max-width: 44rem; }
svg { display: block; width: 100%; height: auto; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--accent); }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  background: var(--soft);
  padding: .08em .3em; border-radius: 4px; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { font-size: 15px; } h1 { font-size: 1.5rem; }
  td:nth-child(2):not(.n) { min-width: 0; }
  header { padding-top: 1.5rem; } }
@media print { :root { color-scheme: light; } body { font-size: 10.5pt; } nav { display: none; }
  main, header { max-width: none; padding: 0; } h2, h3 { break-after: avoid; }
  figure, table, .card { break-inside: avoid; } .scroll { overflow: visible; }
  a { color: inherit; }
  details::details-content { content-visibility: visible; block-size: auto; } }
"""
