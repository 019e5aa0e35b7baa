"""The report's one style sheet: light and dark by the reader's own setting, wide and narrow by the window."""

from __future__ import annotations

from pipeline.report.markup import Html

__all__ = ["AGAIN", "COLOURS", "STYLE"]

COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7")
"""The classes that give a variant its colour; the first is the baseline's grey."""

AGAIN = "again"
"""The class of a variant whose colour another one has, too."""

STYLE = Html("""
:root { color-scheme: light dark;
  --ground: #fcfcfb; --ink: #1c1e21; --soft: #666b73; --faint: #9a9fa7; --line: #e3e4e6; --band: #f3f4f4;
  --good: #1a7f4b; --bad: #b8322a; --doubt: #96660a; --link: #1f5fbf;
  --c0: #7b818a; --c1: #2b6cb8; --c2: #c2660f; --c3: #148374; --c4: #7a4cc0; --c5: #b53a72; --c6: #6f7d12;
  --c7: #0f7fa3; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #16181b; --ink: #e6e7e9; --soft: #a1a6ae; --faint: #70767f; --line: #2d3136; --band: #1e2125;
  --good: #57c48a; --bad: #f0837a; --doubt: #dfb04f; --link: #83b2f5;
  --c0: #9aa0a9; --c1: #6aa5ec; --c2: #eb9a4d; --c3: #4cc0ae; --c4: #b193ec; --c5: #ea82b0; --c6: #b5c24f;
  --c7: #57bfe0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1020px; margin: 0 auto; padding: 40px 28px 64px; }
h1 { font-size: 28px; line-height: 1.2; font-weight: 650; letter-spacing: -0.015em; margin: 6px 0 8px;
  overflow-wrap: anywhere; }
h2 { font-size: 17px; font-weight: 650; margin: 44px 0 4px; padding-top: 16px; border-top: 1px solid var(--line); }
p { margin: 4px 0 10px; max-width: 72ch; overflow-wrap: anywhere; }
.note, .lead { max-width: 96ch; } .lead { font-size: 17px; } .note, .kicker { color: var(--soft); font-size: 13px; }
.kicker { margin: 0; }
code { font: 12.5px/1.4 ui-monospace, "SFMono-Regular", Menlo, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
a { color: var(--link); }
.warning { border-left: 3px solid var(--doubt); padding: 2px 12px; margin: 8px 0; }
.key { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px 28px;
  margin: 26px 0 6px; padding: 0; }
.key div { border-top: 2px solid var(--ink); padding-top: 8px; } .key dt { color: var(--soft); font-size: 13px; }
.key dd { margin: 0; font-size: 25px; font-weight: 650; letter-spacing: -0.01em; line-height: 1.25; }
.key small { display: block; font-size: 13px; font-weight: 400; letter-spacing: 0; color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin: 10px 0 4px; }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: 12.5px; vertical-align: bottom; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; } td small { display: block; color: var(--soft); font-size: 12.5px; }
td.figure, th.figure { text-align: right; white-space: nowrap; } table.snug { width: auto; min-width: 46%; }
tr.chosen { background: var(--band); }
tr.chosen td:first-child { box-shadow: -10px 0 0 var(--band); }
tr.chosen td:last-child { box-shadow: 10px 0 0 var(--band); }
tr.chosen strong::after { content: " chosen"; color: var(--good); font-size: 12px; font-weight: 500; }
tr.reason td { border-bottom: 1px solid var(--line); padding-top: 0; color: var(--soft); font-size: 13px;
  overflow-wrap: anywhere; }
tr.reasoned td { border-bottom: 0; padding-bottom: 2px; } tr.chosen.reason td { background: var(--band); }
.pass { color: var(--good); } .fail, .error { color: var(--bad); } .inconclusive { color: var(--doubt); }
.not_run { color: var(--soft); }
.verdict { font-weight: 600; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px;
  background: currentColor; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; padding: 0; margin: 10px 0 2px;
  font-size: 13px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 24px; }
figure { margin: 14px 0 0; } svg { display: block; max-width: 100%; height: auto; } .narrow { display: none; }
.meter { display: inline-block; height: 8px; border-radius: 2px; background: var(--c1); vertical-align: 1px;
  min-width: 1px; }
.meter.reused { background: var(--faint); opacity: 0.6; } td.track { width: 26%; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 4px 22px; margin: 10px 0; font-size: 14px; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.columns { display: grid; grid-template-columns: 1fr 1fr; gap: 0 48px; } h3 { font-size: 14px; margin: 14px 0 0;
  font-weight: 600; }
.c0 { --own: var(--c0); } .c1 { --own: var(--c1); } .c2 { --own: var(--c2); } .c3 { --own: var(--c3); }
.c4 { --own: var(--c4); } .c5 { --own: var(--c5); } .c6 { --own: var(--c6); } .c7 { --own: var(--c7); }
.swatch { color: var(--own); } .swatch.again { background: none; box-shadow: inset 0 0 0 2.5px currentColor; }
td.short { white-space: nowrap; } tr.dropped td:first-child { color: var(--soft); }
svg text { fill: var(--ink); font-size: 13px; } svg .tick { fill: var(--soft); font-size: 12px; }
svg .axis { fill: var(--soft); font-size: 12.5px; } svg .middle { text-anchor: middle; }
svg .end { text-anchor: end; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .ground { stroke: var(--line); }
svg .chosen { font-weight: 700; }
svg .name { paint-order: stroke; stroke: var(--ground); stroke-width: 4px; stroke-linejoin: round; }
svg .disc { fill: var(--own); fill-opacity: 0.32; stroke: var(--own); stroke-width: 1.75; }
svg .hollow { fill: var(--ground); fill-opacity: 0.5; stroke-dasharray: 4 3; }
svg .bar { stroke: var(--own); stroke-width: 2; } svg .series { fill: none; stroke: var(--own); stroke-width: 2;
  stroke-linejoin: round; }
svg .series.again { stroke-dasharray: 7 4; } svg .hill.again { fill-opacity: 0.08; }
svg .dot { fill: var(--ground); stroke: var(--own); stroke-width: 2; } svg .hill { fill: var(--own);
  fill-opacity: 0.28; stroke: var(--own); stroke-width: 1.25; }
svg .quantile { stroke: var(--own); stroke-width: 2; }
svg .sensitivity { fill: var(--c1); fill-opacity: 0.55; } svg .sensitivity.kept { fill: var(--c2); fill-opacity: 0.8; }
svg .tick.kept { fill: var(--c2); font-weight: 600; }
svg .limit { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 6 4; } svg .forbidden { fill: var(--bad);
  fill-opacity: 0.06; }
svg .front { fill: none; stroke: var(--ink); stroke-opacity: 0.55; stroke-width: 1.75; stroke-linejoin: round; }
svg .faint { fill: none; stroke: var(--faint); stroke-width: 1.5; } svg .leader { stroke: var(--faint); }
svg .off { fill: var(--soft); }
svg .limit-label { fill: var(--bad); font-size: 12.5px; }
@media (max-width: 860px) { .pair, .columns { grid-template-columns: 1fr; } }
@media (max-width: 640px) {
  main { padding: 22px 16px 40px; } h1 { font-size: 23px; } .lead { font-size: 16px; } .wide { display: none; }
  .narrow { display: block; }
  .key { grid-template-columns: 1fr 1fr; } .key dd { font-size: 21px; }
  .cards thead { display: none; } .cards, .cards tbody, .cards tr, .cards td { display: block; }
  .cards tr { padding: 10px 0; border-bottom: 1px solid var(--line); } .cards td { border: 0; padding: 1px 0;
  white-space: normal; }
  .cards td.figure { display: grid; grid-template-columns: 8.5em max-content 1fr; column-gap: 12px;
  align-items: baseline; text-align: left; }
  .cards td.figure::before { content: attr(data-label); color: var(--soft); font-size: 13px; }
  .cards td.empty { display: none; } .cards td.track { width: 100%; }
  .cards tr.reasoned { border-bottom: 0; padding-bottom: 0; } .cards tr.reason { padding-top: 0; }
  .cards tr.reason td { border: 0; }
  .cards tr.chosen { margin: 0 -16px; padding-left: 16px; padding-right: 16px; }
  .cards tr.chosen td { box-shadow: none; }
  .facts { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: 8px; } }
@media print { main { max-width: none; padding: 0; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
""")
